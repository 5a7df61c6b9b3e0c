"""A session's page: what is played is what its user saw, at any pace and from anywhere; beside it, what is known of each answer."""

import asyncio
import json
import math
import re
from collections.abc import Iterator

import pytest
from playwright.async_api import Browser, WebSocketRoute, expect

from tests.browser.conftest import visit
from tests.browser.passing import until
from tests.browser.stub_console import Json, Stub, running_stub
from tests.browser.stub_data import FULL, full_recording, populate
from tests.browser.stub_recording import BEGAN_MS, Recording
from tests.browser.support import Support
from tests.browser.talk import REALTIME, hold_back

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

REFUSED = ("503 (Service Unavailable)", "404 (Not Found)")
FROM_THE_END = "((log) => log.scrollHeight - log.scrollTop - log.clientHeight)(document.querySelector('[role=log]'))"
WHALE = "The blue whale hangs in the great hall"


@pytest.fixture
def stub() -> Iterator[Stub]:
    """A server of the test's own."""
    with running_stub() as stub:
        populate(stub)
        yield stub


def place_of(stub: Stub) -> str:
    return f"{stub.url}/sessions/{FULL}"


def told_until_playing(stub: Stub) -> Json:
    """What the page asked for until it played, as one: what is chosen within a tenth of a second is asked for at once."""
    told: Json = {}
    for update in stub.updates:
        told |= update
        if "paused" in told:
            break
    return told


async def test_all_of_it_can_be_read_at_once(browser: Browser, stub: Stub) -> None:
    async with visit(browser, "about:blank") as page:
        support = Support(page)
        await support.open(place_of(stub), "support-token")

        await expect(support.answers).to_have_count(4)
        await expect(support.answers.first.locator(".words")).to_contain_text(WHALE)
        await expect(support.answers.first).to_contain_text("Thumbs up from the user")
        await expect(support.answers.nth(1)).to_contain_text("This answer was stopped.")
        await expect(support.answers.nth(3)).to_contain_text("This answer failed. The engine stopped.")
        await expect(support.time).to_have_text("0:58 / 0:58")
        await expect(support.play).to_be_visible()
        await expect(support.answers.nth(3)).to_be_in_viewport(ratio=1)
        assert await support.log.get_by_role("button").count() == 0


async def test_what_grows_while_the_log_scrolls_is_followed_and_who_goes_up_is_left_there(
    browser: Browser, stub: Stub
) -> None:
    """A scroll is told of a frame late: what came until then is not the reader's doing."""
    async with visit(browser, "about:blank") as page:
        support = Support(page)
        await support.open(place_of(stub), "support-token")
        await expect(support.answers.nth(3)).to_be_in_viewport(ratio=1)
        latest = page.get_by_role("button", name="Latest")

        await support.log.evaluate("""async (log) => {
            log.lastElementChild.style.paddingBottom = "50rem";
            log.dispatchEvent(new Event("scroll"));
        }""")
        await expect(latest).to_be_hidden()
        await support.log.evaluate("""async (log) => {
            const seen = () => new Promise((then) => requestAnimationFrame(() => requestAnimationFrame(then)));
            log.scrollTop = log.scrollHeight;
            await seen();
            log.lastElementChild.style.paddingBottom = "";
            await seen();
        }""")
        await expect(latest).to_be_hidden()

        await support.log.hover()
        await page.mouse.wheel(0, -20)
        await expect(latest).to_be_visible()
        await latest.click()
        await expect(latest).to_be_hidden()
        await page.wait_for_function(f"{FROM_THE_END} < 2")


async def test_it_plays_from_the_beginning_at_the_chosen_speed_and_pauses(browser: Browser, stub: Stub) -> None:
    async with visit(browser, "about:blank") as page:
        support = Support(page)
        await support.open(place_of(stub), "support-token")
        await expect(support.answers).to_have_count(4)
        await support.speed.select_option("8×")

        stub.holds_at_ms = 2_700
        await support.play.click()

        await expect(support.answers).to_have_count(1)
        await expect(support.answers.first).to_have_attribute("data-status", "streaming")
        stub.holds_at_ms = 20_000
        await expect(support.answers.nth(1)).to_have_attribute("data-status", "cancelled")
        await support.pause.click()
        await expect(support.play).to_be_visible()
        await until(lambda: any(update.get("paused") for update in stub.updates))
        stub.holds_at_ms = math.inf
        await expect(support.time).to_have_text(re.compile("^0:(1[0-9]|20) / 0:58$"))
        assert told_until_playing(stub) == {"type": "avatar.replay.update", "speed": 8, "position": 0, "paused": False}


async def test_seeking_shows_what_was_there_then_and_no_more(browser: Browser, stub: Stub) -> None:
    async with visit(browser, "about:blank") as page:
        support = Support(page)
        await support.open(place_of(stub), "support-token")
        await expect(support.answers).to_have_count(4)

        await support.seek(2_700)

        await expect(support.answers).to_have_count(1)
        await expect(support.answers.first).to_have_attribute("data-status", "streaming")
        words = await support.answers.first.locator(".words").text_content() or ""
        assert 2 < len(words) < 60
        assert WHALE.startswith(words[: len(WHALE)])
        await support.mark("Thumbs up by the user").click()
        await expect(support.answers.first).to_have_attribute("data-status", "completed")
        await expect(support.answers.first).to_contain_text("Found her at once, thank you!")
        await expect(support.answers).to_have_count(1)
        await page.get_by_text("Moments", exact=True).click()
        await page.get_by_role("button", name="Interrupted").last.click()
        await expect(support.answers).to_have_count(2)


async def test_a_moment_is_an_address(browser: Browser, stub: Stub) -> None:
    async with visit(browser, "about:blank") as page:
        support = Support(page)
        await support.open(place_of(stub), "support-token")
        await expect(support.answers).to_have_count(4)

        await support.seek(9_300)

        await expect(page).to_have_url(f"{place_of(stub)}?at=9300")
        await page.reload()
        await expect(support.answers).to_have_count(2)
        await expect(support.time).to_have_text("0:09 / 0:58")
        await page.go_back()
        await page.go_forward()
        await support.scrubber.press("End")
        await expect(page).to_have_url(place_of(stub))


async def test_a_past_that_comes_slowly_says_nothing_of_when_its_tokens_came(browser: Browser, stub: Stub) -> None:
    """What is told of an answer that was not played is told from its whole text, and nobody waited for that."""

    def slowly(page_side: WebSocketRoute) -> None:
        server_side = page_side.connect_to_server()
        frames: asyncio.Queue[str | bytes] = asyncio.Queue()

        async def carry() -> None:
            while True:
                frame = await frames.get()
                await asyncio.sleep(0.1)
                page_side.send(frame)

        task = asyncio.create_task(carry())
        tasks.append(task)
        server_side.on_message(frames.put_nowait)

    tasks: list[asyncio.Task[None]] = []
    async with visit(browser, "about:blank") as page:
        await page.route_web_socket(REALTIME, slowly)
        support = Support(page)
        await support.open(place_of(stub), "support-token")

        await expect(support.answers.nth(3)).to_have_attribute("data-status", "failed")
        await expect(support.answers.first.locator(".meta")).to_have_text(re.compile(r"^\d+ tokens$"))
        assert "First token" not in "".join(await support.answers.locator(".meta").all_text_contents())
        for task in tasks:
            task.cancel()


async def test_the_end_is_known_before_the_replay_says_a_word(browser: Browser, stub: Stub) -> None:
    speaks = asyncio.Event()
    async with visit(browser, "about:blank") as page:
        support = Support(page)
        await hold_back("avatar.replay.updated", speaks)(page)
        await support.open(f"{place_of(stub)}?at=9300", "support-token")
        await support.scrubber.press("End")
        await expect(support.time).to_have_text("0:58 / 0:58")

        speaks.set()

        await expect(support.answers).to_have_count(4)
        await expect(page).to_have_url(place_of(stub))


async def test_a_note_that_is_added_twice_at_once_is_one(browser: Browser, stub: Stub) -> None:
    async with visit(browser, "about:blank") as page:
        support = Support(page)
        await support.open(place_of(stub), "support-token")
        await expect(support.answers).to_have_count(4)
        num_notes = len(stub.details[FULL]["notes"])
        note = page.get_by_label("New note")
        await note.fill("Once")

        await note.evaluate("(note) => [1, 2].forEach(() => note.form.requestSubmit())")
        await expect(note).to_have_value("")
        await note.fill("And again")
        await page.get_by_role("button", name="Add note").click()
        await expect(note).to_have_value("")

        assert [note["text"] for note in stub.details[FULL]["notes"][num_notes:]] == ["Once", "And again"]


async def test_a_storm_of_seeks_is_calmed_and_the_last_one_holds(browser: Browser, stub: Stub) -> None:
    async with visit(browser, "about:blank") as page:
        support = Support(page)
        await support.open(place_of(stub), "support-token")
        await expect(support.answers).to_have_count(4)

        await page.evaluate(
            """() => {
              const slider = document.querySelector(".scrubber");
              for (let n = 0; n < 200; n++) { slider.value = n * 250; slider.dispatchEvent(new Event("input")); }
              slider.value = 2000; slider.dispatchEvent(new Event("input"));
            }"""
        )

        await expect(support.answers).to_have_count(1)
        await expect(support.scrubber).to_have_value("2000")
        assert len(stub.updates) <= 3
        assert stub.updates[-1]["position"] == 2000


async def test_silences_are_skipped_when_asked_for(browser: Browser, stub: Stub) -> None:
    async with visit(browser, "about:blank") as page:
        support = Support(page)
        await support.open(f"{place_of(stub)}?at=13500", "support-token")
        await expect(support.answers).to_have_count(3)
        await page.get_by_label("Skip silences").check()

        await support.play.click()

        await expect(support.answers).to_have_count(4)
        assert told_until_playing(stub)["max_silence_ms"] == 1000


async def test_each_answer_tells_how_it_came_to_be(browser: Browser, stub: Stub) -> None:
    async with visit(browser, "about:blank") as page:
        support = Support(page)
        await support.open(place_of(stub), "support-token")
        sheet = support.sheets.nth(1)
        await sheet.locator("summary").first.click()

        await expect(sheet.locator(".passage .words-sent")).to_have_text(", but inside the halls on")
        await expect(sheet.locator(".passage .words-kept")).to_have_text("ly those who")
        await expect(sheet.locator(".legend")).to_contain_text("Generated 67 characters: heard 30, sent, not heard 25")
        for name, value in {
            "Tokens": "96 in (64 cached), 13 out",
            "Model version": "2026-11-02+3f9ac1",
            "Prompt version": "greeter@14",
            "Persona": "kiosk",
            "temperature": "0.7",
        }.items():
            await expect(sheet.locator("dl.figures > div", has_text=name).locator("dd").first).to_have_text(value)
        rows = sheet.get_by_role("table", name="Where the time went").get_by_role("row")
        took = [await row.get_by_role("cell").nth(1).text_content() for row in (await rows.all())[1:]]
        assert took == ["640 ms", "380 ms", "210 ms", "715 ms", "4 ms", "310 ms", "2.26 s"]
        await sheet.get_by_text("Exact prompt").click()
        prompt = await sheet.get_by_role("region", name="Exact prompt").text_content()
        assert prompt == stub.details[FULL]["answers"][1]["prompt"]


async def test_a_prompt_that_did_not_come_along_is_fetched_when_its_answer_is_opened(
    browser: Browser, stub: Stub
) -> None:
    answer = stub.details[FULL]["answers"][1]
    prompt, answer["prompt"] = answer["prompt"], None
    answer["prompt_chars"] = len(prompt)
    async with visit(browser, "about:blank") as page:
        path = f"**/v1/sessions/{FULL}/prompts/{answer['response_id']}"
        body = json.dumps({"prompt": prompt, "prompt_format": "text"})
        await page.route(path, lambda route: route.fulfill(body=body, content_type="application/json"))
        support = Support(page)
        await support.open(place_of(stub), "support-token")
        sheet = support.sheets.nth(1)
        await sheet.locator("summary").first.click()

        await sheet.get_by_text("Exact prompt", exact=True).click()

        assert await sheet.get_by_role("region", name="Exact prompt").text_content() == prompt


async def test_a_reviewer_rates_apart_from_the_user_and_changes_it(browser: Browser, stub: Stub) -> None:
    async with visit(browser, "about:blank") as page:
        support = Support(page)
        await support.open(place_of(stub), "support-token")
        sheet = support.sheets.first
        await sheet.get_by_role("button", name="Bad").click()
        await expect(sheet.get_by_label("Reason").locator("option")).to_have_text(
            ["No reason", "inaccurate", "too long", "wrong face"]
        )
        await sheet.get_by_label("Reason").select_option("wrong-face")
        await sheet.get_by_label("Comment").fill("She is <i>thirty</i> metres long.")
        await sheet.get_by_role("button", name="Save review").click()

        await expect(sheet.locator(".opinions li")).to_have_count(2)
        await expect(sheet.locator(".by-user")).to_contain_text("Found her at once")
        await expect(sheet.locator(".by-support")).to_contain_text("She is <i>thirty</i> metres long.")
        expected = {"rating": "down", "reason": "wrong-face", "comment": "She is <i>thirty</i> metres long."}
        assert stub.asked["/v1/feedback"] == [{"session_id": FULL, "item_id": "item_a1", "feedback": expected}]
        await expect(support.mark("Thumbs down by a reviewer")).to_have_count(1)

        await sheet.get_by_role("button", name="Good").click()
        await sheet.get_by_role("button", name="Save review").click()
        await expect(support.mark("Thumbs down by a reviewer")).to_have_count(0)


async def test_a_rating_of_a_piece_says_which(browser: Browser, stub: Stub) -> None:
    answer = stub.details[FULL]["answers"][0]
    answer["text"] = text = f"\N{SPOUTING WHALE} {WHALE}."
    stub.recordings[FULL].events[:] = [
        (
            at,
            event | {"text": text}
            if event["type"] == "response.output_text.done" and event["item_id"] == "item_a1"
            else event,
        )
        for at, event in stub.recordings[FULL].events
    ]
    thumb = stub.details[FULL]["feedback"][0]
    thumb |= {"start": 3, "end": 17}
    stub.details[FULL]["feedback"][1] |= {"start": 500, "end": 510}
    async with visit(browser, "about:blank") as page:
        support = Support(page)
        await support.open(place_of(stub), "support-token")

        await expect(support.sheets.first.locator(".by-user q")).to_have_text("The blue whale")
        await expect(support.answers.first.locator(".opinion q")).to_have_text("The blue whale")
        await support.sheets.nth(1).locator("summary").first.click()
        await expect(support.sheets.nth(1).locator(".by-user .piece")).to_have_text("About the characters 501 to 510")


async def test_a_note_is_kept_at_its_moment(browser: Browser, stub: Stub) -> None:
    async with visit(browser, "about:blank") as page:
        support = Support(page)
        await support.open(f"{place_of(stub)}?at=9300", "support-token")
        await expect(support.time).to_have_text("0:09 / 0:58")
        await page.get_by_label("New note").fill("Here it should have stopped.")
        await page.get_by_role("button", name="Add note").click()

        await expect(page.locator(".notes li")).to_have_count(2)
        assert stub.asked[f"/v1/sessions/{FULL}/notes"] == [
            {"text": "Here it should have stopped.", "position_ms": 9300}
        ]
        await support.seek(0)
        await support.mark("Note: Here it should have stopped.").click()
        await expect(support.time).to_have_text("0:09 / 0:58")


async def test_the_export_is_a_file_of_json_lines(browser: Browser, stub: Stub) -> None:
    async with visit(browser, "about:blank") as page:
        await Support(page).open(place_of(stub), "support-token")

        async with page.expect_download() as promise:
            await page.get_by_role("button", name="Export as JSON lines").click()

        download = await promise.value
        assert download.suggested_filename == f"{FULL}.jsonl"
        lines = [json.loads(line) for line in (await download.path()).read_text().splitlines()]
        assert [line["sequence"] for line in lines[1:-1]] == list(range(1, 93))
        await expect(page.locator(".export").get_by_role("status")).to_have_text("Exported.")


@pytest.mark.parametrize(
    ("end", "told"),
    [
        ({"complete": False, "error": "unavailable"}, "what follows could not be read just now. Try again later."),
        ({"complete": False, "error": "token_revoked"}, "your access has ended. Sign in again to go on."),
        ({"complete": False}, "events are missing from the recording; the file says where."),
        (None, "the file breaks off. Try again."),
    ],
    ids=["cut-short", "revoked", "holes", "no-end"],
)
async def test_an_export_that_is_not_whole_is_given_and_said_not_to_be(
    browser: Browser, stub: Stub, end: Json | None, told: str
) -> None:
    stub.export_end = end
    async with visit(browser, "about:blank") as page:
        await Support(page).open(place_of(stub), "support-token")

        async with page.expect_download():
            await page.get_by_role("button", name="Export as JSON lines").click()

        status = page.locator(".export").get_by_role("status")
        await expect(status).to_have_text(f"Exported, but not whole: {told}")


async def test_a_damaged_recording_is_said_to_be_and_the_rest_is_shown(browser: Browser, stub: Stub) -> None:
    broken = full_recording("sess_broken")
    stub.add(broken, extent={"holes": [{"first": 2, "last": 30, "reason": "damaged"}]})
    stub.gaps = [(2, 30, "damaged")]
    async with visit(browser, "about:blank") as page:
        support = Support(page)
        await support.open(f"{stub.url}/sessions/sess_broken", "support-token")

        await expect(page.locator(".damage")).to_contain_text("not whole: 29 events damaged in the archive")
        await expect(support.mark("29 events damaged")).to_have_count(1)
        await expect(support.log.locator(".gap")).to_have_text(
            "29 events damaged in the archive. What follows is as it was."
        )
        await expect(support.answers.last).to_contain_text("This answer failed.")


async def test_a_live_session_is_followed_and_says_so(browser: Browser, stub: Stub) -> None:
    live = Recording("sess_live")
    live.answer(live.ask("Are you there?"), "I am.")
    stub.is_live = True
    stub.add(live, status="active", ended_ms=None, extent={"is_live": True})
    async with visit(browser, "about:blank") as page:
        support = Support(page)
        await support.open(f"{stub.url}/sessions/sess_live", "support-token")

        await expect(page.locator(".session-head .badge.live")).to_have_text("Live")
        await expect(support.pause).to_be_visible()
        await expect(support.answers.first.locator(".words")).to_have_text("I am.")
        await support.pause.click()
        await page.get_by_role("button", name="Go to now").click()
        await expect(support.pause).to_be_visible()


async def test_a_lost_connection_is_said_and_goes_on_where_it_was(browser: Browser, stub: Stub) -> None:
    async with visit(browser, "about:blank", ignoring=("WebSocket",)) as page:
        support = Support(page)
        await support.open(f"{place_of(stub)}?at=9300", "support-token")
        await expect(support.answers).to_have_count(2)

        stub.drop()
        await until(lambda: stub.num_connections >= 2)

        await expect(support.answers).to_have_count(2)
        await expect(page.locator(".trouble")).to_be_empty()
        await expect(support.time).to_have_text("0:09 / 0:58")


async def test_a_session_that_is_not_for_one_is_unknown(browser: Browser, stub: Stub) -> None:
    async with visit(browser, "about:blank", ignoring=REFUSED) as page:
        support = Support(page)
        await support.open(f"{stub.url}/sessions/sess_foreign", "support-token")

        await expect(support.heading).to_have_text("No such session")


async def test_what_is_known_is_shown_while_the_archive_is_away(browser: Browser, stub: Stub) -> None:
    stub.details[FULL] |= {"extent": None, "warnings": ["archive_unavailable"]}
    async with visit(browser, "about:blank") as page:
        support = Support(page)
        await support.open(place_of(stub), "support-token")

        await expect(page.locator(".damage")).to_contain_text("The archive cannot be reached now")
        await expect(support.sheets).to_have_count(4)


async def test_the_moment_of_a_rating_is_when_it_was_given(browser: Browser, stub: Stub) -> None:
    async with visit(browser, "about:blank") as page:
        support = Support(page)
        await support.open(place_of(stub), "support-token")
        await expect(support.answers).to_have_count(4)

        await support.mark("Thumbs down by the user: too-slow: It went on and on <b>after</b> I spoke.").click()

        await expect(support.time).to_have_text("0:16 / 0:58")
        assert stub.details[FULL]["feedback"][1]["rated_ms"] == BEGAN_MS + 15_900
