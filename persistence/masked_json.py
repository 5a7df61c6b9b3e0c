"""Personal data in a JSON document covered, and every other byte of it left as it is. Pure."""

import re
from collections.abc import Iterator
from typing import Final

import msgspec

from persistence.masking import BULLET, mask

# A string, and whether it is a name. In well-formed JSON a quote begins or ends a string and does nothing else.
_TOKEN: Final = re.compile(rb'"((?:[^"\\]|\\.)*+)"(\s*:)?|[][{}]', re.DOTALL)
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
# What may tie: an address has an at sign, or a percent sign for one, and what is said has spaces.
_TIE: Final = re.compile(rb"[!-$&-?A-\[\]-~]*")
# What the client keeps with us. Nothing is tied together by what is in it, whatever it is called.
_CLIENTS_OWN: Final = frozenset({b"metadata", b"prompt"})


def mask_json(document: bytes, *, delta: str | None = None) -> bytes:
    """The document with its strings and names masked, but for those by which events are tied together.

    `delta`: what stands for the string of that name, masked as the part of a longer text that it is.
    """
    pieces: list[bytes] = []
    at = 0
    for string, name in _strings(document):
        changed = delta if delta is not None and name == b"delta" else _masked(name, string[1])
        if changed is not None and BULLET in changed:
            pieces += [document[at : string.start()], msgspec.json.encode(changed)]
            at = string.end(1) + 1
    return b"".join([*pieces, document[at:]]) if pieces else document


def mask_json_text(document: str) -> str:
    """As `mask_json`."""
    return mask_json(document.encode()).decode()


def _strings(document: bytes) -> Iterator[tuple[re.Match[bytes], bytes]]:
    """Each string, and the name before it where that tells what it is; names are strings without one."""
    name, depth, own_depth = b"", 0, 0
    for token in _TOKEN.finditer(document):
        match token[0]:
            case b"{" | b"[" as mark:
                depth += 1
                if name in _CLIENTS_OWN and not own_depth:
                    own_depth = depth
                if mark == b"{":
                    name = b""
            case b"}" | b"]":
                if depth == own_depth:
                    own_depth = 0
                depth -= 1
                name = b""
            case _ if token[2] is not None:
                name = token[1]
                yield token, b""
            case _:
                yield token, b"" if own_depth else name


def _masked(name: bytes, raw: bytes) -> str | None:
    if len(raw) < _MIN_BYTES or _MAY_HOLD.search(raw) is None or (name in TIES and _TIE.fullmatch(raw)):
        return None
    text = msgspec.json.decode(b'"%b"' % raw, type=str)
    return masked if (masked := mask(text)) != text else None
