"""How it goes by model and day, and who looked at what: what the charts show stands in a table too, and the range is in the address."""

from collections.abc import Iterator

import pytest
from playwright.async_api import Browser, expect

from tests.browser.conftest import visit
from tests.browser.stub_console import Stub, running_stub
from tests.browser.stub_data import populate
from tests.browser.support import Support

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

REFUSED = ("503 (Service Unavailable)",)
COUNTS = ("up", "down", "errors", "interruptions")
NOVEMBER = "/overview?from=2026-10-25&to=2026-11-23"


@pytest.fixture
def stub() -> Iterator[Stub]:
    """A server of the test's own."""
    with running_stub() as stub:
        populate(stub)
        yield stub


async def test_the_charts_show_each_day_and_the_table_says_the_same(browser: Browser, stub: Stub) -> None:
    async with visit(browser, "about:blank") as page:
        await Support(page).open(stub.url + NOVEMBER, "support-token")
        model = page.locator("section.model").filter(has=page.get_by_role("heading", name="demo"))
        days = [day for day in stub.days if day["model"] == "demo"]
        num_up = sum(day["num_up"] for day in days)
        num_down = sum(day["num_down"] for day in days)

        await expect(model.get_by_role("img", name=f"Ratings. {num_up:,} up, {num_down} down.")).to_be_visible()
        await expect(model.locator("rect.of-up")).to_have_count(len(days) + 1)  # and the legend's
        await model.get_by_text("As a table").click()
        rows = model.get_by_role("row")
        await expect(rows).to_have_count(31)
        last = days[-1]
        cells = await rows.nth(1).get_by_role("cell").all_text_contents()
        assert cells[1:6] == [f"{last['num_answers']:,}", *(str(last[f"num_{name}"]) for name in COUNTS)]


async def test_the_range_is_in_the_address_and_is_asked_for(browser: Browser, stub: Stub) -> None:
    async with visit(browser, "about:blank") as page:
        await Support(page).open(stub.url + NOVEMBER, "support-token")
        await expect(page.locator("section.model")).to_have_count(2)
        asked = stub.asked["/v1/overview"][-1]
        assert (asked["from_ms"], asked["to_ms"]) == ("1792886400000", "1795478399999")

        await page.get_by_label("Model").fill("qwen3-8b")
        await page.get_by_label("From").fill("2026-11-10")
        await page.get_by_role("button", name="Show").click()

        await expect(page.locator("section.model")).to_have_count(1)
        await expect(page).to_have_url(f"{stub.url}/overview?from=2026-11-10&to=2026-11-23&model=qwen3-8b")
        await page.get_by_role("link", name="90 days").click()
        await expect(page.get_by_role("link", name="90 days")).to_have_attribute("aria-current", "true")
        assert stub.asked["/v1/overview"][-1]["model"] == "qwen3-8b"


async def test_the_focus_stays_in_the_form_of_the_range(browser: Browser, stub: Stub) -> None:
    async with visit(browser, "about:blank") as page:
        await Support(page).open(stub.url + NOVEMBER, "support-token")
        await expect(page.locator("section.model")).to_have_count(2)
        show, preset = page.get_by_role("button", name="Show"), page.get_by_role("link", name="30 days")
        await page.get_by_label("Model").fill("demo")

        await show.press("Enter")
        await expect(page.locator("section.model")).to_have_count(1)
        await expect(show).to_be_focused()

        await preset.press("Enter")
        await expect(preset).to_have_attribute("aria-current", "true")
        await expect(preset).to_be_focused()
        await expect(page.get_by_label("Model")).to_have_value("demo")


async def test_no_days_and_a_failure_are_said(browser: Browser, stub: Stub) -> None:
    stub.refuse["/v1/overview"] = 503
    stub.days.clear()
    async with visit(browser, "about:blank", ignoring=REFUSED) as page:
        await Support(page).open(stub.url + NOVEMBER, "support-token")
        await expect(page.locator(".failure")).to_contain_text("The database is away.")
        del stub.refuse["/v1/overview"]

        await page.get_by_role("button", name="Try again").click()

        await expect(page.locator(".nothing")).to_have_text("Nothing was answered in these days.")


async def test_the_log_is_read_by_who_and_what(browser: Browser, stub: Stub) -> None:
    async with visit(browser, "about:blank") as page:
        support = Support(page)
        await support.open(f"{stub.url}/audit", "admin-token")
        await expect(support.tally).to_have_text("30 entries; that is all.")

        await page.get_by_label("Who").fill("rita")
        await page.get_by_label("Did").select_option("Exported a session")
        await page.get_by_role("button", name="Show").click()

        await expect(page).to_have_url(f"{stub.url}/audit?actor=rita&action=session.export")
        await expect(support.tally).to_be_visible()
        assert stub.asked["/v1/audit"][-1] == {"actor": "rita", "action": "session.export", "limit": "100"}


async def test_older_entries_come_when_asked_for_and_the_focus_goes_on_at_the_first_of_them(
    browser: Browser, stub: Stub
) -> None:
    stub.audits *= 5
    async with visit(browser, "about:blank", ignoring=REFUSED) as page:
        support = Support(page)
        await support.open(f"{stub.url}/audit", "admin-token")
        await expect(support.tally).to_have_text("100 entries so far.")
        stub.refuse["/v1/audit"] = 503

        await page.get_by_role("button", name="Older").press("Enter")
        await expect(page.get_by_role("button", name="Try again")).to_be_focused()
        del stub.refuse["/v1/audit"]
        await page.reload()
        await page.get_by_role("button", name="Older").press("Enter")

        await expect(support.tally).to_have_text("150 entries; that is all.")
        await expect(page.get_by_role("row").nth(101)).to_be_focused()
