"""What the webhook's receiver is sent: the event, its body, its signature, as standardwebhooks.com has them. Pure: no wire, no clock.

Source: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md.
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable
from typing import Final, Literal

from msgspec import Struct
from msgspec.json import encode

from persistence.times import utc_time
from sessions.records import FeedbackRecord, Role

SECRET_PREFIX: Final = "whsec_"  # noqa: S105
MIN_SECRET_BYTES: Final = 24
MAX_SECRET_BYTES: Final = 64


class KnownAnswer(Struct, frozen=True, kw_only=True):
    """What is known of the answer that a rating is about."""

    response_id: str
    model: str
    model_version: str
    prompt_version: str | None
    persona: str | None


class AnnouncedFeedback(Struct, frozen=True, kw_only=True):
    """One person's opinion, as `GET /v1/feedback` tells it; `rating` is None once it is withdrawn."""

    feedback_id: str
    session_id: str
    item_id: str
    user_id: str
    role: Role
    rating: str | None
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


class _Data(Struct, frozen=True):
    feedback: AnnouncedFeedback
    version: str


class _Event(Struct, frozen=True):
    type: Literal["feedback.created", "feedback.deleted"]
    id: str
    timestamp: str
    data: _Data


def secret_key(secret: str) -> bytes:
    """The key in `whsec_…`; ValueError where it is none."""
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except binascii.Error:
        key = b""
    if not secret.startswith(SECRET_PREFIX) or not MIN_SECRET_BYTES <= len(key) <= MAX_SECRET_BYTES:
        raise ValueError(
            f"must be {SECRET_PREFIX} and the base64 of {MIN_SECRET_BYTES} to {MAX_SECRET_BYTES} bytes;"
            f' make one with: echo "{SECRET_PREFIX}$(openssl rand -base64 32)"'
        )
    return key


def version(record: FeedbackRecord) -> str:
    """A text that is greater, compared character by character, for the later of two choices of one rating: the order of the rows."""
    return f"{record.rated_ms:015d}-{record.sequence:012d}-{record.received_ms:015d}"


def event_body(
    delivery_id: str,
    record: FeedbackRecord,
    answer: KnownAnswer | None,
    *,
    announced_ms: int,
    mask: Callable[[str], str],
) -> bytes:
    """The JSON to send; `mask` covers what must not leave in the comment and the user's name."""
    event = _Event(
        type="feedback.deleted" if record.rating is None else "feedback.created",
        id=delivery_id,
        timestamp=utc_time(announced_ms).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        data=_Data(_announced(record, answer, mask), version(record)),
    )
    return encode(event)


def _announced(record: FeedbackRecord, answer: KnownAnswer | None, mask: Callable[[str], str]) -> AnnouncedFeedback:
    return AnnouncedFeedback(
        feedback_id=record.feedback_id,
        session_id=record.session_id,
        item_id=record.item_id,
        # Who of the staff has it stays known.
        user_id=mask(record.user_id) if record.role == "user" else record.user_id,
        role=record.role,
        rating=record.rating,
        reason=record.reason,
        comment=None if record.comment is None else mask(record.comment),
        start=record.start,
        end=record.end,
        rated_ms=record.rated_ms,
        received_ms=record.received_ms,
        response_id=answer.response_id if answer else None,
        model=answer.model if answer else None,
        model_version=answer.model_version if answer else None,
        prompt_version=answer.prompt_version if answer else None,
        persona=answer.persona if answer else None,
    )


def signed_headers(delivery_id: str, body: bytes, *, key: bytes, now_s: int) -> dict[str, str]:
    """The headers by which the receiver knows who sent this, that nobody changed it, and whether it has it already."""
    signed = b"%s.%d.%s" % (delivery_id.encode(), now_s, body)
    signature = base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
    return {
        "content-type": "application/json",
        "webhook-id": delivery_id,
        "webhook-timestamp": str(now_s),
        "webhook-signature": f"v1,{signature}",
    }
