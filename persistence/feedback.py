"""Reads what people think of answers, each opinion with the answer it is about: its model, prompt and digital human."""

from collections.abc import Iterator
from typing import Any, Final

from msgspec import Struct
from sqlalchemy import ColumnElement, Row, Select, and_, func, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from persistence.database import Database
from persistence.tables import answer_items, feedback, predictions, sessions, traces
from persistence.times import milliseconds, utc_time

# No page is paid for with more rows than these, however few of them it shows.
MAX_EXAMINED: Final = 10_000

_NEWEST_FIRST: Final = (feedback.c.rated_at.desc(), feedback.c.feedback_id.desc())


class StoredFeedback(Struct, frozen=True, kw_only=True):
    """One person's opinion, never a withdrawn one. What is not known of its answer is None: it may not be finished yet."""

    feedback_id: str
    session_id: str
    item_id: str
    user_id: str
    role: str
    rating: str
    reason: str | None
    comment: str | None
    start: int | None
    end: int | None
    rated_ms: int
    received_ms: int
    response_id: str | None
    model: str | None
    model_version: str | None
    prompt_version: str | None
    persona: str | None


class FeedbackFilter(Struct, frozen=True, kw_only=True):
    """Which opinions are wanted; None is any. `clients`: only on these digital humans' sessions; `hidden_clients`: on none of these.

    `from_ms` belongs to the span, `to_ms` does not.
    """

    session_id: str | None = None
    item_id: str | None = None
    user_id: str | None = None
    rating: str | None = None
    reason: str | None = None
    role: str | None = None
    model: str | None = None
    from_ms: int | None = None
    to_ms: int | None = None
    clients: frozenset[str] | None = None
    hidden_clients: frozenset[str] = frozenset()


class FeedbackPlace(Struct, frozen=True):
    """A place in the order of all feedback, newest first."""

    rated_ms: int
    feedback_id: str


class FeedbackPage(Struct, frozen=True):
    """A page, perhaps shorter than was asked for. `next` is where it goes on, None at the end."""

    rows: tuple[StoredFeedback, ...]
    next: FeedbackPlace | None


async def feedback_of_session(database: Database, session_id: str) -> tuple[StoredFeedback, ...]:
    """All that was said of the session's answers, oldest first."""
    query = (
        _joined()
        .where(feedback.c.session_id == session_id, feedback.c.rating.is_not(None))
        .order_by(feedback.c.rated_at, feedback.c.feedback_id)
    )
    async with database.snapshot() as connection:
        return tuple(map(_stored, await connection.execute(query)))


async def find_feedback(
    database: Database,
    wanted: FeedbackFilter,
    *,
    limit: int,
    after: FeedbackPlace | None = None,
    max_examined: int = MAX_EXAMINED,
) -> FeedbackPage:
    """Up to `limit` opinions, the newest first, from those that come `after` that place.

    At most `max_examined` rows are looked at, so a page of what is rare may be short, even empty, with more to follow.
    """
    within = list(_indexed(wanted))
    filters = list(_filters(wanted))
    if after is not None:
        within.append(_comes_after(after))
    last_examined: FeedbackPlace | None = None
    async with database.snapshot() as connection:
        if filters:
            last_examined = await _last_examined(connection, within, max_examined)
        if last_examined is not None:
            within.append(_comes_until(last_examined))
        found = await connection.execute(_joined().where(*within, *filters).order_by(*_NEWEST_FIRST).limit(limit + 1))
        rows = [_stored(row) for row in found]
    if len(rows) > limit:
        rows = rows[:limit]
        return FeedbackPage(tuple(rows), FeedbackPlace(rows[-1].rated_ms, rows[-1].feedback_id))
    return FeedbackPage(tuple(rows), last_examined)


async def _last_examined(
    connection: AsyncConnection, within: list[ColumnElement[bool]], max_examined: int
) -> FeedbackPlace | None:
    """Where looking ends; None when that is the end of all."""
    query = select(feedback.c.rated_at, feedback.c.feedback_id).where(*within).order_by(*_NEWEST_FIRST)
    rows = (await connection.execute(query.offset(max_examined - 1).limit(2))).all()
    return FeedbackPlace(milliseconds(rows[0].rated_at), rows[0].feedback_id) if len(rows) == 2 else None


def _indexed(wanted: FeedbackFilter) -> Iterator[ColumnElement[bool]]:
    """Conditions that an index serves together with the order."""
    yield feedback.c.rating.is_not(None) if wanted.rating is None else feedback.c.rating == wanted.rating
    if wanted.session_id is not None:
        yield feedback.c.session_id == wanted.session_id
    if wanted.user_id is not None:
        yield feedback.c.user_id == wanted.user_id
    if wanted.from_ms is not None:
        yield feedback.c.rated_at >= utc_time(wanted.from_ms)
    if wanted.to_ms is not None:
        yield feedback.c.rated_at < utc_time(wanted.to_ms)


def _filters(wanted: FeedbackFilter) -> Iterator[ColumnElement[bool]]:
    """The others."""
    if wanted.item_id is not None:
        yield feedback.c.item_id == wanted.item_id
    if wanted.reason is not None:
        yield feedback.c.reason == wanted.reason
    if wanted.role is not None:
        yield feedback.c.role == wanted.role
    if wanted.model is not None:
        yield predictions.c.model == wanted.model
    # A session whose own record is still on its way is nobody's yet, and shown to none of whom it must be hidden from some.
    if wanted.clients is not None:
        yield sessions.c.client_id.in_(sorted(wanted.clients))
    if wanted.hidden_clients:
        yield sessions.c.client_id.not_in(sorted(wanted.hidden_clients))


def _comes_after(place: FeedbackPlace) -> ColumnElement[bool]:
    at = utc_time(place.rated_ms)
    return and_(feedback.c.rated_at <= at, or_(feedback.c.rated_at < at, feedback.c.feedback_id < place.feedback_id))


def _comes_until(place: FeedbackPlace) -> ColumnElement[bool]:
    at = utc_time(place.rated_ms)
    return and_(feedback.c.rated_at >= at, or_(feedback.c.rated_at > at, feedback.c.feedback_id >= place.feedback_id))


def _joined() -> Select[Any]:
    item = answer_items.c
    return select(
        feedback,
        item.response_id,
        predictions.c.model,
        predictions.c.model_version,
        traces.c.prompt_version,
        func.coalesce(traces.c.persona, sessions.c.client_id).label("persona"),
    ).select_from(
        feedback.join(sessions, sessions.c.session_id == feedback.c.session_id)
        .outerjoin(answer_items, and_(item.session_id == feedback.c.session_id, item.item_id == feedback.c.item_id))
        .outerjoin(predictions, predictions.c.response_id == item.response_id)
        .outerjoin(traces, and_(traces.c.session_id == feedback.c.session_id, traces.c.response_id == item.response_id))
    )


def _stored(row: Row[Any]) -> StoredFeedback:
    return StoredFeedback(
        feedback_id=row.feedback_id,
        session_id=row.session_id,
        item_id=row.item_id,
        user_id=row.user_id,
        role=row.role,
        rating=row.rating,
        reason=row.reason,
        comment=row.comment,
        start=row.start_chars,
        end=row.end_chars,
        rated_ms=milliseconds(row.rated_at),
        received_ms=milliseconds(row.received_at),
        response_id=row.response_id,
        model=row.model,
        model_version=row.model_version,
        prompt_version=row.prompt_version,
        persona=row.persona,
    )
