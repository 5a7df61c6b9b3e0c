"""What a reviewer typed outlives the end of the access: it is given back to whoever typed it, and to nobody else."""

from collections.abc import Iterator

import pytest
from playwright.async_api import Browser, Page, expect

from tests.browser.conftest import visit
from tests.browser.stub_console import Stub, running_stub
from tests.browser.stub_data import FULL, populate
from tests.browser.support import Support

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

ENDED = ("401 (Unauthorized)",)
NOTES = f"/v1/sessions/{FULL}/notes"
RETURNED = "Not saved yet: as you left it."


@pytest.fixture
def stub() -> Iterator[Stub]:
    """A server of the test's own."""
    with running_stub() as stub:
        populate(stub)
        yield stub


async def type_both(page: Page, stub: Stub) -> Support:
    """Someone who has typed a note and a review, and saved neither."""
    support = Support(page)
    await support.open(f"{stub.url}/sessions/{FULL}", "support-token")
    sheet = support.sheets.nth(1)
    await sheet.locator("summary").first.click()
    await sheet.get_by_role("button", name="Bad").click()
    await sheet.get_by_label("Reason").select_option("too-long")
    await sheet.get_by_label("Comment").fill("It should have")
    await page.get_by_label("New note").fill("Ask the house")
    return support


async def lose_access(page: Page, stub: Stub) -> None:
    """The token ends while the note is sent."""
    stub.refuse[NOTES] = 401
    await page.get_by_role("button", name="Add note").click()
    await expect(page.get_by_role("alert")).to_contain_text("Your access has ended")
    del stub.refuse[NOTES]


async def test_what_was_typed_is_there_again_after_signing_in_again(browser: Browser, stub: Stub) -> None:
    async with visit(browser, "about:blank", ignoring=ENDED) as page:
        support = await type_both(page, stub)
        await lose_access(page, stub)

        await support.sign_in("support-token")

        note, sheet = page.get_by_label("New note"), support.sheets.nth(1)
        await expect(note).to_have_value("Ask the house")
        await expect(sheet.get_by_label("Comment")).to_have_value("It should have")
        await expect(sheet.get_by_label("Reason")).to_have_value("too-long")
        await expect(sheet.get_by_role("button", name="Bad")).to_have_attribute("aria-pressed", "true")
        await expect(sheet.locator(".review-form").get_by_role("status")).to_have_text(RETURNED)
        await page.get_by_role("button", name="Add note").click()
        await sheet.get_by_role("button", name="Save review").click()
        await expect(page.locator(".notes li")).to_have_count(2)
        await expect(sheet.locator(".by-support")).to_contain_text("It should have")


async def test_what_was_saved_is_not_given_back(browser: Browser, stub: Stub) -> None:
    async with visit(browser, "about:blank") as page:
        support = await type_both(page, stub)
        await page.get_by_role("button", name="Add note").click()
        await support.sheets.nth(1).get_by_role("button", name="Save review").click()
        await expect(support.sheets.nth(1).locator(".by-support")).to_have_count(1)
        await expect(page.locator(".notes li")).to_have_count(2)

        await page.get_by_role("link", name="Sessions").click()
        await page.go_back()

        await expect(page.get_by_label("New note")).to_have_value("")
        await expect(support.sheets.nth(1)).not_to_have_attribute("open", "")


async def test_another_is_not_given_it_and_who_typed_it_is(browser: Browser, stub: Stub) -> None:
    async with visit(browser, "about:blank", ignoring=ENDED) as page:
        support = await type_both(page, stub)
        await lose_access(page, stub)

        await support.sign_in("other-token")
        await expect(support.sheets).to_have_count(4)
        await expect(page.get_by_label("New note")).to_have_value("")
        await support.sheets.nth(1).locator("summary").first.click()
        await expect(support.sheets.nth(1).get_by_label("Comment")).to_have_value("")

        await page.get_by_role("button", name="Sign out").click()
        await support.sign_in("support-token")
        await expect(page.get_by_label("New note")).to_have_value("Ask the house")


async def test_who_signs_out_by_choice_leaves_nothing_behind(browser: Browser, stub: Stub) -> None:
    async with visit(browser, "about:blank") as page:
        support = await type_both(page, stub)

        await page.get_by_role("button", name="Sign out").click()
        await support.sign_in("support-token")

        await expect(support.sheets).to_have_count(4)
        await expect(page.get_by_label("New note")).to_have_value("")
