"""Anyone of the staff can use the console: any width, light or dark, the keyboard alone, a screen reader."""

from collections.abc import Iterator

import pytest
from playwright.async_api import Browser, Page, expect

from tests.browser.accessibility import assert_no_sideways_scroll, violations
from tests.browser.conftest import ARTIFACTS, visit
from tests.browser.stub_console import Stub, running_stub
from tests.browser.stub_data import FULL, populate
from tests.browser.support import Support

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

PLACES = {
    "find": "",
    "find-narrowed": "?text=dog&rating=down&min_first_token_ms=500&has_errors=true",
    "session": f"/sessions/{FULL}",
    "overview": "/overview?from=2026-10-25&to=2026-11-23",
    "audit": "/audit",
    "unknown": "/sessions/sess_unknown",
}
UNKNOWN = ("404 (Not Found)",)
FOCUSED = """() => {
  const { outlineStyle, outlineWidth } = getComputedStyle(document.activeElement);
  return { tag: document.activeElement.tagName, isMarked: outlineStyle !== "none" && parseFloat(outlineWidth) >= 2 };
}"""


@pytest.fixture(scope="module")
def stub() -> Iterator[Stub]:
    """A server that knows enough to fill every page."""
    with running_stub() as stub:
        populate(stub)
        yield stub


async def settled(page: Page, place: str) -> Support:
    """Someone at that place, once all of it is there."""
    support = Support(page)
    match place:
        case "session":
            await expect(support.answers).to_have_count(4)
            await support.sheets.nth(1).locator("summary").first.click()
            await support.sheets.nth(1).get_by_text("Exact prompt").click()
            await page.get_by_text("Moments", exact=True).click()
        case "overview":
            await expect(page.locator(".plot svg")).to_have_count(6)
            await page.get_by_text("As a table").first.click()
        case "audit":
            await expect(page.get_by_role("row")).to_have_count(31)
        case "unknown":
            await expect(support.heading).to_have_text("No such session")
        case _:
            await expect(support.results.first).to_be_visible()
    return support


@pytest.mark.parametrize(("width", "is_dark"), [(360, False), (1600, True)], ids=["360-light", "1600-dark"])
@pytest.mark.parametrize("place", PLACES)
async def test_axe_finds_nothing_and_every_page_fits(
    browser: Browser, stub: Stub, place: str, width: int, is_dark: bool
) -> None:
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    name = f"console-{place}-{'dark' if is_dark else 'light'}-{width}"
    async with visit(
        browser, "about:blank", width=width, is_dark=is_dark, is_still=True, bypass_csp=True, ignoring=UNKNOWN
    ) as page:
        await Support(page).open(stub.url + PLACES[place], "admin-token")
        await settled(page, place)

        assert await violations(page) == []
        await assert_no_sideways_scroll(page)
        await page.screenshot(path=ARTIFACTS / f"{name}.png", full_page=True)


@pytest.mark.parametrize("is_dark", [False, True], ids=["light", "dark"])
async def test_axe_finds_nothing_when_signing_in_and_when_that_fails(
    browser: Browser, stub: Stub, is_dark: bool
) -> None:
    async with visit(
        browser, stub.url, width=360, is_dark=is_dark, is_still=True, bypass_csp=True, ignoring=("401 (Unauthorized)",)
    ) as page:
        token = page.get_by_label("Access token")
        assert await violations(page) == []

        await token.fill("wrong")
        await token.press("Enter")

        await expect(page.get_by_role("alert")).to_contain_text("did not accept this token")
        await expect(token).to_be_focused()
        assert await violations(page) == []
        ARTIFACTS.mkdir(parents=True, exist_ok=True)
        await page.screenshot(path=ARTIFACTS / f"console-sign-in-{'dark' if is_dark else 'light'}-360.png")


async def test_the_keyboard_alone_finds_a_session_and_plays_it(browser: Browser, stub: Stub) -> None:
    async with visit(browser, stub.url, is_still=True) as page:
        support = Support(page)
        await page.keyboard.press("Tab")
        await expect(page.get_by_role("link", name="Skip to the page")).to_be_focused()
        await page.get_by_label("Access token").focus()
        await page.keyboard.type("support-token")
        await page.keyboard.press("Enter")
        await expect(support.results.first).to_be_visible()
        await support.results.first.get_by_role("link").focus()
        await page.keyboard.press("Enter")
        await expect(support.heading).to_be_focused()
        await expect(support.answers).to_have_count(4)

        await page.keyboard.press("0")
        await expect(support.answers).to_have_count(0)
        await page.keyboard.press(".")
        await expect(support.log.locator("article.question")).to_have_count(1)
        await page.keyboard.press("Space")
        await expect(support.pause).to_be_visible()
        await page.keyboard.press("k")
        await expect(support.play).to_be_visible()
        await page.keyboard.press(">")
        await expect(support.speed).to_have_value("1.5")
        await page.keyboard.press("End")
        await expect(support.answers).to_have_count(4)
        await page.keyboard.press("ArrowLeft")
        await expect(support.answers).to_have_count(3)


async def test_marks_are_one_stop_and_the_arrows_go_from_one_to_the_next(browser: Browser, stub: Stub) -> None:
    async with visit(browser, "about:blank", is_still=True) as page:
        support = Support(page)
        await support.open(f"{stub.url}/sessions/{FULL}", "support-token")
        await expect(support.marks).to_have_count(10)
        assert [
            name for name in await support.marks.evaluate_all("all => all.map(one => one.ariaLabel)") if not name
        ] == []

        await support.marks.first.focus()
        await page.keyboard.press("ArrowRight")
        await page.keyboard.press("ArrowRight")

        await expect(support.marks.nth(2)).to_be_focused()
        await page.keyboard.press("Enter")
        await expect(support.scrubber).not_to_have_value("0")
        stops = await support.marks.evaluate_all("all => all.filter(one => one.tabIndex === 0).length")
        assert stops == 1


@pytest.mark.parametrize("place", ["find", "session", "overview", "audit"])
async def test_focus_is_visible_on_every_stop(browser: Browser, stub: Stub, place: str) -> None:
    async with visit(browser, "about:blank", is_still=True) as page:
        await Support(page).open(stub.url + PLACES[place], "admin-token")
        await settled(page, place)
        await page.evaluate("document.activeElement.blur()")
        unmarked = []
        for _ in range(40):
            await page.keyboard.press("Tab")
            stop = await page.evaluate(FOCUSED)
            if not stop["isMarked"] and stop["tag"] != "BODY":
                unmarked.append(await page.evaluate("document.activeElement.outerHTML.slice(0, 120)"))

        assert unmarked == []
