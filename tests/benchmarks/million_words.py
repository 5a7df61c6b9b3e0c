"""What generated people say: a vocabulary of made-up words, a third of it Korean, drawn as often as words of a language are.

Which words a session has is drawn with numpy; what they are indexed by is asked of the product itself, word by word.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from persistence.terms import words_of

NUM_LATIN: Final = 60_000
NUM_KOREAN: Final = 30_000

_ONSETS: Final = [
    "b",
    "br",
    "d",
    "f",
    "fl",
    "g",
    "h",
    "k",
    "l",
    "m",
    "n",
    "p",
    "r",
    "s",
    "st",
    "t",
    "tr",
    "v",
    "w",
    "z",
]
_RHYMES: Final = ["a", "an", "e", "el", "en", "er", "i", "in", "o", "on", "or", "u", "un", "us"]
_PARTICLES: Final = ["", "은", "는", "이", "가", "을", "를", "에", "에서", "으로", "도", "만"]
_FIRST_HANGUL: Final = 0xAC00


class Vocabulary(Struct):
    """Words by number, the commonest first within each language, and the terms of each as numbers into `terms`, end to end."""

    words: list[str]
    terms: list[str]
    term_numbers: NDArray[np.uint32]
    first_term: NDArray[np.int64]
    num_terms: NDArray[np.int64]
    latin_shares: NDArray[np.float64]
    korean_shares: NDArray[np.float64]


def make_vocabulary(seed: int) -> Vocabulary:
    """The same for the same seed."""
    random = np.random.default_rng(seed)
    latin = _distinct(random, NUM_LATIN, _latin_word)
    korean = _distinct(random, NUM_KOREAN, _korean_word)
    words = latin + korean
    found = [sorted(words_of(word)) for word in words]
    terms = sorted({term for some in found for term in some})
    numbers = {term: number for number, term in enumerate(terms)}
    num_terms = np.array([len(some) for some in found], dtype=np.int64)
    return Vocabulary(
        words=words,
        terms=terms,
        term_numbers=np.array([numbers[term] for some in found for term in some], dtype=np.uint32),
        first_term=np.concatenate(([0], np.cumsum(num_terms)[:-1])),
        num_terms=num_terms,
        latin_shares=_zipf(NUM_LATIN),
        korean_shares=_zipf(NUM_KOREAN),
    )


def draw_words(
    random: np.random.Generator, vocabulary: Vocabulary, is_korean: NDArray[np.bool_], num_words: int
) -> NDArray[np.int64]:
    """So many word numbers for each session: a row for each."""
    drawn = random.random((len(is_korean), num_words))
    latin = np.searchsorted(vocabulary.latin_shares, drawn)
    korean = np.searchsorted(vocabulary.korean_shares, drawn) + NUM_LATIN
    return np.where(is_korean[:, None], korean, latin)


def postings_of(vocabulary: Vocabulary, drawn: NDArray[np.int64], first_session: int) -> NDArray[np.uint64]:
    """Each term of each session once, as term number times 2^32 plus session number."""
    words = drawn.ravel()
    sessions = np.repeat(np.arange(drawn.shape[0], dtype=np.uint64) + np.uint64(first_session), drawn.shape[1])
    counts = vocabulary.num_terms[words]
    ends = np.cumsum(counts)
    offsets = np.arange(ends[-1]) - np.repeat(ends - counts, counts)
    terms = vocabulary.term_numbers[np.repeat(vocabulary.first_term[words], counts) + offsets].astype(np.uint64)
    found: NDArray[np.uint64] = (terms << np.uint64(32)) | np.repeat(sessions, counts)
    # `np.unique` takes five times as long.
    found.sort()
    return np.compress(np.append(True, found[1:] != found[:-1]), found)


def _zipf(num_words: int) -> NDArray[np.float64]:
    shares: NDArray[np.float64] = np.cumsum(1.0 / np.arange(1, num_words + 1))
    shares /= shares[-1]
    return shares


def _distinct(random: np.random.Generator, number: int, make: Callable[[list[int]], str]) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < number:
        found[make(random.integers(0, 1 << 30, size=4).tolist())] = None
    return list(found)


def _latin_word(numbers: list[int]) -> str:
    num_syllables = 1 + numbers[3] % 4
    return "".join(
        _ONSETS[number % len(_ONSETS)] + _RHYMES[number // 64 % len(_RHYMES)] for number in numbers[:num_syllables]
    )


def _korean_word(numbers: list[int]) -> str:
    # Of eleven thousand syllables a few hundred are common.
    syllables = [chr(_FIRST_HANGUL + 28 * (number % 399)) for number in numbers[: 2 + numbers[3] % 2]]
    return "".join(syllables) + _PARTICLES[numbers[3] // 8 % len(_PARTICLES)]
