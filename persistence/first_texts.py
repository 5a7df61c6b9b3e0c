"""What a user said first in each of some sessions, as it was said: what is kept for lists may be masked."""

from collections.abc import Collection

from sqlalchemy import func, select

from persistence.database import Database
from persistence.search_tables import MAX_FIRST_TEXT_CHARS
from persistence.tables import turns


async def first_texts(database: Database, session_ids: Collection[str]) -> dict[str, str]:
    """The beginnings of the first turns, by session."""
    if not session_ids:
        return {}
    query = select(turns.c.session_id, func.substr(turns.c.text, 1, MAX_FIRST_TEXT_CHARS)).where(
        turns.c.session_id.in_(sorted(session_ids)), turns.c.number == 1
    )
    async with database.snapshot() as connection:
        return {row[0]: row[1] for row in await connection.execute(query)}
