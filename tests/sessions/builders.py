"""Dialogues for tests: ids that count, a clock that is set by hand, events as clients write them, and a store's view of what came out."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from sessions.client_events import ClientEvent, decode_client_event
from sessions.config import SessionConfig
from sessions.dialogue import Dialogue, EndReason
from sessions.effects import Effects
from sessions.generation import Chunk, FinishReason, FunctionTool, Prompt, ToolCallDelta, Usage
from sessions.items import InputText, MessageItem
from sessions.limits import DialogueLimits
from sessions.records import HeardRecord, PredictionRecord, Record, SentRecord, SessionRecord, TurnRecord
from sessions.server_events import encode_event
from sessions.state import DialogueState, decode_state
from sessions.store import LoadedSession, PlacedItem, SessionMeta, decode_placed, encode_placed

# One JSON object of the wire.
Json = dict[str, Any]

NOW_MS = 1_795_305_600_000
EXPIRES_AT = NOW_MS // 1000 + 3600
META = SessionMeta("sess_01JD", user_id="한나", client_id="kiosk", model="demo", created_ms=NOW_MS)
WEATHER = FunctionTool("get_weather", "The weather in a city", msgspec.Raw(b'{"type":"object"}'))
USAGE = Usage(input_tokens=12, output_tokens=3, cached_tokens=4)


class CountedIds:
    """`new_id` that counts for each prefix: `item_1`, `item_2`, `resp_1`."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def __call__(self, prefix: str) -> str:
        self._counts[prefix] += 1
        return f"{prefix}{self._counts[prefix]}"

    def set(self, prefix: str, count: int) -> None:
        """Count on from there."""
        self._counts[prefix] = count


def make_dialogue(
    *,
    config: SessionConfig | None = None,
    state: DialogueState | None = None,
    items: Sequence[PlacedItem] = (),
    next_sequence: int = 1,
    limits: DialogueLimits | None = None,
    new_id: CountedIds | None = None,
) -> Dialogue:
    return Dialogue(
        META,
        state or DialogueState(config or SessionConfig(model="demo")),
        new_id=new_id or CountedIds(),
        expires_at=EXPIRES_AT,
        model_version="2026-11",
        items=items,
        next_sequence=next_sequence,
        limits=limits or DialogueLimits(),
    )


def make_event(kind: str, **fields: object) -> ClientEvent:
    """The client event of that type, through the decoder like any other."""
    return decode_client_event(msgspec.json.encode({"type": kind, **fields}))


def make_chunk(
    text: str = "", *, finish: FinishReason | None = None, usage: Usage | None = None, num_tokens: int | None = None
) -> Chunk:
    """A chunk of one token when it has text, with usage when it is the last."""
    count = (1 if text else 0) if num_tokens is None else num_tokens
    return Chunk(text, count, usage=usage or (USAGE if finish else None), finish_reason=finish)


def make_call_chunk(
    index: int, name: str | None = None, arguments: str = "", *, finish: FinishReason | None = None
) -> Chunk:
    """A piece of the `index`-th tool call."""
    piece = ToolCallDelta(index, name, arguments)
    return Chunk("", 1, tool_calls=(piece,), usage=USAGE if finish else None, finish_reason=finish)


def make_placed(item_id: str, rank: float, text: str = "hello") -> PlacedItem:
    return PlacedItem(rank, MessageItem(item_id, "user", (InputText(text),)))


def user_item(text: str = "Hi", **fields: object) -> Json:
    """A user's message as clients write it."""
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}], **fields}


def json_of(event: bytes) -> Json:
    """An encoded event as clients read it."""
    decoded: Json = msgspec.json.decode(event)
    return decoded


def kinds(events: Iterable[Json]) -> list[str]:
    return [event["type"] for event in events]


class Talk:
    """A dialogue, everything that it emitted, and what a store would hold of it. Every effect is checked against its neighbours."""

    def __init__(
        self,
        *,
        config: SessionConfig | None = None,
        limits: DialogueLimits | None = None,
        state: DialogueState | None = None,
    ) -> None:
        self.now_ms = NOW_MS
        self.new_id = CountedIds()
        self.dialogue = make_dialogue(config=config, limits=limits, state=state, new_id=self.new_id)
        self.limits = limits or DialogueLimits()
        self._forget()
        self.take(self.dialogue.open(self.now_ms))

    def _forget(self) -> None:
        self.history: list[Effects] = []
        self.events: list[Json] = []
        self.journal: list[bytes] = []
        self.records: list[Record] = []
        self.last = Effects()
        self.stored_items: dict[str, bytes] = {}
        self.stored_state = b""
        self._open: set[str] = set()
        self.ended_responses: list[str] = []

    def send(self, kind: str, **fields: object) -> list[Json]:
        """A client's event; the events that answer it."""
        return self.take(self.dialogue.receive(make_event(kind, **fields), self.now_ms))

    def add(self, text: str = "Hi", *, previous_item_id: str | None = None, **fields: object) -> list[Json]:
        """A user's message."""
        place = {} if previous_item_id is None else {"previous_item_id": previous_item_id}
        return self.send("conversation.item.create", item=user_item(text, **fields), **place)

    def ask(self, **response: object) -> str:
        """Ask for an answer that must be accepted; its id."""
        created = self.send("response.create", response=response)
        assert kinds(created) == ["response.created"]
        response_id: str = created[0]["response"]["id"]
        return response_id

    def advance(self, response_id: str, chunk: Chunk) -> list[Json]:
        """A chunk, by the short way where it goes, as a live session does."""
        event = self.dialogue.delta(response_id, chunk)
        if event is not None:
            return self.take(Effects(events=[event]))
        return self.take(self.dialogue.advance(response_id, chunk, self.now_ms))

    def fail(self, response_id: str) -> list[Json]:
        effects = self.dialogue.fail(
            response_id, code="server_error", message="The engine is gone.", now_ms=self.now_ms
        )
        return self.take(effects)

    def end(self, reason: EndReason = "disconnected") -> list[Json]:
        return self.take(self.dialogue.end(self.now_ms, reason))

    def detach(self) -> None:
        assert self.take(self.dialogue.detach(self.now_ms)) == []

    def attach(self) -> None:
        assert self.take(self.dialogue.attach(self.now_ms)) == []

    def answer(self, *chunks: Chunk, **response: object) -> list[Json]:
        """A whole answer, from response.create on."""
        begin = len(self.events)
        response_id = self.ask(**response)
        for chunk in chunks:
            self.advance(response_id, chunk)
        return self.events[begin:]

    def refused(self, kind: str, **fields: object) -> Json:
        """Send an event that must be refused, with no effect but its error; the `error` object."""
        items, config = self.dialogue.items, self.dialogue.config

        answer = self.send(kind, **fields)

        assert kinds(answer) == ["error"]
        only_error = Effects(events=self.last.events)
        assert self.last == only_error, "a refused event has no other effect"
        assert (self.dialogue.items, self.dialogue.config) == (items, config)
        error: Json = answer[0]["error"]
        return error

    def take(self, effects: Effects) -> list[Json]:
        """Note the effects as a store and a client would."""
        events = self._note(effects)
        assert self.dialogue.next_sequence == len(self.events) + 1
        return events

    def crash(self, *, num_lost: int = 0, num_trimmed: int = 0) -> list[Prompt]:
        """The node dies, its last inputs with it, and another restores the dialogue; the prompts to go on with.

        The first `num_trimmed` events are gone from the journal.
        """
        kept = self.history[: max(1, len(self.history) - num_lost)]
        self._forget()
        for effects in kept:
            self._note(effects)
        first = decode_state(self.stored_state).first_open_sequence or len(self.journal) + 1
        self.dialogue = Dialogue.restore(
            self.loaded(),
            self.journal[max(first - 1, num_trimmed) :],
            new_id=self.new_id,
            expires_at=EXPIRES_AT,
            model_version="2026-11",
            limits=self.limits,
        )
        assert self.dialogue.next_sequence == len(self.events) + 1
        return self.dialogue.unfinished()

    def loaded(self) -> LoadedSession:
        """What another node is given by the store."""
        placed = tuple(map(decode_placed, self.stored_items.values()))
        return LoadedSession(META, "2.other", len(self.journal) + 1, 0, self.stored_state, placed)

    def _note(self, effects: Effects) -> list[Json]:
        self.last = effects
        self.history.append(effects)
        encoded = [encode_event(event) for event in effects.events]
        events = [json_of(event) for event in encoded]
        self.journal += encoded
        for event in events:
            self._check(event)
            self.events.append(event)
        self.records += effects.records
        for item_id in effects.dropped_items:
            self.stored_items.pop(item_id, None)
        for placed in effects.saved_items:
            self.stored_items[placed.item.id] = encode_placed(placed)
        if effects.state is not None:
            self.stored_state = effects.state
        return events

    def rebuilt(self) -> Dialogue:
        """The dialogue that another node would load from the store."""
        return make_dialogue(
            state=decode_state(self.stored_state),
            items=tuple(map(decode_placed, self.stored_items.values())),
            next_sequence=self.dialogue.next_sequence,
            limits=self.limits,
        )

    @property
    def turns(self) -> list[TurnRecord]:
        return [record for record in self.records if isinstance(record, TurnRecord)]

    @property
    def predictions(self) -> list[PredictionRecord]:
        return [record for record in self.records if isinstance(record, PredictionRecord)]

    @property
    def heard(self) -> list[HeardRecord]:
        return [record for record in self.records if isinstance(record, HeardRecord)]

    @property
    def sent(self) -> list[SentRecord]:
        return [record for record in self.records if isinstance(record, SentRecord)]

    @property
    def session_records(self) -> list[SessionRecord]:
        return [record for record in self.records if isinstance(record, SessionRecord)]

    @property
    def open_responses(self) -> list[str]:
        return sorted(self._open)

    def _check(self, event: Json) -> None:
        """Sequence numbers without a gap; nothing of a response before its created or after its done, which comes once."""
        assert event["event_id"] == f"event_01JD_{len(self.events) + 1}"
        kind = event["type"]
        if kind == "response.created":
            assert event["response"]["id"] not in {*self._open, *self.ended_responses}
            self._open.add(event["response"]["id"])
        elif kind == "response.done":
            self._open.remove(event["response"]["id"])
            self.ended_responses.append(event["response"]["id"])
        elif "response_id" in event:
            assert event["response_id"] in self._open, f"{kind} of a response that is not open"


def fold(events: Iterable[Json]) -> list[Json]:
    """The conversation as a client sees it that believes the conversation's events and nothing else."""
    items: list[Json] = []
    wholes: dict[str, Json] = {}
    for event in events:
        match event["type"]:
            case "conversation.item.added":
                previous = event["previous_item_id"]
                assert event["item"]["id"] not in _ids(items)
                items.insert(0 if previous is None else _ids(items).index(previous) + 1, event["item"])
            case "conversation.item.done":
                index = _ids(items).index(event["item"]["id"])
                assert event["previous_item_id"] == (_ids(items)[index - 1] if index else None)
                items[index] = event["item"]
            case "conversation.item.deleted":
                wholes.pop(event["item_id"], None)
                del items[_ids(items).index(event["item_id"])]
            case "avatar.item.truncated":
                index = _ids(items).index(event["item_id"])
                whole = wholes.setdefault(event["item_id"], items[index])
                items[index] = _cut(whole, event["char_end"])
    return items


def _cut(whole: Json, char_end: int) -> Json:
    text = "".join(part["text"] for part in whole["content"])
    first = whole["content"][0]["text"] if whole["content"] else ""
    heard = first.encode("utf-16-le")[: 2 * char_end].decode("utf-16-le")
    if heard == text:
        return whole
    return whole | {"status": "incomplete", "content": [{"type": "output_text", "text": heard}]}


def wire_items(dialogue: Dialogue) -> list[Json]:
    """The dialogue's items as JSON objects."""
    items: list[Json] = msgspec.json.decode(msgspec.json.encode(dialogue.items))
    return items


def _ids(items: Iterable[Json]) -> list[str]:
    return [item["id"] for item in items]
