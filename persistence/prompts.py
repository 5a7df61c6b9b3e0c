"""Reads the prompts that answers were made of.

Each holds its whole dialogue up to then: those of a long session are too much to be read at once.
"""

from collections.abc import Mapping

from msgspec import Struct
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from persistence.database import Database
from persistence.tables import traces


class StoredPrompt(Struct, frozen=True):
    """The very text given to the model, or the JSON of messages and tools where an endpoint renders it."""

    prompt: str
    prompt_format: str


async def find_prompt(database: Database, session_id: str, response_id: str) -> StoredPrompt | None:
    """The prompt of one answer; None when there is no such answer, or its prompt was not kept."""
    query = select(traces.c.prompt, traces.c.prompt_format).where(
        traces.c.session_id == session_id, traces.c.response_id == response_id, traces.c.prompt.is_not(None)
    )
    async with database.snapshot() as connection:
        row = (await connection.execute(query)).one_or_none()
    return None if row is None else StoredPrompt(row.prompt, row.prompt_format)


async def prompt_lengths(connection: AsyncConnection, session_id: str) -> dict[str, int]:
    """How many characters the kept prompt of each answer has, oldest answer first."""
    query = (
        select(traces.c.response_id, func.char_length(traces.c.prompt))
        .where(traces.c.session_id == session_id, traces.c.prompt.is_not(None))
        .order_by(traces.c.response_id)
    )
    return {row[0]: row[1] for row in await connection.execute(query)}


async def read_prompts(
    connection: AsyncConnection, session_id: str, lengths: Mapping[str, int], *, max_chars: int
) -> dict[str, str]:
    """The prompts of the first answers, as many as come to `max_chars` together."""
    wanted, num_left = [], max_chars
    for response_id, num_chars in lengths.items():
        num_left -= num_chars
        if num_left < 0:
            break
        wanted.append(response_id)
    query = select(traces.c.response_id, traces.c.prompt).where(
        traces.c.session_id == session_id, traces.c.response_id.in_(wanted)
    )
    return {row.response_id: row.prompt for row in await connection.execute(query)}
