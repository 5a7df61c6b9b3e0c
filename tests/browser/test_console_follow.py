"""A session that goes on, or is not stored yet, while someone reviews it: what is new comes by itself and leaves what is typed alone."""

import asyncio
from collections.abc import Iterator

import pytest
from playwright.async_api import Browser, Locator, Page, expect

from tests.browser.conftest import PATIENCE_MS, visit
from tests.browser.stub_console import Stub, running_stub
from tests.browser.stub_recording import Recording
from tests.browser.support import Support

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

LIVE = "sess_live"
PATH = f"/v1/sessions/{LIVE}"
REFUSED = ("503 (Service Unavailable)",)
MISSING = "Not all of this session is stored yet; its answers appear here a little later."
MAX_LOOKS = 8


class Talk:
    """A session of one answer, and more when a test wants it."""

    def __init__(self, stub: Stub) -> None:
        self.recording = Recording(LIVE)
        self._stub = stub
        self.recording.answer(self.recording.ask("Are you there?"), "I am.")
        stub.add(self.recording, status="active", ended_ms=None)
        self.store()

    def go_on(self) -> None:
        """Another answer, which is not stored yet."""
        self.recording.wait(500)
        self.recording.answer(self.recording.ask("And now?"), "Still.")

    def store(self) -> None:
        """All that was said, in the tables."""
        extent = self.recording.extent | {"is_live": self._stub.is_live}
        known = {"turns": self.recording.turns, "answers": self.recording.answers, "warnings": [], "extent": extent}
        self._stub.details[LIVE] |= {
            name: list(value) if isinstance(value, list) else value for name, value in known.items()
        }


@pytest.fixture
def stub() -> Iterator[Stub]:
    """A server of the test's own."""
    with running_stub() as stub:
        yield stub


async def follow(page: Page, stub: Stub) -> Support:
    """Someone at the session, once its first answer is there."""
    support = Support(page)
    await support.open(f"{stub.url}/sessions/{LIVE}", "support-token")
    await expect(support.answers.first.locator(".words")).to_have_text("I am.")
    return support


def lookout(page: Page) -> Locator:
    """Where it says that something is missing."""
    return page.locator(".lookout")


async def test_the_next_answer_leaves_what_is_being_typed_and_read_alone(browser: Browser, stub: Stub) -> None:
    stub.is_live = True
    talk = Talk(stub)
    async with visit(browser, "about:blank") as page:
        support = await follow(page, stub)
        sheet = support.sheets.first
        comment, bad = sheet.get_by_label("Comment"), sheet.get_by_role("button", name="Bad")
        await sheet.get_by_text("Exact prompt", exact=True).click()
        await bad.click()
        await comment.fill("Half a")

        talk.go_on()
        talk.recording.answers[0] |= {"heard_text": "I", "heard_chars": 1}
        talk.store()

        await expect(support.sheets).to_have_count(2)
        await expect(sheet.locator(".legend")).to_contain_text("heard 1")
        await expect(comment).to_be_focused()
        await page.keyboard.type(" sentence")
        await expect(comment).to_have_value("Half a sentence")
        await expect(bad).to_have_attribute("aria-pressed", "true")
        await expect(sheet.get_by_role("region", name="Exact prompt")).to_be_visible()


async def test_the_next_answer_leaves_the_focus_in_the_list_of_moments_and_a_review_that_was_just_saved(
    browser: Browser, stub: Stub
) -> None:
    stub.is_live = True
    talk = Talk(stub)
    async with visit(browser, "about:blank") as page:
        support = await follow(page, stub)
        sheet = support.sheets.first
        await sheet.get_by_role("button", name="Bad").click()
        await sheet.get_by_role("button", name="Save review").click()
        await expect(sheet.locator(".by-support")).to_have_count(1)
        stub.details[LIVE]["feedback"].clear()  # as long as the writer has not stored it
        await page.get_by_text("Moments", exact=True).click()
        moment = page.get_by_role("button", name="Turn 1 Are you there?")
        await moment.focus()

        talk.go_on()
        talk.store()

        await expect(support.sheets).to_have_count(2)
        await expect(moment).to_be_focused()
        await expect(sheet.locator(".by-support")).to_have_count(1)


async def test_an_answer_that_is_stored_late_is_waited_for(browser: Browser, stub: Stub) -> None:
    stub.is_live = True
    talk = Talk(stub)
    async with visit(browser, "about:blank") as page:
        support = await follow(page, stub)

        talk.go_on()

        await expect(lookout(page)).to_have_text(MISSING)
        await expect(support.sheets).to_have_count(1)
        talk.store()
        await expect(support.sheets).to_have_count(2)
        await expect(lookout(page)).to_be_empty()


async def test_a_failure_to_look_is_said_and_it_looks_again(browser: Browser, stub: Stub) -> None:
    stub.is_live = True
    talk = Talk(stub)
    async with visit(browser, "about:blank", ignoring=REFUSED) as page:
        support = await follow(page, stub)
        stub.refuse[PATH] = 503

        talk.go_on()
        talk.store()

        await expect(lookout(page)).to_contain_text("The database is away.")
        del stub.refuse[PATH]
        await expect(support.sheets).to_have_count(2)
        await expect(lookout(page)).to_be_empty()


async def test_the_answers_of_a_session_that_is_over_appear_once_they_are_stored(browser: Browser, stub: Stub) -> None:
    talk = Talk(stub)
    stub.details[LIVE] |= {"turns": [], "answers": [], "warnings": ["not_stored_yet"]}
    async with visit(browser, "about:blank") as page:
        support = await follow(page, stub)
        await expect(lookout(page)).to_have_text(MISSING)
        await expect(support.sheets).to_have_count(0)

        talk.store()

        await expect(support.sheets).to_have_count(1)
        await expect(lookout(page)).to_be_empty()


async def test_what_never_comes_is_not_looked_for_without_end(browser: Browser, stub: Stub) -> None:
    talk = Talk(stub)
    stub.details[LIVE] |= {"turns": [], "answers": [], "warnings": ["not_stored_yet"]}
    async with visit(browser, "about:blank") as page:
        await page.clock.install()
        support = await follow(page, stub)
        # Its end wakes the lookout, which counts anew from there.
        await expect(support.answers.first).to_have_attribute("data-status", "completed")
        before = len(stub.asked[PATH])
        again = page.get_by_role("button", name="Look again")
        async with asyncio.timeout(PATIENCE_MS / 1000):
            while not await again.is_visible():
                await page.clock.fast_forward(60_000)
        assert len(stub.asked[PATH]) == before + MAX_LOOKS
        talk.store()

        await again.press("Enter")

        await expect(support.sheets).to_have_count(1)
        await expect(lookout(page)).to_have_text("All of it is here now.")
        await expect(lookout(page)).to_be_focused()
