"""A session in one row: what lists of sessions show, the labels they are filtered by, and its share of the days' sums. Pure."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Final

import msgspec
from msgspec import Struct

from persistence.histogram import Histogram, bucket_of
from persistence.masking import Mask
from persistence.search_tables import MAX_FIRST_TEXT_CHARS
from persistence.terms import bounded, words_of

# What a search cannot find any more in a session of a hundred thousand messages; and how much is kept to show where a word was said.
MAX_INDEXED_CHARS: Final = 1_000_000
MAX_TERMS: Final = 20_000
MAX_KEPT_CHARS: Final = 32_000

SLOW_STEPS_MS: Final = (250, 500, 1000, 2000, 4000, 8000, 16000)


class Summary(Struct, frozen=True, kw_only=True):
    """A session as lists show it. Times are milliseconds since the epoch; ratings are the user's own.

    `max_first_token_ms`: the longest that an answer's first token took. `snippet`: the text around what was searched for, where it was.
    """

    session_id: str
    user_id: str
    client_id: str
    model: str
    status: str
    created_ms: int
    updated_ms: int
    ended_ms: int | None
    num_turns: int
    num_answers: int
    num_errors: int
    num_interruptions: int
    num_up: int
    num_down: int
    max_first_token_ms: int | None
    first_text: str | None
    snippet: str | None = None


class SessionFacts(Struct, frozen=True, kw_only=True):
    """A session's own row. Times are milliseconds since the epoch."""

    session_id: str
    user_id: str
    client_id: str
    model: str
    status: str
    created_ms: int
    updated_ms: int
    ended_ms: int | None


class TurnFacts(Struct, frozen=True):
    """What a user said, in the order of turns."""

    text: str
    created_ms: int


class AnswerFacts(Struct, frozen=True, kw_only=True):
    """An answer, and how often the session's user rates it up and down now, one item at a time."""

    model: str
    status: str
    text: str
    created_ms: int
    first_token_ms: int | None
    num_up: int
    num_down: int


class DialogueFacts(Struct, frozen=True):
    """All that a summary is made of. Answers are ordered by time."""

    session: SessionFacts
    turns: Sequence[TurnFacts]
    answers: Sequence[AnswerFacts]


class Share(Struct, kw_only=True):
    """What a session adds to the sums of one day and model. A session counts wherever it has an answer, or where it began without any."""

    day: str
    client_id: str
    model: str
    num_sessions: int = 1
    num_answers: int = 0
    num_errors: int = 0
    num_interruptions: int = 0
    num_up: int = 0
    num_down: int = 0
    first_tokens: Histogram = msgspec.field(default_factory=dict)


class Digest(Struct, frozen=True):
    """A session ready to be stored: its summary, what it is found by, the text that snippets are cut from, its shares."""

    summary: Summary
    terms: frozenset[str]
    text: str
    shares: list[Share]


def digest(facts: DialogueFacts, mask: Mask) -> Digest:
    """Everything derived of a session at once; text only as `mask` leaves it."""
    texts = [mask(text) for text in _texts(facts)]
    first = mask(facts.turns[0].text)[:MAX_FIRST_TEXT_CHARS] if facts.turns else None
    summary = summarize(facts, first)
    terms = set(labels(summary))
    for text in texts:
        terms.update(sorted(words_of(text) - terms)[: max(0, MAX_TERMS - len(terms))])
    return Digest(summary, frozenset(terms), "\n".join(texts)[:MAX_KEPT_CHARS], shares(facts))


def summarize(facts: DialogueFacts, first_text: str | None) -> Summary:
    """The session's row."""
    session, answers = facts.session, facts.answers
    return Summary(
        session_id=session.session_id,
        user_id=session.user_id,
        client_id=session.client_id,
        model=session.model,
        status=session.status,
        created_ms=session.created_ms,
        updated_ms=session.updated_ms,
        ended_ms=session.ended_ms,
        num_turns=len(facts.turns),
        num_answers=len(answers),
        num_errors=sum(_is_error(answer) for answer in answers),
        num_interruptions=sum(_is_interruption(answer) for answer in answers),
        num_up=sum(answer.num_up for answer in answers),
        num_down=sum(answer.num_down for answer in answers),
        max_first_token_ms=max(
            (wait for answer in answers if (wait := _first_token_ms(answer)) is not None), default=None
        ),
        first_text=first_text,
    )


def labels(summary: Summary) -> Iterator[str]:
    """The terms beside words: none of them can be said, for no word has a `=` in it."""
    yield label("user", summary.user_id)
    yield label("client", summary.client_id)
    yield label("model", summary.model)
    for mark in marks(summary):
        yield label(mark)
        # Most who look see a few digital humans only: what is rare is listed for each of them too.
        yield label(mark, summary.client_id)


def marks(summary: Summary) -> Iterator[str]:
    """What is worth finding about the session and true of few. Who is slower than a step is slower than all below."""
    if summary.num_up:
        yield "up"
    if summary.num_down:
        yield "down"
    if summary.num_errors:
        yield "failed"
    if summary.num_interruptions:
        yield "interrupted"
    if summary.status != "ended":
        yield summary.status
    for step_ms in SLOW_STEPS_MS:
        if summary.max_first_token_ms is not None and summary.max_first_token_ms >= step_ms:
            yield f"slow{step_ms}"


def label(kind: str, of: str | None = None) -> str:
    """The term for all sessions of a kind, or for those of one user, digital human or model."""
    return bounded(f"={kind}" if of is None else f"={kind}@{of}")


def shares(facts: DialogueFacts) -> list[Share]:
    """What the session adds to which sums."""
    found: dict[tuple[str, str], Share] = {}

    def share(at_ms: int, model: str) -> Share:
        day = day_of(at_ms)
        return found.setdefault((day, model), Share(day=day, client_id=facts.session.client_id, model=model))

    for answer in facts.answers:
        mine = share(answer.created_ms, answer.model)
        mine.num_answers += 1
        mine.num_errors += _is_error(answer)
        mine.num_interruptions += _is_interruption(answer)
        mine.num_up += answer.num_up
        mine.num_down += answer.num_down
        if (wait_ms := _first_token_ms(answer)) is not None:
            bucket = bucket_of(wait_ms)
            mine.first_tokens[bucket] = mine.first_tokens.get(bucket, 0) + 1
    if not found:
        share(facts.session.created_ms, facts.session.model)
    return list(found.values())


def day_of(at_ms: int) -> str:
    """The day in UTC, as `2026-11-23`."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d")


def _texts(facts: DialogueFacts) -> Iterator[str]:
    """What was said, in order, up to `MAX_INDEXED_CHARS`."""
    said = [(turn.created_ms, 0, turn.text) for turn in facts.turns]
    said += [(answer.created_ms, 1, answer.text) for answer in facts.answers]
    num_left = MAX_INDEXED_CHARS
    for _, _, text in sorted(said, key=lambda each: each[:2]):
        if text and num_left > 0:
            yield text[:num_left]
            num_left -= len(text)


def _is_error(answer: AnswerFacts) -> bool:
    return answer.status == "failed"


def _is_interruption(answer: AnswerFacts) -> bool:
    return answer.status == "cancelled"


def _first_token_ms(answer: AnswerFacts) -> int | None:
    return None if answer.first_token_ms is None else max(answer.first_token_ms - answer.created_ms, 0)
