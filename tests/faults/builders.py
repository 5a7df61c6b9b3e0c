"""A session as it would be if nothing went wrong, for tests of those who look for what went wrong."""

import json
from collections.abc import Iterable
from typing import Any

from tests.faults.evidence import Evidence, Part, Prediction, Turn
from tests.faults.ledger import Ledger
from tests.faults.stream import ASK, Json, undisturbed

SESSION = "sess_01"
SAID = "[tokens 4] how are you"


class Script:
    """A session of two turns: its events in the order of their numbers."""

    def __init__(self, num_turns: int = 2) -> None:
        self.events: list[Json] = []
        self._add("session.created", session={"id": SESSION})
        self._add("session.updated", session={"id": SESSION, "resumption": {"enabled": True}})
        for number in range(1, num_turns + 1):
            self._turn(number)

    @property
    def frames(self) -> list[bytes]:
        """As the journal holds them."""
        return [encode(event) for event in self.events]

    def number_of(self, kind: str, nth: int = 1) -> int:
        """The number of the nth event of a type."""
        return [number for number, event in enumerate(self.events, 1) if event["type"] == kind][nth - 1]

    def _turn(self, number: int) -> None:
        text = f"{SAID} {number}"
        user = {"id": f"item_u{number}", "type": "message", "role": "user", "content": [{"text": text}]}
        self._add("conversation.item.added", item=user)
        self._add("conversation.item.done", item=user)
        answer = f"resp_{number}"
        item_id = f"item_a{number}"
        response: Json = {"id": answer, "status": "in_progress", "output": [], "metadata": {ASK: f"ask-{number}"}}
        self._add("response.created", response=response)
        whole = undisturbed(text)
        for word in whole.split(" "):
            delta = word if whole.startswith(word) and self.events[-1]["type"] == "response.created" else f" {word}"
            self._add("response.output_text.delta", response_id=answer, item_id=item_id, delta=delta)
        self._add("response.output_text.done", response_id=answer, item_id=item_id, text=whole)
        item = {"id": item_id, "type": "message", "role": "assistant", "content": [{"text": whole}]}
        self._add("conversation.item.done", item=item)
        self._add("response.done", response=response | {"status": "completed", "output": [item]})

    def _add(self, kind: str, **fields: Any) -> None:
        self.events.append({"type": kind, "event_id": f"event_01_{len(self.events) + 1}", **fields})


def encode(event: Json) -> bytes:
    """As it is journaled."""
    return json.dumps(event, separators=(",", ":")).encode()


def numbered(frame: bytes, number: int) -> bytes:
    """As a client that resumes gets it."""
    return b'%b,"sequence_number":%d}' % (frame[:-1], number)


def make_ledger(frames: Iterable[tuple[int, bytes]]) -> Ledger:
    """A client that received these; the first is session.created."""
    ledger = Ledger("user1")
    ledger.said |= {f"item_u{number}": f"{SAID} {number}" for number in (1, 2)}
    for number, frame in frames:
        if number == 1:
            ledger.begin(frame)
        else:
            ledger.take(numbered(frame, number))
    return ledger


def greeting(number: int, *, resumed: bool = True, gap: bool = False) -> bytes:
    """The first event of a resumed connection."""
    session = {"id": SESSION, "resumption": {"enabled": True, "resumed": resumed, "gap": gap}}
    event = {"type": "session.created", "event_id": f"event_x{number}", "session": session, "sequence_number": number}
    return encode(event)


def make_evidence(script: Script) -> Evidence:
    """All of it is stored."""
    events = tuple(enumerate(script.frames, 1))
    turns = [
        Turn(SESSION, number, f"item_u{number}", f"{SAID} {number}")
        for number in range(1, sum(event["type"] == "response.created" for event in script.events) + 1)
    ]
    predictions = [
        Prediction(f"resp_{turn.number}", SESSION, "completed", None, undisturbed(turn.text or "")) for turn in turns
    ]
    half = len(events) // 2
    parts = [Part(SESSION, 1, half, events[:half]), Part(SESSION, half + 1, len(events), events[half:])]
    ranges = [(part.first_sequence, part.last_sequence) for part in parts]
    return Evidence({SESSION: "ended"}, turns, predictions, {SESSION: ranges}, parts)
