"""One session with all that is known of it: stored, live, damaged, half away; and nothing shown that the trail does not hold. P9."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Raw

import server.api.whole_session
from persistence.database import Database
from persistence.errors import ArchiveUnavailable, DatabaseUnavailable
from persistence.recording import Recording
from server.access import AuditTrail
from sessions.errors import StoreUnavailable
from sessions.feedback import feedback_id
from sessions.records import FeedbackRecord, NoteRecord, Record, Trace
from sessions.sqlite_store import SqliteStore
from tests.persistence.builders import (
    CREATED_MS,
    make_archive,
    make_events,
    make_heard,
    make_prediction,
    make_session,
    make_turn,
)
from tests.server.console import open_console, token

SESSION_ID = "sess_01K00000000000000000000001"
PATH = f"/v1/sessions/{SESSION_ID}"
NASTY = "<script>alert(1)</script> \x1b[31m\x00\u202e &lt; 🙂\r\n"
TRACE = Trace(
    prompt=NASTY,
    prompt_format="text",
    sampling=Raw(b'{"temperature":0.7}'),
    queued_ms=CREATED_MS + 1505,
    engine_first_token_ms=CREATED_MS + 1530,
    last_token_ms=CREATED_MS + 1700,
    prompt_version="v7",
    persona="kiosk",
)


def make_records() -> list[Record]:
    """A session with a turn, an answer of which a part was heard, a rating and a note."""
    turn = make_turn(SESSION_ID, text=NASTY)
    prediction = make_prediction(SESSION_ID, turn.turn_id, text=NASTY, response_id="resp_1", trace=TRACE)
    rating = FeedbackRecord(
        feedback_id=feedback_id(SESSION_ID, "item_2", "anna"),
        session_id=SESSION_ID,
        item_id="item_2",
        user_id="anna",
        role="user",
        sequence=18,
        rating="down",
        reason="too-long",
        comment=NASTY,
        rated_ms=CREATED_MS + 3000,
        received_ms=CREATED_MS + 3000,
    )
    note = NoteRecord(
        note_id="note_1",
        session_id=SESSION_ID,
        author_id="bob",
        text=NASTY,
        position_ms=1500,
        created_ms=CREATED_MS + 9000,
    )
    return [
        make_session(SESSION_ID),
        turn,
        prediction,
        make_heard(SESSION_ID, "resp_1", at_ms=CREATED_MS + 2100),
        rating,
        note,
    ]


async def test_all_that_is_stored_of_a_session_is_shown_untouched(tmp_path: Path) -> None:
    async with open_console(tmp_path) as console:
        await console.seed(SESSION_ID, make_events(30), make_records())
        await console.settled()

        shown = await console.get(PATH, token())

    body = shown.json()
    (turn,), (answer,), (rating,), (note,) = body["turns"], body["answers"], body["feedback"], body["notes"]
    assert (shown.headers["content-type"], shown.headers["x-content-type-options"]) == ("application/json", "nosniff")
    assert shown.headers["cache-control"] == "no-store"
    assert (body["session"]["num_turns"], body["session"]["num_down"]) == (1, 1)
    assert (body["extent"]["first_sequence"], body["extent"]["last_sequence"]) == (1, 30)
    assert (body["extent"]["num_events"], body["extent"]["is_live"], body["extent"]["holes"]) == (30, True, [])
    assert [turn["text"], answer["text"], answer["prompt"], rating["comment"], note["text"]] == [NASTY] * 5
    assert (answer["prompt_version"], answer["persona"], answer["sampling"]) == ("v7", "kiosk", {"temperature": 0.7})
    assert (answer["output"][0]["id"], answer["request"]["tools"]) == ("item_2", [])
    assert (rating["rating"], rating["reason"], rating["response_id"]) == ("down", "too-long", "resp_1")
    assert body["warnings"] == []


@pytest.mark.parametrize("path", [PATH, f"{PATH}/export"])
async def test_what_stands_across_the_end_of_the_first_text_is_masked_as_a_whole(tmp_path: Path, path: str) -> None:
    said = f"{'a' * 189} mail kim.minsu@example.com today"
    async with open_console(tmp_path, mask_personal_data=True) as console:
        await console.seed(SESSION_ID, records=[make_session(SESSION_ID), make_turn(SESSION_ID, text=said)])
        await console.settled()

        masked = await console.get(path, token())
        whole = await console.get(path, token(scopes=["personal_data"]))

    first, granted = (
        msgspec.json.decode(answer.content.splitlines()[0])["session"]["first_text"] for answer in (masked, whole)
    )
    assert first == f"{'a' * 189} mail {'•' * 5}"
    assert granted == said[:200]


async def test_the_waterfalls_parts_sum_to_the_whole(tmp_path: Path) -> None:
    async with open_console(tmp_path) as console:
        await console.seed(SESSION_ID, make_events(30), make_records())
        await console.settled()

        (answer,) = (await console.get(PATH, token())).json()["answers"]

    parts = answer["waterfall"]
    ends = [part["start_ms"] + part["duration_ms"] for part in parts]
    assert [part["part"] for part in parts] == ["queue", "prefill", "first_token", "decode", "delivery", "heard"]
    assert parts[0]["start_ms"] == 0
    assert [part["start_ms"] for part in parts[1:]] == ends[:-1]
    assert ends[-1] == 2100 - 1500


async def test_of_a_long_sessions_prompts_the_first_come_along_and_each_other_one_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P7: they grow with the square of its length."""
    monkeypatch.setattr(server.api.whole_session, "MAX_PROMPT_CHARS", 25)
    prompts = ["a" * 10, "é" * 15, "🙂" * 20, "b"]
    answers = [
        make_prediction(
            SESSION_ID,
            response_id=f"resp_{number}",
            created_ms=CREATED_MS + number,
            trace=msgspec.structs.replace(TRACE, prompt=prompt),
        )
        for number, prompt in enumerate(prompts)
    ]
    async with open_console(tmp_path) as console:
        await console.seed(SESSION_ID, make_events(3), [make_session(SESSION_ID), *answers])
        await console.settled()

        shown = (await console.get(PATH, token())).json()["answers"]
        alone = (await console.get(f"{PATH}/prompts/resp_2", token())).json()
        nowhere = [await console.get(f"{PATH}/prompts/{name}", token()) for name in ("resp_9", "%C3%A9", "a" * 99)]

    assert [answer["prompt"] for answer in shown] == ["a" * 10, "é" * 15, None, None]
    assert [answer["prompt_chars"] for answer in shown] == [10, 15, 20, 1]
    assert alone == {"prompt": "🙂" * 20, "prompt_format": "text"}
    assert [answer.status_code for answer in nowhere] == [404] * 3


async def test_a_look_at_anothers_session_is_in_the_trail_and_at_ones_own_is_not(tmp_path: Path) -> None:
    async with open_console(tmp_path, writer="none") as console:
        await console.seed(SESSION_ID)

        foreign = (await console.get(PATH, token("ann"))).json()
        (entry,) = await console.trail()
        own = (await console.get(PATH, token("anna"))).json()

        assert await console.trail() == []
    assert (entry.audit_id, entry.action, entry.session_id) == (foreign["audit_id"], "session.view", SESSION_ID)
    assert own["audit_id"] is None


@pytest.mark.parametrize(
    ("method", "path", "action"),
    [
        ("GET", PATH, "session.view"),
        ("GET", f"{PATH}/export", "session.export"),
        ("GET", f"{PATH}/prompts/resp_1", "session.view"),
        ("GET", f"{PATH}/notes", "session.view"),
        ("POST", f"{PATH}/notes", "note.create"),
        ("GET", "/v1/sessions?text=secret", "session.search"),
        ("GET", "/v1/overview", "overview.read"),
        ("GET", "/v1/audit", "audit.read"),
    ],
)
async def test_each_way_to_look_has_its_entry(tmp_path: Path, method: str, path: str, action: str) -> None:
    async with open_console(tmp_path) as console:
        await console.seed(SESSION_ID, records=make_records())
        await console.settled()
    async with open_console(tmp_path, writer="none") as console:
        answer = await console.request(method, path, token("ada", "admin"), json={"text": "hm"})

        (entry,) = await console.trail()
    assert answer.is_success
    assert (entry.actor_id, entry.role, entry.action) == ("ada", "admin", action)
    assert entry.session_id == (SESSION_ID if SESSION_ID in path else None)


async def test_a_session_that_the_writer_has_not_stored_yet_is_shown_as_the_store_has_it(tmp_path: Path) -> None:
    """P9: and said to be no more than that."""
    async with open_console(tmp_path, writer="none") as console:
        await console.seed(SESSION_ID, make_events(12))

        body = (await console.get(PATH, token())).json()

    assert (body["warnings"], body["turns"], body["answers"]) == (["not_stored_yet"], [], [])
    assert (body["extent"]["num_events"], body["extent"]["is_live"]) == (12, True)
    assert (body["session"]["user_id"], body["session"]["client_id"]) == ("anna", "kiosk")


async def test_a_session_that_only_the_tables_know_is_shown(tmp_path: Path) -> None:
    async with open_console(tmp_path) as console:
        await console.enqueue(*make_records())
        await console.settled()

        body = (await console.get(PATH, token())).json()

    assert (len(body["answers"]), body["extent"]["is_live"]) == (1, False)
    assert body["warnings"] == ["events_missing"]


async def test_a_damaged_archive_is_said_and_what_the_tables_hold_is_shown(tmp_path: Path) -> None:
    """P9."""
    async with open_console(tmp_path) as console:
        await console.seed(SESSION_ID, make_events(30), [*make_records(), make_archive(SESSION_ID, 30)])
        await console.settled()
        (part,) = (tmp_path / "archive" / "sessions").rglob("*.zst")
        part.write_bytes(b"no archive")

        body = (await console.get(PATH, token())).json()

    assert body["warnings"] == ["events_missing"]
    assert body["extent"]["holes"] == [{"first": 1, "last": 30, "reason": "damaged"}]
    assert body["answers"][0]["text"] == NASTY


async def test_with_the_archive_away_the_rest_is_shown(tmp_path: Path) -> None:
    """P9."""

    class Away(Recording):
        async def extent(self, session_id: str) -> Any:
            raise ArchiveUnavailable("away")

    async with open_console(tmp_path) as console:
        await console.seed(SESSION_ID, make_events(30), make_records())
        await console.settled()
        services = console.services
        away = Away(services.store, services.database, services.archive)
        console.services = msgspec.structs.replace(services, recording=away)

        body = (await console.get(PATH, token())).json()

    assert (body["extent"], body["warnings"]) == (None, ["archive_unavailable"])
    assert body["answers"][0]["text"] == NASTY


LISTS = [("GET", "/v1/sessions"), ("GET", "/v1/feedback")]
LOOKS = [
    ("GET", PATH),
    ("GET", f"{PATH}/export"),
    ("GET", f"{PATH}/prompts/resp_1"),
    ("GET", f"{PATH}/notes"),
    ("POST", f"{PATH}/notes"),
    *LISTS,
    ("GET", "/v1/overview"),
    ("GET", "/v1/audit"),
]


@pytest.mark.parametrize(("method", "path"), LOOKS)
async def test_nothing_is_shown_that_the_outbox_does_not_take(tmp_path: Path, method: str, path: str) -> None:
    """P9: 503, and when to come back."""

    class Full(SqliteStore):
        async def enqueue(self, records: Sequence[bytes]) -> None:
            raise StoreUnavailable("away")

    async with open_console(tmp_path) as console:
        await console.seed(SESSION_ID, make_events(3), make_records())
        await console.settled()
        trail = AuditTrail(Full(tmp_path / "none"), now_ms=lambda: CREATED_MS)
        console.services = msgspec.structs.replace(console.services, audit=trail)

        answer = await console.request(method, path, token(role="admin"), json={"text": "hm"})

    assert (answer.status_code, answer.json().keys()) == (503, {"error"})
    assert int(answer.headers["retry-after"]) > 0
    assert SESSION_ID not in answer.text


@pytest.mark.parametrize(
    ("method", "path", "may_be_told"),
    [
        *((*look, None) for look in LOOKS if look not in LISTS and look != ("POST", f"{PATH}/notes")),
        ("GET", "/v1/sessions", "session.search"),
        ("GET", "/v1/feedback", "feedback.list"),
    ],
)
async def test_with_the_database_away_it_is_a_503_and_no_look(
    tmp_path: Path, method: str, path: str, may_be_told: str | None
) -> None:
    """P9. What is looked for while its entry is written may have one all the same."""

    class Away(Database):
        @asynccontextmanager
        async def snapshot(self) -> AsyncGenerator[Any, None]:
            raise DatabaseUnavailable("secret words of a driver")
            yield

    async with open_console(tmp_path, writer="none") as console:
        await console.seed(SESSION_ID, make_events(3))
        services = console.services
        database = Away(services.database.engine, timeout_s=1)
        recording = Recording(services.store, database, services.archive)
        console.services = msgspec.structs.replace(services, database=database, recording=recording)

        answer = await console.request(method, path, token(role="admin"))
        trail = await console.trail()

    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
    assert answer.json()["error"]["id"].startswith("err_")
    assert int(answer.headers["retry-after"]) > 0
    assert {entry.action for entry in trail} <= ({may_be_told} if may_be_told else set())
    assert "secret" not in answer.text
