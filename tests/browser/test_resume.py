"""A conversation that is kept through lost connections, killed servers, reloads and a second tab. P2, P3, P4."""

import json
import re
import shutil
import signal
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, Locator, Page, WebSocket, WebSocketRoute, expect

from tests.browser.conftest import AWAY, Server, visit
from tests.browser.link import link_to
from tests.browser.person import Person
from tests.end_to_end.client import open_client

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

SLOWLY = "[pace 25] [tokens 60] Go on"
ENDLESSLY = "[tokens 2000] Go on"
KEPT = "sessionStorage.getItem('flueman.conversation')"
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

    def count(self, kind: str) -> int:
        """How many events of that type were received."""
        return Counter(event["type"] for event in self.received)[kind]

    def last_sent(self, kind: str) -> Event:
        """The last event of that type that was sent."""
        return [event for event in self.sent if event["type"] == kind][-1]


async def wait_for_words(answer: Locator, num_words: int) -> None:
    """Until so many are shown."""
    await expect(answer.locator(".words")).to_have_text(re.compile(rf"(\S+\s+){{{num_words}}}"))


async def answer_undisturbed(browser: Browser, url: str, question: str = SLOWLY) -> str:
    """What is answered to that when nothing happens."""
    async with visit(browser, url) as page:
        person = Person(page)
        await person.wait_until_connected()
        answer = await person.say(question)
        await person.wait_until(answer, "completed")
        return await person.words(answer)


async def questions(person: Person) -> list[str]:
    """The person's messages in the transcript, in order."""
    return await person.log.locator("article.question .words").all_text_contents()


async def test_an_answer_goes_on_in_its_bubble_when_the_connection_is_cut(browser: Browser, server: Server) -> None:
    """Cut twice: no character is missing, none is there twice."""
    undisturbed = await answer_undisturbed(browser, server.url)
    async with link_to(server.port) as link, visit(browser, link.url, ignoring=AWAY) as page:
        wire, person = Wire(page), Person(page)
        await person.wait_until_connected()
        answer = await person.say(SLOWLY)

        for num_words in (8, 20):
            await wait_for_words(answer, num_words)
            await link.cut()

        await person.wait_until(answer, "completed")
        assert await person.words(answer) == undisturbed
        await expect(person.answers).to_have_count(1)
        await expect(person.log.locator(".divider, .gap")).to_have_count(0)
        assert wire.count("response.created") == 1 or not wire.sent
        await person.wait_until_connected()
        await person.wait_until(await person.say("[echo still here]"), "completed")


async def test_an_answer_goes_on_when_its_server_is_killed_and_started_again(
    browser: Browser, mortal_server: Server
) -> None:
    undisturbed = await answer_undisturbed(browser, mortal_server.url)
    async with visit(browser, mortal_server.url, ignoring=AWAY) as page:
        person = Person(page)
        await person.wait_until_connected()
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
    async with link_to(server.port) as link, visit(browser, link.url, ignoring=AWAY) as page:
        wire, person = Wire(page), Person(page)
        await person.wait_until_connected()
        await page.reload()  # from here on the wire is listened to
        await person.wait_until_connected()
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
        assert Counter(event["type"] for event in wire.sent)["conversation.item.create"] == 3
        assert [wire.count(kind) for kind in ("conversation.item.done", "response.created", "error")] == [5, 2, 0]
        await expect(person.answers).to_have_count(2)


async def test_a_message_whose_acknowledgement_was_lost_is_not_sent_twice(browser: Browser, server: Server) -> None:
    """P2: the server had it all; the page finds that out, and asks for nothing again."""
    async with link_to(server.port) as link, visit(browser, "about:blank", ignoring=AWAY) as page:
        wire, person = Wire(page), Person(page)
        await page.goto(link.url)
        await person.wait_until_connected()

        link.lose_next_reply()
        answer = await person.say("[pace 25] [tokens 20] once")

        await person.wait_until(answer, "completed")
        await person.wait_until_connected()
        await person.wait_until(await person.say("[echo and on]"), "completed")
        sent = Counter(event["type"] for event in wire.sent)
        assert (sent["session.update"], sent["conversation.item.create"], sent["response.create"]) == (2, 2, 2)
        assert (wire.count("response.created"), wire.count("error")) == (2, 0)
        assert await questions(person) == ["[pace 25] [tokens 20] once", "[echo and on]"]
        await expect(person.answers).to_have_count(2)


@pytest.mark.parametrize("lost", ["conversation.item.create", "response.create"])
async def test_a_message_that_did_not_arrive_is_sent_again(browser: Browser, server: Server, lost: str) -> None:
    """P2: only what is missing."""
    is_lost = False

    def lose(socket: WebSocketRoute) -> None:
        upstream = socket.connect_to_server()

        async def forward(frame: str | bytes) -> None:
            nonlocal is_lost
            if not is_lost and json.loads(frame)["type"] == lost:
                is_lost = True
                await socket.close(code=1011)
                await upstream.close(code=1001)
            elif not is_lost or json.loads(frame)["type"] != "response.create" or num_connections > 1:
                upstream.send(frame)

        nonlocal num_connections
        num_connections += 1
        socket.on_message(forward)

    num_connections = 0
    async with visit(browser, "about:blank", ignoring=AWAY) as page:
        await page.route_web_socket("**/v1/realtime*", lose)
        await page.goto(server.url)
        person = Person(page)
        await person.wait_until_connected()

        answer = await person.say("[echo here I am]")

        await person.wait_until(answer, "completed")
        assert (is_lost, num_connections) == (True, 2)
        assert await person.words(answer) == "here I am"
        assert await questions(person) == ["[echo here I am]"]
        await expect(person.answers).to_have_count(1)
        await expect(person.notice).to_be_empty()


async def test_a_reload_gives_the_same_conversation_back(browser: Browser, server: Server) -> None:
    """In the middle of an answer, which goes on."""
    undisturbed = await answer_undisturbed(browser, server.url, "[echo first]")
    async with visit(browser, server.url) as page:
        person = Person(page)
        await person.wait_until_connected()
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
    async with visit(browser, server.url) as page:
        first = Person(page)
        await first.wait_until_connected()
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
    async with visit(browser, "about:blank") as page:
        wire, person = Wire(page), Person(page)
        await page.goto(server.url)
        await person.wait_until_connected()
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
    async with link_to(server.port) as link, visit(browser, "about:blank", ignoring=AWAY) as page:
        wire, person = Wire(page), Person(page)
        await page.goto(link.url)
        await person.wait_until_connected()
        answer = await person.say(ENDLESSLY)
        await wait_for_words(answer, 5)
        await link.go_down()
        await expect(person.connection).to_have_text("Reconnecting")

        shown = await person.words(answer)
        await person.stop.click()
        await link.go_up()

        await person.wait_until(answer, "cancelled")
        assert await person.words(answer) == shown
        await person.wait_until(await person.say("[echo and on]"), "completed")
        assert (await remembered(page, server, wire.last_sent("avatar.item.truncate")["item_id"])) == shown


async def test_a_conversation_that_is_gone_is_followed_by_a_new_one(
    browser: Browser, mortal_server: Server, tmp_path: Path
) -> None:
    """And says so: what was said stays in sight, what was not sent is said in the new one."""
    async with visit(browser, mortal_server.url, ignoring=AWAY) as page:
        person = Person(page)
        await person.wait_until_connected()
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
    async with visit(browser, mortal_server.url, ignoring=AWAY) as page:
        person = Person(page)
        await person.wait_until_connected()
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


async def remembered(page: Page, server: Server, item_id: str) -> str:
    """The item's text as the server has it; whoever asks so takes the conversation, and the page takes it back."""
    conversation_id = await page.evaluate(KEPT)
    with urllib.request.urlopen(urllib.request.Request(f"{server.url}dev/token", method="POST")) as reply:
        token = json.load(reply)["value"]
    async with open_client(server.port, token, resuming=(conversation_id, 1)) as client:
        await client.send("conversation.item.retrieve", item_id=item_id)
        item = (await client.until("conversation.item.retrieved"))["item"]
        client.cut()
    await page.get_by_role("button", name="Take it back").click()
    await Person(page).wait_until_connected()
    text: str = item["content"][0]["text"]
    return text
