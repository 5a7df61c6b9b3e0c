"""Which sessions changed since they were summarized: marked with the change itself, taken in turns, forgotten once summarized.

A mark is never merely set: each change writes another one, so that whoever summarized what it read before sees that it must be done again.
"""

import secrets
from collections.abc import Collection, Iterable, Mapping
from typing import Final

from sqlalchemy import and_, bindparam, delete, or_, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from persistence.search_tables import stale_sessions
from persistence.times import utc_time
from sessions.records import FeedbackRecord, PredictionRecord, Record, SessionRecord, TurnRecord

# An answer, its turn and its session come as several records, often in several batches.
SETTLE_MS: Final = 500

_MARK_BITS: Final = 62
# In one statement for many rows: see `upsert`.
_INSERT: Final = "INSERT INTO stale_sessions (session_id, mark, due_at) VALUES (:session_id, :mark, :due_at)"
_ON_MYSQL: Final = f"{_INSERT} ON DUPLICATE KEY UPDATE mark = VALUES(mark)"
_ON_SQLITE: Final = f"{_INSERT} ON CONFLICT (session_id) DO UPDATE SET mark = excluded.mark"


def changed_sessions(records: Iterable[Record]) -> set[str]:
    """The sessions whose summaries these records change."""
    return {
        record.session_id
        for record in records
        if isinstance(record, SessionRecord | TurnRecord | PredictionRecord | FeedbackRecord)
    }


async def mark_stale(connection: AsyncConnection, session_ids: Collection[str], *, now_ms: int, is_mysql: bool) -> None:
    """Ask for these to be summarized, in the transaction that changes them. One that waits already does not wait for longer."""
    if not session_ids:
        return
    statement = text(_ON_MYSQL if is_mysql else _ON_SQLITE).bindparams(
        bindparam("due_at", type_=stale_sessions.c.due_at.type)
    )
    due_at = utc_time(now_ms + SETTLE_MS)
    # One order for all, so that nobody locks another's rows crosswise.
    await connection.execute(
        statement,
        [
            {"session_id": session_id, "mark": secrets.randbits(_MARK_BITS), "due_at": due_at}
            for session_id in sorted(session_ids)
        ],
    )


async def take_stale(connection: AsyncConnection, *, limit: int, now_ms: int, lease_ms: int) -> dict[str, int]:
    """Sessions that are due, longest first, each with its mark. Until the lease is over nobody else is given them."""
    rows = await connection.execute(
        select(stale_sessions.c.session_id, stale_sessions.c.mark)
        .where(stale_sessions.c.due_at <= utc_time(now_ms))
        .order_by(stale_sessions.c.due_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    taken = {row.session_id: row.mark for row in rows}
    await postpone(connection, taken, until_ms=now_ms + lease_ms)
    return taken


async def postpone(connection: AsyncConnection, session_ids: Collection[str], *, until_ms: int) -> None:
    """Let these be due then."""
    if session_ids:
        await connection.execute(
            update(stale_sessions)
            .where(stale_sessions.c.session_id.in_(sorted(session_ids)))
            .values(due_at=utc_time(until_ms))
        )


async def lock_stale(connection: AsyncConnection, session_ids: Collection[str]) -> set[str]:
    """Those that still are to be summarized, locked: for the others somebody has done it meanwhile, with what is newer."""
    rows = await connection.execute(
        select(stale_sessions.c.session_id)
        .where(stale_sessions.c.session_id.in_(sorted(session_ids)))
        .order_by(stale_sessions.c.session_id)
        .with_for_update()
    )
    return set(rows.scalars())


async def settle_stale(connection: AsyncConnection, taken: Mapping[str, int], *, now_ms: int) -> None:
    """Forget those that did not change since they were taken, and let the others be due at once."""
    if not taken:
        return
    is_unchanged = (
        and_(stale_sessions.c.session_id == session_id, stale_sessions.c.mark == mark)
        for session_id, mark in sorted(taken.items())
    )
    await connection.execute(delete(stale_sessions).where(or_(*is_unchanged)))
    await postpone(connection, taken, until_ms=now_ms)
