"""A rating that comes past its session's connection: from a client that lost it, or from a reviewer.

The outbox holds it before anything else learns of it. The session's own user's also goes to the dialogue, so that its journal, its
connection and a later resume tell the same: to the one that lives on this node, or to the stored one, which tells it when it is claimed
next. A reviewer's stays apart from it, and is written to the audit trail.
"""

import structlog
from msgspec import structs

from persistence.errors import DatabaseUnavailable
from persistence.rated_answers import answer_text, rated_answer
from server.auth import Principal
from server.live import LiveSession
from server.services import Services
from sessions.errors import StoreUnavailable
from sessions.feedback import Feedback, feedback_id
from sessions.ratings import as_answer, check_range, feedback_record
from sessions.records import encode_record
from sessions.store import PlacedItem, SessionMeta
from sessions.wire_errors import BadEvent

_log = structlog.get_logger(__name__)


class AnswerNotFound(Exception):
    """The session has no such answer, or it cannot be known yet."""


async def rate(
    services: Services, principal: Principal, meta: SessionMeta, *, item_id: str, feedback: Feedback
) -> Feedback:
    """Take the principal's choice; what holds of it and earlier ones.

    `AnswerNotFound`; `BadEvent` for what is no answer or shorter than the range; `StoreUnavailable` while nothing can be kept.
    """
    if services.node.refusal is not None:
        raise StoreUnavailable(services.node.refusal)
    is_own = principal.subject == meta.user_id
    live = services.node.find(meta.session_id) if is_own else None
    if live is None or not _knows(live, item_id, feedback):
        placed = await services.store.item(meta.session_id, item_id)
        await _check(services, meta.session_id, item_id, placed=placed, feedback=feedback)
        newest = await _newest(services, principal, meta, item_id, placed=placed)
        if newest is not None and not feedback.replaces(newest):
            return newest
        if newest is not None and newest.rated_ms == feedback.rated_ms and newest != feedback:
            # Rows go by the time first: of two choices in one millisecond the one on the wire would win.
            feedback = structs.replace(feedback, rated_ms=newest.rated_ms + 1)
    await _keep(services, principal, meta, item_id=item_id, feedback=feedback)
    if not is_own:
        return feedback
    # Looked for anew: it may have ended, moved or come back meanwhile, and one that is over may say nothing more.
    live = services.node.find(meta.session_id)
    if live is None:
        await _leave(services, meta.session_id, item_id, feedback)
        live = services.node.find(meta.session_id)
    return feedback if live is None else _tell(live, item_id, feedback)


def _knows(live: LiveSession, item_id: str, feedback: Feedback) -> bool:
    """Whether the dialogue holds the answer; it may have been said outside of it, or deleted."""
    try:
        live.check_rating(item_id, feedback)
    except BadEvent as mistake:
        if mistake.param == "item_id" and mistake.code == "feedback_invalid_item_id":
            return False
        raise
    return True


def _tell(live: LiveSession, item_id: str, feedback: Feedback) -> Feedback:
    try:
        return live.rate(item_id, feedback)
    except BadEvent:
        return feedback  # the item was deleted while the outbox took the rating, or never was in the dialogue


async def _leave(services: Services, session_id: str, item_id: str, feedback: Feedback) -> None:
    """Leave it to whoever takes the session in next; it is durable already, whether that succeeds or not."""
    try:
        await services.store.rate(session_id, item_id, feedback)
    except StoreUnavailable as error:
        _log.warning("rating.not_in_dialogue", session_id=session_id, reason=str(error))


async def _keep(
    services: Services, principal: Principal, meta: SessionMeta, *, item_id: str, feedback: Feedback
) -> None:
    is_own = principal.subject == meta.user_id
    record = feedback_record(
        feedback,
        session_id=meta.session_id,
        item_id=item_id,
        user_id=principal.subject,
        role="user" if is_own else principal.role,
        sequence=0,
        received_ms=services.node.now_ms(),
    )
    encoded = encode_record(record)
    if is_own:
        await services.store.enqueue([encoded])
        return
    detail = {"item_id": item_id, "feedback_id": record.feedback_id}
    await services.audit.write(
        principal, "feedback.review", session_id=meta.session_id, detail=detail, records=[encoded]
    )


async def _check(
    services: Services, session_id: str, item_id: str, *, placed: PlacedItem | None, feedback: Feedback
) -> None:
    """As the dialogue would, from what is stored. Of an answer that streams elsewhere the length is not known, and not held against it."""
    if placed is not None:
        item = as_answer(placed.item)
        if feedback.end is None or item.status == "in_progress":
            return
        if item.status == "completed":
            check_range(feedback, item.text)
            return
    text = await answer_text(services.database, session_id, item_id)
    if text is not None:
        check_range(feedback, text)
    elif placed is None:
        raise AnswerNotFound(item_id)


async def _newest(
    services: Services,
    principal: Principal,
    meta: SessionMeta,
    item_id: str,
    *,
    placed: PlacedItem | None,
) -> Feedback | None:
    """The principal's latest choice that is known; the writer may have more to store, and lets the later win."""
    known = [placed.feedback] if placed is not None and placed.feedback and principal.subject == meta.user_id else []
    try:
        stored = await rated_answer(services.database, feedback_id(meta.session_id, item_id, principal.subject))
    except DatabaseUnavailable:
        stored = None
    if stored is not None:
        known.append(stored.feedback)
    return max(known, key=lambda choice: choice.rated_ms, default=None)
