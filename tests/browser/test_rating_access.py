"""Anyone can rate: with a finger, the keyboard alone or a screen reader, at any width, and nothing moves under the hand."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from playwright.async_api import Browser, Locator, Page, ViewportSize, expect

from tests.browser.accessibility import SIZES, assert_no_sideways_scroll, violations
from tests.browser.conftest import ARTIFACTS, AWAY, Server, visit
from tests.browser.link import link_to
from tests.browser.person import Person
from tests.browser.rater import Thumbs
from tests.browser.talk import ENDLESSLY, make_gaps, talk

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

LOG = "[role=log]"
SMALLEST_TARGET_PX = 44
RECORD_SPOKEN = """() => {
  window.spoken = [];
  const status = document.querySelector("#rated");
  new MutationObserver(() => status.textContent && window.spoken.push(status.textContent)).observe(status, { childList: true });
}"""
RECORD_TOPS = """() => {
  window.tops = new Set();
  const note = () => {
    const group = document.querySelector(".answer .rating");
    if (group) window.tops.add(Math.round(group.getBoundingClientRect().top));
    requestAnimationFrame(note);
  };
  note();
}"""
TOPS = "[...window.tops]"


@asynccontextmanager
async def with_a_finger(browser: Browser, url: str, *, width: int) -> AsyncIterator[Page]:
    """The page on a phone."""
    context = await browser.new_context(
        viewport=ViewportSize(width=width, height=640), has_touch=True, is_mobile=True, device_scale_factor=2
    )
    try:
        page = await context.new_page()
        await page.goto(url)
        yield page
    finally:
        await context.close()


async def answer_of(person: Person, text: str) -> Locator:
    """The answer, heard to its end."""
    answer = await person.say(text)
    await person.wait_until(answer, "completed")
    return answer


async def test_the_keyboard_alone_rates_and_never_loses_its_place(browser: Browser, server: Server) -> None:
    """Escape closes the panel, and the answer goes on."""
    async with talk(browser, server.url) as (person, _):
        page = person.page
        answer = await person.say(ENDLESSLY)
        await person.wait_until_speaking(answer)
        thumbs = Thumbs(answer)

        await page.keyboard.press("Shift+Tab")
        await expect(thumbs.down).to_be_focused()
        await page.keyboard.press("Space")
        await expect(thumbs.panel).to_be_visible()
        await expect(thumbs.down).to_be_focused()
        await page.keyboard.press("Tab")
        await expect(thumbs.more).to_be_focused()
        await expect(thumbs.more).to_have_attribute("aria-expanded", "true")
        await page.keyboard.press("Tab")
        await expect(thumbs.reason("Inaccurate")).to_be_focused()
        await page.keyboard.press("Enter")
        await expect(thumbs.reason("Inaccurate")).to_have_attribute("aria-pressed", "true")
        await expect(thumbs.reason("Inaccurate")).to_be_focused()
        await page.keyboard.press("Escape")

        await expect(thumbs.panel).to_have_count(0)
        await expect(thumbs.down).to_be_focused()
        await expect(thumbs.more).to_have_attribute("aria-expanded", "false")
        await person.wait_until_speaking(answer)
        await page.keyboard.press("Escape")
        await person.wait_until(answer, "cancelled")


async def test_what_was_typed_and_where_one_was_outlives_a_gap(browser: Browser, server: Server) -> None:
    """The log is given anew under the person's hands."""
    async with link_to(server.port) as link, talk(browser, link.url, make_gaps) as (person, _):
        thumbs = Thumbs(await answer_of(person, "[echo one]"))
        await thumbs.down.click()
        await thumbs.comment.press_sequentially("Half a")

        await link.cut()

        await expect(person.log.locator(".gap")).to_be_visible()
        await person.wait_until_connected()
        await expect(thumbs.comment).to_be_focused()
        await person.page.keyboard.press("End")
        await person.page.keyboard.type(" comment")
        await expect(thumbs.comment).to_have_value("Half a comment")
        await expect(thumbs.reason("Inaccurate")).to_be_visible()
        await thumbs.expect_pressed("down")


async def test_a_screen_reader_knows_which_answer_is_rated_and_is_not_read_the_thumbs(
    browser: Browser, server: Server
) -> None:
    async with talk(browser, server.url) as (person, _):
        thumbs = Thumbs(await answer_of(person, "[echo Is the\nmoon far away?]"))
        await expect(thumbs.group).to_have_accessible_name("Rate the answer to “[echo Is the moon far away?]”")
        await thumbs.down.click()
        await expect(thumbs.progress).to_have_text("Saved")
        assert await person.page.locator(".foot:not([aria-live=off])").count() == 0

        await person.page.reload()

        await expect(thumbs.progress).to_have_text("Saved")
        await expect(person.page.locator("#rated")).to_be_empty()


async def test_what_becomes_of_a_rating_is_spoken_once(browser: Browser, server: Server) -> None:
    async with link_to(server.port) as link, talk(browser, link.url) as (person, _):
        await person.page.evaluate(RECORD_SPOKEN)
        thumbs = Thumbs(await answer_of(person, "[echo one]"))

        await thumbs.up.click()
        await expect(thumbs.progress).to_have_text("Saved")
        await link.go_down()
        await expect(person.connection).to_have_text("Reconnecting")
        await thumbs.up.click()
        await expect(thumbs.progress).to_have_text("Waiting for the connection")
        await link.go_up()
        await expect(thumbs.progress).to_have_text("Withdrawn")

        assert await person.page.evaluate("window.spoken") == [
            "Your rating is saved.",
            "Your rating waits for the connection.",
            "Your rating is withdrawn.",
        ]


async def test_thumbs_stay_where_they_are_while_text_streams(browser: Browser, server: Server) -> None:
    """From the first word to the figures at the end."""
    # Still: a new message slides in.
    async with visit(browser, server.url, is_still=True) as page:
        person = Person(page)
        await person.wait_until_connected()
        await page.evaluate(RECORD_TOPS)
        answer = await person.say("[pace 40] [tokens 80] Go on")
        thumbs = Thumbs(answer)

        await thumbs.up.click()

        await expect(thumbs.progress).to_have_text("Saved")
        await person.wait_until(answer, "completed")
        await expect(answer.locator(".meta")).not_to_be_empty()
        tops = await page.evaluate(TOPS)
        assert max(tops) - min(tops) <= 1, tops


@pytest.mark.parametrize("width", [320, 390])
async def test_a_finger_hits_every_control(browser: Browser, server: Server, width: int) -> None:
    async with with_a_finger(browser, server.url, width=width) as page:
        person = Person(page)
        await person.wait_until_connected()
        thumbs = Thumbs(await answer_of(person, "[echo one]"))

        await thumbs.down.tap()
        await thumbs.reason("Too slow").tap()
        await expect(thumbs.progress).to_have_text("Saved")

        for button in [
            *await thumbs.group.get_by_role("button").all(),
            *await thumbs.panel.get_by_role("button").all(),
        ]:
            box = await button.bounding_box()
            assert box is not None
            assert min(box["width"], box["height"]) >= SMALLEST_TARGET_PX, await button.text_content()
        await assert_no_sideways_scroll(page, LOG)
        ARTIFACTS.mkdir(parents=True, exist_ok=True)
        await page.screenshot(path=ARTIFACTS / f"touch-{width}-rating.png")


@pytest.mark.parametrize(("width", "height", "is_dark"), SIZES)
async def test_rating_fits_and_axe_finds_nothing(
    browser: Browser, server: Server, width: int, height: int, is_dark: bool
) -> None:
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    name = f"{'dark' if is_dark else 'light'}-{width}-rating"
    async with (
        link_to(server.port) as link,
        visit(
            browser,
            link.url,
            width=width,
            height=height,
            is_dark=is_dark,
            is_still=True,
            bypass_csp=True,
            ignoring=AWAY,
        ) as page,
    ):
        person = Person(page)
        await person.wait_until_connected()
        first = Thumbs(await answer_of(person, "Hello"))
        await first.up.click()
        await expect(first.progress).to_have_text("Saved")
        speaking = await person.say("[tokens 2000] Go on")
        await expect(speaking.locator(".words")).to_contain_text(re.compile(r"(\S+\s+){25}"))
        thumbs = Thumbs(speaking)
        await thumbs.down.click()
        await thumbs.reason("Too long").click()
        await thumbs.comment.fill("It goes on and on.\nI asked for one sentence.")
        await expect(thumbs.progress).to_have_text("Saved")
        await assert_no_sideways_scroll(page, LOG)
        await expect(thumbs.panel).to_be_in_viewport(ratio=1)
        await expect(thumbs.group).to_be_in_viewport(ratio=1)
        await page.screenshot(path=ARTIFACTS / f"{name}-streaming.png")
        assert await violations(page) == []

        await person.stop.click()
        await thumbs.send.click()
        await link.go_down()
        await expect(person.connection).not_to_have_text("Connected")
        await first.up.click()
        await first.down.click()
        await expect(first.progress).to_have_text("Waiting for the connection")
        await first.comment.fill("é" * 2_001)
        await assert_no_sideways_scroll(page, LOG)
        await page.screenshot(path=ARTIFACTS / f"{name}-waiting.png")
        assert await violations(page) == []
