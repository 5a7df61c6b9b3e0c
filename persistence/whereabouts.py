"""What the tables know of where a session's events lie, and whose session it is."""

from typing import Any

from msgspec import Struct
from sqlalchemy import Row, select

from persistence.database import Database
from persistence.tables import archives, sessions
from persistence.times import milliseconds
from sessions.store import SessionMeta


class Part(Struct, frozen=True):
    """A part that is in the archive. `num_events` 0: it was declared lost, there is no object."""

    first_sequence: int
    last_sequence: int
    object_key: str
    sha256: str | None
    num_events: int


async def parts_from(database: Database, session_id: str, expected: int, *, limit: int | None) -> list[Part]:
    """Up to `limit` stored parts that reach up to that event or beyond, in order."""
    query = (
        select(
            archives.c.first_sequence,
            archives.c.last_sequence,
            archives.c.object_key,
            archives.c.sha256,
            archives.c.num_events,
        )
        .where(
            archives.c.session_id == session_id,
            archives.c.last_sequence >= expected,
            archives.c.stored_at.is_not(None),
        )
        .order_by(archives.c.first_sequence)
        .limit(limit)
    )
    async with database.snapshot() as connection:
        return [Part(*row) for row in await connection.execute(query)]


async def session_row(database: Database, session_id: str) -> Row[Any] | None:
    """The session's row; None when there is none yet, or only a stub."""
    query = select(sessions).where(sessions.c.session_id == session_id, sessions.c.user_id.is_not(None))
    async with database.snapshot() as connection:
        return (await connection.execute(query)).one_or_none()


def meta_of(row: Row[Any]) -> SessionMeta:
    """What never changes about the session of that row."""
    return SessionMeta(row.session_id, row.user_id, row.client_id, row.model, milliseconds(row.created_at))
