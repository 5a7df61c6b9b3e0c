"""Whatever is said reaches the dialogue once, and is asked for once, however the connection fails meanwhile. P2."""

import json

import pytest
from playwright.async_api import Browser, WebSocketRoute, expect

from tests.browser.conftest import Server
from tests.browser.link import link_to
from tests.browser.talk import (
    REALTIME,
    another_client,
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
