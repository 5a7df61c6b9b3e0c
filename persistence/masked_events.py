"""A session's recorded events with personal data covered: same numbers, times, order and shape, and every other byte as it was.

A number may be said in many deltas. Deltas are held back until it is settled what they are a part of, and what comes after them waits;
no more is held than `_MAX_HELD_BYTES`.
"""

from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

import msgspec
from msgspec import Struct

from persistence.masked_json import mask_json, replace_strings
from persistence.masked_text import MaskedText
from persistence.masking import BULLET
from persistence.part import JournalEvent
from persistence.recording import Edge, Hole, Recorded

_MAX_HELD_BYTES: Final = 1 << 20

_TEXT: Final = "response.output_text"
_ARGUMENTS: Final = "response.function_call_arguments"
_BEGIN: Final = "response.output_item.added"
_ENDS: Final = frozenset(
    {f"{_TEXT}.done", f"{_ARGUMENTS}.done", "response.content_part.done", "response.output_item.done"}
)
_RESPONSE_DONE: Final = "response.done"

Stream = AsyncGenerator[Recorded | Edge, None]
# The item and the part of it; arguments are one part.
_Place = tuple[str, int]


class _Id(Struct, frozen=True):
    id: str = ""


class _Event(Struct, frozen=True):
    """What of an event tells what becomes of it."""

    type: str = ""
    item_id: str = ""
    content_index: int = 0
    delta: str | None = None
    response_id: str = ""
    item: _Id | None = None
    response: _Id | None = None


class _Held(Struct, eq=False):
    """An event that waits; of a delta where it stands in which text."""

    event: JournalEvent
    text: MaskedText | None = None
    start: int = 0
    end: int = 0

    @property
    def is_settled(self) -> bool:
        return self.text is None or self.end <= self.text.num_settled

    def masked(self) -> JournalEvent:
        if self.text is None:
            return msgspec.structs.replace(self.event, event=mask_json(self.event.event))
        delta = self.text.take(self.start, self.end)
        if BULLET not in delta:
            return self.event
        changed = replace_strings(self.event.event, lambda name, _: delta if name == b"delta" else None)
        return msgspec.structs.replace(self.event, event=changed)


_decoder = msgspec.json.Decoder(_Event)


async def masked_events(stream: Stream) -> Stream:
    """The stream, masked. It may begin anywhere, and break off anywhere."""
    masker = _Masker()
    async with aclosing(stream):
        async for found in stream:
            match found:
                case JournalEvent():
                    masker.add(found)
                case Hole():
                    masker.break_off()
                case Edge():
                    pass
            for event in masker.settled():
                yield event
            if not isinstance(found, JournalEvent):
                yield found
    masker.break_off()
    for event in masker.settled():
        yield event


class _Masker:
    """The events that wait, and the texts that go on."""

    def __init__(self) -> None:
        self._held: deque[_Held] = deque()
        self._num_bytes = 0
        self._texts: dict[_Place, MaskedText] = {}
        # Items whose beginning was seen, each with its response.
        self._begun: dict[str, str] = {}

    def add(self, found: JournalEvent) -> None:
        """The next event."""
        self._held.append(self._hold(found))
        self._num_bytes += len(found.event)
        if self._num_bytes > _MAX_HELD_BYTES:
            # One text stands still while others go on.
            self.break_off()

    def settled(self) -> list[JournalEvent]:
        """The events that wait for nothing more."""
        events = []
        while self._held and self._held[0].is_settled:
            held = self._held.popleft()
            self._num_bytes -= len(held.event.event)
            events.append(held.masked())
        return events

    def break_off(self) -> None:
        """What follows is not what followed."""
        for text in self._texts.values():
            text.break_off()
        self._texts.clear()
        self._begun.clear()

    def _hold(self, found: JournalEvent) -> _Held:
        try:
            event = _decoder.decode(found.event)
        except msgspec.MsgspecError:
            return _Held(found)
        if event.delta is not None and event.type in (f"{_TEXT}.delta", f"{_ARGUMENTS}.delta"):
            return self._hold_delta(found, event)
        if event.type == _BEGIN and event.item is not None:
            self._begun[event.item.id] = event.response_id
        elif event.type in _ENDS:
            self._end_item(event.item.id if event.item is not None else event.item_id)
        elif event.type == _RESPONSE_DONE and event.response is not None:
            for item_id in [item_id for item_id, response in self._begun.items() if response == event.response.id]:
                self._end_item(item_id)
        return _Held(found)

    def _hold_delta(self, found: JournalEvent, event: _Event) -> _Held:
        place = (event.item_id, event.content_index)
        if (text := self._texts.get(place)) is None:
            text = self._texts[place] = MaskedText(is_cut=event.item_id not in self._begun)
        start = text.num_chars
        assert event.delta is not None
        text.add(event.delta)
        return _Held(found, text, start, text.num_chars)

    def _end_item(self, item_id: str) -> None:
        for place in [place for place in self._texts if place[0] == item_id]:
            self._texts.pop(place).end()
