"""What one client received of one session: every event under its number, so that it can be held against what is stored."""

import json
from collections.abc import Iterator

from tests.faults.stream import Complaint, Json, Kind, Stream

_HISTORY = ("conversation.item.added", "conversation.item.done")
# The server may say these without keeping them.
_UNNUMBERED = ("error",)


class Ledger:
    """`frames` are the journal's own bytes by sequence number; `last` is the number to resume after."""

    def __init__(self, user: str) -> None:
        self.user = user
        self.session_id = ""
        self.said: dict[str, str] = {}
        self.frames: dict[int, bytes] = {}
        self.last = 0
        self.gaps: list[tuple[int, int]] = []
        self.num_resumed = 0
        self.is_numbered = False
        self.stream = Stream("", self.said)
        self._is_in_history = False
        self._declared = 0

    @property
    def conversation_id(self) -> str:
        """By which the session is resumed."""
        return "conv_" + self.session_id.removeprefix("sess_")

    @property
    def complaints(self) -> list[Complaint]:
        """What was wrong as it came."""
        return self.stream.complaints

    def complain(self, kind: Kind, text: str) -> None:
        """A rule is broken."""
        self.stream.complain(kind, text)

    def begin(self, frame: bytes) -> None:
        """The first event of the session's first connection."""
        event = json.loads(frame)
        assert event["type"] == "session.created", event
        self.session_id = self.stream.session_id = event["session"]["id"]
        self._keep(1, frame, event)

    def resume(self, frame: bytes) -> None:
        """The first event of a further connection: nothing of the journal, but it says how the rest will follow."""
        event = json.loads(frame)
        self.num_resumed += 1
        self._is_in_history = False
        if event["type"] != "session.created":
            self.complain("diverged", f"a resumed connection begins with {event['type']}")
            return
        if event["session"]["id"] != self.session_id:
            self.complain("diverged", f"resumed as {event['session']['id']}")
        said = event["session"].get("resumption") or {}
        number = event.get("sequence_number")
        if said.get("gap"):
            self._is_in_history = True
            self._declared = number
        elif not said.get("resumed") or number != self.last:
            self.complain("diverged", f"resumed after {self.last} as {said} {number}")

    def take(self, frame: bytes) -> Json:
        """Any further event."""
        event: Json = json.loads(frame)
        number = event.get("sequence_number")
        if number is None:
            self._take_unnumbered(frame, event)
            return event
        self.is_numbered = True
        suffix = b',"sequence_number":%d}' % number
        if not frame.endswith(suffix):
            self.complain("diverged", f"event {number} does not end with its number")
            return event
        if self._is_in_history:
            if event["type"] in _HISTORY and number == self._declared:
                self.stream.remember(event["item"])
                return event
            self._end_history(number)
        kept = frame[: -len(suffix)] + b"}"
        if number <= self.last:
            known = self.frames.get(number)
            self.complain("doubled", f"event {number} comes again")
            if known is not None and known != kept:
                self.complain("diverged", f"event {number} comes again and is another")
            return event
        if number > self.last + 1:
            self.complain("lost", f"event {number} follows {self.last}")
        self._keep(number, kept, event)
        return event

    def acknowledged(self) -> Iterator[str]:
        """What the server has promised to keep, in words."""
        for frame in self.frames.values():
            event = json.loads(frame)
            match event["type"]:
                case "conversation.item.done" if event["item"].get("role") == "user":
                    yield f"item {event['item']['id']}"
                case "response.done":
                    yield f"response {event['response']['id']}"
                case "conversation.item.deleted":
                    yield f"deletion of {event['item_id']}"
                case "avatar.item.truncated":
                    yield f"truncation of {event['item_id']}"

    def _take_unnumbered(self, frame: bytes, event: Json) -> None:
        number = self.last + 1
        if not self.is_numbered and event["event_id"].endswith(f"_{number}"):
            self._keep(number, frame, event)
        elif event["type"] not in _UNNUMBERED:
            self.complain("diverged", f"{event['type']} has no number")
        elif event["error"].get("event_id"):
            self.stream.errors[event["error"]["event_id"]] = event["error"]

    def _end_history(self, number: int) -> None:
        self._is_in_history = False
        if number > self._declared + 1:
            self.complain("lost", f"event {number} follows a history up to {self._declared}")
        # What is open is told from its begin, of which we may have seen a part.
        self.gaps.append((self.last + 1, number - 1))
        self.stream.skip()
        self.last = number - 1

    def _keep(self, number: int, frame: bytes, event: Json) -> None:
        known = self.frames.setdefault(number, frame)
        if known != frame:
            self.complain("diverged", f"event {number} comes again and is another")
        self.last = number
        self.stream.take(number, event)
