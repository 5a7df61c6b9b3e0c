"""What the events of one session must be like, checked one by one: the same rules for what a client received and for what is stored.

Kinds of complaints: `lost` (something acknowledged is missing), `doubled` (something happened twice), `diverged` (two that must be equal
are not), `stuck` (something that must end has not ended).
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal

from msgspec import Struct

from engine.scripted import _script
from sessions.generation import Prompt
from sessions.items import InputText, MessageItem

# One JSON object of the wire.
Json = dict[str, Any]
Kind = Literal["lost", "doubled", "diverged", "stuck"]
KINDS: tuple[Kind, ...] = ("lost", "doubled", "diverged", "stuck")
ASK = "ask"


class Complaint(Struct, frozen=True):
    """One rule that was broken."""

    kind: Kind
    session_id: str
    text: str


class Answer(Struct):
    """One response. `ask` is the name that the client gave to what it asked; `text` is what has come of it."""

    response_id: str
    ask: str | None
    expected: str
    text: str = ""
    item_id: str | None = None
    status: str | None = None


@lru_cache(maxsize=4096)
def undisturbed(said: str) -> str:
    """The scripted engine's whole answer to a user's message."""
    item = MessageItem("item_user", "user", (InputText(said),), "completed")
    return "".join(chunk.text for chunk in _script(Prompt("", "", "", (item,)), 0, 0.0).chunks)


class Stream:
    """The events of one session so far. `said` are the user's messages by item id, as the client sent them."""

    def __init__(self, session_id: str, said: Mapping[str, str]) -> None:
        self.session_id = session_id
        self.complaints: list[Complaint] = []
        self.answers: dict[str, Answer] = {}
        self.asks: dict[str, Answer] = {}
        self.users: dict[str, str] = {}
        self.deleted: set[str] = set()
        self.heard: dict[str, int] = {}
        self.errors: dict[str, Json] = {}
        self._said = said
        self._last_said = ""
        self._event_ids: dict[str, int] = {}

    def complain(self, kind: Kind, text: str) -> None:
        """A rule is broken."""
        self.complaints.append(Complaint(kind, self.session_id, text))

    @property
    def open_answer(self) -> Answer | None:
        """The response that has begun and not ended."""
        return next((answer for answer in self.answers.values() if answer.status is None), None)

    def take(self, sequence: int, event: Json) -> None:
        """The next event."""
        before = self._event_ids.setdefault(event["event_id"], sequence)
        if before != sequence:
            self.complain("doubled", f"events {before} and {sequence} share their id")
        match event["type"]:
            case "conversation.item.done":
                self._item_done(event["item"])
            case "conversation.item.deleted":
                self.deleted.add(event["item_id"])
            case "response.created":
                self._created(event["response"])
            case "response.output_text.delta":
                self._delta(event)
            case "response.output_text.done":
                self._same(event["response_id"], event["text"], "output_text.done")
            case "response.done":
                self._done(event["response"])
            case "avatar.item.truncated":
                self.heard[event["item_id"]] = event["char_end"]
            case "error" if event["error"].get("event_id"):
                self.errors[event["error"]["event_id"]] = event["error"]

    def skip(self) -> None:
        """Events are missing here, and that was declared: what was open is not known any more."""
        for answer in list(self.answers.values()):
            if answer.status is None:
                del self.answers[answer.response_id]
                if answer.ask is not None:
                    self.asks.pop(answer.ask, None)

    def remember(self, item: Json) -> None:
        """An item that was told again after a declared gap."""
        if item["type"] == "message" and item["role"] == "user":
            self._last_said = self.users[item["id"]] = text_of_item(item)

    def finish(self) -> None:
        """Nothing follows."""
        for answer in self.answers.values():
            if answer.status is None:
                self.complain("stuck", f"{answer.response_id} has begun and never ends")

    def _item_done(self, item: Json) -> None:
        if item["type"] != "message" or item["role"] != "user":
            return
        item_id, text = item["id"], text_of_item(item)
        if item_id in self.users and item_id not in self.deleted:
            self.complain("doubled", f"item {item_id} is acknowledged twice")
        self.deleted.discard(item_id)
        self.users[item_id] = self._last_said = text
        if item_id in self._said and self._said[item_id] != text:
            self.complain("diverged", f"item {item_id} is not what was said")

    def _created(self, response: Json) -> None:
        response_id = response["id"]
        ask = (response["metadata"] or {}).get(ASK)
        if response_id in self.answers:
            self.complain("doubled", f"{response_id} begins twice")
            return
        if (other := self.open_answer) is not None:
            self.complain("diverged", f"{response_id} begins before {other.response_id} has ended")
        answer = self.answers[response_id] = Answer(response_id, ask, undisturbed(self._last_said))
        if ask is not None:
            if ask in self.asks:
                self.complain("doubled", f"{self.asks[ask].response_id} and {response_id} both answer {ask}")
            self.asks[ask] = answer

    def _delta(self, event: Json) -> None:
        answer = self.answers.get(event["response_id"])
        if answer is None or answer.status is not None:
            self.complain("diverged", f"a delta of {event['response_id']}, which is not open")
            return
        if answer.item_id not in (None, event["item_id"]):
            self.complain("diverged", f"{answer.response_id} goes on in another item")
        answer.item_id = event["item_id"]
        answer.text += event["delta"]
        if not answer.expected.startswith(answer.text):
            self.complain("diverged", f"{answer.response_id} says what an undisturbed one does not: {answer.text!r}")
            answer.expected = answer.text

    def _same(self, response_id: str, text: str, where: str) -> None:
        answer = self.answers.get(response_id)
        if answer is not None and answer.text != text:
            self.complain("diverged", f"{response_id}: {where} is not what the deltas said")

    def _done(self, response: Json) -> None:
        answer = self.answers.get(response["id"])
        if answer is None:
            self.complain("diverged", f"{response['id']} ends without a begin")
            return
        if answer.status is not None:
            self.complain("doubled", f"{answer.response_id} ends twice")
            return
        answer.status = response["status"]
        self._same(answer.response_id, text_of(response), "response.done")
        if answer.status == "completed" and answer.text != answer.expected:
            self.complain("diverged", f"{answer.response_id} is completed and not whole")


def text_of(response: Json) -> str:
    """What a response says."""
    return "".join(text_of_item(item) for item in response["output"])


def text_of_item(item: Json) -> str:
    """What a message says."""
    return "".join(part["text"] for part in item.get("content", ()))
