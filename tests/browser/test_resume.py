"""A conversation that is kept through lost connections, killed servers, reloads and a second tab. P3, P4, P5."""

import re
import shutil
import signal
from pathlib import Path

import pytest
from playwright.async_api import Browser, WebSocketRoute, expect

from tests.browser.conftest import Server
from tests.browser.link import link_to
from tests.browser.person import Person
from tests.browser.talk import (
    ENDLESSLY,
    KEPT,
    REALTIME,
    SLOWLY,
    answer_undisturbed,
    make_gaps,
    questions,
    remembered,
    talk,
    wait_for_words,
)
from tests.browser.test_conversation import RECORD_LENGTHS
from tests.end_to_end.client import DELTA

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]


async def test_an_answer_goes_on_in_its_bubble_when_the_connection_is_cut(browser: Browser, server: Server) -> None:
    """Cut twice: no character is missing, none is there twice."""
    undisturbed = await answer_undisturbed(browser, server.url)
    async with link_to(server.port) as link, talk(browser, link.url) as (person, wire):
        answer = await person.say(SLOWLY)

        for num_cuts, num_words in enumerate((8, 20), 1):
            await wait_for_words(answer, num_words)
            await wire.until_received("session.updated", num_cuts)  # what was missed comes before it
            await link.cut()

        await person.wait_until(answer, "completed")
        assert await person.words(answer) == undisturbed
        await expect(person.answers).to_have_count(1)
        await expect(person.log.locator(".divider, .gap")).to_have_count(0)
        await wire.until_received("session.updated", 3)
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
        # Offline where the server took long to start before: many tries were made, and the connection was young when it dropped.
        await expect(person.connection).to_have_text(re.compile("Reconnecting|Offline"))
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


async def test_a_conversation_that_is_gone_before_a_reload_is_told_of(
    browser: Browser, mortal_server: Server, tmp_path: Path
) -> None:
    async with talk(browser, mortal_server.url) as (person, _):
        await person.wait_until(await person.say("[echo hi]"), "completed")
        await person.page.goto("about:blank")  # else it might be back, and know, before it is loaded again
        mortal_server.stop(signal.SIGKILL)
        for file in (tmp_path / "data").glob("*.db*"):
            file.unlink()
        mortal_server.start()

        await person.page.goto(mortal_server.url)

        await expect(person.notice).to_have_text("Your earlier conversation is over. This is a new one.")
        await person.wait_until_connected()
        await person.wait_until(await person.say("[echo hello again]"), "completed")
        await expect(person.answers).to_have_count(1)
