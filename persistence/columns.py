"""What each record puts into the columns of its table. Knows no other table, and no database."""

from sqlalchemy import Table

from persistence.answers import AnswerItem
from persistence.tables import STUB_SEQUENCE, sessions, turns
from persistence.times import optional_utc_time, utc_time
from persistence.upsert import Row
from sessions.records import (
    FeedbackRecord,
    HeardRecord,
    NoteRecord,
    PredictionRecord,
    RequestRecord,
    SentRecord,
    SessionRecord,
    Trace,
    TurnRecord,
)


def session_row(record: SessionRecord) -> Row:
    return {
        "session_id": record.session_id,
        "sequence": record.sequence,
        "user_id": record.user_id,
        "client_id": record.client_id,
        "model": record.model,
        "status": record.status,
        "created_at": utc_time(record.created_ms),
        "updated_at": utc_time(record.updated_ms),
        "ended_at": optional_utc_time(record.ended_ms),
    }


def session_stub(session_id: object) -> Row:
    """The row that others refer to while the session's own record is still on its way."""
    return stub(sessions) | {"session_id": session_id}


def turn_row(record: TurnRecord) -> Row:
    return {
        "turn_id": record.turn_id,
        "session_id": record.session_id,
        "sequence": record.sequence,
        "number": record.number,
        "item_id": record.item_id,
        "text": record.text,
        "created_at": utc_time(record.created_ms),
    }


def turn_stub(turn_id: object, session_id: object) -> Row:
    return stub(turns) | {"turn_id": turn_id, "session_id": session_id}


def stub(table: Table) -> Row:
    return {column.name: None for column in table.columns} | {"sequence": STUB_SEQUENCE}


def prediction_row(record: PredictionRecord) -> Row:
    return {
        "response_id": record.response_id,
        "session_id": record.session_id,
        "turn_id": record.turn_id,
        "sequence": record.sequence,
        "model": record.model,
        "model_version": record.model_version,
        "status": record.status,
        "status_reason": record.status_reason,
        "text": record.text,
        "output": bytes(record.output).decode(),
        "request": bytes(record.request).decode(),
        "input_tokens": record.input_tokens,
        "output_tokens": record.output_tokens,
        "cached_tokens": record.cached_tokens,
        "created_at": utc_time(record.created_ms),
        "first_token_at": optional_utc_time(record.first_token_ms),
        "done_at": utc_time(record.done_ms),
        "error": record.error,
    }


def sent_row(record: PredictionRecord | SentRecord, sent_chars: int, at_ms: int) -> Row:
    return {
        "session_id": record.session_id,
        "response_id": record.response_id,
        "sent_chars": sent_chars,
        "sent_at": utc_time(at_ms),
    }


def heard_row(record: HeardRecord) -> Row:
    return {
        "session_id": record.session_id,
        "response_id": record.response_id,
        "sequence": record.sequence,
        "item_id": record.item_id,
        "heard_text": record.heard_text,
        "heard_chars": record.heard_chars,
        "heard_at": utc_time(record.at_ms),
    }


def answer_item_row(item: AnswerItem) -> Row:
    return {"session_id": item.session_id, "item_id": item.item_id, "response_id": item.response_id}


def trace_row(record: PredictionRecord, trace: Trace) -> Row:
    return {
        "session_id": record.session_id,
        "response_id": record.response_id,
        "sequence": record.sequence,
        "prompt": trace.prompt,
        "prompt_format": trace.prompt_format,
        "sampling": bytes(trace.sampling).decode(),
        "queued_at": optional_utc_time(trace.queued_ms),
        "engine_first_token_at": optional_utc_time(trace.engine_first_token_ms),
        "last_token_at": optional_utc_time(trace.last_token_ms),
        # A client chooses it, and no answer may be lost for its length.
        "prompt_version": None if trace.prompt_version is None else trace.prompt_version[:255],
        "persona": trace.persona,
    }


def feedback_row(record: FeedbackRecord) -> Row:
    return {
        "feedback_id": record.feedback_id,
        "session_id": record.session_id,
        "item_id": record.item_id,
        "user_id": record.user_id,
        "role": record.role,
        "sequence": record.sequence,
        "rating": record.rating,
        "reason": record.reason,
        "comment": record.comment,
        "start_chars": record.start,
        "end_chars": record.end,
        "rated_at": utc_time(record.rated_ms),
        "received_at": utc_time(record.received_ms),
    }


def note_row(record: NoteRecord) -> Row:
    return {
        "note_id": record.note_id,
        "session_id": record.session_id,
        "author_id": record.author_id,
        "text": record.text,
        "position_ms": record.position_ms,
        "created_at": utc_time(record.created_ms),
    }


def request_row(record: RequestRecord) -> Row:
    # A stranger chooses these: cut what is too long for its column instead of losing the row that tells of it.
    return {
        "request_id": record.request_id,
        "user_id": record.user_id,
        "session_id": None if record.session_id is None else record.session_id[:64],
        "method": record.method[:16],
        "path": record.path[:1024],
        "status": record.status,
        "duration_ms": record.duration_ms,
        "created_at": utc_time(record.created_ms),
    }
