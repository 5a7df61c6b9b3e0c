"""A session's place in every list: one number, higher for newer, that is also a page's cursor."""

import hashlib
from typing import Final

_NUM_BITS: Final = 21


def first_place(created_ms: int) -> int:
    """The lowest place of a session created then, or later."""
    return created_ms << _NUM_BITS


def place_of(session_id: str, created_ms: int) -> int:
    """Where the session would stand. Another one may stand there already, about once in two million for each of its very millisecond."""
    digest = hashlib.sha256(session_id.encode()).digest()
    return first_place(created_ms) | int.from_bytes(digest[:8], "big") >> (64 - _NUM_BITS)


def created_ms_of(place: int) -> int:
    """When the session at this place was created."""
    return place >> _NUM_BITS
