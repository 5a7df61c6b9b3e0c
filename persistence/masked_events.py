"""A session's recorded events with personal data covered: same numbers, times, order and shape, and every other byte as it was.

A number may be said in many deltas. Deltas are held back until it is settled what they are a part of, and what comes after them waits;
no more is held than `_MAX_HELD_BYTES`.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial
from time import monotonic
from typing import Final, TypeVar

import msgspec
from msgspec import Struct

from persistence.masked_json import mask_json
from persistence.masked_text import MaskedText
from persistence.part import JournalEvent
from persistence.recording import Edge, Hole, Recorded

_MAX_HELD_BYTES: Final = 1 << 20
# What is live goes on beside it: after so long the event loop turns, and what is longer is masked in a thread.
_MAX_TURN_S: Final = 0.002
_MAX_BYTES_IN_TURN: Final = 8 * 1024

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
_Done = TypeVar("_Done")


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
        delta = None if self.text is None else self.text.take(self.start, self.end)
        return msgspec.structs.replace(self.event, event=mask_json(self.event.event, delta=delta))


_decoder = msgspec.json.Decoder(_Event)


async def masked_events(stream: Stream, *, now_s: Callable[[], float] = monotonic) -> Stream:
    """The stream, masked. It may begin anywhere, and break off anywhere."""
    masker = _Masker(now_s)
    async with aclosing(stream):
        async for found in stream:
            match found:
                case JournalEvent():
                    await masker.add(found)
                case Hole():
                    masker.break_off()
                case Edge():
                    pass
            while (event := await masker.take()) is not None:
                yield event
            if not isinstance(found, JournalEvent):
                yield found
    masker.break_off()
    while (event := await masker.take()) is not None:
        yield event


async def _done(num_bytes: int, work: Callable[[], _Done]) -> _Done:
    """What the work on so many bytes returns."""
    return await asyncio.to_thread(work) if num_bytes > _MAX_BYTES_IN_TURN else work()


class _Masker:
    """The events that wait, and the texts that go on."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._turned_s = now_s()
        self._held: deque[_Held] = deque()
        self._num_bytes = 0
        self._texts: dict[_Place, MaskedText] = {}
        # Items whose beginning was seen, each with its response.
        self._begun: dict[str, str] = {}

    async def add(self, found: JournalEvent) -> None:
        """The next event."""
        self._held.append(await _done(len(found.event), partial(self._hold, found)))
        self._num_bytes += len(found.event)
        if self._num_bytes > _MAX_HELD_BYTES:
            # One text stands still while others go on.
            self.break_off()

    async def take(self) -> JournalEvent | None:
        """The first of the events that wait, once it waits for nothing more."""
        if self._now_s() - self._turned_s > _MAX_TURN_S:
            await asyncio.sleep(0)
            self._turned_s = self._now_s()
        if not self._held or not self._held[0].is_settled:
            return None
        held = self._held.popleft()
        self._num_bytes -= len(held.event.event)
        return await _done(len(held.event.event), held.masked)

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
