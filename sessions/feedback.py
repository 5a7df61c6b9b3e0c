"""What a rating of an answer is, and its id: the same wherever it is made. Pure: no wire, no clock, no storage."""

import base64
import hashlib
from typing import Final, Literal

Rating = Literal["up", "down"]

_ID_CHARS: Final = 26


def feedback_id(session_id: str, item_id: str, user_id: str) -> str:
    """The id of this user's rating of this answer. It is derived, so that a rating sent twice, by two ways, is still one."""
    digest = hashlib.sha256("\0".join((session_id, item_id, user_id)).encode()).digest()
    return "fb_" + base64.b32encode(digest).decode().lower()[:_ID_CHARS]
