"""What passes on a page or in its server: noted while it happens, so that no look comes too late for it, and waited for."""

import asyncio
from collections.abc import Callable

from playwright.async_api import Page

from tests.browser.conftest import PATIENCE_MS

STATUSES = "[...document.querySelectorAll('article.answer')].map((answer) => answer.dataset.status).join(' ')"


async def note(page: Page, look: str) -> None:
    """What the expression `look` gives is noted now, and after each change of the page that makes it another."""
    await page.evaluate(
        f"""() => {{
          window.noted = [];
          const note = () => {{
            const seen = {look};
            if (seen !== window.noted.at(-1)) window.noted.push(seen);
          }};
          note();
          const changes = {{ subtree: true, childList: true, characterData: true, attributes: true }};
          new MutationObserver(note).observe(document, changes);
        }}"""
    )


async def noted(page: Page) -> list[str]:
    """All that was noted, in order."""
    seen: list[str] = await page.evaluate("window.noted")
    return seen


async def until(holds: Callable[[], bool]) -> None:
    """Until it holds in what the test itself can see, such as what a server was told."""
    async with asyncio.timeout(PATIENCE_MS / 1000):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
