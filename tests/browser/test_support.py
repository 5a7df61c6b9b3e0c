"""From the user's tap to the support person's eyes, on MariaDB, Redis and S3: found by its words, replayed, with the thumb where it was."""

import asyncio
import re
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest
from playwright.async_api import Browser, Locator, Page, Request, expect

from tests import services
from tests.browser.accessibility import assert_no_sideways_scroll, violations
from tests.browser.conftest import ARTIFACTS, AWAY, PATIENCE_MS, Server, visit
from tests.browser.link import link_to
from tests.browser.passing import STATUSES, note, noted
from tests.browser.person import Person
from tests.browser.rater import Thumbs
from tests.browser.support import Support
from tests.end_to_end.client import open_client
from tests.end_to_end.conftest import COMMON
from tests.end_to_end.processes import FluemanProcess, running, token_of

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]

NARWHAL = "[tokens 100] Where does the narwhal hang?"
MAX_TRIES = 5
SESSION = re.compile(r"/v1/sessions/sess_[^/]+$")
HARM = '<img src=x onerror="window.harm=1"><b>x</b>'
SCRIPT = "<script>window.harm=1</script>"
# From the click to the end of the first answer, by the page's own clock.
PLAYED = """(play) => new Promise((resolve) => {
  const began = performance.now();
  const ended = new MutationObserver(() => {
    if (!document.querySelector("article.answer[data-status=completed]")) return;
    ended.disconnect();
    resolve((performance.now() - began) / 1000);
  });
  ended.observe(document.querySelector(".player"), { subtree: true, childList: true, attributes: true });
  play.click();
})"""


@pytest.fixture
def house(
    own_redis: services.RedisServer, database_url: str, durable_s3: services.FolderS3Server, tmp_path: Path
) -> Iterator[FluemanProcess]:
    """A server that serves, writes and archives by itself."""
    query = urlencode({"endpoint": durable_s3.url, "region": services.S3_REGION})
    settings = COMMON | {
        "FLUEMAN_DATA_DIR": str(tmp_path / "var"),
        "FLUEMAN_REDIS_URL": own_redis.url,
        "FLUEMAN_DATABASE_URL": database_url,
        "FLUEMAN_ARCHIVE_URL": f"s3://{durable_s3.new_bucket()}/flueman?{query}",
        "FLUEMAN_SCRIPTED_TOKENS_PER_S": "20",
        "FLUEMAN_RESUME_GRACE_S": "1",
    }
    process = FluemanProcess(tmp_path / "node", settings, "serve")
    with running(process):
        yield process


async def talk_and_rate(browser: Browser, port: int) -> str:
    """A user asks, rates the answer, interrupts another, and rates that without a connection; the first answer's words."""
    async with link_to(port) as link, visit(browser, link.url, ignoring=AWAY) as page:
        person = Person(page)
        await person.wait_until_connected()
        first = await person.say(NARWHAL)
        await person.wait_until(first, "completed")
        await Thumbs(first).up.click()
        await expect(Thumbs(first).progress).to_have_text("Saved")
        second = await person.say("[tokens 400] And <b>the dodo</b>?")
        await person.wait_until_speaking(second)
        await person.stop.click()
        await person.wait_until(second, "cancelled")
        await link.go_down()
        await expect(page.get_by_role("button", name="Try now")).to_be_visible()
        await Thumbs(second).down.click()
        await Thumbs(second).reason("Too long").click()
        await expect(Thumbs(second).progress).to_have_text("Waiting for the connection")
        await link.go_up()
        await expect(Thumbs(second).progress).to_have_text("Saved")
        return await person.words(first)


async def found(support: Support, words: str, *, showing: str = "") -> Locator:
    """The one session in which that was said, once that is shown of it; the writer and the summaries take their time."""
    deadline = time.monotonic() + 2 * PATIENCE_MS / 1000
    while time.monotonic() < deadline:
        await support.look_for(words)
        await expect(support.tally).not_to_be_empty()
        if await support.results.count() == 1 == await support.results.filter(has_text=showing).count():
            return support.results.first
    raise AssertionError(f"no session with {words!r} is found {showing and f'that shows {showing!r}'}")


async def test_support_finds_what_a_user_said_and_sees_the_thumb_where_it_was_given(
    browser: Browser, house: FluemanProcess
) -> None:
    """P3, P8."""
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    words = await talk_and_rate(browser, house.port)
    console = f"http://127.0.0.1:{house.port}/console"
    async with visit(browser, console, width=1600, height=1000, bypass_csp=True) as page:
        support = Support(page)
        await page.get_by_role("button", name="Sign in as support").click()
        row = await found(support, "narwhal", showing="thumbs up: 1")
        await page.screenshot(path=ARTIFACTS / "support-found.png")
        async with page.expect_response(SESSION) as told:
            await row.get_by_role("link").click()
        detail = await (await told.value).json()
        await expect(support.answers).to_have_count(2)
        await expect(support.answers.first.locator(".words")).to_have_text(words)
        # Found so soon it may not be over yet: then it is followed, and would play on by itself wherever it is sought.
        await expect(support.play).to_be_visible()

        length_s = (detail["answers"][0]["done_ms"] - detail["extent"]["first_ms"]) / 1000
        # As quick as it was told to be and not more; what a slow page needs only slows it down, and not to below what it was before.
        for speed, slower in ((1, 0), (8, 1)):
            assert (
                slower * 1.1 < await speed_of_first_answer(support, speed, slower * 1.1, length_s, words) < speed * 1.1
            )

        up = support.mark("Thumbs up by the user")
        await support.seek(int(await up.get_attribute("data-at") or "0") - 200)
        await expect(support.answers).to_have_count(1)
        await expect(support.answers.first).not_to_contain_text("Thumbs up")
        await up.click()
        await expect(support.answers.first).to_contain_text("Thumbs up from the user")
        await support.mark("Thumbs down by the user: too-long").click()
        await expect(support.answers.nth(1)).to_contain_text("Thumbs down from the user: too-long")
        await expect(support.sheets.first).to_contain_text("Where the time went")
        await expect(support.sheets.first.locator(".opinions")).to_contain_text("Good")
        await page.screenshot(path=ARTIFACTS / "support-session.png")
        assert await violations(page) == []
        await assert_no_sideways_scroll(page)


async def speed_of_first_answer(support: Support, speed: int, least: float, length_s: float, words: str) -> float:
    """How many seconds of the session pass in one, from its beginning to the first answer's end; tried until it is more than `least`."""
    seen = 0.0
    for _ in range(MAX_TRIES):
        await support.seek(0)
        await expect(support.answers).to_have_count(0)
        await support.speed.select_option(f"{speed}×")
        seen = max(seen, length_s / await support.play.evaluate(PLAYED))
        await expect(support.answers.first.locator(".words")).to_have_text(words)
        await expect(support.play).to_be_visible()
        if seen > least:
            break
    return seen


async def test_a_damaged_archive_is_said_to_be_and_what_else_is_known_is_shown(
    browser: Browser, house: FluemanProcess, durable_s3: services.FolderS3Server
) -> None:
    async with visit(browser, f"http://127.0.0.1:{house.port}/") as user_page:
        person = Person(user_page)
        await person.wait_until_connected()
        await person.wait_until(await person.say("[echo An axolotl.]"), "completed")
    async with asyncio.timeout(PATIENCE_MS / 1000):
        while not (parts := await asyncio.to_thread(archived, durable_s3)):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    for part in parts:
        part.write_bytes(b"not what was put there")
    async with visit(browser, f"http://127.0.0.1:{house.port}/console") as page:
        support = Support(page)
        await page.get_by_role("button", name="Sign in as support").click()
        await (await found(support, "axolotl")).get_by_role("link").click()
        async with asyncio.timeout(PATIENCE_MS / 1000):
            # Until it is trimmed, the journal has it all.
            while await page.locator(".damage").count() == 0:
                await page.reload()
                await expect(support.sheets).to_have_count(1)

        await expect(page.locator(".damage")).to_contain_text("damaged in the archive")
        await expect(support.log.locator(".gap")).to_contain_text("damaged in the archive")
        await expect(support.sheets.first).to_contain_text("An axolotl.")


def archived(s3: services.FolderS3Server) -> list[Path]:
    """What lies in the buckets."""
    return [part for part in (s3.directory / "buckets").rglob("*.zst") if part.is_file()]


async def test_a_conversation_is_followed_while_it_goes_on(browser: Browser, server: Server) -> None:
    async with (
        visit(browser, server.url) as user_page,
        visit(browser, f"{server.url}console?status=active&text=aardvark", width=1280) as page,
    ):
        person, support = Person(user_page), Support(page)
        await person.wait_until_connected()
        await person.wait_until(await person.say("[echo Which aardvark?]"), "completed")
        await page.get_by_role("button", name="Sign in as support").click()
        row = await found(support, "aardvark")
        await row.get_by_role("link").click()
        await expect(page.locator(".session-head .badge.live")).to_have_text("Live")
        await expect(support.answers.first.locator(".words")).to_have_text("Which aardvark?")

        await note(page, STATUSES)

        answer = await person.say("[tokens 40] And what does it eat?")

        await expect(support.log.get_by_text("And what does it eat?")).to_be_visible()
        await person.wait_until(answer, "completed")
        await expect(support.answers.nth(1)).to_have_attribute("data-status", "completed")
        assert "completed streaming" in await noted(page)
        await expect(support.answers.nth(1).locator(".words")).to_have_text(await person.words(answer))
        await expect(support.sheets).to_have_count(2)
        await expect(support.pause).to_be_visible()


async def test_a_review_and_a_note_are_kept_and_the_user_sees_neither(browser: Browser, server: Server) -> None:
    async with (
        visit(browser, server.url) as user_page,
        visit(browser, f"{server.url}console", width=1280) as page,
    ):
        person, support = Person(user_page), Support(page)
        await person.wait_until_connected()
        answer = await person.say("[echo The quagga is <script>gone</script>.]")
        await person.wait_until(answer, "completed")
        await page.get_by_role("button", name="Sign in as support").click()
        await (await found(support, "quagga")).get_by_role("link").click()
        sheet = support.sheets.first
        await sheet.get_by_role("button", name="Bad").click()
        await sheet.get_by_label("Reason").select_option("inaccurate")
        await sheet.get_by_role("button", name="Save review").click()
        await expect(sheet.locator(".opinions .by-support")).to_contain_text("inaccurate")
        await page.get_by_label("New note").fill("It is <b>extinct</b>.")
        await page.get_by_role("button", name="Add note").click()
        await expect(page.locator(".notes li")).to_contain_text("It is <b>extinct</b>.")

        async with asyncio.timeout(PATIENCE_MS / 1000):
            while await support.marks.count() < 3:  # the turn, the review, the note: as the server tells them
                await page.reload()
                await expect(support.sheets).to_have_count(1)
        await expect(page.locator(".notes li")).to_contain_text("It is <b>extinct</b>.")
        await Thumbs(answer).expect_pressed(None)


async def test_an_admin_sees_who_looked_at_what_and_how_it_goes(browser: Browser, server: Server) -> None:
    async with (
        visit(browser, server.url) as user_page,
        visit(browser, f"{server.url}console", width=1280, bypass_csp=True, is_still=True) as page,
        visit(browser, f"{server.url}console", width=1280) as staff_page,
    ):
        person, support, staff = Person(user_page), Support(page), Support(staff_page)
        await person.wait_until_connected()
        await person.wait_until(await person.say("[echo The thylacine sleeps.]"), "completed")
        await staff_page.get_by_role("button", name="Sign in as support").click()
        # Found before its answer is stored it is looked at again.
        views: list[Request] = []
        staff_page.on("requestfinished", lambda request: views.append(request) if SESSION.search(request.url) else None)
        await (await found(staff, "thylacine")).get_by_role("link").click()
        await expect(staff.answers).to_have_count(1)
        await expect(staff.sheets).to_have_count(1)
        session_id = await staff_page.locator(".session-tools code").text_content()
        await staff_page.goto("about:blank")

        reply = await page.request.post(f"{server.url}dev/token", data={"role": "admin"})
        await support.sign_in((await reply.json())["value"])
        await page.get_by_role("link", name="Audit").click()
        await page.get_by_label("Session").fill(session_id or "")
        await page.get_by_role("button", name="Show").click()
        await expect(page).to_have_url(re.compile("session_id=sess_"))
        rows = page.get_by_role("row").filter(has_text="developer-support")
        async with asyncio.timeout(PATIENCE_MS / 1000):
            while await rows.filter(has_text="Replayed a session").count() == 0:
                await page.get_by_role("button", name="Show").click()
                await expect(support.tally).to_be_visible()
        await expect(rows.filter(has_text="Viewed a session")).to_have_count(len(views))
        assert views
        assert await violations(page) == []
        await page.screenshot(path=ARTIFACTS / "support-audit.png")

        await page.get_by_role("link", name="Overview").click()
        await expect(page.get_by_role("heading", level=2, name="demo")).to_be_visible()
        await expect(page.locator(".plot svg")).to_have_count(3)
        assert await violations(page) == []
        await page.screenshot(path=ARTIFACTS / "support-overview.png")


async def test_what_users_and_reviewers_wrote_is_never_markup(browser: Browser, house: FluemanProcess) -> None:
    """A name, a question, an answer, a comment and a note, on every page that shows them."""
    async with open_client(house.port, token_of(HARM)) as client:
        answer = await client.ask(f"[echo {HARM} {SCRIPT}]")
        rating = {"rating": "down", "comment": HARM + SCRIPT}
        await client.send("avatar.feedback.create", item_id=answer["output"][0]["id"], feedback=rating)
        await client.until("avatar.feedback.created")
    console = f"http://127.0.0.1:{house.port}/console"
    async with visit(browser, console, width=1280, bypass_csp=True) as page:
        support = Support(page)
        await support.sign_in(token_of(HARM, role="admin"))
        row = await found(support, "onerror")
        await expect(row).to_contain_text(HARM)
        await assert_harmless(page)

        await row.get_by_role("link").click()
        await expect(support.answers.first.locator(".words")).to_have_text(f"{HARM} {SCRIPT}")
        await support.sheets.first.get_by_text("Exact prompt", exact=True).click()
        await expect(support.sheets.first.get_by_role("region", name="Exact prompt")).to_contain_text(HARM)
        await page.get_by_label("New note").fill(HARM + SCRIPT)
        await page.get_by_role("button", name="Add note").click()
        await expect(page.locator(".notes li")).to_contain_text(HARM + SCRIPT)
        await expect(support.mark("Thumbs down by the user")).to_have_count(1)
        await expect(support.log.locator(".opinion")).to_contain_text(HARM + SCRIPT)
        await assert_harmless(page)

        await page.get_by_role("link", name="Overview").click()
        await expect(page.get_by_role("heading", level=2, name="demo")).to_be_visible()
        await page.get_by_role("link", name="Audit").click()
        await expect(page.get_by_role("row").filter(has_text="Wrote a note").first).to_contain_text(HARM)
        await assert_harmless(page)


async def assert_harmless(page: Page) -> None:
    """Nothing of it ran, and nothing of it became an element."""
    assert await page.locator("main :is(img, script), main b:text-is('x'), #who :is(img, b)").count() == 0
    assert await page.evaluate("window.harm") is None
