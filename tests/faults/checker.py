"""Compares what clients were told with what is stored, and what is stored with itself. The verdict is to be: nothing."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

from msgspec import Struct

from tests.faults.evidence import Evidence, Part, Prediction, Turn
from tests.faults.ledger import Ledger
from tests.faults.stream import KINDS, Complaint, Json, Kind, Stream, text_of, text_of_item

# What the server may close by itself: nobody came back in time.
_OVER = ("ended", "idle")


class Figures(Struct):
    """How much was promised, and how much of it was broken."""

    sessions: int = 0
    resumed: int = 0
    acknowledged: int = 0
    events: int = 0
    completed: int = 0
    cancelled: int = 0
    failed: int = 0
    gaps: int = 0
    lost: int = 0
    doubled: int = 0
    diverged: int = 0
    stuck: int = 0

    @property
    def is_clean(self) -> bool:
        """Whether nothing was broken."""
        return not (self.lost or self.doubled or self.diverged or self.stuck)

    def __add__(self, other: "Figures") -> "Figures":
        return Figures(*(getattr(self, name) + getattr(other, name) for name in self.__struct_fields__))

    def __str__(self) -> str:
        return ", ".join(f"{name} {getattr(self, name)}" for name in self.__struct_fields__)


class Verdict(Struct):
    """The figures, and each broken rule."""

    figures: Figures
    complaints: list[Complaint]


def check(ledgers: Sequence[Ledger], evidence: Evidence) -> Verdict:
    """Hold everything against everything else."""
    complaints = [complaint for ledger in ledgers for complaint in ledger.complaints]
    parts: dict[str, list[Part]] = defaultdict(list)
    for part in evidence.parts:
        parts[part.session_id].append(part)
    by_session = {ledger.session_id: ledger for ledger in ledgers}
    turns: dict[str, list[Turn]] = defaultdict(list)
    predictions: dict[str, list[Prediction]] = defaultdict(list)
    for turn in evidence.turns:
        turns[turn.session_id].append(turn)
    for prediction in evidence.predictions:
        predictions[prediction.session_id].append(prediction)
    figures = Figures(sessions=len(by_session))
    for session_id in sorted({*by_session, *evidence.sessions, *parts}):
        session = Session(session_id, by_session.get(session_id))
        session.check_archive(parts[session_id], evidence.archived.get(session_id, []))
        session.check_status(evidence.sessions)
        session.check_turns(turns[session_id])
        session.check_predictions(predictions[session_id])
        complaints += session.stream.complaints
        figures.events += len(session.events)
        for answer in session.stream.answers.values():
            figures.completed += answer.status == "completed"
            figures.cancelled += answer.status == "cancelled"
            figures.failed += answer.status in ("failed", "incomplete")
    complaints += _whole(evidence)
    for ledger in ledgers:
        figures.resumed += ledger.num_resumed
        figures.acknowledged += sum(1 for _ in ledger.acknowledged())
        figures.gaps += len(ledger.gaps)
    kinds = Counter(complaint.kind for complaint in complaints)
    for kind in KINDS:
        setattr(figures, kind, kinds[kind])
    return Verdict(figures, complaints)


class Session:
    """One session as it is stored. `stream` is what its archive says."""

    def __init__(self, session_id: str, ledger: Ledger | None) -> None:
        self.stream = Stream(session_id, ledger.said if ledger else {})
        self.events: dict[int, bytes] = {}
        self._session_id = session_id
        self._ledger = ledger

    def check_archive(self, parts: Iterable[Part], archived: Iterable[tuple[int, int]]) -> None:
        """The archive has each event once, in one piece from the first to the last, and each as the client saw it."""
        ranges = set(archived)
        for part in parts:
            if (part.first_sequence, part.last_sequence) not in ranges:
                self._complain(
                    "diverged", f"an object that no row tells of: {part.first_sequence}-{part.last_sequence}"
                )
            ranges.discard((part.first_sequence, part.last_sequence))
            if [number for number, _ in part.events] != list(range(part.first_sequence, part.last_sequence + 1)):
                self._complain("diverged", f"the object {part.first_sequence}-{part.last_sequence} holds other events")
            for number, event in part.events:
                if number in self.events:
                    self._complain("doubled", f"event {number} is archived twice")
                self.events[number] = event
        for first, last in ranges:
            self._complain("lost", f"no object for {first}-{last}")
        self._check_ledger()
        self._read()

    def check_status(self, statuses: dict[str, str | None]) -> None:
        """The session is over, and the tables know."""
        status = statuses.get(self._session_id)
        if status not in _OVER and (self._ledger is not None or self.events):
            self._complain("stuck", f"the session is not over: {status}")

    def check_turns(self, rows: Sequence[Turn]) -> None:
        """Each user's message that was acknowledged is a row, once, and nothing else is."""
        told = [(item_id, text) for item_id, text in self._told_users()]
        stored = [(row.item_id, row.text) for row in sorted(rows, key=lambda row: row.number or 0)]
        self._check_same("turn", told, stored)
        if [row.number for row in rows if row.number is None]:
            self._complain("lost", "a turn is only a stub")
        numbers = sorted(row.number for row in rows if row.number is not None)
        if numbers != list(range(1, len(numbers) + 1)):
            self._complain("diverged", f"turns are numbered {numbers}")

    def check_predictions(self, rows: Sequence[Prediction]) -> None:
        """Each response that has ended is a row, once, as it was told, and nothing else is."""
        told: list[tuple[str, ...]] = []
        heard = self.stream.heard
        for event in self._told("response.done"):
            response = event["response"]
            told.append((response["id"], response["status"], text_of(response)))
        stored = [(row.response_id, row.status, row.text) for row in rows]
        self._check_same("prediction", told, stored)
        of_item = {answer.item_id: answer.response_id for answer in self.stream.answers.values() if answer.item_id}
        by_id = {row.response_id: row for row in rows}
        for item_id, char_end in heard.items():
            row = by_id.get(of_item.get(item_id, ""))
            if row is not None and row.heard != char_end:
                self._complain("lost", f"{row.response_id} was heard up to {char_end}, stored is {row.heard}")

    def _check_ledger(self) -> None:
        if self._ledger is None:
            return
        for number, frame in self._ledger.frames.items():
            stored = self.events.get(number)
            if stored is None:
                self._complain("lost", f"event {number} was received and is not archived")
            elif stored != frame:
                self._complain("diverged", f"event {number} is archived as another: {frame!r} {stored!r}")

    def _read(self) -> None:
        expected = 1
        for number in sorted(self.events):
            if number != expected:
                self._complain("lost", f"the archive goes from event {expected - 1} to {number}")
                self.stream.skip()
            expected = number + 1
            self.stream.take(number, json.loads(self.events[number]))
        self.stream.finish()

    def _check_same(
        self, what: str, told: Sequence[tuple[str | None, ...]], stored: Sequence[tuple[str | None, ...]]
    ) -> None:
        names = {entry[0] for entry in (*told, *stored)}
        for name in sorted(names, key=str):
            ours = [entry for entry in told if entry[0] == name]
            theirs = [entry for entry in stored if entry[0] == name]
            if len(theirs) < len(ours):
                self._complain("lost", f"{what} {name} is not stored")
            elif len(theirs) > len(ours):
                self._complain("doubled" if ours else "diverged", f"{what} {name} is stored and was never told")
            elif ours != theirs:
                self._complain("diverged", f"{what} {name} is stored as another: {ours} {theirs}")

    def _told_users(self) -> Iterator[tuple[str, str]]:
        for event in self._told("conversation.item.done"):
            item = event["item"]
            if item.get("role") == "user":
                yield item["id"], text_of_item(item)

    def _told(self, kind: str) -> Iterator[Json]:
        for number in sorted(self.events):
            event = json.loads(self.events[number])
            if event["type"] == kind:
                yield event

    def _complain(self, kind: Kind, text: str) -> None:
        self.stream.complain(kind, text)


def _whole(evidence: Evidence) -> Iterator[Complaint]:
    for letter in evidence.dead:
        yield Complaint("lost", "", f"a dead letter: {letter}")
    if evidence.num_waiting:
        yield Complaint("stuck", "", f"{evidence.num_waiting} records still wait in the outbox: {evidence.waiting}")
    for key in evidence.leaked_keys:
        yield Complaint("stuck", "", f"Redis keeps {key}")
