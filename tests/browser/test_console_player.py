"""The player when the link or the server is not as it should be: it shows where it is, goes on when it can, and asks too much of nobody."""

import re
from collections.abc import Iterator

import pytest
from playwright.async_api import Browser, expect

from tests.browser.conftest import visit
from tests.browser.passing import until
from tests.browser.stub_console import Stub, running_stub
from tests.browser.stub_data import FULL, full_recording
from tests.browser.stub_recording import Recording
from tests.browser.support import Support

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

DROPPED = ("WebSocket",)


@pytest.fixture
def stub() -> Iterator[Stub]:
    """A server of the test's own."""
    with running_stub() as stub:
        stub.add(full_recording())
        yield stub


def place_of(stub: Stub, at_ms: int | None = None) -> str:
    return f"{stub.url}/sessions/{FULL}" + ("" if at_ms is None else f"?at={at_ms}")


async def test_a_start_past_the_end_is_the_end(browser: Browser, stub: Stub) -> None:
    """While the recording cannot be asked, its length is a guess."""
    stub.details[FULL]["extent"] = None
    stub.details[FULL]["session"]["ended_ms"] += 60_000
    async with visit(browser, "about:blank", ignoring=DROPPED) as page:
        support = Support(page)
        await support.open(place_of(stub), "support-token")

        await expect(support.time).to_have_text("0:58 / 0:58")
        await expect(support.answers).to_have_count(4)
        await expect(page.locator(".trouble")).to_be_empty()
        assert stub.num_connections == 2
        await support.seek(9_300)
        await expect(support.answers).to_have_count(2)


async def test_a_live_session_that_ends_while_the_link_is_down_is_shown_to_its_end(
    browser: Browser, stub: Stub
) -> None:
    live = Recording("sess_live")
    live.answer(live.ask("Are you there?"), "I am.")
    stub.is_live = True
    stub.add(live, status="active", ended_ms=None, extent={"is_live": True})
    async with visit(browser, "about:blank", ignoring=DROPPED) as page:
        support = Support(page)
        await support.open(f"{stub.url}/sessions/sess_live", "support-token")
        await expect(support.time).to_have_text(re.compile(r"^0:(0[1-9]|[1-5])"))

        stub.is_live = False
        stub.drop()

        await expect(support.time).to_have_text("0:00 / 0:00")
        await expect(support.play).to_be_visible()
        await expect(support.answers.first.locator(".words")).to_have_text("I am.")
        await expect(page.locator(".trouble")).to_be_empty()


async def test_a_refused_seek_leaves_it_where_it_was_and_going_on(browser: Browser, stub: Stub) -> None:
    async with visit(browser, "about:blank") as page:
        support = Support(page)
        await support.open(place_of(stub, 9_300), "support-token")
        await support.play.click()
        await expect(support.time).to_have_text(re.compile(r"^0:[1-5]"))

        stub.num_refused = 1
        await support.scrubber.press("Home")

        await expect(page.locator(".trouble")).to_have_text("This was refused.")
        await expect(support.time).to_have_text(re.compile(r"^0:[1-5]"))


async def test_quick_skips_add_up_however_long_an_answer_takes(browser: Browser, stub: Stub) -> None:
    async with visit(browser, "about:blank") as page:
        support = Support(page)
        await support.open(place_of(stub, 5_000), "support-token")
        await expect(support.answers).to_have_count(1)

        stub.num_answered = 0
        for num_skips in (1, 2):
            await support.scrubber.press("ArrowRight")
            await until(lambda: len(stub.updates) == num_skips)  # noqa: B023
        stub.num_answered = 1
        await expect(support.answers).to_have_count(2)
        await expect(support.time).to_have_text("0:15 / 0:58")
        await support.scrubber.press("ArrowRight")
        stub.num_answered = None

        await expect(support.time).to_have_text("0:20 / 0:58")
        await expect(support.answers).to_have_count(3)
        await until(lambda: len(stub.updates) == 3)
        assert [update["position"] for update in stub.updates] == [10_000, 15_000, 20_000]


async def test_a_link_that_died_without_a_word_is_noticed_and_it_goes_on(browser: Browser, stub: Stub) -> None:
    async with visit(browser, "about:blank", ignoring=DROPPED) as page:
        support = Support(page)
        await support.open(place_of(stub, 9_300), "support-token")
        await support.play.click()
        await expect(support.pause).to_be_visible()

        stub.dead = 1
        await until(lambda: stub.num_connections == 2)

        await expect(page.locator(".trouble")).to_be_empty()
        await expect(support.pause).to_be_visible()
        await expect(support.answers).to_have_count(3)


@pytest.mark.parametrize(("code", "least_waits_s"), [(1012, (0, 0.2)), (1013, (0.2, 0.4))], ids=["restarting", "busy"])
async def test_a_server_that_drops_it_at_once_is_asked_less_and_less_often(
    browser: Browser, stub: Stub, code: int, least_waits_s: tuple[float, float]
) -> None:
    stub.drops_with = code
    async with visit(browser, "about:blank", ignoring=DROPPED) as page:
        support = Support(page)
        await support.open(place_of(stub, 9_300), "support-token")
        await until(lambda: stub.num_connections >= 3)
        stub.drops_with = None

        await expect(support.time).to_have_text("0:09 / 0:58")
        await expect(support.answers).to_have_count(2)
        await expect(page.locator(".trouble")).to_be_empty()

    waits_s = [after - before for before, after in zip(stub.began_s, stub.began_s[1:], strict=False)]
    assert waits_s[0] >= least_waits_s[0]
    assert waits_s[1] >= least_waits_s[1]


async def test_a_screen_reader_hears_where_the_keys_lead(browser: Browser, stub: Stub) -> None:
    async with visit(browser, "about:blank") as page:
        support = Support(page)
        await support.open(place_of(stub, 9_300), "support-token")
        await support.scrubber.focus()
        await expect(support.scrubber).to_have_attribute("aria-valuetext", "9 seconds of 58 seconds")

        for key, words in (
            ("ArrowRight", "14 seconds"),
            ("Home", "the start"),
            ("l", "10 seconds"),
            ("End", "58 seconds"),
        ):
            await page.keyboard.press(key)
            await expect(support.scrubber).to_have_attribute("aria-valuetext", f"{words} of 58 seconds")
