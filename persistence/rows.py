"""Records as rows: which rows a batch makes, in which order of tables. What an upsert is stands in `upsert`."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, assert_never

import msgspec
from sqlalchemy import Table, select
from sqlalchemy.ext.asyncio import AsyncConnection

from persistence import audit, columns
from persistence.answers import AnswerItem, message_ids, unlisted_items
from persistence.documents import quote
from persistence.errors import PoisonRecord
from persistence.tables import (
    answer_items,
    feedback,
    heard,
    notes,
    predictions,
    requests,
    sent,
    sessions,
    traces,
    turns,
)
from persistence.upsert import Row, upsert
from sessions.records import (
    AuditRecord,
    FeedbackRecord,
    HeardRecord,
    NoteRecord,
    PredictionRecord,
    RequestRecord,
    SentRecord,
    SessionRecord,
    TurnRecord,
)

RowRecord = (
    SessionRecord
    | TurnRecord
    | PredictionRecord
    | SentRecord
    | HeardRecord
    | FeedbackRecord
    | NoteRecord
    | AuditRecord
    | RequestRecord
)

# Parents first. One order for all writers, so that two of them seldom lock each other's rows crosswise.
_TABLES: Final = (sessions, turns, predictions, sent, heard, answer_items, traces, feedback, notes, requests)


async def write_rows(connection: AsyncConnection, records: Sequence[RowRecord], *, is_mysql: bool) -> None:
    """Upsert a batch in one transaction of the caller's. The order and repetition of records change nothing, but of those to be audited,
    which are numbered as they come.

    A parent that is named before its own record arrived gets a stub. `PoisonRecord` when a turn's number is taken by another turn.
    """
    batch: dict[Table, list[Row]] = {table: [] for table in _TABLES}
    for record in records:
        for table, row in _rows(record):
            batch[table].append(row)
    own = {table: list(batch[table]) for table in (turns, feedback)}
    _add_stubs(batch)
    for table in _TABLES:
        if table is answer_items:
            rated = {(str(row["session_id"]), str(row["item_id"])) for row in batch[feedback]}
            batch[table] += [columns.answer_item_row(item) for item in await unlisted_items(connection, rated)]
        await upsert(connection, table, batch[table], is_mysql=is_mysql)
        if table in own:
            await _refuse_taken(connection, table, own[table])
    # Last, because from here on all other writers of such records wait for the commit.
    await audit.append(connection, [record for record in records if isinstance(record, AuditRecord)])


def _rows(record: RowRecord) -> Iterator[tuple[Table, Row]]:
    match record:
        case SessionRecord():
            yield sessions, columns.session_row(record)
        case TurnRecord():
            yield turns, columns.turn_row(record)
        case PredictionRecord():
            yield from _rows_of_prediction(record)
        case SentRecord():
            yield sent, columns.sent_row(record, record.sent_chars, record.at_ms)
        case HeardRecord():
            yield heard, columns.heard_row(record)
        case FeedbackRecord():
            yield feedback, columns.feedback_row(record)
        case NoteRecord():
            yield notes, columns.note_row(record)
        case AuditRecord():
            # Not upserted but appended.
            return
        case RequestRecord():
            yield requests, columns.request_row(record)
        case _:
            assert_never(record)


def _rows_of_prediction(record: PredictionRecord) -> Iterator[tuple[Table, Row]]:
    yield predictions, columns.prediction_row(record)
    if record.sent_chars is not None:
        yield sent, columns.sent_row(record, record.sent_chars, record.done_ms)
    if record.trace is not None:
        yield traces, columns.trace_row(record, record.trace)
    for item_id in message_ids(bytes(record.output).decode()):
        yield answer_items, columns.answer_item_row(AnswerItem(record.session_id, item_id, record.response_id))


def _add_stubs(batch: dict[Table, list[Row]]) -> None:
    batch[turns] += _missing(
        batch[turns],
        "turn_id",
        (
            columns.turn_stub(row["turn_id"], row["session_id"])
            for row in batch[predictions]
            if row["turn_id"] is not None
        ),
    )
    of_sessions = (table for table in _TABLES if table is not requests and table is not sessions)
    batch[sessions] += _missing(
        batch[sessions],
        "session_id",
        (columns.session_stub(row["session_id"]) for table in of_sessions for row in batch[table]),
    )


async def _refuse_taken(connection: AsyncConnection, table: Table, rows: Sequence[Row]) -> None:
    """MySQL's upsert lets a row vanish without a word where another one has its place by another unique key (a turn its number, a rating
    its user and item): look whether every row is there.
    """
    (key,) = table.primary_key.columns
    wanted = {str(row[key.name]) for row in rows}
    if not wanted:
        return
    query = select(key).where(key.in_(sorted(wanted)))
    if table is turns:
        query = query.where(turns.c.number.is_not(None))
    missing = wanted - set((await connection.execute(query)).scalars())
    if missing:
        raise PoisonRecord(f"the place of {min(missing)} in {table.name} belongs to another")


def _missing(rows: Iterable[Row], key: str, stubs: Iterable[Row]) -> list[Row]:
    present = {row[key] for row in rows}
    return list({stub[key]: stub for stub in stubs if stub[key] not in present}.values())


def quoted(record: PredictionRecord) -> PredictionRecord:
    """The same prediction with its documents as JSON strings, for a database whose JSON type refuses what clients may send."""
    trace = record.trace
    return msgspec.structs.replace(
        record,
        output=quote(record.output),
        request=quote(record.request),
        trace=None if trace is None else msgspec.structs.replace(trace, sampling=quote(trace.sampling)),
    )
