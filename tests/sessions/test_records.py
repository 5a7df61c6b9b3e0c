"""Records: one JSON document each, read as they were written."""

from typing import get_args

import msgspec
import pytest
from msgspec import Raw

from sessions.feedback import feedback_id
from sessions.records import (
    ArchiveRecord,
    AuditRecord,
    FeedbackRecord,
    HeardRecord,
    NoteRecord,
    PredictionRecord,
    Record,
    RequestRecord,
    SentRecord,
    SessionRecord,
    Trace,
    TurnRecord,
    decode_record,
    encode_record,
)

RECORDS: list[Record] = [
    SessionRecord("sess_1", 3, "한나", "kiosk", "demo", "ended", 1, 2, 3),
    TurnRecord("turn_1", "sess_1", 4, 1, "item_1", "line\nline\x00", 5),
    PredictionRecord(
        response_id="resp_1",
        session_id="sess_1",
        sequence=5,
        turn_id=None,
        model="demo",
        model_version="v",
        status="failed",
        status_reason="server_error",
        text="안녕 😀",
        output=Raw(b"[]"),
        request=Raw(b'{"a":1}'),
        input_tokens=1,
        output_tokens=2,
        cached_tokens=0,
        created_ms=3,
        first_token_ms=None,
        done_ms=4,
        error="lost",
        sent_chars=5,
        trace=Trace(
            prompt="<|user|>안녕",
            sampling=Raw(b'{"temperature":0.8}'),
            queued_ms=3,
            engine_first_token_ms=None,
            last_token_ms=4,
            prompt_version="7",
            persona="kiosk",
        ),
    ),
    SentRecord("resp_1", "sess_1", 6, 5, 7),
    HeardRecord("resp_1", "item_1", "sess_1", 8, "안녕 😀", 5, 9),
    FeedbackRecord(
        feedback_id=feedback_id("sess_1", "item_1", "한나"),
        session_id="sess_1",
        item_id="item_1",
        user_id="한나",
        role="user",
        sequence=9,
        rating="down",
        reason="inaccurate",
        comment="no 😀\n",
        start=0,
        end=2,
        rated_ms=10,
        received_ms=11,
    ),
    NoteRecord(
        note_id="note_1", session_id="sess_1", author_id="sam", text="안녕\x00", position_ms=None, created_ms=12
    ),
    AuditRecord(
        audit_id="audit_1",
        actor_id="sam",
        role="support",
        client_id="kiosk",
        action="session.view",
        session_id="sess_1",
        detail=Raw(b'{"from":"x"}'),
        at_ms=13,
    ),
    ArchiveRecord("sess_1", 9, 1, last_sequence=9, final=True),
    RequestRecord("req_1", None, "GET", "/v1/x", 200, 1.5, 6),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_a_record_is_read_as_it_was_written(record: Record) -> None:
    encoded = encode_record(record)

    assert decode_record(encoded) == record
    assert b"\n" not in encoded


def test_every_kind_of_record_is_tested_and_named_apart() -> None:
    assert {type(record) for record in RECORDS} == set(get_args(Record))
    names = [msgspec.json.decode(encode_record(record))["record"] for record in RECORDS]
    assert names == [
        "session",
        "turn",
        "prediction",
        "sent",
        "heard",
        "feedback",
        "note",
        "audit",
        "archive",
        "request",
    ]


@pytest.mark.parametrize("data", [b"{}", b'{"record":"joke"}', b'{"record":"turn"}', b"[]"])
def test_what_is_no_record_is_a_validation_error(data: bytes) -> None:
    with pytest.raises(msgspec.ValidationError):
        decode_record(data)


@pytest.mark.parametrize("field", ["sent_chars", "trace"])
def test_a_prediction_of_a_release_that_did_not_know_a_field_is_still_read(field: str) -> None:
    [prediction] = (record for record in RECORDS if isinstance(record, PredictionRecord))
    fields = msgspec.json.decode(encode_record(prediction))
    del fields[field]

    again = decode_record(msgspec.json.encode(fields))

    assert again == msgspec.structs.replace(prediction, **{field: None})
