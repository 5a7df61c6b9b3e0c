"""Losing the server and finding it again, and signing in where the server gives no token away."""

import signal

import pytest
from playwright.async_api import Browser, Route, expect

from tests.browser.conftest import AWAY, Server, visit
from tests.browser.person import Person

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]


async def test_a_killed_server_is_noticed_and_found_again(browser: Browser, mortal_server: Server) -> None:
    async with visit(browser, mortal_server.url, ignoring=AWAY) as page:
        person = Person(page)
        await person.wait_until_connected()
        answer = await person.say("[tokens 2000] Go on")
        await person.wait_until_speaking(answer)

        mortal_server.stop(signal.SIGKILL)

        await expect(person.connection).to_have_text("Reconnecting")
        await person.wait_until(answer, "interrupted")
        await expect(answer).to_contain_text("The connection was lost here. The rest of this answer did not arrive.")
        said = await person.words(answer)
        assert said
        await person.box.fill("Are you there?")
        await person.box.press("Enter")
        await expect(person.notice).to_contain_text("Your message stays here")
        await expect(person.box).to_have_value("Are you there?")

        mortal_server.start()

        await person.wait_until_connected()
        await expect(person.log.locator(".divider")).to_contain_text("New conversation")
        assert await person.words(answer) == said
        await person.box.press("Enter")
        await person.wait_until(person.answers.nth(1), "completed")


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
        assert await page.evaluate("localStorage.length + sessionStorage.length") == 0
