"""Whatever is said reaches the dialogue once, and is asked for once, however the connection fails meanwhile. P2."""

import json
import signal
from pathlib import Path

import pytest
from playwright.async_api import Browser, Page, WebSocketRoute, expect

from tests.browser.conftest import Server
from tests.browser.link import link_to
from tests.browser.talk import (
    REALTIME,
    make_gaps,
    questions,
    talk,
)

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

SAY_AT_ONCE = """(texts) => {
  for (const text of texts) {
    document.querySelector("#message").value = text;
    document.querySelector("#composer").requestSubmit();
  }
}"""


class BreakingWire:
    """A page's connections to its server, of which the first breaks after the page has said `said`.

    From then on the page's events of the kind `lost`, and all after them, do not arrive, and the server's are `shown` or not. It breaks
    when the server sends an event of the kind `until`, or, without one, at the first that is lost.
    """

    def __init__(self, said: str, *, lost: str = "", shown: bool = True, until: str = "") -> None:
        self.sent: list[list[str]] = []
        self._said = said
        self._lost = lost
        self._is_shown = shown
        self._until = until

    async def lay(self, page: Page) -> None:
        """Every connection the page makes from now on goes this way."""
        await page.route_web_socket(REALTIME, self._carry)

    def _carry(self, page_side: WebSocketRoute) -> None:
        server_side = page_side.connect_to_server()
        kinds: list[str] = []
        self.sent.append(kinds)
        is_first, has_begun, is_lost = len(self.sent) == 1, False, False

        async def forward(frame: str | bytes) -> None:
            nonlocal has_begun, is_lost
            kinds.append(json.loads(frame)["type"])
            has_begun = has_begun or (is_first and self._said in str(frame))
            is_losing = has_begun and not is_lost and kinds[-1] == self._lost
            is_lost = is_lost or is_losing
            if not is_lost:
                server_side.send(frame)
            elif is_losing and not self._until:
                await page_side.close(code=1011)

        async def back(frame: str | bytes) -> None:
            if self._is_shown or not has_begun:
                page_side.send(frame)
            if has_begun and json.loads(frame)["type"] == self._until:
                await page_side.close(code=1011)

        page_side.on_message(forward)
        server_side.on_message(back)


async def test_what_is_said_while_the_connection_is_away_is_sent_once(browser: Browser, server: Server) -> None:
    """Two messages: one turn, when the connection is back."""
    async with link_to(server.port) as link, talk(browser, link.url) as (person, wire):
        await link.go_down()
        await expect(person.connection).to_have_text("Reconnecting")

        for text in ("[echo one]", "[echo two]"):
            await person.box.fill(text)
            await person.box.press("Enter")
        waiting = person.log.get_by_text("Waiting for the connection")
        await expect(waiting).to_have_count(2)
        await expect(waiting.first).to_be_visible()
        await expect(person.answers).to_have_count(0)
        await link.go_up()

        await person.wait_until(person.answers.first, "completed")
        await expect(waiting).to_have_count(0)
        assert await questions(person) == ["[echo one]", "[echo two]"]
        await person.wait_until(await person.say("[echo three]"), "completed")
        assert wire.num_sent("conversation.item.create", "response.create") == [3, 2]
        assert wire.num_received("conversation.item.done", "response.created", "error") == [5, 2, 0]
        await expect(person.answers).to_have_count(2)


async def test_a_message_whose_acknowledgement_was_lost_is_not_sent_twice(browser: Browser, server: Server) -> None:
    """P2: the server had it all; the page finds that out, and asks for nothing again."""
    wire = BreakingWire("once", shown=False, until="response.created")
    async with talk(browser, server.url, wire.lay) as (person, _):
        answer = await person.say("[pace 25] [tokens 20] once")

        await person.wait_until(answer, "completed")
        await person.wait_until(await person.say("[echo and on]"), "completed")
        order = ["session.update", "conversation.item.create", "response.create"]
        assert wire.sent == [order, order]
        assert await questions(person) == ["[pace 25] [tokens 20] once", "[echo and on]"]
        assert len((await person.words(answer)).split()) == 20
        await expect(person.answers).to_have_count(2)


@pytest.mark.parametrize("lost", ["conversation.item.create", "response.create"])
async def test_what_did_not_arrive_is_sent_again(browser: Browser, server: Server, lost: str) -> None:
    """P2: only what the server lacks."""
    wire = BreakingWire("here I am", lost=lost)
    async with talk(browser, server.url, wire.lay) as (person, _):
        answer = await person.say("[echo here I am]")

        await person.wait_until(answer, "completed")
        order = ["conversation.item.create", "response.create"]
        assert wire.sent[1:] == [["session.update", *order[order.index(lost) :]]]
        assert await person.words(answer) == "here I am"
        assert await questions(person) == ["[echo here I am]"]
        await expect(person.answers).to_have_count(1)
        await expect(person.notice).to_be_empty()


async def test_a_message_on_the_heels_of_another_is_asked_for_once(browser: Browser, server: Server) -> None:
    """The first is not even acknowledged when the second interrupts it."""
    async with talk(browser, server.url) as (person, wire):
        await person.page.evaluate(SAY_AT_ONCE, ["[wait 60] one", "[echo two]"])

        await person.wait_until(person.answers.first, "cancelled")
        await person.wait_until(person.answers.nth(1), "completed")
        assert wire.num_sent("conversation.item.create", "response.create", "response.cancel") == [2, 2, 1]
        assert wire.num_received("response.created", "error") == [2, 0]
        assert await questions(person) == ["[wait 60] one", "[echo two]"]


async def test_what_was_not_sent_yet_outlives_a_reload(browser: Browser, server: Server) -> None:
    async with link_to(server.port) as link, talk(browser, link.url) as (person, wire):
        await person.wait_until(await person.say("[echo before]"), "completed")
        await link.go_down()
        await expect(person.connection).to_have_text("Reconnecting")
        await person.box.fill("[echo kept]")
        await person.box.press("Enter")
        await expect(person.log.locator("article.question")).to_have_count(2)
        # Without a page to run, nothing can be sent before the reload.
        await person.page.goto("about:blank")
        await link.go_up()

        await person.page.goto(link.url)

        await person.wait_until(person.answers.nth(1), "completed")
        assert await questions(person) == ["[echo before]", "[echo kept]"]
        await person.page.reload()
        await person.wait_until_connected()
        assert await questions(person) == ["[echo before]", "[echo kept]"]
        await expect(person.answers).to_have_count(2)
        assert wire.num_sent("conversation.item.create", "response.create") == [2, 2]


async def test_what_was_answered_within_a_gap_is_not_asked_again(browser: Browser, server: Server) -> None:
    """P2: the items say so, though the events are gone."""
    wire = BreakingWire("second", shown=False, until="response.done")
    async with talk(browser, server.url, make_gaps, wire.lay) as (person, _):
        await person.wait_until(await person.say("[echo first]"), "completed")

        await person.say("[echo second]")

        await expect(person.log.locator(".gap")).to_be_visible()
        await person.wait_until_connected()
        assert wire.sent[1:] == [["session.update"]]
        await person.wait_until(await person.say("[echo third]"), "completed")
        assert await questions(person) == ["[echo first]", "[echo second]", "[echo third]"]
        assert [await person.words(answer) for answer in await person.answers.all()] == ["first", "second", "third"]


async def test_what_was_not_answered_within_a_gap_is_asked_again(browser: Browser, server: Server) -> None:
    """P2: the message was acknowledged, the request for its answer lost; an earlier answer is not taken for its own."""
    wire = BreakingWire("second", lost="response.create", until="conversation.item.done")
    async with talk(browser, server.url, make_gaps, wire.lay) as (person, _):
        await person.wait_until(await person.say("[echo first]"), "completed")

        await person.say("[echo second]")

        await expect(person.log.locator(".gap")).to_be_visible()
        await person.wait_until(person.answers.nth(1), "completed")
        assert wire.sent[1:] == [["session.update", "response.create"]]
        assert await questions(person) == ["[echo first]", "[echo second]"]
        assert [await person.words(answer) for answer in await person.answers.all()] == ["first", "second"]


async def test_what_a_lost_conversation_did_not_get_is_said_in_the_new_one(
    browser: Browser, mortal_server: Server, tmp_path: Path
) -> None:
    """And stands below the line that says so."""
    wire = BreakingWire("second", lost="conversation.item.create", until="nothing")
    async with talk(browser, mortal_server.url, wire.lay) as (person, _):
        await person.wait_until(await person.say("[echo first]"), "completed")
        await person.wait_until(await person.say("[echo second]"), "waiting")

        mortal_server.stop(signal.SIGKILL)
        for file in (tmp_path / "data").glob("*.db*"):
            file.unlink()
        mortal_server.start()

        await expect(person.log.locator(".divider ~ article.question .words")).to_have_text("[echo second]")
        await person.wait_until(person.answers.nth(1), "completed")
        assert await questions(person) == ["[echo first]", "[echo second]"]
        assert await person.words(person.answers.nth(1)) == "second"
        await expect(person.answers).to_have_count(2)
