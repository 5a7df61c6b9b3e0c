"""Reads what the writer stored: a session with its turns and predictions, and its archived events as they were sent."""

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any, Final

from msgspec import Struct
from sqlalchemy import ColumnElement, Row, Table, and_, select

from persistence.archive import Archive
from persistence.database import Database
from persistence.documents import unquoted
from persistence.errors import ArchiveDamaged
from persistence.part import JournalEvent, digest, unpack
from persistence.prompts import prompt_lengths, read_prompts
from persistence.tables import heard, predictions, sent, sessions, traces, turns
from persistence.times import milliseconds, optional_milliseconds
from persistence.whereabouts import Part, parts_from


class StoredSession(Struct, frozen=True):
    """A session's row. Times are milliseconds since the epoch, UTC."""

    session_id: str
    user_id: str
    client_id: str
    model: str
    status: str
    created_ms: int
    updated_ms: int
    ended_ms: int | None


class StoredTurn(Struct, frozen=True):
    """A user's message."""

    turn_id: str
    number: int
    item_id: str
    text: str
    created_ms: int


class StoredTrace(Struct, frozen=True):
    """How an answer came to be, as `sessions.records.Trace` says. `sampling` is a JSON object.

    `prompt_chars` is the length of the prompt that is kept, also where it was not read (`persistence.prompts` reads one alone).
    """

    prompt: str | None
    prompt_chars: int | None
    prompt_format: str
    sampling: str
    queued_ms: int | None
    engine_first_token_ms: int | None
    last_token_ms: int | None
    prompt_version: str | None
    persona: str


class StoredPrediction(Struct, frozen=True):
    """One answer. `output` and `request` are JSON documents, as they were encoded up to what the database's JSON type changes.

    `text` is what was generated; `sent_chars` of it were handed to a client, and `heard_text` of it was heard, where anybody told. Both
    counts are UTF-16 code units. `heard_ms` is when that was told. `trace` is None of an answer that a release before traces stored.
    """

    response_id: str
    turn_id: str | None
    model: str
    model_version: str
    status: str
    status_reason: str | None
    text: str
    output: str
    request: str
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    created_ms: int
    first_token_ms: int | None
    done_ms: int
    error: str | None
    sent_chars: int | None
    heard_text: str | None
    heard_chars: int | None
    heard_ms: int | None = None
    trace: StoredTrace | None = None


class StoredDialogue(Struct, frozen=True):
    """A session, its turns by number, its predictions by time."""

    session: StoredSession
    turns: tuple[StoredTurn, ...]
    predictions: tuple[StoredPrediction, ...]


_TRACE_COLUMNS: Final = [
    column for column in traces.columns if column.name not in ("session_id", "response_id", "sequence", "prompt")
]


async def load_dialogue(
    database: Database, session_id: str, *, max_prompt_chars: int = sys.maxsize
) -> StoredDialogue | None:
    """All that the tables know of a session; None when they do not know it (yet). What is only a stub is left out.

    Of its prompts the first are read, as many as come to `max_prompt_chars` together.
    """
    async with database.snapshot() as connection:
        session = (
            await connection.execute(
                select(sessions).where(sessions.c.session_id == session_id, sessions.c.sequence >= 0)
            )
        ).one_or_none()
        turn_rows = await connection.execute(
            select(turns).where(turns.c.session_id == session_id, turns.c.number.is_not(None)).order_by(turns.c.number)
        )
        prediction_rows = await connection.execute(
            select(
                predictions,
                sent.c.sent_chars,
                heard.c.heard_text,
                heard.c.heard_chars,
                heard.c.heard_at,
                *_TRACE_COLUMNS,
            )
            .select_from(
                predictions.outerjoin(sent, _is_of_prediction(sent))
                .outerjoin(heard, _is_of_prediction(heard))
                .outerjoin(traces, _is_of_prediction(traces))
            )
            .where(predictions.c.session_id == session_id)
            .order_by(predictions.c.created_at, predictions.c.response_id)
        )
        lengths = await prompt_lengths(connection, session_id)
        prompts = await read_prompts(connection, session_id, lengths, max_chars=max_prompt_chars)
    if session is None:
        return None
    return StoredDialogue(
        session=StoredSession(
            session_id=session.session_id,
            user_id=session.user_id,
            client_id=session.client_id,
            model=session.model,
            status=session.status,
            created_ms=milliseconds(session.created_at),
            updated_ms=milliseconds(session.updated_at),
            ended_ms=optional_milliseconds(session.ended_at),
        ),
        turns=tuple(
            StoredTurn(
                turn_id=row.turn_id,
                number=row.number,
                item_id=row.item_id,
                text=row.text,
                created_ms=milliseconds(row.created_at),
            )
            for row in turn_rows
        ),
        predictions=tuple(
            StoredPrediction(
                response_id=row.response_id,
                turn_id=row.turn_id,
                model=row.model,
                model_version=row.model_version,
                status=row.status,
                status_reason=row.status_reason,
                text=row.text,
                output=unquoted(row.output),
                request=unquoted(row.request),
                input_tokens=row.input_tokens,
                output_tokens=row.output_tokens,
                cached_tokens=row.cached_tokens,
                created_ms=milliseconds(row.created_at),
                first_token_ms=optional_milliseconds(row.first_token_at),
                done_ms=milliseconds(row.done_at),
                error=row.error,
                sent_chars=row.sent_chars,
                heard_text=row.heard_text,
                heard_chars=row.heard_chars,
                heard_ms=optional_milliseconds(row.heard_at),
                trace=_trace(row, prompts.get(row.response_id), lengths.get(row.response_id)),
            )
            for row in prediction_rows
        ),
    )


def _trace(row: Row[Any], prompt: str | None, prompt_chars: int | None) -> StoredTrace | None:
    if row.persona is None:
        return None
    return StoredTrace(
        prompt=prompt,
        prompt_chars=prompt_chars,
        prompt_format=row.prompt_format,
        sampling=unquoted(row.sampling),
        queued_ms=optional_milliseconds(row.queued_at),
        engine_first_token_ms=optional_milliseconds(row.engine_first_token_at),
        last_token_ms=optional_milliseconds(row.last_token_at),
        prompt_version=row.prompt_version,
        persona=row.persona,
    )


def _is_of_prediction(table: Table) -> ColumnElement[bool]:
    return and_(table.c.session_id == predictions.c.session_id, table.c.response_id == predictions.c.response_id)


async def archived_sequence(database: Database, session_id: str) -> int:
    """The number of the last event that the archive is known to hold; 0 when none."""
    parts = await _stored_parts(database, session_id)
    return parts[-1].last_sequence if parts else 0


async def archived_events(
    database: Database, archive: Archive, session_id: str, *, after: int = 0
) -> AsyncIterator[JournalEvent]:
    """The archived events numbered above `after`, in order, byte for byte as they were journaled, but those declared lost.

    `ArchiveDamaged` when an object is missing, is not what was stored, or leaves a gap; `ArchiveUnavailable` when it cannot be read now.
    """
    expected: int | None = None
    for part in await _stored_parts(database, session_id):
        if expected is not None and part.first_sequence != expected:
            raise ArchiveDamaged(part.object_key, f"begins with event {part.first_sequence}, not {expected}")
        expected = part.last_sequence + 1
        if part.last_sequence <= after or part.num_events == 0:
            continue
        for event in await _open_part(archive, part):
            if event.sequence > after:
                yield event


async def _stored_parts(database: Database, session_id: str) -> list[Part]:
    return await parts_from(database, session_id, 1, limit=None)


async def _open_part(archive: Archive, part: Part) -> list[JournalEvent]:
    data = await archive.get(part.object_key)
    if digest(data) != part.sha256:
        raise ArchiveDamaged(part.object_key, "its checksum is not the one that was stored")
    try:
        events = await asyncio.to_thread(lambda: list(unpack(data)))
    except ValueError as error:
        raise ArchiveDamaged(part.object_key, str(error)) from error
    if [event.sequence for event in events] != list(range(part.first_sequence, part.last_sequence + 1)):
        raise ArchiveDamaged(part.object_key, "its events are not the ones that were stored")
    return events
