"""A rating that the connection failed is neither lost nor doubled: what waits outlives a reload, what arrived is not sent again. P3."""

import json

import pytest
from playwright.async_api import Browser, Page, Route, WebSocketRoute, expect

from tests.browser.conftest import Server
from tests.browser.link import link_to
from tests.browser.rater import CREATE, CREATED, DELETE, Thumbs, converse, rated_item, wait_until_stored
from tests.browser.talk import REALTIME, another_client, make_gaps, talk
from tests.browser.test_sending import BreakingWire

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

MEMORY = "sessionStorage.getItem('flueman.ratings')"


async def conceal(page: Page, kind: str) -> None:
    """The page hears of no event of that type any more."""

    def carry(page_side: WebSocketRoute) -> None:
        server_side = page_side.connect_to_server()
        server_side.on_message(lambda frame: None if json.loads(frame)["type"] == kind else page_side.send(frame))

    await page.route_web_socket(REALTIME, carry)


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
    """P3: a change back to what it was at first, a withdrawal and a first rating."""
    async with link_to(server.port) as link, talk(browser, link.url) as (person, wire):
        answers = await converse(person, num_turns=3)
        for thumb in (Thumbs(answers[0]).down, Thumbs(answers[0]).up, Thumbs(answers[1]).up):
            await thumb.click()
            await expect(thumb.locator("xpath=..").locator(".progress")).to_have_text("Saved")
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
        assert wire.num_sent(CREATE, DELETE) == [5, 1]
        await person.page.reload()
        await person.wait_until_connected()
        for answer, pressed in zip(answers, ("down", None, "up"), strict=True):
            await Thumbs(answer).expect_pressed(pressed)
        assert wire.num_sent(CREATE, DELETE) == [5, 1]


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


async def test_a_withdrawal_that_waits_over_a_reload_needs_no_word_of_what_it_withdraws(
    browser: Browser, server: Server
) -> None:
    """P3: a rating that was given past the conversation is in the tables alone."""
    async with link_to(server.port) as link, talk(browser, link.url) as (person, wire):
        [answer] = await converse(person)
        await Thumbs(answer).up.click()
        await expect(Thumbs(answer).progress).to_have_text("Saved")
        item_id = await rated_item(wire)
        await link.go_down()
        await expect(person.connection).to_have_text("Reconnecting")
        await Thumbs(answer).up.click()
        await person.page.goto("about:blank")
        await link.go_up()
        await conceal(person.page, CREATED)

        await person.page.goto(link.url)

        await wait_until_stored(server, item_id, None)
        await Thumbs(answer).expect_pressed(None)
        assert wire.num_sent(CREATE, DELETE) == [1, 1]


async def test_who_rates_again_after_a_withdrawal_whose_answer_was_lost_is_heard(
    browser: Browser, server: Server
) -> None:
    """P3: what the page knows to be saved may be so no more."""
    async with talk(browser, server.url) as (person, wire):
        [answer] = await converse(person)
        [item_id] = {event["item_id"] for event in wire.received if event["type"] == "response.output_text.delta"}
        thumbs = Thumbs(answer)
        async with another_client(person.page, server) as client:
            await expect(person.connection).to_have_text("Open in another tab")
            await client.close()
        await thumbs.up.click()
        await expect(thumbs.progress).to_have_text("Saved")
        await person.page.route("**/v1/feedback/*", lose_answer)
        await thumbs.up.click()
        await wait_until_stored(server, item_id, None)
        await expect(thumbs.progress).to_have_text("Not saved yet, trying again")

        await thumbs.up.click()

        await expect(thumbs.progress).to_have_text("Saved")
        await wait_until_stored(server, item_id, "up")


async def lose_answer(route: Route) -> None:
    """The server does what it is asked, and nobody hears of it."""
    await route.fetch()
    await route.abort("connectionreset")


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
