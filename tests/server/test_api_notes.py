"""Notes of staff beside a session: kept as they were written, safe before they are acknowledged. P3."""

from pathlib import Path

import pytest

from server.api.notes import MAX_TEXT_CHARS
from sessions.records import AuditRecord, NoteRecord, decode_record
from tests.persistence.builders import make_session
from tests.server.console import open_console, token

SESSION_ID = "sess_01K00000000000000000000001"
PATH = f"/v1/sessions/{SESSION_ID}/notes"
NASTY = "<img src=x onerror=alert(1)> \x1b[2J\x07\r\n\u202e 🙂 \\u003c"


async def test_a_note_comes_back_as_it_was_written(tmp_path: Path) -> None:
    async with open_console(tmp_path) as console:
        await console.seed(SESSION_ID, records=[make_session(SESSION_ID)])
        created = await console.post(PATH, token("ann"), json={"text": NASTY, "position_ms": 1500})
        await console.post(PATH, token("bob"), json={"text": "second"})
        await console.settled()

        listed = await console.get(PATH, token("ada", "admin"))

    note = created.json()["note"]
    assert (created.status_code, note["author_id"], note["text"], note["position_ms"]) == (201, "ann", NASTY, 1500)
    assert listed.json()["data"][0] == note
    assert [found["author_id"] for found in listed.json()["data"]] == ["ann", "bob"]
    assert listed.headers["content-type"] == "application/json"
    assert listed.headers["x-content-type-options"] == "nosniff"


async def test_a_note_and_who_wrote_it_are_in_the_outbox_before_the_answer(tmp_path: Path) -> None:
    """P3."""
    async with open_console(tmp_path, writer="none") as console:
        await console.seed(SESSION_ID)

        answer = await console.post(PATH, token("ann"), json={"text": "hm"})

        deliveries = await console.services.store.take("test", 10, 0)
    records = [decode_record(delivery.record) for delivery in deliveries]
    (entry,) = (record for record in records if isinstance(record, AuditRecord))
    (note,) = (record for record in records if isinstance(record, NoteRecord))
    assert (entry.action, entry.audit_id, entry.session_id) == ("note.create", answer.json()["audit_id"], SESSION_ID)
    assert (note.note_id, note.session_id, note.author_id) == (answer.json()["note"]["note_id"], SESSION_ID, "ann")


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({}, "missing_required_parameter", "text"),
        ({"text": " \n"}, "invalid_value", "text"),
        ({"text": "a" * (MAX_TEXT_CHARS + 1)}, "string_above_max_length", "text"),
        ({"text": "a", "position_ms": -1}, "integer_below_min_value", "position_ms"),
        ({"text": "a", "position_ms": 1e300}, "invalid_type", "position_ms"),
        ({"text": "a", "author_id": "ada"}, "unknown_parameter", "author_id"),
        ([], "invalid_type", None),
        (b'{"text":"\\ud800"}', "invalid_json", None),
        (b"{", "invalid_json", None),
        (b'{"text":' + b"[" * 30_000, "invalid_type", "text"),
    ],
)
async def test_a_bad_note_is_refused_by_its_parameter(
    tmp_path: Path, body: object, code: str, param: str | None
) -> None:
    async with open_console(tmp_path, writer="none") as console:
        await console.seed(SESSION_ID)

        sent = {"content": body} if isinstance(body, bytes) else {"json": body}
        answer = await console.post(PATH, token(), **sent)
        trail = await console.trail()

    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"], trail) == (400, code, param, [])


async def test_a_body_that_is_too_large_is_not_read_into_memory(tmp_path: Path) -> None:
    async with open_console(tmp_path, writer="none") as console:
        await console.seed(SESSION_ID)

        answer = await console.post(PATH, token(), content=b"a" * 100_000)

    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
