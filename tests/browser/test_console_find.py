"""Signing in, and finding a session: by an address that can be shared, page after page, and honest about what was not looked at."""

from collections.abc import Iterator

import pytest
from playwright.async_api import Browser, expect

from tests.browser.conftest import visit
from tests.browser.stub_console import Json, Stub, running_stub
from tests.browser.stub_data import BIDI, populate
from tests.browser.stub_recording import BEGAN_MS
from tests.browser.support import Support

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

REFUSED = ("401 (Unauthorized)", "503 (Service Unavailable)", "404 (Not Found)")


@pytest.fixture
def stub() -> Iterator[Stub]:
    """A server of the test's own."""
    with running_stub() as stub:
        populate(stub)
        yield stub


async def test_a_token_stays_in_its_tab_and_is_gone_when_signing_out(browser: Browser, stub: Stub) -> None:
    async with visit(browser, stub.url) as page:
        support = Support(page)
        await support.sign_in("support-token")
        await expect(page.locator("#who")).to_contain_text("sam")
        await expect(page.get_by_role("link", name="Audit")).to_be_hidden()
        await page.reload()
        await expect(support.results.first).to_be_visible()
        other = await page.context.new_page()
        await other.goto(stub.url)
        await expect(other.get_by_label("Access token")).to_be_visible()
        assert "token" not in page.url

        await page.get_by_role("button", name="Sign out").click()

        await expect(page.get_by_label("Access token")).to_be_focused()
        assert await page.evaluate("sessionStorage.length + localStorage.length") == 0


async def test_a_token_that_ends_leads_back_to_the_door_and_then_to_where_one_was(browser: Browser, stub: Stub) -> None:
    async with visit(browser, "about:blank", ignoring=REFUSED) as page:
        support = Support(page)
        await support.open(stub.url, "support-token")
        await expect(support.results.first).to_be_visible()
        stub.refuse["/v1/sessions"] = 401

        await support.look_for("whale")

        await expect(page.get_by_role("alert")).to_contain_text("Your access has ended")
        del stub.refuse["/v1/sessions"]
        await support.sign_in("support-token")
        await expect(page.get_by_label("Words said")).to_have_value("whale")


async def test_a_search_is_an_address_that_another_can_open(browser: Browser, stub: Stub) -> None:
    async with visit(browser, "about:blank") as page:
        support = Support(page)
        await support.open(stub.url, "support-token")
        await page.get_by_label("Words said").fill("guide dog")
        await page.get_by_label("User", exact=True).fill("anna")
        await page.get_by_label("From").fill("2026-11-01")
        await page.get_by_label("Rating").select_option("Thumbs down")
        await page.get_by_label("First token over (ms)").fill("500")
        await page.get_by_label("With interruptions").check()
        await page.get_by_role("button", name="Search", exact=True).click()
        await expect(support.results.first).to_be_visible()
        asked = stub.asked["/v1/sessions"][-1]
        assert asked.items() >= {"text": "guide dog", "user": "anna", "rating": "down"}.items()
        assert asked.items() >= {"min_first_token_ms": "500", "has_interruptions": "true", "limit": "50"}.items()
        assert "has_errors" not in asked
        midnight = await page.evaluate("new Date(2026, 10, 1).getTime()")
        assert asked["from_ms"] == str(midnight)

        async with visit(browser, "about:blank") as another:
            await Support(another).open(page.url, "support-token")
            await expect(another.get_by_label("Words said")).to_have_value("guide dog")
            await expect(another.get_by_label("With interruptions")).to_be_checked()
            await expect(another.locator("ol.results > li").first).to_be_visible()
        assert stub.asked["/v1/sessions"][-1] == asked

        await page.get_by_role("button", name="Clear all").click()
        await expect(page.get_by_label("User", exact=True)).to_have_value("")
        await page.go_back()
        await expect(page.get_by_label("User", exact=True)).to_have_value("anna")


async def test_older_sessions_come_when_asked_for_and_the_focus_goes_on_at_the_first_of_them(
    browser: Browser, stub: Stub
) -> None:
    async with visit(browser, "about:blank") as page:
        support = Support(page)
        await support.open(stub.url, "support-token")
        await expect(support.results).to_have_count(50)
        await expect(support.tally).to_have_text("50 sessions so far, newest first.")

        await page.get_by_role("button", name="Older").click()

        await expect(support.results).to_have_count(65)
        await expect(support.results.nth(50).get_by_role("link")).to_be_focused()
        await expect(support.tally).to_have_text("65 sessions; that is all.")
        await expect(page.get_by_role("button", name="Older")).to_have_count(0)


async def test_what_was_not_looked_at_yet_is_not_called_nothing(browser: Browser, stub: Stub) -> None:
    def find(query: Json) -> Json:
        if "after" not in query:
            return {"data": [], "next": "further", "searched_to_ms": BEGAN_MS}
        return {"data": stub.sessions[:1], "next": None, "searched_to_ms": None}

    stub.find = find
    async with visit(browser, "about:blank") as page:
        support = Support(page)
        await support.open(f"{stub.url}?text=whale", "support-token")
        await expect(support.tally).to_contain_text("No session so far. Looked back to Nov 23, 2026")

        await page.get_by_role("button", name="Look further back").click()

        await expect(support.results).to_have_count(1)
        await expect(support.tally).to_have_text("1 session; that is all.")


async def test_nothing_found_and_a_failure_are_said_and_can_be_tried_again(browser: Browser, stub: Stub) -> None:
    stub.refuse["/v1/sessions"] = 503
    async with visit(browser, "about:blank", ignoring=REFUSED) as page:
        support = Support(page)
        await support.open(stub.url, "support-token")
        await expect(page.locator(".failure")).to_contain_text("The database is away.")
        await expect(page.locator(".failure code")).to_have_text("err_1234")
        del stub.refuse["/v1/sessions"]
        stub.find = lambda _: {"data": [], "next": None, "searched_to_ms": None}

        await page.get_by_role("button", name="Try again").click()

        await expect(support.tally).to_have_text("There are no sessions yet.")
        await support.look_for("nobody said this")
        await expect(support.tally).to_contain_text("No session is like this")


async def test_what_was_said_is_text_and_what_hides_in_it_is_seen(browser: Browser, stub: Stub) -> None:
    stub.sessions[:] = [stub.sessions[0] | {"first_text": BIDI, "user_id": "<b>bo\u202e", "snippet": None}]
    async with visit(browser, "about:blank") as page:
        support = Support(page)
        await support.open(f"{stub.url}?text=safe", "support-token")

        row = support.results.first
        await expect(row.get_by_role("link")).to_contain_text("<img src=x onerror=alert(1)>")
        assert await row.locator("img, b").count() == 0
        assert await row.locator(".hidden-character").all_text_contents() == ["U+202E", "U+202C", "␇", "U+202E"]
        await expect(row.locator("mark")).to_have_text("safe")


async def test_an_unknown_place_says_so(browser: Browser, stub: Stub) -> None:
    async with visit(browser, "about:blank") as page:
        support = Support(page)
        await support.open(f"{stub.url}/audit", "support-token")

        await expect(support.heading).to_have_text("Not found")
        await page.get_by_role("link", name="Find a session").click()
        await expect(support.heading).to_be_focused()
        await expect(support.heading).to_have_text("Sessions")
