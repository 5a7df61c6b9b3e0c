"""Losing the connection and finding it again, and signing in where the server gives no token away."""

import json
import re

import pytest
from playwright.async_api import Browser, Page, Route, WebSocketRoute, expect

from tests.browser.conftest import Server, visit
from tests.browser.link import link_to
from tests.browser.person import Person
from tests.browser.talk import (
    REALTIME,
    talk,
)

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

PLACES = """() => ["#face", "h1", ".pace", "#transcript", ".answer", "#message"].map((name) => {
  const { x, y, width, height } = document.querySelector(name).getBoundingClientRect();
  return [name, x, y, width, height];
})"""


async def test_a_link_that_died_without_a_word_is_given_up(browser: Browser, server: Server) -> None:
    """No close ever comes: what was sent and not answered is sent again on another connection.

    The first is left with no code: "normal" would end the conversation.
    """
    connections: list[WebSocketRoute] = []
    codes: list[int | None] = []

    def carry(page_side: WebSocketRoute) -> None:
        connections.append(page_side)
        is_first, server_side = len(connections) == 1, page_side.connect_to_server()

        def forward(frame: str | bytes) -> None:
            if not (is_first and json.loads(frame)["type"] != "session.update"):
                server_side.send(frame)

        page_side.on_message(forward)
        page_side.on_close(lambda code, _: codes.append(code))

    async def prepare(page: Page) -> None:
        await page.clock.install()
        await page.route_web_socket(REALTIME, carry)

    async with talk(browser, server.url, prepare) as (person, _):
        answer = await person.say("[echo at last]")
        await person.wait_until(answer, "waiting")

        await person.page.clock.fast_forward(20_000)

        await person.wait_until(answer, "completed")
        assert len(connections) == 2
        assert codes[0] in (None, 1005)
        await expect(person.answers).to_have_count(1)


async def test_a_connection_on_which_nothing_is_said_is_left_alone(browser: Browser, server: Server) -> None:
    """Silence is suspicious only after something was sent."""
    async with talk(browser, server.url, lambda page: page.clock.install()) as (person, wire):
        await person.page.clock.fast_forward(3_600_000)

        await person.wait_until(await person.say("[echo hi]"), "completed")
        await person.page.clock.fast_forward(3_600_000)

        await person.wait_until(await person.say("[echo hi again]"), "completed")
        assert wire.num_sent("session.update") == [1]


async def test_a_browser_that_is_online_again_connects_at_once(browser: Browser, server: Server) -> None:
    """The clock stands still, so no retry can be due."""
    async with (
        link_to(server.port) as link,
        talk(browser, link.url, lambda page: page.clock.install()) as (person, _),
    ):
        page = person.page
        # Before the link goes: else a try that the pause itself brings on may find the link up again.
        await page.clock.pause_at(await page.evaluate("Date.now() + 60_000"))
        await link.go_down()
        await expect(person.connection).to_have_text("Reconnecting")
        await link.go_up()

        await page.evaluate("dispatchEvent(new Event('online'))")

        await person.wait_until_connected()


@pytest.mark.parametrize("width", [360, 1280])
async def test_nothing_moves_when_the_connection_goes_and_comes(browser: Browser, server: Server, width: int) -> None:
    """And who cannot see it is told politely."""
    async with link_to(server.port) as link, talk(browser, link.url) as (person, _):
        page = person.page
        await page.set_viewport_size({"width": width, "height": 800})
        await page.emulate_media(reduced_motion="reduce")
        await person.wait_until(await person.say("[echo hi]"), "completed")
        before = await page.evaluate(PLACES)

        await link.go_down()
        await expect(page.get_by_role("button", name="Try now")).to_be_visible()

        assert await page.evaluate(PLACES) == before
        await expect(page.get_by_role("status").first).to_contain_text(re.compile("Reconnecting|Offline"))
        await link.go_up()
        await person.wait_until_connected()
        assert await page.evaluate(PLACES) == before


async def test_close_codes_and_waits_are_what_clients_agree_on(browser: Browser, server: Server) -> None:
    """As in openai-python and openai-node; ours are those for a token and for another tab."""
    async with visit(browser, server.url) as page:
        judged = await page.evaluate(
            """async (codes) => {
                const { judge } = await import("/web/reconnect.js");
                return codes.map((code) => judge(code, null).remedy);
            }""",
            [1001, 1005, 1006, 1011, 1012, 1013, 1015, 3000, 4401, 1000, 1003, 1007, 1008, 1009, 4000, 4001],
        )
        waits = await page.evaluate(
            """async () => {
                const { Backoff } = await import("/web/reconnect.js");
                const backoff = new Backoff();
                return Array.from({ length: 9 }, () => backoff.next());
            }"""
        )

    assert judged == ["retry"] * 7 + ["new_token"] * 2 + ["stop"] * 6 + ["taken"]
    ceilings = [0, 500, 1000, 2000, 4000, 8000, 10_000, 10_000, 10_000]
    assert [ceiling / 2 <= wait <= ceiling for wait, ceiling in zip(waits, ceilings, strict=True)] == [True] * 9


@pytest.mark.parametrize(("status", "phrase"), [(404, "Not Found"), (403, "Forbidden")])
async def test_without_a_development_token_the_page_asks_for_one(
    browser: Browser, server: Server, status: int, phrase: str
) -> None:
    """A server in production has none; one in development gives none to another machine, such as a phone."""

    async def refuse(route: Route) -> None:
        await route.fulfill(status=status, body=phrase)

    async with visit(browser, "about:blank", ignoring=(f"{status} ({phrase})",)) as page:
        await page.route("**/dev/token", refuse)
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
