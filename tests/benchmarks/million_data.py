"""Generated sessions: who talked with whom, when, what was said, and how it was rated.

Sessions spread over ninety days; two in five hundred are not over. Few users talk much, most little; twenty digital humans share them the
same way. One of them, `client-07`, never fails: so that a filter that finds nothing is asked for too.
"""

import itertools
from collections.abc import Iterable, Iterator
from typing import Final

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from persistence.summaries import AnswerFacts, DialogueFacts, SessionFacts, TurnFacts
from tests.benchmarks.million_words import Vocabulary, draw_words, postings_of

NEWEST_MS: Final = 1_795_391_998_123
SPAN_MS: Final = 90 * 24 * 3600 * 1000
NUM_CLIENTS: Final = 20
NUM_TURNS: Final = 3
WORDS_A_TURN: Final = 4
WORDS_AN_ANSWER: Final = 9
MODELS: Final = ("demo", "qwen", "llama", "old")
UNFAILING: Final = "client-07"

_CHUNK: Final = 10_000
_CROCKFORD: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_PAIRS: Final = ["".join(pair) for pair in itertools.product(_CROCKFORD, repeat=2)]


class Chunk(Struct):
    """Some generated sessions, and what of their postings are words."""

    facts: list[DialogueFacts]
    word_postings: NDArray[np.uint64]
    # Of each answer of each session: its rating by the user, if any.
    ratings: list[list[str | None]]


def generate(num_sessions: int, vocabulary: Vocabulary, seed: int) -> Iterator[Chunk]:
    """The sessions, oldest first."""
    random = np.random.default_rng(seed)
    created = np.sort(NEWEST_MS - random.integers(0, SPAN_MS, num_sessions))
    num_users = max(num_sessions // 5, 10)
    for start in range(0, num_sessions, _CHUNK):
        times = created[start : start + _CHUNK]
        drawn = draw_words(
            random, vocabulary, random.random(len(times)) < 0.3, NUM_TURNS * (WORDS_A_TURN + WORDS_AN_ANSWER)
        )
        numbers = _Numbers(random, len(times), num_users)
        facts, ratings = [], []
        for i, words in enumerate(drawn.tolist()):
            text = [vocabulary.words[word] for word in words]
            rated = [_RATINGS[number] for number in numbers.ratings[i]]
            facts.append(_dialogue(i, int(times[i]), text, rated, numbers))
            ratings.append(rated)
        yield Chunk(facts, postings_of(vocabulary, drawn, start), ratings)


_RATINGS: Final = ["up"] * 8 + ["down"] * 3 + [None] * 89


class _Numbers:
    """What is drawn for a chunk, beside words."""

    def __init__(self, random: np.random.Generator, size: int, num_users: int) -> None:
        self.users = (num_users ** random.random(size)).astype(int).tolist()
        self.clients = (NUM_CLIENTS ** random.random(size)).astype(int).tolist()
        self.models = random.choice(len(MODELS), size, p=[0.6, 0.25, 0.1, 0.05]).tolist()
        self.statuses = random.choice(3, size, p=[0.996, 0.003, 0.001]).tolist()
        self.ratings = random.integers(0, len(_RATINGS), (size, NUM_TURNS)).tolist()
        self.waits_ms = np.exp(random.normal(np.log(180), 0.6, (size, NUM_TURNS))).astype(int).tolist()
        self.fates = random.random((size, NUM_TURNS)).tolist()
        self.ids = random.integers(0, 1 << 20, (size, 4)).tolist()


def _dialogue(i: int, created_ms: int, text: list[str], rated: list[str | None], numbers: _Numbers) -> DialogueFacts:
    client_id = f"client-{numbers.clients[i]:02}"
    model = MODELS[numbers.models[i]]
    status = ("ended", "idle", "active")[numbers.statuses[i]]
    turns_said, answers = [], []
    for turn in range(NUM_TURNS):
        start = turn * (WORDS_A_TURN + WORDS_AN_ANSWER)
        at_ms = created_ms + 1000 + 15_000 * turn
        turns_said.append(TurnFacts(" ".join(text[start : start + WORDS_A_TURN]), at_ms))
        fate = numbers.fates[i][turn]
        answers.append(
            AnswerFacts(
                model=model,
                status="cancelled"
                if fate < 0.08
                else "failed"
                if fate > 0.99 and client_id != UNFAILING
                else "completed",
                text=" ".join(text[start + WORDS_A_TURN : start + WORDS_A_TURN + WORDS_AN_ANSWER]),
                created_ms=at_ms,
                first_token_ms=at_ms + numbers.waits_ms[i][turn],
                num_up=int(rated[turn] == "up"),
                num_down=int(rated[turn] == "down"),
            )
        )
    session = SessionFacts(
        session_id=f"sess_{_ulid(created_ms, numbers.ids[i])}",
        user_id=f"user-{numbers.users[i]}",
        client_id=client_id,
        model=model,
        status=status,
        created_ms=created_ms,
        updated_ms=created_ms + 60_000,
        ended_ms=created_ms + 60_000 if status == "ended" else None,
    )
    return DialogueFacts(session, turns_said, answers)


def _ulid(at_ms: int, numbers: Iterable[int]) -> str:
    time = "".join(_PAIRS[at_ms >> shift & 1023] for shift in (40, 30, 20, 10, 0))
    return time + "".join(_PAIRS[number >> 10] + _PAIRS[number & 1023] for number in numbers)
