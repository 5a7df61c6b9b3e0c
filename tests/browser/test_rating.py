"""An answer is rated with one tap, at any time, and what is shown as saved is saved, once. P3."""

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest
from httpx import AsyncClient
from playwright.async_api import Browser, Locator, Page, WebSocketRoute, expect

from tests.browser.conftest import AWAY, Server, visit
from tests.browser.link import link_to
from tests.browser.person import Person
from tests.browser.rater import CREATE, CREATED, DELETE, Thumbs, rated_item, wait_until_stored
from tests.browser.talk import ENDLESSLY, KEPT, REALTIME, make_gaps, talk
from tests.browser.test_sending import BreakingWire

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

MEMORY = "sessionStorage.getItem('flueman.ratings')"


async def converse(person: Person, *, num_turns: int = 1) -> list[Locator]:
    """The answers of a conversation, each heard to its end."""
    answers = []
    for turn in range(num_turns):
        answers.append(await person.say(f"[echo rate answer {turn}]"))
        await person.wait_until(answers[-1], "completed")
    return answers


def hold_back(kind: str, released: asyncio.Event) -> Callable[[Page], Awaitable[None]]:
    """The server's events from the first of that kind on come once they are released."""

    def carry(page_side: WebSocketRoute) -> None:
        server_side = page_side.connect_to_server()
        held: list[str | bytes] = []

        async def back(frame: str | bytes) -> None:
            if json.loads(frame)["type"] == kind or held:
                held.append(frame)
                await released.wait()
                while held:
                    page_side.send(held.pop(0))
            else:
                page_side.send(frame)

        server_side.on_message(back)

    return lambda page: page.route_web_socket(REALTIME, carry)


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


async def test_what_is_rated_while_the_connection_is_away_is_saved_when_it_is_back(
    browser: Browser, server: Server
) -> None:
    """P3: only the last choice of each answer, with the time of the tap."""
    async with link_to(server.port) as link, talk(browser, link.url) as (person, wire):
        first, second = await converse(person, num_turns=2)
        await Thumbs(first).up.click()
        await expect(Thumbs(first).progress).to_have_text("Saved")
        await link.go_down()
        await expect(person.connection).to_have_text("Reconnecting")

        await Thumbs(first).down.click()
        await Thumbs(first).reason("Too slow").click()
        await Thumbs(second).up.click()
        await Thumbs(second).up.click()
        for thumbs, pressed, progress in (
            (Thumbs(first), "down", "Waiting for the connection"),
            (Thumbs(second), None, ""),
        ):
            await thumbs.expect_pressed(pressed)
            await expect(thumbs.progress).to_have_text(progress)
        tapped_ms = await person.page.evaluate("Date.now()")
        await link.go_up()

        await expect(Thumbs(first).progress).to_have_text("Saved")
        await wait_until_stored(server, await rated_item(wire), "down", "too-slow")
        assert wire.num_sent(CREATE, DELETE) == [2, 0]
        assert wire.last_sent(CREATE)["feedback"]["rated_at_ms"] <= tapped_ms
        assert await person.page.evaluate(MEMORY) is None


async def test_what_waits_outlives_a_reload(browser: Browser, server: Server) -> None:
    """P3: a change, a withdrawal and a first rating."""
    async with link_to(server.port) as link, talk(browser, link.url) as (person, wire):
        answers = await converse(person, num_turns=3)
        for answer in answers[:2]:
            await Thumbs(answer).up.click()
            await expect(Thumbs(answer).progress).to_have_text("Saved")
        await link.go_down()
        await expect(person.connection).to_have_text("Reconnecting")
        await Thumbs(answers[0]).down.click()
        await Thumbs(answers[1]).up.click()
        await Thumbs(answers[2]).up.click()
        await person.page.goto("about:blank")
        await link.go_up()

        await person.page.goto(link.url)

        for answer, pressed in zip(answers, ("down", None, "up"), strict=True):
            await Thumbs(answer).expect_pressed(pressed)
            await expect(Thumbs(answer).progress).to_have_text("Saved" if pressed else "Withdrawn")
        item_ids = dict.fromkeys(event["item_id"] for event in wire.sent if event["type"] == CREATE)
        for item_id, rating in zip(item_ids, ("down", None, "up"), strict=True):
            await wait_until_stored(server, item_id, rating)
        assert wire.num_sent(CREATE, DELETE) == [4, 1]
        await person.page.reload()
        await person.wait_until_connected()
        for answer, pressed in zip(answers, ("down", None, "up"), strict=True):
            await Thumbs(answer).expect_pressed(pressed)
        assert wire.num_sent(CREATE, DELETE) == [4, 1]


async def test_a_rating_whose_acknowledgement_was_lost_is_not_sent_twice(browser: Browser, server: Server) -> None:
    """P3: what was missed says that it arrived."""
    wire = BreakingWire(CREATE, shown=False, until=CREATED)
    async with talk(browser, server.url, wire.lay) as (person, frames):
        [answer] = await converse(person)

        await Thumbs(answer).up.click()

        await expect(Thumbs(answer).progress).to_have_text("Saved")
        assert wire.sent[1:] == [["session.update"]]
        await wait_until_stored(server, await rated_item(frames), "up")


async def test_a_rating_that_did_not_arrive_is_sent_again(browser: Browser, server: Server) -> None:
    wire = BreakingWire(CREATE, lost=CREATE)
    async with talk(browser, server.url, wire.lay) as (person, frames):
        [answer] = await converse(person)

        await Thumbs(answer).up.click()

        await expect(Thumbs(answer).progress).to_have_text("Saved")
        assert wire.sent[1:] == [["session.update", CREATE]]
        await wait_until_stored(server, await rated_item(frames), "up")


async def test_a_rating_that_is_taken_back_before_it_was_acknowledged_is_withdrawn(
    browser: Browser, server: Server
) -> None:
    """P3: the server has it, the page has not heard so, and the person has changed their mind meanwhile."""
    wire = BreakingWire(CREATE, shown=False, until="nothing")
    async with link_to(server.port) as link, talk(browser, link.url, wire.lay) as (person, frames):
        [answer] = await converse(person)
        thumbs = Thumbs(answer)
        await thumbs.up.click()
        await wait_until_stored(server, await rated_item(frames), "up")
        await link.go_down()
        await expect(person.connection).to_have_text("Reconnecting")

        await thumbs.up.click()
        await expect(thumbs.progress).to_have_text("Waiting for the connection")
        await link.go_up()

        await expect(thumbs.progress).to_have_text("Withdrawn")
        await thumbs.expect_pressed(None)
        await wait_until_stored(server, await rated_item(frames), None)
        assert wire.sent[-1] == ["session.update", DELETE]


@pytest.mark.parametrize("is_gap", [False, True], ids=["reload", "gap"])
async def test_ratings_are_shown_again(browser: Browser, server: Server, is_gap: bool) -> None:
    """After a reload from the events, after a gap from what the dialogue remembers."""
    async with link_to(server.port) as link, talk(browser, link.url) as (person, wire):
        answers = await converse(person, num_turns=3)
        await Thumbs(answers[0]).up.click()
        await Thumbs(answers[1]).down.click()
        await Thumbs(answers[1]).reason("Unsafe").click()
        await expect(Thumbs(answers[1]).progress).to_have_text("Saved")

        if is_gap:
            await make_gaps(person.page)
        await person.page.reload()

        await person.wait_until_connected()
        for answer, pressed in zip(answers, ("up", "down", None), strict=True):
            await Thumbs(answer).expect_pressed(pressed)
            await expect(Thumbs(answer).progress).to_have_text("Saved" if pressed else "")
        await Thumbs(answers[1]).more.click()
        await expect(Thumbs(answers[1]).reason("Unsafe")).to_have_attribute("aria-pressed", "true")
        assert wire.num_sent(CREATE) == [3]


async def test_a_rating_from_elsewhere_is_shown(browser: Browser, server: Server) -> None:
    async with talk(browser, server.url) as (person, wire), AsyncClient(base_url=server.url) as http:
        [answer] = await converse(person)
        token = (await http.post("/dev/token")).json()["value"]
        [item_id] = {event["item_id"] for event in wire.received if event["type"] == "response.output_text.delta"}
        session_id = str(await person.page.evaluate(KEPT)).replace("conv_", "sess_")
        rating = {"session_id": session_id, "item_id": item_id, "feedback": {"rating": "down", "reason": "other"}}

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
