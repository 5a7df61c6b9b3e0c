"""Personal data in a JSON document covered, and every other byte of it left as it is. Pure."""

import re
from collections.abc import Callable
from typing import Final

import msgspec

from persistence.masking import mask

# A string, and whether it is a name. In well-formed JSON a quote begins or ends a string and does nothing else.
_STRING: Final = re.compile(rb'"((?:[^"\\]|\\.)*+)"(\s*:)?', re.DOTALL)
_MAY_HOLD: Final = re.compile(rb"[0-9@]|[^\x00-\x7f]|\\u")
_MIN_BYTES: Final = 6

# What ties events together, ours or the client's. No text is spoken in it.
TIES: Final = frozenset(
    {
        b"type",
        b"object",
        b"id",
        b"event_id",
        b"item_id",
        b"previous_item_id",
        b"response_id",
        b"call_id",
        b"conversation_id",
        b"sequence_number",
        b"status",
        b"role",
    }
)


def mask_json(document: bytes) -> bytes:
    """The document with its strings masked, but for those by which events are tied together."""
    return replace_strings(document, _masked)


def mask_json_text(document: str) -> str:
    """As `mask_json`."""
    return mask_json(document.encode()).decode()


def replace_strings(document: bytes, change: Callable[[bytes, bytes], str | None]) -> bytes:
    """The document with each string value replaced for which `change` has another; it is told the name before it, and the raw string."""
    pieces: list[bytes] = []
    at, name = 0, b""
    for match in _STRING.finditer(document):
        if match[2] is not None:
            name = match[1]
        elif (changed := change(name, match[1])) is not None:
            pieces += [document[at : match.start()], msgspec.json.encode(changed)]
            at = match.end()
    return b"".join([*pieces, document[at:]]) if pieces else document


def _masked(name: bytes, raw: bytes) -> str | None:
    if name in TIES or len(raw) < _MIN_BYTES or _MAY_HOLD.search(raw) is None:
        return None
    text = msgspec.json.decode(b'"%b"' % raw, type=str)
    return masked if (masked := mask(text)) != text else None
