"""Records as rows: which rows a batch makes, in which order of tables, and the upsert that refuses to go back in time."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, assert_never

import msgspec
from sqlalchemy import Table, TextClause, bindparam, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from persistence.errors import PoisonRecord
from persistence.tables import STUB_SEQUENCE, heard, predictions, requests, sent, sessions, turns
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

Row = dict[str, object]
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

# The columns that say which of two records of one id is newer, the weightiest first; in other tables a row never changes. A session may
# change twice in a millisecond without an event: then it is rather over than idle, and rather idle than active.
_CLOCKS: Final[dict[str, tuple[str, ...]]] = {
    "sessions": ("sequence", "updated_at", "status"),
    "turns": ("sequence",),
    "predictions": ("sequence",),
    "sent": ("sent_chars", "sent_at"),
    "heard": ("sequence",),
}
_COMPARED_AS: Final = {"status": "CASE {} WHEN 'ended' THEN 2 WHEN 'idle' THEN 1 ELSE 0 END"}

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def utc_time(ms: int) -> datetime:
    """The instant `ms` milliseconds after the epoch, exactly."""
    return _EPOCH + timedelta(milliseconds=ms)


def milliseconds(time: datetime) -> int:
    """The inverse of `utc_time`."""
    return (time - _EPOCH) // timedelta(milliseconds=1)


async def write_rows(connection: AsyncConnection, records: Iterable[RowRecord], *, is_mysql: bool) -> None:
    """Upsert a batch in one transaction of the caller's. The order and repetition of records change nothing.

    A parent that is named before its own record arrived gets a stub. `PoisonRecord` when a turn's number is taken by another turn.
    """
    session_rows: list[Row] = []
    turn_rows: list[Row] = []
    prediction_rows: list[Row] = []
    sent_rows: list[Row] = []
    heard_rows: list[Row] = []
    request_rows: list[Row] = []
    for record in records:
        match record:
            case SessionRecord():
                session_rows.append(_session_row(record))
            case TurnRecord():
                turn_rows.append(_turn_row(record))
            case PredictionRecord():
                prediction_rows.append(_prediction_row(record))
                if record.sent_chars is not None:
                    sent_rows.append(_sent_row(record, record.sent_chars, record.done_ms))
            case SentRecord():
                sent_rows.append(_sent_row(record, record.sent_chars, record.at_ms))
            case HeardRecord():
                heard_rows.append(_heard_row(record))
            case RequestRecord():
                request_rows.append(_request_row(record))
            case FeedbackRecord() | NoteRecord() | AuditRecord():
                raise PoisonRecord(f"there is no table for a {type(record).__name__}")
            case _:
                assert_never(record)
    own_turns = list(turn_rows)
    turn_rows += _missing(
        turn_rows,
        "turn_id",
        (_turn_stub(r["turn_id"], r["session_id"]) for r in prediction_rows if r["turn_id"] is not None),
    )
    session_rows += _missing(
        session_rows,
        "session_id",
        (session_stub(r["session_id"]) for r in (*turn_rows, *prediction_rows, *sent_rows, *heard_rows)),
    )
    await upsert(connection, sessions, session_rows, is_mysql=is_mysql)
    await upsert(connection, turns, turn_rows, is_mysql=is_mysql)
    await _refuse_taken_numbers(connection, own_turns)
    await upsert(connection, predictions, prediction_rows, is_mysql=is_mysql)
    await upsert(connection, sent, sent_rows, is_mysql=is_mysql)
    await upsert(connection, heard, heard_rows, is_mysql=is_mysql)
    await upsert(connection, requests, request_rows, is_mysql=is_mysql)


async def upsert(connection: AsyncConnection, table: Table, rows: Sequence[Row], *, is_mysql: bool) -> None:
    """Insert the rows; change one that is there only for a newer record of the same, and never in a table without a clock."""
    if not rows:
        return
    keys = [column.name for column in table.primary_key.columns]
    # One order for all writers, so that two of them seldom lock each other's rows crosswise.
    ordered = sorted(rows, key=lambda row: [str(row[key]) for key in keys])
    await connection.execute(_upsert_statement(table, is_mysql=is_mysql), ordered)


def _upsert_statement(table: Table, *, is_mysql: bool) -> TextClause:
    """`INSERT … VALUES (…)` with this dialect's way of meeting an existing id.

    Written by hand because aiomysql joins rows into one statement only for `VALUES (…)` followed by `ON DUPLICATE KEY`: SQLAlchemy's own
    `AS new` on MySQL 8.0.20+ would cost a round trip a row.
    """
    names = [column.name for column in table.columns]
    tail = _mysql_tail(table) if is_mysql else _sqlite_tail(table)
    sql = f"INSERT INTO {table.name} ({', '.join(names)}) VALUES ({', '.join(f':{name}' for name in names)}) {tail}"  # noqa: S608
    return text(sql).bindparams(*(bindparam(column.name, type_=column.type) for column in table.columns))


def _mysql_tail(table: Table) -> str:
    key, *_ = keys = [column.name for column in table.primary_key.columns]
    clock = _CLOCKS.get(table.name, ())
    if not clock:
        return f"ON DUPLICATE KEY UPDATE {key} = {table.name}.{key}"
    # The row met may be another one, by another unique key: then leave it alone. `_refuse_taken_numbers` tells.
    newer = f"VALUES({key}) = {key} AND ({_is_newer(clock, 'VALUES({})', '{}')})"
    # Assignments see those to their left: the clock changes last, its weightiest column last of all.
    plain = [column.name for column in table.columns if column.name not in (*keys, *clock)]
    assigned = [f"{name} = IF({newer}, VALUES({name}), {name})" for name in (*plain, *reversed(clock))]
    return f"ON DUPLICATE KEY UPDATE {', '.join(assigned)}"


def _sqlite_tail(table: Table) -> str:
    keys = [column.name for column in table.primary_key.columns]
    conflict = f"ON CONFLICT ({', '.join(keys)})"
    clock = _CLOCKS.get(table.name, ())
    if not clock:
        return f"{conflict} DO NOTHING"
    assigned = ", ".join(
        f"{column.name} = excluded.{column.name}" for column in table.columns if column.name not in keys
    )
    return f"{conflict} DO UPDATE SET {assigned} WHERE {_is_newer(clock, 'excluded.{}', table.name + '.{}')}"


def _is_newer(clock: Sequence[str], new: str, old: str) -> str:
    """The condition that the new row's clock is ahead. A stub has NULLs in its clock, but never in the weightiest column."""
    column, *lighter = clock
    compared_as = _COMPARED_AS.get(column, "{}")
    ahead, behind = (compared_as.format(row.format(column)) for row in (new, old))
    if not lighter:
        return f"{ahead} > {behind}"
    return f"{ahead} > {behind} OR ({ahead} = {behind} AND ({_is_newer(lighter, new, old)}))"


async def _refuse_taken_numbers(connection: AsyncConnection, rows: Sequence[Row]) -> None:
    """MySQL's upsert lets a second turn with a taken number vanish without a word: look whether every turn is there."""
    wanted = {str(row["turn_id"]) for row in rows}
    if not wanted:
        return
    found = await connection.execute(
        select(turns.c.turn_id).where(turns.c.turn_id.in_(sorted(wanted)), turns.c.number.is_not(None))
    )
    missing = wanted - set(found.scalars())
    if missing:
        raise PoisonRecord(f"the number of turn {min(missing)} belongs to another turn")


def _missing(rows: Iterable[Row], key: str, stubs: Iterable[Row]) -> list[Row]:
    present = {row[key] for row in rows}
    return list({stub[key]: stub for stub in stubs if stub[key] not in present}.values())


def _session_row(record: SessionRecord) -> Row:
    return {
        "session_id": record.session_id,
        "sequence": record.sequence,
        "user_id": record.user_id,
        "client_id": record.client_id,
        "model": record.model,
        "status": record.status,
        "created_at": utc_time(record.created_ms),
        "updated_at": utc_time(record.updated_ms),
        "ended_at": _optional_time(record.ended_ms),
    }


def session_stub(session_id: object) -> Row:
    """The row that others refer to while the session's own record is still on its way."""
    return _stub(sessions) | {"session_id": session_id}


def _turn_row(record: TurnRecord) -> Row:
    return {
        "turn_id": record.turn_id,
        "session_id": record.session_id,
        "sequence": record.sequence,
        "number": record.number,
        "item_id": record.item_id,
        "text": record.text,
        "created_at": utc_time(record.created_ms),
    }


def _turn_stub(turn_id: object, session_id: object) -> Row:
    return _stub(turns) | {"turn_id": turn_id, "session_id": session_id}


def _stub(table: Table) -> Row:
    return {column.name: None for column in table.columns} | {"sequence": STUB_SEQUENCE}


def _prediction_row(record: PredictionRecord) -> Row:
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
        "first_token_at": _optional_time(record.first_token_ms),
        "done_at": utc_time(record.done_ms),
        "error": record.error,
    }


def _sent_row(record: PredictionRecord | SentRecord, sent_chars: int, at_ms: int) -> Row:
    return {
        "session_id": record.session_id,
        "response_id": record.response_id,
        "sent_chars": sent_chars,
        "sent_at": utc_time(at_ms),
    }


def _heard_row(record: HeardRecord) -> Row:
    return {
        "session_id": record.session_id,
        "response_id": record.response_id,
        "sequence": record.sequence,
        "item_id": record.item_id,
        "heard_text": record.heard_text,
        "heard_chars": record.heard_chars,
        "heard_at": utc_time(record.at_ms),
    }


def quoted(record: PredictionRecord) -> PredictionRecord:
    """The same prediction with its documents as JSON strings, for a database whose JSON type refuses what clients may send:
    MariaDB nests 32 deep, MySQL 100.
    """
    return msgspec.structs.replace(record, output=_quote(record.output), request=_quote(record.request))


def _quote(document: msgspec.Raw) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(bytes(document).decode()))


def unquoted(document: str) -> str:
    """The document as it was encoded, whether `quoted` or not: ours are always arrays or objects."""
    return msgspec.json.decode(document, type=str) if document.startswith('"') else document


def _request_row(record: RequestRecord) -> Row:
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


def _optional_time(ms: int | None) -> datetime | None:
    return None if ms is None else utc_time(ms)
