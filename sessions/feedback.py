"""What a rating of an answer is, and its id: the same wherever it is made. Pure: no wire, no clock, no storage."""

import base64
import hashlib
from typing import Final, Literal

from msgspec import Struct

Rating = Literal["up", "down"]

_ID_CHARS: Final = 26


class Feedback(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a user thinks of an answer, as last chosen at `rated_ms`; `rating` is None once withdrawn.

    `start` and `end` bound the piece that is meant, in UTF-16 code units of the answer's text; both None where all of it is.
    """

    rating: Rating | None
    reason: str | None = None
    comment: str | None = None
    start: int | None = None
    end: int | None = None
    rated_ms: int

    def replaces(self, other: "Feedback | None") -> bool:
        """Whether this is the later choice of the two; of two in one millisecond, the one that comes second."""
        return other is None or self.rated_ms > other.rated_ms or (self.rated_ms == other.rated_ms and self != other)


def feedback_id(session_id: str, item_id: str, user_id: str) -> str:
    """The id of this user's rating of this answer. It is derived, so that a rating sent twice, by two ways, is still one."""
    digest = hashlib.sha256("\0".join((session_id, item_id, user_id)).encode()).digest()
    return "fb_" + base64.b32encode(digest).decode().lower()[:_ID_CHARS]
