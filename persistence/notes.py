"""Reads what staff wrote beside sessions."""

from msgspec import Struct
from sqlalchemy import select

from persistence.database import Database
from persistence.tables import notes
from persistence.times import milliseconds


class StoredNote(Struct, frozen=True):
    """A note. `position_ms` counts from the session's first event; None where the note is about all of it."""

    note_id: str
    author_id: str
    text: str
    position_ms: int | None
    created_ms: int


async def notes_of_session(database: Database, session_id: str) -> tuple[StoredNote, ...]:
    """The session's notes, oldest first."""
    query = select(notes).where(notes.c.session_id == session_id).order_by(notes.c.created_at, notes.c.note_id)
    async with database.snapshot() as connection:
        return tuple(
            StoredNote(row.note_id, row.author_id, row.text, row.position_ms, milliseconds(row.created_at))
            for row in await connection.execute(query)
        )
