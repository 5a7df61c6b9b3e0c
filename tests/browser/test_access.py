"""Anyone can use the page: any width, light or dark, the keyboard alone, a screen reader."""

import re

import pytest
from playwright.async_api import Browser, expect

from tests.browser.accessibility import SIZES, assert_no_sideways_scroll, violations
from tests.browser.conftest import ARTIFACTS, AWAY, Server, visit
from tests.browser.link import link_to
from tests.browser.passing import note, noted
from tests.browser.person import Person

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

LOG = "[role=log]"
FOCUSED = """() => {
  const node = document.activeElement;
  const { outlineStyle, outlineWidth } = getComputedStyle(node);
  const box = node.closest("form") ?? node;
  return {
    name: node.id || node.className || node.textContent.trim(),
    isMarked: (outlineStyle !== "none" && parseFloat(outlineWidth) >= 2) || getComputedStyle(box).boxShadow.includes("0px 2px"),
  };
}"""


@pytest.mark.parametrize(("width", "height", "is_dark"), SIZES)
async def test_the_page_fits_and_is_kept_as_a_picture(
    browser: Browser, server: Server, width: int, height: int, is_dark: bool
) -> None:
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    name = f"{'dark' if is_dark else 'light'}-{width}"
    async with visit(browser, server.url, width=width, height=height, is_dark=is_dark) as page:
        person = Person(page)
        await person.wait_until_connected()
        await assert_no_sideways_scroll(page, LOG)
        await page.screenshot(path=ARTIFACTS / f"{name}-welcome.png")

        first = await person.say("What would a very long word do here? " + "Donaudampfschifffahrt" * 6)
        await person.wait_until(first, "completed")
        await person.wait_until(await person.say("[fail after 12] And then?"), "failed")
        speaking = await person.say("[tokens 2000] Go on")
        await person.wait_until_speaking(speaking)
        await expect(speaking.locator(".words")).to_contain_text(re.compile(r"(\S+\s+){25}"))

        await assert_no_sideways_scroll(page, LOG)
        await expect(person.box).to_be_in_viewport(ratio=1)
        await expect(person.stop).to_be_in_viewport(ratio=1)
        await page.screenshot(path=ARTIFACTS / f"{name}-speaking.png")


async def test_at_four_hundred_percent_everything_can_be_reached(browser: Browser, server: Server) -> None:
    async with visit(browser, server.url, width=320, height=256) as page:
        person = Person(page)
        await person.wait_until_connected()

        answer = await person.say("Hello")

        await person.wait_until(answer, "completed")
        await assert_no_sideways_scroll(page, LOG)
        await answer.locator(".meta").scroll_into_view_if_needed()
        await expect(answer.locator(".meta")).to_be_in_viewport()
        ARTIFACTS.mkdir(parents=True, exist_ok=True)
        await page.screenshot(path=ARTIFACTS / "light-320-low.png")


async def test_the_keyboard_alone_is_enough(browser: Browser, server: Server) -> None:
    async with visit(browser, server.url) as page:
        person = Person(page)
        await person.wait_until_connected()
        await expect(person.box).to_be_focused()

        await page.keyboard.type("One line")
        await page.keyboard.press("Shift+Enter")
        await page.keyboard.type("[tokens 2000]")
        await page.keyboard.press("Enter")
        await expect(person.log.locator("article.question .words")).to_have_text("One line\n[tokens 2000]")
        await person.wait_until_speaking(person.answers.first)
        await page.keyboard.press("Escape")
        await person.wait_until(person.answers.first, "cancelled")

        await page.keyboard.type("[tokens 2000] again")
        await page.keyboard.press("Enter")
        await person.wait_until_speaking(person.answers.nth(1))
        await page.keyboard.press("Tab")
        await expect(person.stop).to_be_focused()
        await page.keyboard.press("Space")
        await person.wait_until(person.answers.nth(1), "cancelled")
        await expect(person.box).to_be_focused()


async def test_focus_is_visible_everywhere_and_the_skip_link_leads_to_the_box(browser: Browser, server: Server) -> None:
    async with visit(browser, server.url) as page:
        person = Person(page)
        await person.wait_until_connected()
        passed = [await page.evaluate(FOCUSED)]
        while passed[-1]["name"] != "skip" and len(passed) < 12:
            await page.keyboard.press("Shift+Tab")
            passed.append(await page.evaluate(FOCUSED))

        assert [stop["name"] for stop in passed] == [
            "message",
            "What can we talk about?",
            "Tell me a short story",
            "Who are you?",
            "transcript",
            "skip",
        ]
        assert [stop["name"] for stop in passed if not stop["isMarked"]] == []
        await expect(page.get_by_role("link", name="Skip to the message box")).to_be_in_viewport(ratio=1)
        await page.keyboard.press("Enter")
        await expect(person.box).to_be_focused()


async def test_a_screen_reader_hears_sentences_not_tokens(browser: Browser, server: Server) -> None:
    async with visit(browser, server.url) as page:
        person = Person(page)
        await person.wait_until_connected()

        await note(page, "String(document.querySelector('.tail')?.ariaHidden)")

        answer = await person.say("Hello")

        await person.wait_until(answer, "completed")
        assert await noted(page) == ["undefined", "true", "undefined"]
        await expect(person.log).to_have_attribute("aria-live", "polite")
        chunks = await answer.locator(".words > span").all_text_contents()
        assert 2 <= len(chunks) <= 8
        assert [chunk for chunk in chunks[:-1] if not re.search(r"[.!?…:;,]\s*$", chunk)] == []
        assert await answer.locator(".tail").count() == 0
        await expect(page.locator("[role=status]").first).to_contain_text("Connected")


@pytest.mark.parametrize(("width", "is_dark"), [(360, False), (1280, True)], ids=["360-light", "1280-dark"])
async def test_axe_finds_nothing(browser: Browser, server: Server, width: int, is_dark: bool) -> None:
    # Reduced motion: axe would measure the contrast of text that is still fading in.
    async with visit(browser, server.url, width=width, is_dark=is_dark, is_still=True, bypass_csp=True) as page:
        person = Person(page)
        await person.wait_until_connected()
        assert await violations(page) == []

        await person.wait_until(await person.say("[tokens 12] Hello"), "completed")
        await person.wait_until(await person.say("[fail after 3] Hello"), "failed")
        await person.box.fill("é" * 40_000)
        await person.box.press("Enter")
        await expect(person.notice).not_to_be_empty()
        await person.box.fill("")
        assert await violations(page) == []

        speaking = await person.say("[tokens 2000] Go on")
        await person.wait_until_speaking(speaking)
        assert await violations(page) == []


async def test_axe_finds_nothing_when_signing_in(browser: Browser, server: Server) -> None:
    async with visit(browser, "about:blank", is_still=True, bypass_csp=True, ignoring=("404 (Not Found)",)) as page:
        await page.route("**/dev/token", lambda route: route.fulfill(status=404, body="Not Found"))
        await page.goto(server.url)
        await expect(page.get_by_label("Access token")).to_be_focused()

        assert await violations(page) == []

        ARTIFACTS.mkdir(parents=True, exist_ok=True)
        await page.screenshot(path=ARTIFACTS / "light-1280-sign-in.png")


@pytest.mark.parametrize("is_dark", [False, True], ids=["light", "dark"])
async def test_axe_finds_nothing_without_a_connection_and_in_a_tab_that_lost_its_conversation(
    browser: Browser, server: Server, is_dark: bool
) -> None:
    async with (
        link_to(server.port) as link,
        visit(browser, link.url, width=360, is_dark=is_dark, is_still=True, bypass_csp=True, ignoring=AWAY) as page,
    ):
        person = Person(page)
        await person.wait_until_connected()
        await person.wait_until(await person.say("[echo hi]"), "completed")
        await link.go_down()
        await expect(page.get_by_role("button", name="Try now")).to_be_visible()
        await person.box.fill("[echo said meanwhile]")
        await person.box.press("Enter")
        await expect(person.log.get_by_text("Waiting for the connection")).to_be_visible()
        assert await violations(page) == []
        await assert_no_sideways_scroll(page, LOG)

        await link.go_up()
        await person.wait_until(person.answers.nth(1), "completed")
        async with page.expect_popup():
            await page.evaluate("void window.open('/')")
        await expect(page.get_by_role("button", name="Take it back")).to_be_visible()
        assert await violations(page) == []
        await assert_no_sideways_scroll(page, LOG)
