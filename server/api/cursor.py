"""Where a list goes on: a place in its order as an opaque text, checked when it comes back."""

import base64
import hashlib
from typing import TypeVar

import msgspec

from sessions.wire_errors import BadEvent

T = TypeVar("T")

MAX_CURSOR_CHARS = 512
_NUM_CHECK_BYTES = 8


def encode_cursor(place: object, *, of: str) -> str:
    """The text for a place in the list named `of`; `place` is anything that msgspec encodes.

    It is checked, not secret: a forged one could only name another place in what its bearer may read anyway.
    """
    payload = msgspec.json.encode(place)
    check = hashlib.sha256(of.encode() + b"\0" + payload).digest()[:_NUM_CHECK_BYTES]
    return base64.urlsafe_b64encode(check + payload).decode().rstrip("=")


def decode_cursor(text: str, kind: type[T], *, of: str) -> T:
    """The place that `encode_cursor` wrote for the same list; `BadEvent` naming `after` for anything else."""
    try:
        if len(text) > MAX_CURSOR_CHARS:
            raise ValueError
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        place = msgspec.json.decode(data[_NUM_CHECK_BYTES:], type=kind)
    except (ValueError, msgspec.MsgspecError, RecursionError):
        raise _refusal() from None
    # Written anew it must be the same, check and all: base64 has several spellings of its last character. A number is one of a column's.
    if encode_cursor(place, of=of) != text or (isinstance(place, int) and not 0 <= place < 2**63):
        raise _refusal()
    return place


def _refusal() -> BadEvent:
    return BadEvent("invalid_value", "after must be what `next` said.", "after")
