"""What anyone must find on a page: nothing that axe complains of, nothing wider than the window, at every size, light and dark."""

from pathlib import Path

from playwright.async_api import Page

AXE = Path(__file__).parents[2] / "node_modules" / "axe-core" / "axe.min.js"

# Width, height, whether it is dark. Colours and layout do not meet: each size in one of the two.
SIZES = [(320, 568, False), (360, 740, True), (768, 1024, False), (1440, 900, True), (2560, 1440, False)]


async def violations(page: Page) -> list[str]:
    """What axe finds."""
    assert AXE.exists(), "run npm install"
    await page.add_script_tag(path=AXE)
    found = await page.evaluate("async () => (await axe.run()).violations")
    return [f"{v['impact']}: {v['id']}: {[n['html'] for n in v['nodes']]}" for v in found]


async def assert_no_sideways_scroll(page: Page, *also: str) -> None:
    """Nothing is wider than the window, nor than what these selectors find."""
    for selector in ("html", *also):
        assert await page.locator(selector).evaluate("(node) => node.scrollWidth - node.clientWidth") == 0, selector
