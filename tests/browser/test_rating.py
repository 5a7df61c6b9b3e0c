"""An answer is rated with one tap, at any time, and what is shown as saved is saved, once. P3."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from httpx import AsyncClient
from playwright.async_api import Browser, Page, WebSocketRoute, expect

from tests.browser.conftest import AWAY, Server, visit
from tests.browser.person import Person
from tests.browser.rater import CREATE, CREATED, DELETE, Thumbs, converse, rated_item, wait_until_stored
from tests.browser.talk import ENDLESSLY, KEPT, REALTIME, another_client, hold_back, talk

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]


KNOWS_THE_REASONS = "performance.getEntriesByType('resource').some(({ name }) => name.endsWith('/v1/me'))"


def garble(said: str, instead: str) -> Callable[[Page], Awaitable[None]]:
    """What the page says is changed on its way."""

    def carry(page_side: WebSocketRoute) -> None:
        server_side = page_side.connect_to_server()
        page_side.on_message(lambda frame: server_side.send(str(frame).replace(said, instead)))

    return lambda page: page.route_web_socket(REALTIME, carry)


async def test_one_tap_rates_while_the_answer_streams_and_saved_means_acknowledged(
    browser: Browser, server: Server
) -> None:
    """P3: shown at once; said to be saved only when the server has said so."""
    released = asyncio.Event()
    async with talk(browser, server.url, hold_back(CREATED, released)) as (person, wire):
        answer = await person.say(ENDLESSLY)
        await person.wait_until_speaking(answer)
        thumbs = Thumbs(answer)

        await thumbs.up.click()

        await thumbs.expect_pressed("up")
        await expect(thumbs.progress).to_have_text("Saving…")
        released.set()
        await expect(thumbs.progress).to_have_text("Saved")
        await person.wait_until_speaking(answer)
        await wait_until_stored(server, await rated_item(wire), "up")
        assert wire.num_sent(CREATE) == [1]


async def test_the_other_thumb_changes_a_rating_and_the_same_withdraws_it(browser: Browser, server: Server) -> None:
    async with talk(browser, server.url) as (person, wire):
        [answer] = await converse(person)
        thumbs = Thumbs(answer)

        await thumbs.up.click()
        await expect(thumbs.progress).to_have_text("Saved")
        await thumbs.down.click()
        await thumbs.expect_pressed("down")
        await expect(thumbs.progress).to_have_text("Saved")
        await wait_until_stored(server, await rated_item(wire), "down")
        await thumbs.down.click()

        await thumbs.expect_pressed(None)
        await expect(thumbs.progress).to_have_text("Withdrawn")
        await wait_until_stored(server, await rated_item(wire), None)
        await expect(thumbs.panel).to_have_count(0)
        assert wire.num_sent(CREATE, DELETE) == [2, 1]


async def test_taps_faster_than_the_server_end_as_the_last(browser: Browser, server: Server) -> None:
    """P3: one at a time is under way, and only the last of those that waited for it follows."""
    async with talk(browser, server.url) as (person, wire):
        [answer] = await converse(person)
        thumbs = Thumbs(answer)

        names = ["up", "down", "up", "up", "down", "up", "down", "down", "up", "down"]
        await answer.evaluate("(node, names) => names.forEach((name) => node.querySelector('.' + name).click())", names)

        await thumbs.expect_pressed("down")
        await expect(thumbs.progress).to_have_text("Saved")
        await wait_until_stored(server, await rated_item(wire), "down")
        assert wire.num_sent(CREATE, DELETE) == [2, 0]


async def test_a_reason_and_a_comment_belong_to_the_same_rating(browser: Browser, server: Server) -> None:
    """All optional; the comment is counted as the server counts, and what is too long is not lost."""
    async with talk(browser, server.url) as (person, wire):
        [answer] = await converse(person)
        thumbs = Thumbs(answer)

        await thumbs.down.click()
        await thumbs.reason("Off-topic").click()
        await expect(thumbs.reason("Off-topic")).to_have_attribute("aria-pressed", "true")
        await thumbs.comment.fill("é" * 1_999 + "🙂🙂")
        await expect(thumbs.panel).to_contain_text("1 character too long")
        await thumbs.send.click()
        await expect(thumbs.comment).to_be_focused()
        await thumbs.comment.fill("  Not what I asked 🙂\nreally ")
        await expect(thumbs.panel).to_contain_text("25 of 2,000")
        await thumbs.comment.press("Control+Enter")

        await expect(thumbs.panel).to_have_count(0)
        await expect(thumbs.down).to_be_focused()
        await expect(thumbs.progress).to_have_text("Saved")
        await wait_until_stored(server, await rated_item(wire), "down", "off-topic", "Not what I asked 🙂\nreally")
        await thumbs.more.click()
        await expect(thumbs.comment).to_have_value("Not what I asked 🙂\nreally")
        await thumbs.reason("Off-topic").click()
        await wait_until_stored(server, await rated_item(wire), "down", None, "Not what I asked 🙂\nreally")
        assert len({event["feedback"]["id"] for event in wire.received if event["type"] == CREATED}) == 1


async def test_the_reasons_are_the_servers(browser: Browser, server: Server) -> None:
    async with talk(browser, server.url) as (person, wire):
        [answer] = await converse(person)
        await person.page.wait_for_function(KNOWS_THE_REASONS)
        thumbs = Thumbs(answer)

        await thumbs.down.click()
        await thumbs.reason("Wrong face").click()

        await wait_until_stored(server, await rated_item(wire), "down", "wrong-face")
        await expect(thumbs.panel.locator(".chips button")).to_have_text(
            ["Inaccurate", "Unsafe", "Off-topic", "Too long", "Too slow", "Wrong face"]
        )


async def test_praise_takes_a_comment_and_no_reasons(browser: Browser, server: Server) -> None:
    async with talk(browser, server.url) as (person, wire):
        [answer] = await converse(person)
        thumbs = Thumbs(answer)

        await thumbs.up.click()
        await expect(thumbs.panel).to_have_count(0)
        await thumbs.more.click()
        await thumbs.comment.fill("Thank you")
        await expect(thumbs.panel.get_by_role("button")).to_have_count(2)
        await thumbs.send.click()

        await wait_until_stored(server, await rated_item(wire), "up", None, "Thank you")


async def test_a_slip_of_the_finger_does_not_cost_the_comment(browser: Browser, server: Server) -> None:
    """Neither a withdrawal nor the other thumb: the panel offers it again."""
    async with talk(browser, server.url) as (person, wire):
        [answer] = await converse(person)
        thumbs = Thumbs(answer)
        await thumbs.down.click()
        await thumbs.comment.fill("Far too vague")
        await thumbs.send.click()
        await wait_until_stored(server, await rated_item(wire), "down", None, "Far too vague")
        await expect(thumbs.progress).to_have_text("Saved")

        await thumbs.down.click()
        await expect(thumbs.progress).to_have_text("Withdrawn")
        await thumbs.down.click()
        await expect(thumbs.progress).to_have_text("Saved")

        await expect(thumbs.comment).to_have_value("Far too vague")
        await thumbs.send.click()
        await wait_until_stored(server, await rated_item(wire), "down", None, "Far too vague")
        await thumbs.up.click()
        await wait_until_stored(server, await rated_item(wire), "up")
        await thumbs.more.click()
        await expect(thumbs.comment).to_have_value("Far too vague")


async def test_a_withdrawal_that_the_conversation_knows_nothing_of_reaches_the_tables(
    browser: Browser, server: Server
) -> None:
    """P3: said to be withdrawn only once it is, wherever it was given."""
    async with talk(browser, server.url, garble('"feedback_id":"fb_', '"feedback_id":"xx_')) as (person, wire):
        [answer] = await converse(person)
        thumbs = Thumbs(answer)
        await thumbs.up.click()
        await expect(thumbs.progress).to_have_text("Saved")

        await thumbs.up.click()

        # Beside the thumbs it stands until the conversation has heard of it too.
        await expect(person.page.locator("#rated")).to_have_text("Your rating is withdrawn.")
        await wait_until_stored(server, await rated_item(wire), None)
        assert wire.num_sent(CREATE, DELETE) == [1, 1]


async def test_a_rating_of_a_conversation_that_lives_nowhere_is_part_of_it_when_it_comes_back(
    browser: Browser, server: Server
) -> None:
    """P3, P4: lit after a reload, and withdrawn over the wire."""
    async with talk(browser, server.url) as (person, wire):
        [answer] = await converse(person)
        thumbs = Thumbs(answer)
        [item_id] = {event["item_id"] for event in wire.received if event["type"] == "response.output_text.delta"}
        async with another_client(person.page, server) as client:
            await expect(person.connection).to_have_text("Open in another tab")
            await client.close()
        await thumbs.up.click()
        await expect(thumbs.progress).to_have_text("Saved")

        await person.page.get_by_role("button", name="Take it back").click()
        await person.wait_until_connected()
        await person.page.reload()
        await person.wait_until_connected()

        await thumbs.expect_pressed("up")
        await thumbs.up.click()
        await expect(thumbs.progress).to_have_text("Withdrawn")
        await wait_until_stored(server, item_id, None)
        assert wire.num_sent(CREATE, DELETE) == [0, 1]


async def test_a_rating_from_elsewhere_is_shown(browser: Browser, server: Server) -> None:
    async with talk(browser, server.url) as (person, wire), AsyncClient(base_url=server.url) as http:
        [answer] = await converse(person)
        token = (await http.post("/dev/token")).json()["value"]
        [item_id] = {event["item_id"] for event in wire.received if event["type"] == "response.output_text.delta"}
        session_id = str(await person.page.evaluate(KEPT)).replace("conv_", "sess_")
        rating = {"session_id": session_id, "item_id": item_id, "feedback": {"rating": "down", "reason": "unsafe"}}

        given = await http.post("/v1/feedback", json=rating, headers={"Authorization": f"Bearer {token}"})

        assert given.status_code == 201, given.text
        await Thumbs(answer).expect_pressed("down")
        await expect(Thumbs(answer).panel).to_have_count(0)
        await expect(person.page.locator("#rated")).to_be_empty()
        await Thumbs(answer).up.click()
        await wait_until_stored(server, item_id, "up")


async def test_a_refused_rating_is_said_and_taken_back(browser: Browser, server: Server) -> None:
    """What was saved before holds; a comment that was refused is still there to be mended."""
    async with talk(browser, server.url, garble('"unsafe"', '"silly"')) as (person, wire):
        [answer] = await converse(person)
        thumbs = Thumbs(answer)
        await thumbs.down.click()
        await expect(thumbs.progress).to_have_text("Saved")

        await thumbs.reason("Unsafe").click()

        await expect(thumbs.progress).to_contain_text("Not saved. Invalid value: 'silly'")
        await expect(thumbs.reason("Unsafe")).to_have_attribute("aria-pressed", "false")
        await thumbs.expect_pressed("down")
        await expect(person.page.locator("#rated")).to_contain_text("Your rating was not saved.")
        await expect(person.notice).to_be_empty()
        await wait_until_stored(server, await rated_item(wire), "down")
        await thumbs.reason("Too long").click()
        await wait_until_stored(server, await rated_item(wire), "down", "too-long")


async def test_a_refused_first_rating_leaves_nothing_to_explain(browser: Browser, server: Server) -> None:
    """Neither pressed nor asked about, and the person is where they were."""
    async with talk(browser, server.url, garble('"down"', '"sideways"')) as (person, _):
        [answer] = await converse(person)
        thumbs = Thumbs(answer)

        await thumbs.down.click()

        await expect(thumbs.progress).to_contain_text("Not saved.")
        await thumbs.expect_pressed(None)
        await expect(thumbs.panel).to_have_count(0)
        await expect(thumbs.more).to_be_hidden()
        await expect(thumbs.down).to_be_focused()


async def test_only_answers_with_text_have_thumbs(browser: Browser, server: Server) -> None:
    async with talk(browser, server.url) as (person, _):
        await person.wait_until(await person.say("[fail after 0] Hello"), "failed")
        await expect(person.log.get_by_role("group")).to_have_count(0)

        await person.wait_until(await person.say("[fail after 3] Hello"), "failed")

        await expect(person.log.get_by_role("group")).to_have_count(1)
        await expect(person.log.locator("article.question").get_by_role("button")).to_have_count(0)


async def test_an_answer_of_a_conversation_that_is_gone_can_still_be_rated(
    browser: Browser, mortal_server: Server
) -> None:
    """Its session is in the tables only; the socket knows nothing of it any more."""
    server = mortal_server
    async with talk(browser, server.url) as (person, wire):
        [answer] = await converse(person)
        thumbs = Thumbs(answer)
        await thumbs.up.click()
        await wait_until_stored(server, await rated_item(wire), "up")
        server.stop()
        for file in server.data.glob("sessions.db*"):
            file.unlink()
        server.start()
        await expect(person.log.locator(".divider")).to_be_visible()
        await person.wait_until_connected()
        await thumbs.expect_pressed("up")

        await thumbs.down.click()
        await thumbs.reason("Inaccurate").click()

        await expect(thumbs.progress).to_have_text("Saved")
        await wait_until_stored(server, await rated_item(wire), "down", "inaccurate")
        await thumbs.down.click()
        await expect(thumbs.progress).to_have_text("Withdrawn")
        await wait_until_stored(server, await rated_item(wire), None)
        assert wire.num_sent(CREATE, DELETE) == [1, 0]


async def test_an_answer_that_nobody_knows_any_more_cannot_be_rated_and_that_is_said(
    browser: Browser, mortal_server: Server
) -> None:
    async with visit(browser, mortal_server.url, ignoring=(*AWAY, "404 (Not Found)")) as page:
        person = Person(page)
        await person.wait_until_connected()
        [answer] = await converse(person)
        mortal_server.stop()
        for file in mortal_server.data.glob("*.db*"):
            file.unlink()
        mortal_server.start()
        await expect(person.log.locator(".divider")).to_be_visible()

        await Thumbs(answer).up.click()

        await expect(Thumbs(answer).progress).to_have_text("Not saved. The server no longer knows this answer.")
        await Thumbs(answer).expect_pressed(None)


async def test_a_tab_that_lost_its_conversation_to_another_can_still_rate(browser: Browser, server: Server) -> None:
    """And the other shows it."""
    async with talk(browser, server.url) as (person, wire):
        [answer] = await converse(person)
        async with person.page.expect_popup() as opening:
            await person.page.evaluate("void window.open('/')")
        other = await opening.value
        await expect(person.connection).to_have_text("Open in another tab")

        await Thumbs(answer).up.click()

        await expect(Thumbs(answer).progress).to_have_text("Saved")
        await Thumbs(other.locator("article.answer")).expect_pressed("up")
        assert wire.num_sent(CREATE) == [0]
