"""Records: one JSON document each, read as they were written."""

from typing import get_args

import msgspec
import pytest
from msgspec import Raw

from sessions.records import (
    ArchiveRecord,
    HeardRecord,
    PredictionRecord,
    Record,
    RequestRecord,
    SentRecord,
    SessionRecord,
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
    ),
    SentRecord("resp_1", "sess_1", 6, 5, 7),
    HeardRecord("resp_1", "item_1", "sess_1", 8, "안녕 😀", 5, 9),
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
    assert names == ["session", "turn", "prediction", "sent", "heard", "archive", "request"]


@pytest.mark.parametrize("data", [b"{}", b'{"record":"joke"}', b'{"record":"turn"}', b"[]"])
def test_what_is_no_record_is_a_validation_error(data: bytes) -> None:
    with pytest.raises(msgspec.ValidationError):
        decode_record(data)


def test_a_prediction_from_before_texts_were_counted_as_sent_is_still_read() -> None:
    [prediction] = (record for record in RECORDS if isinstance(record, PredictionRecord))
    fields = msgspec.json.decode(encode_record(prediction))
    del fields["sent_chars"]

    again = decode_record(msgspec.json.encode(fields))

    assert again == msgspec.structs.replace(prediction, sent_chars=None)
