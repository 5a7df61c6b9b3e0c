"""What a rating that comes past its dialogue needs of the tables: the text of the answer, and the rating that is there already."""

from collections.abc import Iterable

import msgspec
from msgspec import Struct
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from persistence.answers import unlisted_items
from persistence.database import Database
from persistence.documents import unquoted
from persistence.tables import answer_items, feedback, predictions
from persistence.times import milliseconds
from sessions.feedback import Feedback, Rating
from sessions.items import Item, MessageItem

_decode_output = msgspec.json.Decoder(list[Item]).decode


class RatedAnswer(Struct, frozen=True):
    """A person's rating of an answer, as the tables have it."""

    session_id: str
    item_id: str
    user_id: str
    feedback: Feedback


async def rated_answer(database: Database, rating_id: str) -> RatedAnswer | None:
    """The rating of that id; None while the tables have none."""
    async with database.snapshot() as connection:
        row = (await connection.execute(select(feedback).where(feedback.c.feedback_id == rating_id))).first()
    if row is None:
        return None
    choice = Feedback(
        rating=msgspec.convert(row.rating, Rating | None),
        reason=row.reason,
        comment=row.comment,
        start=row.start_chars,
        end=row.end_chars,
        rated_ms=milliseconds(row.rated_at),
    )
    return RatedAnswer(row.session_id, row.item_id, row.user_id, choice)


async def answer_text(database: Database, session_id: str, item_id: str) -> str | None:
    """What the answer of that id said, whole, though it may have been cut later; None where the tables know of no such answer."""
    async with database.snapshot() as connection:
        response_id = await _response_of(connection, session_id, item_id)
        if response_id is None:
            return None
        output = await connection.scalar(select(predictions.c.output).where(predictions.c.response_id == response_id))
    return None if output is None else _text(_decode_output(unquoted(output)), item_id)


async def _response_of(connection: AsyncConnection, session_id: str, item_id: str) -> str | None:
    listed: str | None = await connection.scalar(
        select(answer_items.c.response_id).where(
            answer_items.c.session_id == session_id, answer_items.c.item_id == item_id
        )
    )
    if listed is not None:
        return listed
    return next((found.response_id for found in await unlisted_items(connection, [(session_id, item_id)])), None)


def _text(output: Iterable[Item], item_id: str) -> str | None:
    return next((item.text for item in output if isinstance(item, MessageItem) and item.id == item_id), None)
