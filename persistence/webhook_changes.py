"""Notes, in the writer's own transaction, which ratings it changed, for the webhook to tell of. Sends nothing."""

import base64
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final

import msgspec
from sqlalchemy import Row, bindparam, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from persistence.database import MYSQL_NAMES
from persistence.rows import RowRecord
from persistence.tables import feedback
from persistence.times import milliseconds, utc_time
from persistence.webhook_tables import webhook_deliveries
from sessions.feedback import Rating
from sessions.records import FeedbackRecord, Role, encode_record

# Around what stores these records, in its transaction.
Announce = Callable[[AsyncConnection, Sequence[RowRecord]], AbstractAsyncContextManager[None]]

_ID_CHARS: Final = 26
_INSERT: Final = (
    "INSERT INTO webhook_deliveries (feedback_id, delivery_id, record, announced_at, due_at, num_tries)"
    " VALUES (:feedback_id, :delivery_id, :record, :now, :now, 0)"
)
# What waits keeps its time and its tries: it is the receiver that fails, whatever it is told. In one statement for many rows: see `upsert`.
_ON_MYSQL: Final = (
    f"{_INSERT} ON DUPLICATE KEY UPDATE delivery_id = VALUES(delivery_id), record = VALUES(record),"
    " announced_at = VALUES(announced_at)"
)
_ON_SQLITE: Final = (
    f"{_INSERT} ON CONFLICT (feedback_id) DO UPDATE SET delivery_id = excluded.delivery_id, record = excluded.record,"
    " announced_at = excluded.announced_at"
)


@asynccontextmanager
async def announce_nothing(connection: AsyncConnection, records: Sequence[RowRecord]) -> AsyncIterator[None]:
    """Nobody is told."""
    yield


@asynccontextmanager
async def announce_ratings(
    connection: AsyncConnection,
    records: Sequence[RowRecord],
    *,
    now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
) -> AsyncIterator[None]:
    """Each rating whose choice is another one after the block is to be told of; a redelivered or an older record changes none.

    The rows are compared, not the records: which of them count is the upsert's to know. A rating that is not there yet cannot be locked;
    of two writers that bring it at once both may announce what is stored in the end, which is then one delivery with one id.
    """
    feedback_ids = sorted({record.feedback_id for record in records if isinstance(record, FeedbackRecord)})
    if not feedback_ids:
        yield
        return
    before = await _stored(connection, feedback_ids, locked=True)
    yield
    after = await _stored(connection, feedback_ids, locked=False)
    changed = [row for feedback_id, row in after.items() if _choice(row) != _choice(before.get(feedback_id))]
    if changed:
        await _announce(connection, changed, now_ms())


async def _stored(
    connection: AsyncConnection, feedback_ids: Collection[str], *, locked: bool
) -> Mapping[str, Row[Any]]:
    query = select(feedback).where(feedback.c.feedback_id.in_(feedback_ids)).order_by(feedback.c.feedback_id)
    rows = await connection.execute(query.with_for_update() if locked else query)
    return {row.feedback_id: row for row in rows}


def _choice(row: Row[Any] | None) -> tuple[object, ...] | None:
    return None if row is None else (row.rating, row.reason, row.comment, row.start_chars, row.end_chars)


async def _announce(connection: AsyncConnection, rows: Sequence[Row[Any]], now_ms: int) -> None:
    statement = text(_ON_MYSQL if connection.dialect.name in MYSQL_NAMES else _ON_SQLITE).bindparams(
        bindparam("now", type_=webhook_deliveries.c.due_at.type)
    )
    await connection.execute(statement, [_delivery(_record(row)) | {"now": utc_time(now_ms)} for row in rows])


def _delivery(record: FeedbackRecord) -> dict[str, object]:
    encoded = encode_record(record)
    return {
        "feedback_id": record.feedback_id,
        "delivery_id": "evt_" + base64.b32encode(hashlib.sha256(encoded).digest()).decode().lower()[:_ID_CHARS],
        "record": encoded.decode(),
    }


def _record(row: Row[Any]) -> FeedbackRecord:
    return FeedbackRecord(
        feedback_id=row.feedback_id,
        session_id=row.session_id,
        item_id=row.item_id,
        user_id=row.user_id,
        role=msgspec.convert(row.role, Role),
        sequence=row.sequence,
        rating=msgspec.convert(row.rating, Rating | None),
        reason=row.reason,
        comment=row.comment,
        start=row.start_chars,
        end=row.end_chars,
        rated_ms=milliseconds(row.rated_at),
        received_ms=milliseconds(row.received_at),
    )
