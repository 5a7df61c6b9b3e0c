"""A conversation that is kept through lost connections, killed servers, reloads and a second tab. P2, P3, P4."""

import json
import re
import shutil
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from httpx import AsyncClient
from playwright.async_api import Browser, Locator, Page, WebSocket, WebSocketRoute, expect

from tests.browser.conftest import AWAY, Server, visit
from tests.browser.link import link_to
from tests.browser.person import Person
from tests.browser.test_conversation import RECORD_LENGTHS
from tests.end_to_end.client import DELTA, Client, open_client

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

SLOWLY = "[pace 25] [tokens 60] Go on"
ENDLESSLY = "[tokens 2000] Go on"
REALTIME = "**/v1/realtime*"
SAY_AT_ONCE = """(texts) => {
  for (const text of texts) {
    document.querySelector("#message").value = text;
    document.querySelector("#composer").requestSubmit();
  }
}"""
GAPS = """window.WebSocket = class extends WebSocket {
  constructor(address, protocols) {
    const url = new URL(address);
    if (url.searchParams.has("starting_after")) url.searchParams.set("starting_after", "999999");
    super(url, protocols);
  }
}"""
PLACES = """() => ["#face", "h1", ".pace", "#transcript", ".answer", "#message"].map((name) => {
  const { x, y, width, height } = document.querySelector(name).getBoundingClientRect();
  return [name, x, y, width, height];
})"""
KEPT = "JSON.parse(sessionStorage.getItem('flueman.conversation'))"
Event = dict[str, Any]


class Wire:
    """What passes between a page and its server, on all connections the page makes from now on."""

    def __init__(self, page: Page) -> None:
        self.sent: list[Event] = []
        self.received: list[Event] = []
        page.on("websocket", self._listen)

    def _listen(self, socket: WebSocket) -> None:
        socket.on("framesent", lambda frame: self.sent.append(json.loads(frame)))
        socket.on("framereceived", lambda frame: self.received.append(json.loads(frame)))

    def num_sent(self, *kinds: str) -> list[int]:
        """How many events of each type were sent."""
        counts = Counter(event["type"] for event in self.sent)
        return [counts[kind] for kind in kinds]

    def num_received(self, *kinds: str) -> list[int]:
        """How many events of each type were received."""
        counts = Counter(event["type"] for event in self.received)
        return [counts[kind] for kind in kinds]

    def last_sent(self, kind: str) -> Event:
        """The last event of that type that was sent."""
        return [event for event in self.sent if event["type"] == kind][-1]


@asynccontextmanager
async def talk(
    browser: Browser, url: str, prepare: Callable[[Page], Awaitable[None]] | None = None
) -> AsyncIterator[tuple[Person, Wire]]:
    """Someone at the page, connected, and all that passes between it and its server."""
    async with visit(browser, "about:blank", ignoring=AWAY) as page:
        wire, person = Wire(page), Person(page)
        if prepare is not None:
            await prepare(page)
        await page.goto(url)
        await person.wait_until_connected()
        yield person, wire


async def wait_for_words(answer: Locator, num_words: int) -> None:
    """Until so many are shown."""
    await expect(answer.locator(".words")).to_have_text(re.compile(rf"(\S+\s+){{{num_words}}}"))


async def answer_undisturbed(browser: Browser, url: str, question: str = SLOWLY) -> str:
    """What is answered to that when nothing happens."""
    async with talk(browser, url) as (person, _):
        answer = await person.say(question)
        await person.wait_until(answer, "completed")
        return await person.words(answer)


async def questions(person: Person) -> list[str]:
    """The person's messages in the transcript, in order."""
    return await person.log.locator("article.question .words").all_text_contents()


async def test_an_answer_goes_on_in_its_bubble_when_the_connection_is_cut(browser: Browser, server: Server) -> None:
    """Cut twice: no character is missing, none is there twice."""
    undisturbed = await answer_undisturbed(browser, server.url)
    async with link_to(server.port) as link, talk(browser, link.url) as (person, wire):
        answer = await person.say(SLOWLY)

        for num_words in (8, 20):
            await wait_for_words(answer, num_words)
            await link.cut()

        await person.wait_until(answer, "completed")
        assert await person.words(answer) == undisturbed
        await expect(person.answers).to_have_count(1)
        await expect(person.log.locator(".divider, .gap")).to_have_count(0)
        await person.wait_until_connected()
        assert wire.num_sent("response.create") == wire.num_received("response.created") == [1]
        assert wire.num_received("session.updated") == [3]
        await person.wait_until(await person.say("[echo still here]"), "completed")


async def test_an_answer_goes_on_when_its_server_is_killed_and_started_again(
    browser: Browser, mortal_server: Server
) -> None:
    undisturbed = await answer_undisturbed(browser, mortal_server.url)
    async with talk(browser, mortal_server.url) as (person, _):
        answer = await person.say(SLOWLY)
        await wait_for_words(answer, 8)

        mortal_server.stop(signal.SIGKILL)
        await expect(person.connection).to_have_text("Reconnecting")
        mortal_server.start()

        await person.wait_until(answer, "completed")
        assert await person.words(answer) == undisturbed
        await expect(person.log.locator(".divider, .gap")).to_have_count(0)


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
        await expect(waiting.first).to_be_hidden()
        assert await questions(person) == ["[echo one]", "[echo two]"]
        await person.wait_until(await person.say("[echo three]"), "completed")
        assert wire.num_sent("conversation.item.create", "response.create") == [3, 2]
        assert wire.num_received("conversation.item.done", "response.created", "error") == [5, 2, 0]
        await expect(person.answers).to_have_count(2)


async def test_a_message_whose_acknowledgement_was_lost_is_not_sent_twice(browser: Browser, server: Server) -> None:
    """P2: the server had it all; the page finds that out, and asks for nothing again."""
    async with link_to(server.port) as link, talk(browser, link.url) as (person, wire):
        link.lose_next_reply()
        answer = await person.say("[pace 25] [tokens 20] once")

        await person.wait_until(answer, "completed")
        await person.wait_until_connected()
        await person.wait_until(await person.say("[echo and on]"), "completed")
        assert wire.num_sent("session.update", "conversation.item.create", "response.create") == [2, 2, 2]
        assert wire.num_received("response.created", "error") == [2, 0]
        assert await questions(person) == ["[pace 25] [tokens 20] once", "[echo and on]"]
        await expect(person.answers).to_have_count(2)


@pytest.mark.parametrize("lost", ["conversation.item.create", "response.create"])
async def test_what_did_not_arrive_is_sent_again(browser: Browser, server: Server, lost: str) -> None:
    """P2: from that event on nothing of the first connection reaches the server; only what it lacks is sent on the second."""
    sent: list[list[str]] = []

    def carry(page_side: WebSocketRoute) -> None:
        server_side = page_side.connect_to_server()
        kinds: list[str] = []
        sent.append(kinds)

        async def forward(frame: str | bytes) -> None:
            kinds.append(json.loads(frame)["type"])
            if len(sent) > 1 or lost not in kinds:
                server_side.send(frame)
            elif kinds[-1] == lost:
                await page_side.close(code=1011)

        page_side.on_message(forward)

    async with talk(browser, server.url, lambda page: page.route_web_socket(REALTIME, carry)) as (person, _):
        answer = await person.say("[echo here I am]")

        await person.wait_until(answer, "completed")
        order = ["conversation.item.create", "response.create"]
        assert sent[1] == ["session.update", *order[order.index(lost) :]]
        assert len(sent) == 2
        assert await person.words(answer) == "here I am"
        assert await questions(person) == ["[echo here I am]"]
        await expect(person.answers).to_have_count(1)
        await expect(person.notice).to_be_empty()


async def test_an_event_that_comes_twice_counts_once(browser: Browser, server: Server) -> None:
    """P3: the numbers decide."""
    undisturbed = await answer_undisturbed(browser, server.url)

    def repeat(page_side: WebSocketRoute) -> None:
        server_side = page_side.connect_to_server()

        def twice(frame: str | bytes) -> None:
            for _ in range(2):
                page_side.send(frame)

        server_side.on_message(twice)

    async with talk(browser, server.url, lambda page: page.route_web_socket(REALTIME, repeat)) as (person, _):
        answer = await person.say(SLOWLY)

        await person.wait_until(answer, "completed")
        assert await person.words(answer) == undisturbed
        await expect(person.answers).to_have_count(1)


async def test_a_message_on_the_heels_of_another_is_asked_for_once(browser: Browser, server: Server) -> None:
    """The first is not even acknowledged when the second interrupts it."""
    async with talk(browser, server.url) as (person, wire):
        await person.page.evaluate(SAY_AT_ONCE, ["[wait 60] one", "[echo two]"])

        await person.wait_until(person.answers.first, "cancelled")
        await person.wait_until(person.answers.nth(1), "completed")
        assert wire.num_sent("conversation.item.create", "response.create", "response.cancel") == [2, 2, 1]
        assert wire.num_received("response.created", "error") == [2, 0]
        assert await questions(person) == ["[wait 60] one", "[echo two]"]


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
        await link.go_down()
        await expect(page.get_by_role("button", name="Try now")).to_be_visible()
        await page.clock.pause_at(await page.evaluate("Date.now() + 60_000"))
        await link.go_up()
        await expect(person.connection).to_have_text(re.compile("Reconnecting|Offline"))

        await page.evaluate("dispatchEvent(new Event('online'))")

        await person.wait_until_connected()


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


async def test_a_reload_gives_the_same_conversation_back(browser: Browser, server: Server) -> None:
    """In the middle of an answer, which goes on."""
    undisturbed = await answer_undisturbed(browser, server.url, "[echo first]")
    async with talk(browser, server.url) as (person, _):
        page = person.page
        await person.wait_until(await person.say("[echo first]"), "completed")
        await wait_for_words(await person.say(SLOWLY), 8)
        kept = await page.evaluate(KEPT)

        await page.reload()

        await person.wait_until(person.answers.nth(1), "completed")
        await person.wait_until_connected()
        assert await questions(person) == ["[echo first]", SLOWLY]
        assert await person.words(person.answers.first) == undisturbed
        assert len((await person.words(person.answers.nth(1))).split()) == 60
        await expect(person.log).to_have_attribute("aria-busy", "false")
        await expect(page.locator("#welcome")).to_have_count(0)
        assert await page.evaluate(KEPT) == kept
        await person.wait_until(await person.say("[echo and on]"), "completed")
        await expect(person.answers).to_have_count(3)


async def test_a_second_tab_takes_the_conversation_and_the_first_can_take_it_back(
    browser: Browser, server: Server
) -> None:
    """A duplicated tab has the first one's storage. Neither steals by itself."""
    async with talk(browser, server.url) as (first, _):
        page = first.page
        await first.wait_until(await first.say("[echo from the first]"), "completed")

        async with page.expect_popup() as opening:
            await page.evaluate("void window.open('/')")
        second = Person(await opening.value)

        await expect(first.connection).to_have_text("Open in another tab")
        await second.wait_until_connected()
        assert await questions(second) == ["[echo from the first]"]
        await first.box.fill("[echo not now]")
        await first.box.press("Enter")
        await expect(first.notice).to_contain_text("This conversation is open in another tab")
        await expect(first.box).to_have_value("[echo not now]")
        await second.wait_until(await second.say("[echo from the second]"), "completed")

        await page.get_by_role("button", name="Take it back").click()

        await first.wait_until_connected()
        await expect(second.connection).to_have_text("Open in another tab")
        await expect(first.answers.nth(1)).to_have_attribute("data-status", "completed")
        assert await questions(first) == ["[echo from the first]", "[echo from the second]"]
        await first.box.press("Enter")
        await first.wait_until(first.answers.nth(2), "completed")
        assert await first.words(first.answers.nth(2)) == "not now"


async def test_the_dialogue_remembers_what_was_shown_when_it_was_stopped(browser: Browser, server: Server) -> None:
    """P5: to the UTF-16 unit, and so does the page after a reload."""
    async with talk(browser, server.url) as (person, wire):
        page = person.page
        answer = await person.say(ENDLESSLY)
        await wait_for_words(answer, 5)

        await person.stop.click()

        await person.wait_until(answer, "cancelled")
        shown = await person.words(answer)
        told = wire.last_sent("avatar.item.truncate")
        assert told["char_end"] == len(shown.encode("utf-16-le")) // 2 > 0
        await person.wait_until(await person.say("[echo and on]"), "completed")
        assert (await remembered(page, server, told["item_id"])) == shown

        await page.reload()

        await person.wait_until(person.answers.nth(1), "completed")
        assert await person.words(person.answers.first) == shown
        await expect(person.answers.first).to_have_attribute("data-status", "cancelled")


async def test_an_answer_stopped_while_the_connection_is_away_ends_when_it_is_back(
    browser: Browser, server: Server
) -> None:
    async with link_to(server.port) as link, talk(browser, link.url) as (person, wire):
        answer = await person.say(ENDLESSLY)
        await wait_for_words(answer, 5)
        await link.go_down()
        await expect(person.connection).to_have_text("Reconnecting")

        shown = await person.words(answer)
        await person.stop.click()
        await person.page.evaluate(RECORD_LENGTHS)
        await link.go_up()

        await person.wait_until(answer, "cancelled")
        assert await person.words(answer) == shown
        assert await person.page.evaluate("window.lengths.every((length) => length === window.lengths[0])")
        await person.wait_until(await person.say("[echo and on]"), "completed")
        assert (await remembered(person.page, server, wire.last_sent("avatar.item.truncate")["item_id"])) == shown


async def test_a_conversation_that_is_gone_is_followed_by_a_new_one(
    browser: Browser, mortal_server: Server, tmp_path: Path
) -> None:
    """And says so: what was said stays in sight, what was not sent is said in the new one."""
    async with talk(browser, mortal_server.url) as (person, _):
        page = person.page
        before = await person.say(ENDLESSLY)
        await wait_for_words(before, 5)
        kept = await page.evaluate(KEPT)

        mortal_server.stop(signal.SIGKILL)
        await expect(person.connection).to_have_text("Reconnecting")
        shown = await person.words(before)
        await person.box.fill("[echo are you there]")
        await person.box.press("Enter")
        for file in (tmp_path / "data").glob("*.db*"):
            file.unlink()
        mortal_server.start()

        await person.wait_until_connected()
        await expect(person.log.locator(".divider")).to_contain_text("New conversation")
        await person.wait_until(before, "interrupted")
        assert await person.words(before) == shown
        assert "earlier" in (await before.get_attribute("class") or "")
        await person.wait_until(person.answers.nth(1), "completed")
        assert await person.words(person.answers.nth(1)) == "are you there"
        after_line = person.log.locator(".divider ~ article.question")
        await expect(after_line.locator(".words")).to_have_text("[echo are you there]")
        assert await page.evaluate(KEPT) != kept


async def test_a_gap_is_shown_as_one(browser: Browser, mortal_server: Server, tmp_path: Path) -> None:
    """The server's store came back as it was some time ago: the page shows what is remembered, and that it may not be all."""
    data, earlier = tmp_path / "data", tmp_path / "earlier"
    async with talk(browser, mortal_server.url) as (person, _):
        await person.wait_until(await person.say("[echo kept]"), "completed")
        mortal_server.stop(signal.SIGKILL)
        shutil.copytree(data, earlier)
        mortal_server.start()
        await person.wait_until_connected()
        await person.wait_until(await person.say("[echo lost]"), "completed")

        mortal_server.stop(signal.SIGKILL)
        await expect(person.connection).to_have_text("Reconnecting")
        await person.box.fill("[echo new]")
        await person.box.press("Enter")
        shutil.rmtree(data)
        shutil.copytree(earlier, data)
        mortal_server.start()

        await expect(person.log.locator(".gap")).to_contain_text("Something may be missing here")
        await person.wait_until(person.answers.nth(1), "completed")
        assert await questions(person) == ["[echo kept]", "[echo new]"]
        assert await person.words(person.answers.first) == "kept"
        assert await person.words(person.answers.nth(1)) == "new"
        await person.wait_until(await person.say("[echo and on]"), "completed")


async def test_across_a_gap_the_answer_in_progress_is_given_whole(browser: Browser, server: Server) -> None:
    """What was there before it comes as items, once each."""
    async with link_to(server.port) as link, talk(browser, link.url, make_gaps) as (person, wire):
        await person.wait_until(await person.say("[echo first]"), "completed")
        await wait_for_words(await person.say(SLOWLY), 8)

        await link.cut()

        await expect(person.log.locator(".gap")).to_be_visible()
        await person.wait_until(person.answers.nth(1), "completed")
        await person.wait_until_connected()
        assert await questions(person) == ["[echo first]", SLOWLY]
        assert await person.words(person.answers.first) == "first"
        item_id = [event["item_id"] for event in wire.received if event["type"] == DELTA][-1]
        shown = await person.words(person.answers.nth(1))
        assert await remembered(person.page, server, item_id) == shown
        assert len(shown.split()) == 60


async def test_what_was_answered_within_a_gap_is_not_asked_again(browser: Browser, server: Server) -> None:
    """P2: the items say so, though the events are gone."""
    async with link_to(server.port) as link, talk(browser, link.url, make_gaps) as (person, wire):
        await person.wait_until(await person.say("[echo first]"), "completed")
        await link.let_nobody_in()
        link.lose_next_reply()
        await person.say("[echo once]")
        await expect(person.connection).to_have_text("Reconnecting")
        async with another_client(person.page, server) as client:
            for _ in range(2):
                await client.until("response.done")
            client.cut()

        await link.go_up()

        await expect(person.log.locator(".gap")).to_be_visible()
        await person.wait_until_connected()
        await person.wait_until(await person.say("[echo and on]"), "completed")
        assert await questions(person) == ["[echo first]", "[echo once]", "[echo and on]"]
        words = [await person.words(answer) for answer in await person.answers.all()]
        assert words == ["first", "once", "and on"]
        assert wire.num_sent("conversation.item.create", "response.create") == [3, 3]


async def test_a_conversation_that_is_gone_before_a_reload_is_told_of(
    browser: Browser, mortal_server: Server, tmp_path: Path
) -> None:
    async with talk(browser, mortal_server.url) as (person, _):
        await person.wait_until(await person.say("[echo hi]"), "completed")
        mortal_server.stop(signal.SIGKILL)
        for file in (tmp_path / "data").glob("*.db*"):
            file.unlink()
        mortal_server.start()

        await person.page.reload()

        await expect(person.notice).to_have_text("Your earlier conversation is over. This is a new one.")
        await person.wait_until_connected()
        await person.wait_until(await person.say("[echo hello again]"), "completed")
        await expect(person.answers).to_have_count(1)


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


async def make_gaps(page: Page) -> None:
    """From now on the page asks for what comes after an event that never was."""
    await page.add_init_script(GAPS)


@asynccontextmanager
async def another_client(page: Page, server: Server) -> AsyncIterator[Client]:
    """Another client of the page's user, in the page's conversation."""
    async with AsyncClient() as http:
        token = (await http.post(f"{server.url}dev/token")).json()["value"]
    async with open_client(server.port, token, resuming=(await page.evaluate(KEPT), 1)) as client:
        yield client


async def remembered(page: Page, server: Server, item_id: str) -> str:
    """The item's text as the server has it; whoever asks so takes the conversation, and the page takes it back."""
    async with another_client(page, server) as client:
        await client.send("conversation.item.retrieve", item_id=item_id)
        item = (await client.until("conversation.item.retrieved"))["item"]
        client.cut()
    await page.get_by_role("button", name="Take it back").click()
    await Person(page).wait_until_connected()
    text: str = item["content"][0]["text"]
    return text
