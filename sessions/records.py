"""Durable facts on their way to MySQL and S3: what the dialogue commits to the outbox and the writer stores.

What the dialogue records names its session and the session's sequence number at the commit: the row with the higher number wins, so that
a redelivered or reordered record never takes a row back in time. What people do beside it (a late rating, a note, an act to be audited) has
an id or a time of its own for that. Times are milliseconds since the epoch, UTC.
"""

from typing import Literal

import msgspec
from msgspec import Raw, Struct

from sessions.feedback import Rating
from sessions.store import SessionMeta

Role = Literal["user", "support", "admin"]
SessionStatus = Literal["active", "idle", "ended"]
PredictionStatus = Literal["completed", "cancelled", "incomplete", "failed"]


class SessionRecord(Struct, frozen=True, tag_field="record", tag="session"):
    """A session began, changed or ended."""

    session_id: str
    sequence: int
    user_id: str
    client_id: str
    model: str
    status: SessionStatus
    created_ms: int
    updated_ms: int
    ended_ms: int | None = None


def session_record(meta: SessionMeta, status: SessionStatus, *, sequence: int, now_ms: int) -> SessionRecord:
    """What the session is from now on."""
    return SessionRecord(
        session_id=meta.session_id,
        sequence=sequence,
        user_id=meta.user_id,
        client_id=meta.client_id,
        model=meta.model,
        status=status,
        created_ms=meta.created_ms,
        updated_ms=now_ms,
        ended_ms=now_ms if status == "ended" else None,
    )


class TurnRecord(Struct, frozen=True, tag_field="record", tag="turn"):
    """A user's message; `number` counts the session's turns from 1."""

    turn_id: str
    session_id: str
    sequence: int
    number: int
    item_id: str
    text: str
    created_ms: int


class Trace(Struct, frozen=True, kw_only=True):
    """How an answer came to be.

    `prompt` is the very text given to the model, or the JSON of messages and tools where an endpoint renders it; None when it was not kept.
    `sampling` is the JSON object of what was used: temperature, top_p, max_tokens and so on. The times are the engine's own: when it took
    the request up, its first and its last token. `prompt_version` is the session's own name for its instructions, or their digest.
    `persona` is the digital human that spoke.
    """

    prompt: str | None
    prompt_format: Literal["text", "messages"] = "text"
    sampling: Raw
    queued_ms: int | None
    engine_first_token_ms: int | None
    last_token_ms: int | None
    prompt_version: str | None
    persona: str


class PredictionRecord(Struct, frozen=True, tag_field="record", tag="prediction"):
    """One finished answer. `output` is the JSON array of its items, `request` the JSON of what was asked of the engine.

    `turn_id` is None for an answer outside the conversation. `first_token_ms` is None when no token came. `sent_chars` is how much of
    `text` was handed to a connected client by then, in UTF-16 code units; None when nobody counted.
    """

    response_id: str
    session_id: str
    sequence: int
    turn_id: str | None
    model: str
    model_version: str
    status: PredictionStatus
    status_reason: str | None
    text: str
    output: Raw
    request: Raw
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    created_ms: int
    first_token_ms: int | None
    done_ms: int
    error: str | None = None
    sent_chars: int | None = None
    trace: Trace | None = None


class SentRecord(Struct, frozen=True, tag_field="record", tag="sent"):
    """A client that was away when an answer ended is back and is given all of it. `sent_chars` replaces the prediction's; it only grows."""

    response_id: str
    session_id: str
    sequence: int
    sent_chars: int
    at_ms: int


class HeardRecord(Struct, frozen=True, tag_field="record", tag="heard"):
    """How much of an answer was heard, as its listener's client reported; a later report replaces an earlier one.

    `heard_text` is what the dialogue keeps of the whole answer's text, `heard_chars` its length in UTF-16 code units. `item_id` is the
    message that was cut (an answer may have several, between tool calls).
    """

    response_id: str
    item_id: str
    session_id: str
    sequence: int
    heard_text: str
    heard_chars: int
    at_ms: int


class FeedbackRecord(Struct, frozen=True, kw_only=True, tag_field="record", tag="feedback"):
    """One person's opinion of one answer as last chosen; `rating` None once withdrawn. The newer `rated_ms` wins, then the higher sequence.

    `role` is the rater's: support and admin rate as reviewers, apart from the user. `sequence` is 0 for a rating that came past the
    dialogue. `start` and `end` bound a rated piece of the item's text, in UTF-16 code units. `rated_ms` is when it was chosen, as the
    rater's client says, and never later than `received_ms`.
    """

    feedback_id: str
    session_id: str
    item_id: str
    user_id: str
    role: Role
    sequence: int
    rating: Rating | None
    reason: str | None = None
    comment: str | None = None
    start: int | None = None
    end: int | None = None
    rated_ms: int
    received_ms: int


class NoteRecord(Struct, frozen=True, kw_only=True, tag_field="record", tag="note"):
    """What a member of staff wrote about a session, or about the moment `position_ms` after its first event. A note never changes."""

    note_id: str
    session_id: str
    author_id: str
    text: str
    position_ms: int | None
    created_ms: int


class AuditRecord(Struct, frozen=True, kw_only=True, tag_field="record", tag="audit"):
    """Somebody looked at or changed what is not their own. `detail` is a JSON object."""

    audit_id: str
    actor_id: str
    role: Role
    client_id: str
    action: str
    session_id: str | None
    detail: Raw
    at_ms: int


class ArchiveRecord(Struct, frozen=True, tag_field="record", tag="archive"):
    """The journal of a session up to and including `last_sequence` is to be archived. `final`: nothing will follow it.

    The journal holds nothing up to `forgotten_sequence`: that is archived already, or, after the store came back empty, lost.
    """

    session_id: str
    sequence: int
    created_ms: int
    last_sequence: int
    final: bool
    forgotten_sequence: int = 0


class RequestRecord(Struct, frozen=True, tag_field="record", tag="request"):
    """One call of the HTTP API or one WebSocket connection. Never holds a query string, a body or a token."""

    request_id: str
    user_id: str | None
    method: str
    path: str
    status: int
    duration_ms: float
    created_ms: int
    session_id: str | None = None


Record = (
    SessionRecord
    | TurnRecord
    | PredictionRecord
    | SentRecord
    | HeardRecord
    | FeedbackRecord
    | NoteRecord
    | AuditRecord
    | ArchiveRecord
    | RequestRecord
)

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Record] = msgspec.json.Decoder(Record)


def encode_record(record: Record) -> bytes:
    """The record as one JSON document without newlines."""
    return _encoder.encode(record)


def decode_record(data: bytes) -> Record:
    """The record that `encode_record` wrote; `msgspec.ValidationError` when it is no record."""
    return _decoder.decode(data)
