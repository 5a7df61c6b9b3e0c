"""Reads what people think of answers, each opinion with the answer it is about: its model, prompt and digital human."""

import time
from collections.abc import Callable
from typing import Annotated, Any, Final

from msgspec import Meta, Struct
from sqlalchemy import ColumnElement, FromClause, Row, Select, and_, func, or_, select

from persistence.database import MYSQL_NAMES, Database
from persistence.tables import answer_items, feedback, predictions, sessions, traces
from persistence.times import milliseconds, utc_time

# No page is paid for with much more than this, however few rows it shows; a round is of so many rows, so that it is worth asking and
# does not stop the server's loop.
_BUDGET_S: Final = 0.01
_MIN_AT_ONCE: Final = 10
_MAX_AT_ONCE: Final = 120

# By what each filter is served, the narrowest first.
_INDEXES: Final = {
    "session_id": "uq_feedback_session_id_item_id_user_id",
    "user_id": "ix_feedback_user_id_rated_at",
    "rating": "ix_feedback_rating_rated_at_feedback_id",
}
_INDEX_OF_ALL: Final = "ix_feedback_rated_at_feedback_id"
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

    rated_ms: Annotated[int, Meta(ge=0, lt=10**14)]
    feedback_id: str


class FeedbackPage(Struct, frozen=True):
    """A page, perhaps shorter than was asked for. `next` is where it goes on, None at the end."""

    rows: tuple[StoredFeedback, ...]
    next: FeedbackPlace | None


async def feedback_of_session(database: Database, session_id: str) -> tuple[StoredFeedback, ...]:
    """All that was said of the session's answers, oldest first."""
    query = (
        with_answers(feedback)
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
    clock_s: Callable[[], float] = time.monotonic,
) -> FeedbackPage:
    """Up to `limit` opinions, the newest first, from those that come `after` that place.

    `clock_s` tells when to stop looking: a page of what is rare may be short, even empty, with more to follow.
    """
    rows: list[StoredFeedback] = []
    place = after
    now_s = clock_s()
    end_s = now_s + _BUDGET_S
    num_wanted = limit + 1
    async with database.snapshot() as connection:
        while len(rows) <= limit:
            examined = (await connection.execute(_newest(wanted, place, num_wanted))).all()
            rows += [_stored(row) for row in examined if _matches(row, wanted)]
            if len(examined) < num_wanted:
                place = None
                break
            place = _place(examined[-1])
            began_s, now_s = now_s, clock_s()
            # As many as the time that is left would pay for, by what these cost.
            affordable = int(num_wanted * (end_s - now_s) / max(now_s - began_s, _BUDGET_S / 1000))
            if affordable < min(num_wanted, _MIN_AT_ONCE):
                break
            num_wanted = min(2 * num_wanted, affordable, _MAX_AT_ONCE)
    if len(rows) > limit:
        return FeedbackPage(tuple(rows[:limit]), FeedbackPlace(rows[limit - 1].rated_ms, rows[limit - 1].feedback_id))
    return FeedbackPage(tuple(rows), place)


def _newest(wanted: FeedbackFilter, after: FeedbackPlace | None, limit: int) -> Select[Any]:
    """The next rows in the order, by what an index serves together with it.

    They are chosen before anything is joined to them, and nothing else is asked of the database: MariaDB would rather begin with all
    sessions, or sort all that is not withdrawn. Left to itself it also reads the index from its newest row on, however far `after` is.
    """
    query = select(feedback).order_by(*_NEWEST_FIRST).limit(limit)
    for name in _INDEXES:
        if (value := getattr(wanted, name)) is not None:
            query = query.where(feedback.c[name] == value)
    index = next((index for name, index in _INDEXES.items() if getattr(wanted, name) is not None), _INDEX_OF_ALL)
    for dialect in MYSQL_NAMES:
        query = query.with_hint(feedback, f"FORCE INDEX ({index})", dialect)
    if wanted.from_ms is not None:
        query = query.where(feedback.c.rated_at >= utc_time(wanted.from_ms))
    if wanted.to_ms is not None:
        query = query.where(feedback.c.rated_at < utc_time(wanted.to_ms))
    if after is not None:
        query = query.where(_comes_after(after))
    newest = query.subquery()
    return with_answers(newest).order_by(newest.c.rated_at.desc(), newest.c.feedback_id.desc())


def _matches(row: Row[Any], wanted: FeedbackFilter) -> bool:
    """Whether this is wanted, by all that no index serves, and by whose it is: in MySQL's collations a space more makes no other name."""
    if row.rating is None:
        return False
    # A session whose own record is still on its way is nobody's yet, and shown to none of whom it must be hidden from some.
    if wanted.clients is not None and row.client_id not in wanted.clients:
        return False
    if wanted.hidden_clients and (row.client_id is None or row.client_id in wanted.hidden_clients):
        return False
    names = ("user_id", "item_id", "reason", "role", "model")
    return all(getattr(wanted, name) in (None, getattr(row, name)) for name in names)


def _place(row: Row[Any]) -> FeedbackPlace:
    return FeedbackPlace(milliseconds(row.rated_at), row.feedback_id)


def _comes_after(place: FeedbackPlace) -> ColumnElement[bool]:
    at = utc_time(place.rated_ms)
    return and_(feedback.c.rated_at <= at, or_(feedback.c.rated_at < at, feedback.c.feedback_id < place.feedback_id))


def with_answers(rated: FromClause) -> Select[Any]:
    """These rows of `feedback`, each with what is known of the answer that it is about."""
    item = answer_items.c
    return select(
        *rated.c,
        item.response_id,
        predictions.c.model,
        predictions.c.model_version,
        traces.c.prompt_version,
        sessions.c.client_id,
        func.coalesce(traces.c.persona, sessions.c.client_id).label("persona"),
    ).select_from(
        rated.outerjoin(sessions, sessions.c.session_id == rated.c.session_id)
        .outerjoin(answer_items, and_(item.session_id == rated.c.session_id, item.item_id == rated.c.item_id))
        .outerjoin(predictions, predictions.c.response_id == item.response_id)
        .outerjoin(traces, and_(traces.c.session_id == rated.c.session_id, traces.c.response_id == item.response_id))
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
