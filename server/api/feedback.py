"""`/v1/feedback`: answers rated past the connection, by users and reviewers; and what was rated, for whoever may see it."""

import asyncio
import re
from typing import Annotated

import msgspec
from msgspec import Meta, Struct, field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from persistence.feedback import FeedbackFilter, FeedbackPlace, StoredFeedback, find_feedback
from persistence.rated_answers import rated_answer
from server.api.answer import answer
from server.api.at_once import at_once
from server.api.caller import EVERYONE, caller
from server.api.cursor import decode_cursor, encode_cursor
from server.api.query import Id, Limit, Milliseconds, Name, body_of, query_of
from server.api.subject import find_subject
from server.auth import Principal, Role
from server.late_rating import AnswerNotFound, rate
from server.personal_data import mask_others_feedback
from server.problems import problem_response
from server.services import Services, services_of
from sessions.client_events import NewFeedback
from sessions.feedback import Feedback, Rating, feedback_id
from sessions.new_items import MAX_ITEM_ID_LENGTH
from sessions.ratings import make_feedback, rating_time
from sessions.server_events import FeedbackObject, feedback_object
from sessions.store import SessionMeta
from sessions.wire_errors import BadEvent

PATH = "/v1/feedback"
_LIST = "feedback"
_FEEDBACK_ID = re.compile("fb_[a-z2-7]{26}", re.ASCII)

ItemId = Annotated[str, Meta(min_length=1, max_length=MAX_ITEM_ID_LENGTH)]
SessionId = Annotated[str, Meta(min_length=1, max_length=64)]


class _New(Struct, frozen=True, forbid_unknown_fields=True):
    session_id: SessionId
    item_id: ItemId
    feedback: NewFeedback


class _Withdrawal(Struct, frozen=True, forbid_unknown_fields=True):
    """`session_id` and `item_id` name the rating where the tables may not have it yet."""

    session_id: SessionId | None = None
    item_id: ItemId | None = None
    rated_at_ms: Milliseconds | None = None


class _Query(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    session_id: Id | None = None
    item_id: ItemId | None = None
    user_id: Name | None = None
    model: Name | None = None
    rating: Rating | None = None
    reason: Name | None = None
    role: Role | None = None
    from_ms: Milliseconds | None = field(default=None, name="from")
    to_ms: Milliseconds | None = field(default=None, name="to")
    limit: Limit = 50
    after: str | None = None


class _Page(Struct, frozen=True):
    """A page may be short, even empty, with more to follow. It holds what the writer has stored."""

    data: tuple[StoredFeedback, ...]
    has_more: bool
    next: str | None


class _Held(Struct, frozen=True):
    """The rating that holds now: the one that was sent, or a later one that it could not replace."""

    feedback: FeedbackObject


async def _list(request: Request) -> Response:
    """What was rated, newest first: users see what they said, staff what was said to the digital humans that they may see."""
    services = services_of(request)
    principal = await caller(request, EVERYONE)
    asked = query_of(request, _Query)
    if asked.from_ms is not None and asked.to_ms is not None and asked.to_ms <= asked.from_ms:
        raise BadEvent("invalid_value", "to must be later than from.", "to")
    after = None if asked.after is None else decode_cursor(asked.after, FeedbackPlace, of=_LIST)
    sight = services.access.sight(principal)
    if sight.user_id is not None and asked.user_id not in (None, sight.user_id):
        return answer(_Page((), has_more=False, next=None))
    wanted = FeedbackFilter(
        session_id=asked.session_id,
        item_id=asked.item_id,
        user_id=asked.user_id or sight.user_id,
        rating=asked.rating,
        reason=asked.reason,
        role=asked.role,
        model=asked.model,
        from_ms=asked.from_ms,
        to_ms=asked.to_ms,
        clients=sight.clients,
        hidden_clients=sight.hidden_clients,
    )
    # Each waits for a disk, the one for the database's, the other for the store's.
    async with at_once() as tasks:
        finding = tasks.create_task(find_feedback(services.database, wanted, limit=asked.limit, after=after))
        if sight.user_id is None:
            filters = {name: value for name, value in msgspec.to_builtins(asked).items() if value is not None}
            trail = services.audit.write(principal, "feedback.list", session_id=asked.session_id, detail=filters)
            tasks.create_task(trail)
    page = finding.result()
    goes_on = None if page.next is None else encode_cursor(page.next, of=_LIST)
    rows = page.rows
    if services.access.is_masked(principal):
        rows = await asyncio.to_thread(mask_others_feedback, rows, principal.subject)
    return answer(_Page(rows, has_more=goes_on is not None, next=goes_on))


async def _create(request: Request) -> Response:
    """Rate an answer; 201 once it is durable."""
    services = services_of(request)
    principal = await caller(request, EVERYONE)
    asked = await body_of(request, _New)
    meta = (await find_subject(services, principal, asked.session_id)).meta
    feedback = make_feedback(asked.feedback, limits=services.node.dialogue_limits, now_ms=services.node.now_ms())
    return await _rate(services, principal, meta, asked.item_id, feedback, status=201)


async def _delete(request: Request) -> Response:
    """Withdraw a rating of one's own; 200 once that is durable, however often."""
    services = services_of(request)
    principal = await caller(request, EVERYONE)
    asked = query_of(request, _Withdrawal)
    rating_id = request.path_params["feedback_id"]
    named = await _named(services, principal, asked, rating_id)
    if named is None:
        return _no_such_rating()
    session_id, item_id = named
    meta = (await find_subject(services, principal, session_id)).meta
    rated_ms = rating_time(asked.rated_at_ms, now_ms=services.node.now_ms(), param="rated_at_ms")
    return await _rate(services, principal, meta, item_id, Feedback(rating=None, rated_ms=rated_ms), status=200)


async def _named(
    services: Services, principal: Principal, asked: _Withdrawal, rating_id: str
) -> tuple[str, str] | None:
    """Session and item of the caller's rating of that id; None when there is no such rating, or it is another's."""
    if (asked.session_id is None) != (asked.item_id is None):
        param = "session_id" if asked.session_id is None else "item_id"
        raise BadEvent("missing_required_parameter", f"Missing required parameter: '{param}'.", param)
    if asked.session_id is not None and asked.item_id is not None:
        is_right = rating_id == feedback_id(asked.session_id, asked.item_id, principal.subject)
        return (asked.session_id, asked.item_id) if is_right else None
    if _FEEDBACK_ID.fullmatch(rating_id) is None:
        return None
    stored = await rated_answer(services.database, rating_id)
    return (stored.session_id, stored.item_id) if stored and stored.user_id == principal.subject else None


async def _rate(
    services: Services, principal: Principal, meta: SessionMeta, item_id: str, feedback: Feedback, *, status: int
) -> Response:
    try:
        held = await rate(services, principal, meta, item_id=item_id, feedback=feedback)
    except AnswerNotFound:
        return problem_response(404, "not_found", "There is no such answer in this session.", param="item_id")
    rating_id = feedback_id(meta.session_id, item_id, principal.subject)
    return answer(_Held(feedback_object(rating_id, item_id, held)), status)


def _no_such_rating() -> Response:
    return problem_response(404, "not_found", "There is no such feedback.", param="feedback_id")


def feedback_routes() -> list[Route]:
    """The routes; users rate in their own sessions, staff in those that they may see."""
    return [
        Route(PATH, _list, methods=["GET"]),
        Route(PATH, _create, methods=["POST"]),
        Route(PATH + "/{feedback_id}", _delete, methods=["DELETE"]),
    ]
