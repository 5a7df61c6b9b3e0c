"""What a text is found by: its words, folded so that case and width do not matter. Knows no table.

Scripts that put no spaces between words, and Korean, whose words carry their particles, are cut into pairs of characters: a search finds
any part of two characters or more. A single character is found where it begins such a run, and a single Han character anywhere.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterator
from typing import Final

from persistence.search_tables import MAX_TERM_CHARS

MAX_QUERY_TERMS: Final = 24

# Thai and Lao, Myanmar, Hangul letters, Khmer, kana to compatibility letters, Han, Hangul, more Han.
_PAIRED = r"\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3040-\u31bf\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
# Marks that are part of a word, but not of `\w`: Latin, Hebrew, Arabic, and the scripts of India.
_MARKS = r"\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0670\u0900-\u0dff"
_RUN: Final = re.compile(rf"(?P<paired>[{_PAIRED}]+)|(?:(?![{_PAIRED}_])[\w{_MARKS}])+")
_HAN: Final = re.compile(r"[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_DIGEST_CHARS: Final = 24


def fold(text: str) -> str:
    """The text as it is compared: compatible forms are one, and so are capitals and small letters."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def words_of(text: str) -> set[str]:
    """All that a search may find the text by."""
    words: set[str] = set()
    for run, is_paired in _runs(text):
        if is_paired:
            words.add(run[0])
            words.update(run[start : start + 2] for start in range(len(run) - 1))
            words.update(_HAN.findall(run))
        else:
            words.add(bounded(run))
    return words


def query_words(text: str) -> list[str]:
    """What a text must all have to be found by this query, in its order; at most `MAX_QUERY_TERMS`, of a longer query the first."""
    words: dict[str, None] = {}
    for run, is_paired in _runs(text):
        if is_paired and len(run) > 1:
            words |= dict.fromkeys(run[start : start + 2] for start in range(len(run) - 1))
        else:
            words[bounded(run)] = None
    return list(words)[:MAX_QUERY_TERMS]


def bounded(term: str) -> str:
    """The term itself, or what stands for one that is too long for its column."""
    if len(term) <= MAX_TERM_CHARS:
        return term
    digest = hashlib.sha256(term.encode()).hexdigest()[:_DIGEST_CHARS]
    return f"{term[: MAX_TERM_CHARS - _DIGEST_CHARS - 1]}~{digest}"


def _runs(text: str) -> Iterator[tuple[str, bool]]:
    for match in _RUN.finditer(fold(text)):
        yield match[0], match.lastgroup == "paired"
