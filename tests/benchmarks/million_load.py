"""Fills a MariaDB with generated sessions as the writer and the summarizer would have stored them, a table at a time and in bulk.

Rows go to files in the order of their primary keys, and each file into its still empty table with one statement: the cheapest way.
"""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TextIO

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from persistence.places import place_of
from persistence.rollup_writes import differences
from persistence.rollups import COUNTS
from persistence.snippets import pack_text
from persistence.summaries import DialogueFacts, Share, labels, shares, summarize
from sessions.feedback import feedback_id
from tests.benchmarks.million_data import Chunk, generate
from tests.benchmarks.million_words import make_vocabulary

_DAY_MS: Final = 24 * 3600 * 1000
COLUMNS: Final = {
    "sessions": "session_id, sequence, user_id, client_id, model, status, created_at, updated_at, ended_at",
    "turns": "turn_id, session_id, sequence, number, item_id, text, created_at",
    "predictions": "response_id, session_id, turn_id, sequence, model, model_version, status, text, output, request,"
    " input_tokens, output_tokens, cached_tokens, created_at, first_token_at, done_at",
    "answer_items": "session_id, item_id, response_id",
    "feedback": "feedback_id, session_id, item_id, user_id, role, sequence, rating, rated_at, received_at",
    "summaries": "place, session_id, user_id, client_id, model, status, created_at, updated_at, ended_at, num_turns,"
    " num_answers, num_errors, num_interruptions, num_up, num_down, max_first_token_ms, first_text",
    "indexed": "place, @terms, @text, shares",
    "postings": "term, place",
    "rollups": f"day, client_id, model, first_tokens, {', '.join(COUNTS)}",
}
_SET: Final = {"indexed": "SET terms = UNHEX(@terms), text = UNHEX(@text)"}


class Loaded(Struct):
    """What the random parameters of a query are drawn from, and how much was loaded."""

    words: list[str]
    num_users: int
    num_postings: int
    num_ratings: int
    session_ids: list[str]


def load(folder: Path, connection: Any, num_sessions: int, *, seed: int) -> Loaded:
    """Generate the sessions and load them; `folder` is one that the server may read."""
    vocabulary = make_vocabulary(seed)
    filler = _Filler(folder, vocabulary.terms)
    with filler.open_files():
        for chunk in generate(num_sessions, vocabulary, seed):
            filler.add(chunk)
    num_postings = filler.write_rest()
    for table in COLUMNS:
        _load_file(connection, table, folder / table)
    return Loaded(
        words=vocabulary.words,
        num_users=max(num_sessions // 5, 10),
        num_postings=num_postings,
        num_ratings=len(filler.ratings),
        session_ids=filler.session_ids,
    )


def _load_file(connection: Any, table: str, path: Path) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET unique_checks = 0, foreign_key_checks = 0")
        cursor.execute(
            f"LOAD DATA INFILE '{path}' INTO TABLE {table} CHARACTER SET utf8mb4 ({COLUMNS[table]}) {_SET.get(table, '')}"
        )
    connection.commit()
    path.unlink()


class _Filler:
    """Writes the files, and keeps what can only be written when all is known: ratings and postings, by key, and sums."""

    def __init__(self, folder: Path, terms: Sequence[str]) -> None:
        self.ratings: list[str] = []
        self.session_ids: list[str] = []
        self._folder = folder
        self._files: dict[str, TextIO] = {}
        self._numbers = {term: number for number, term in enumerate(terms)}
        self._postings: list[NDArray[np.uint64]] = []
        self._places: list[int] = []
        self._sums: list[Share] = []
        self._days: dict[int, str] = {}

    @contextlib.contextmanager
    def open_files(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for table in ("sessions", "turns", "predictions", "answer_items", "summaries", "indexed"):
                path = self._folder / table
                self._files[table] = stack.enter_context(path.open("w", encoding="utf-8", buffering=1 << 20))
            yield

    def add(self, chunk: Chunk) -> None:
        self._postings.append(chunk.word_postings)
        label_postings: list[int] = []
        sums: list[Share] = []
        for facts, rated in zip(chunk.facts, chunk.ratings, strict=True):
            found = shares(facts)
            sums += found
            label_postings += [self._number(term) << 32 | len(self._places) for term in self._add_summary(facts, found)]
            self._add_rows(facts, rated)
            self._places.append(place_of(facts.session.session_id, facts.session.created_ms))
            self.session_ids.append(facts.session.session_id)
        self._postings.append(np.array(label_postings, dtype=np.uint64))
        self._sums = list(differences([*self._sums, *sums], []).values())

    def write_rest(self) -> int:
        """Write ratings, sums and postings; how many postings there are."""
        with (self._folder / "feedback").open("w") as file:
            file.writelines(sorted(self.ratings))
        with (self._folder / "rollups").open("w") as file:
            for share in sorted(self._sums, key=lambda each: (each.day, each.client_id, each.model)):
                counts = [getattr(share, name) for name in COUNTS]
                first_tokens = msgspec.json.encode(share.first_tokens).decode()
                file.write(_line(share.day, share.client_id, share.model, first_tokens, *counts))
        terms = list(self._numbers)
        in_order = sorted(range(len(terms)), key=terms.__getitem__)
        ranks = np.empty(len(terms), dtype=np.uint64)
        ranks[in_order] = np.arange(len(terms), dtype=np.uint64)
        all_postings = np.concatenate(self._postings)
        self._postings.clear()
        low = np.uint64(0xFFFFFFFF)
        all_postings = (ranks[all_postings >> np.uint64(32)] << np.uint64(32)) | (all_postings & low)
        all_postings.sort()
        places = [f"\t{place}\n" for place in self._places]
        with (self._folder / "postings").open("w", encoding="utf-8", buffering=1 << 20) as file:
            for start in range(0, len(all_postings), 1 << 20):
                some = all_postings[start : start + (1 << 20)]
                numbers, sessions = (some >> np.uint64(32)).tolist(), (some & low).tolist()
                file.writelines(
                    terms[in_order[number]] + places[session] for number, session in zip(numbers, sessions, strict=True)
                )
        return len(all_postings)

    def _number(self, term: str) -> int:
        return self._numbers.setdefault(term, len(self._numbers))

    def _add_summary(self, facts: DialogueFacts, found: list[Share]) -> Iterator[str]:
        """Write the derived rows; the session's labels."""
        summary = summarize(facts, facts.turns[0].text[:200])
        place = place_of(summary.session_id, summary.created_ms)
        text = "\n".join(
            itertools.chain.from_iterable((t.text, a.text) for t, a in zip(facts.turns, facts.answers, strict=True))
        )
        # The terms are as long as the text when both are packed; nothing here reads them.
        packed = pack_text(text).hex()
        self._files["indexed"].write(_line(place, packed, packed, msgspec.json.encode(found).decode()))
        counts = [summary.num_turns, summary.num_answers, summary.num_errors, summary.num_interruptions]
        ratings = [summary.num_up, summary.num_down, summary.max_first_token_ms, summary.first_text]
        self._files["summaries"].write(_line(place, *self._session(facts), *counts, *ratings))
        return labels(summary)

    def _session(self, facts: DialogueFacts) -> list[object]:
        session = facts.session
        return [
            session.session_id,
            session.user_id,
            session.client_id,
            session.model,
            session.status,
            self._time(session.created_ms),
            self._time(session.updated_ms),
            None if session.ended_ms is None else self._time(session.ended_ms),
        ]

    def _add_rows(self, facts: DialogueFacts, rated: Sequence[str | None]) -> None:
        session_id, *rest = self._session(facts)
        name = facts.session.session_id.removeprefix("sess_")
        self._files["sessions"].write(_line(session_id, 60, *rest))
        for i, (turn, answer) in enumerate(zip(facts.turns, facts.answers, strict=True)):
            turn_id, response_id, item_id = f"turn_{name}{i}", f"resp_{name}{i}", f"item_{name[-6:]}{i}"
            said_at = self._time(turn.created_ms)
            self._files["turns"].write(_line(turn_id, session_id, 20 * i + 1, i + 1, f"user_{i}", turn.text, said_at))
            output = (
                f'[{{"type":"message","id":"{item_id}","role":"assistant","content":[{{"text":"{answer.text}"}}]}}]'
            )
            spoken = [
                answer.model,
                "1",
                answer.status,
                answer.text,
                output,
                '{"instructions":"","tools":[]}',
                50,
                30,
                20,
            ]
            times = [answer.created_ms, answer.first_token_ms or 0, answer.created_ms + 2000]
            self._files["predictions"].write(
                _line(response_id, session_id, turn_id, 20 * i + 15, *spoken, *map(self._time, times))
            )
            self._files["answer_items"].write(_line(session_id, item_id, response_id))
            if rated[i] is not None:
                user_id, at = facts.session.user_id, self._time(answer.created_ms + 5000)
                rating_id = feedback_id(facts.session.session_id, item_id, user_id)
                self.ratings.append(
                    _line(rating_id, session_id, item_id, user_id, "user", 20 * i + 16, rated[i], at, at)
                )

    def _time(self, ms: int) -> str:
        day, rest = divmod(ms, _DAY_MS)
        if day not in self._days:
            self._days[day] = datetime.fromtimestamp(day * 86400, UTC).strftime("%Y-%m-%d")
        return f"{self._days[day]} {rest // 3600000:02}:{rest // 60000 % 60:02}:{rest // 1000 % 60:02}.{rest % 1000:03}"


def _line(*values: object) -> str:
    # What is generated has no tabs, line ends or backslashes.
    return "\t".join("\\N" if value is None else str(value) for value in values) + "\n"
