"""The piece of a session's text that shows where something was said. Pure."""

import re
from typing import Final

import zstandard

from persistence.terms import fold

_NUM_BEFORE: Final = 60
_NUM_CHARS: Final = 200


def pack_text(text: str) -> bytes:
    """The text as it is kept."""
    return zstandard.compress(text.encode(), 3)


def unpack_text(packed: bytes) -> str:
    """The inverse of `pack_text`."""
    return zstandard.decompress(packed).decode()


def snippet(text: str, query: str) -> str | None:
    """A line of the text around what was asked for, or around the first of its words that stands there; None where none does."""
    asked = query.split()
    for wanted in [query.strip(), *asked, *(fold(word) for word in asked)]:
        found = re.search(re.escape(wanted), text, re.IGNORECASE) if wanted else None
        if found is not None:
            return _around(text, found.start())
    return None


def _around(text: str, position: int) -> str:
    start = max(position - _NUM_BEFORE, 0)
    end = min(start + _NUM_CHARS, len(text))
    piece = " ".join(text[start:end].split())
    return f"{'…' if start else ''}{piece}{'…' if end < len(text) else ''}"
