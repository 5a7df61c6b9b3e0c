"""Signing in where the server gives no token away."""

import pytest
from playwright.async_api import Browser, Route, expect

from tests.browser.conftest import Server, visit
from tests.browser.person import Person

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]


async def test_without_a_development_token_the_page_asks_for_one(browser: Browser, server: Server) -> None:
    async def not_found(route: Route) -> None:
        await route.fulfill(status=404, body="Not Found")

    async with visit(browser, "about:blank", ignoring=("404 (Not Found)",)) as page:
        await page.route("**/dev/token", not_found)
        await page.goto(server.url)
        person = Person(page)
        token = page.get_by_label("Access token")
        await expect(person.connection).to_have_text("Signed out")
        await expect(token).to_be_focused()
        await expect(person.box).to_be_hidden()

        await token.fill("not-a-token")
        await token.press("Enter")

        await expect(page.get_by_role("alert")).to_have_text(
            "The server did not accept this token. Check it and try again."
        )
        await expect(token).to_have_value("")

        await token.fill(server.token())
        await token.press("Enter")

        await person.wait_until_connected()
        await expect(person.box).to_be_focused()
        answer = await person.say("Hello")
        await person.wait_until(answer, "completed")
        assert await page.evaluate("[localStorage.length, Object.keys(sessionStorage)]") == [
            0,
            ["flueman.conversation"],
        ]
