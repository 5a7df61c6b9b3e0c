"""Reads what a session's summary is made of, for many sessions at once."""

import asyncio
from collections import defaultdict
from collections.abc import Collection
from typing import Any, Final

from sqlalchemy import Row, and_, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from persistence.database import Database
from persistence.masking import Mask
from persistence.search_tables import MAX_FIRST_TEXT_CHARS
from persistence.summaries import (
    AnswerFacts,
    DialogueFacts,
    SessionFacts,
    Summary,
    TurnFacts,
    summarize,
)
from persistence.tables import answer_items, feedback, predictions, sessions, turns
from persistence.times import milliseconds

# Of one message that much is indexed.
_MAX_MESSAGE_CHARS: Final = 100_000

Ratings = dict[tuple[str, str, str], int]


async def load_facts(connection: AsyncConnection, session_ids: Collection[str]) -> dict[str, DialogueFacts]:
    """The facts of those sessions that the tables know; what is only a stub is left out."""
    wanted = sorted(session_ids)
    ratings = await _ratings(connection, wanted)
    answers: defaultdict[str, list[AnswerFacts]] = defaultdict(list)
    for row in await connection.execute(
        select(
            predictions.c.session_id,
            predictions.c.response_id,
            predictions.c.model,
            predictions.c.status,
            func.substr(predictions.c.text, 1, _MAX_MESSAGE_CHARS).label("text"),
            predictions.c.created_at,
            predictions.c.first_token_at,
        )
        .where(predictions.c.session_id.in_(wanted))
        .order_by(predictions.c.session_id, predictions.c.created_at, predictions.c.response_id)
    ):
        answers[row.session_id].append(_answer(row, ratings))
    said: defaultdict[str, list[TurnFacts]] = defaultdict(list)
    for turn in await connection.execute(
        select(turns.c.session_id, func.substr(turns.c.text, 1, _MAX_MESSAGE_CHARS).label("text"), turns.c.created_at)
        .where(turns.c.session_id.in_(wanted), turns.c.number.is_not(None))
        .order_by(turns.c.session_id, turns.c.number)
    ):
        said[turn.session_id].append(TurnFacts(turn.text, milliseconds(turn.created_at)))
    rows = await connection.execute(select(sessions).where(sessions.c.session_id.in_(wanted), sessions.c.sequence >= 0))
    return {row.session_id: DialogueFacts(_session(row), said[row.session_id], answers[row.session_id]) for row in rows}


async def summary_of(database: Database, session_id: str, mask: Mask) -> Summary | None:
    """One session's summary from its rows as they are now, whether it is summarized yet or not; None where the tables do not know it."""
    async with database.snapshot() as connection:
        facts = (await load_facts(connection, [session_id])).get(session_id)
    if facts is None:
        return None
    # Masked before it is cut: of what stands across the cut nothing would be found.
    first = await asyncio.to_thread(mask, facts.turns[0].text) if facts.turns else None
    return summarize(facts, None if first is None else first[:MAX_FIRST_TEXT_CHARS])


async def _ratings(connection: AsyncConnection, session_ids: list[str]) -> Ratings:
    """How often the users rate each answer so; staff rate as reviewers and are not counted."""
    rows = await connection.execute(
        select(feedback.c.session_id, answer_items.c.response_id, feedback.c.rating, func.count())
        .join(
            answer_items,
            and_(answer_items.c.session_id == feedback.c.session_id, answer_items.c.item_id == feedback.c.item_id),
        )
        .where(feedback.c.session_id.in_(session_ids), feedback.c.role == "user", feedback.c.rating.is_not(None))
        .group_by(feedback.c.session_id, answer_items.c.response_id, feedback.c.rating)
    )
    return {(session_id, response_id, rating): count for session_id, response_id, rating, count in rows}


def _answer(row: Row[*tuple[Any, ...]], ratings: Ratings) -> AnswerFacts:
    return AnswerFacts(
        model=row.model,
        status=row.status,
        text=row.text,
        created_ms=milliseconds(row.created_at),
        first_token_ms=None if row.first_token_at is None else milliseconds(row.first_token_at),
        num_up=ratings.get((row.session_id, row.response_id, "up"), 0),
        num_down=ratings.get((row.session_id, row.response_id, "down"), 0),
    )


def _session(row: Row[Any]) -> SessionFacts:
    return SessionFacts(
        session_id=row.session_id,
        user_id=row.user_id,
        client_id=row.client_id,
        model=row.model,
        status=row.status,
        created_ms=milliseconds(row.created_at),
        updated_ms=milliseconds(row.updated_at),
        ended_ms=None if row.ended_at is None else milliseconds(row.ended_at),
    )
