"""A session's events as they were committed: from the journal while it holds them, else from the archive, joined without a seam.

Reads only, a part or a page at a time: nothing is claimed, trimmed or mended. What cannot be shown is told of, and what follows is shown.
"""

import asyncio
from bisect import insort
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from typing import Final, Literal

import structlog
from msgspec import Struct

from persistence.archive import Archive
from persistence.database import Database
from persistence.errors import ArchiveDamaged
from persistence.held import Held
from persistence.part import JournalEvent, decode_line, digest, first_line, last_line, unpack_lines
from persistence.times import milliseconds
from persistence.whereabouts import Part, meta_of, parts_from, session_row
from sessions.store import Glimpse, JournalEntry, SessionMeta, Store

_log = structlog.get_logger(__name__)

HoleReason = Literal["lost", "damaged", "missing"]

_PAGE_ENTRIES: Final = 64
_PAGE_EVENTS: Final = 128
_PAGE_PARTS: Final = 100
_POLL_S: Final = 0.2
_MAX_HELD_BYTES: Final = 16 << 20


class Hole(Struct, frozen=True):
    """Events that cannot be shown.

    `lost`: the store lost them before they could be archived. `damaged`: the archive holds something else than what was put there.
    `missing`: neither the journal nor the archive has them.
    """

    first: int
    last: int
    reason: HoleReason


class Edge(Struct, frozen=True):
    """All that is committed so far was given, and the session lives: more may follow."""


Recorded = JournalEvent | Hole


class Extent(Struct, frozen=True, kw_only=True):
    """How much there is of a session, as far as is known without reading all of it. Times are milliseconds since the epoch, UTC.

    `num_events` can be shown but for what is found damaged on the way. The times of the first and the last event are the session's own
    where those events cannot be shown.
    """

    meta: SessionMeta
    first_sequence: int
    last_sequence: int
    first_ms: int
    last_ms: int
    num_events: int
    is_live: bool
    holes: tuple[Hole, ...]


class Recording:
    """What was recorded of any session. Shared by all who watch: the few parts that were read last are kept, compressed.

    Every call raises the `…Unavailable` errors when a store, the database or the archive cannot answer.
    """

    def __init__(self, store: Store, database: Database, archive: Archive, *, poll_s: float = _POLL_S) -> None:
        self._store = store
        self._database = database
        self._archive = archive
        self._poll_s = poll_s
        self._held = Held(_MAX_HELD_BYTES)
        self._turn = asyncio.Lock()

    async def meta(self, session_id: str) -> SessionMeta | None:
        """Whose session it is; None when there is none."""
        if (glimpse := await self._store.peek(session_id)) is not None:
            return glimpse.meta
        row = await session_row(self._database, session_id)
        return None if row is None else meta_of(row)

    async def extent(self, session_id: str) -> Extent | None:
        """How much there is now; None when there is no such session."""
        # In this order: what is trimmed from the journal is in the table by then.
        glimpse = await self._store.peek(session_id)
        last = glimpse.next_sequence - 1 if glimpse else 0
        begin = await self._store.journal(session_id, 0, 1) if glimpse else []
        end = await self._store.journal(session_id, last - 1, 1) if begin else []
        row = await session_row(self._database, session_id)
        if glimpse is not None:
            meta = glimpse.meta
        elif row is not None:
            meta = meta_of(row)
        else:
            return None
        parts = await parts_from(self._database, session_id, 1, limit=None)
        last = max(last, parts[-1].last_sequence if parts else 0, row.sequence if row is not None else 0)
        holes = list(_known_holes(parts, begin[0].first_sequence if begin else last + 1, last))
        first_ms, last_ms = await self._times(begin, end, parts, holes)
        if first_ms is None:
            first_ms = meta.created_ms
        if last_ms is None:
            last_ms = first_ms if row is None or row.updated_at is None else milliseconds(row.updated_at)
        return Extent(
            meta=meta,
            first_sequence=1,
            last_sequence=last,
            first_ms=first_ms,
            last_ms=max(first_ms, last_ms),
            num_events=last - sum(hole.last - hole.first + 1 for hole in holes),
            is_live=glimpse is not None and glimpse.has_owner,
            holes=tuple(holes),
        )

    async def events(self, session_id: str, after: int = 0) -> AsyncGenerator[Recorded, None]:
        """The events numbered above `after` that are committed by now, in order and unchanged, and the holes between them."""
        expected, sought_again = after + 1, 0
        while True:
            entries = await self._store.journal(session_id, expected - 1, _PAGE_ENTRIES)
            if entries and entries[0].first_sequence <= expected:
                for events in _pages(entries, expected):
                    await self._take_turn()
                    for event in events:
                        yield event
                    expected += len(events)
                continue
            parts = await parts_from(self._database, session_id, expected, limit=_PAGE_PARTS)
            for part in parts:
                if part.first_sequence > expected:
                    yield Hole(expected, part.first_sequence - 1, "missing")
                async with aclosing(self._read(part, max(expected, part.first_sequence))) as read:
                    async for found in read:
                        yield found
                expected = part.last_sequence + 1
            if parts:
                continue
            if entries:
                last = entries[0].first_sequence - 1
            elif (last := await self._last_known(session_id)) < expected:
                return
            elif sought_again < expected:
                # Committed, perhaps archived and trimmed, since we asked the journal.
                sought_again = expected
                continue
            _log.error("recording.events_missing", session_id=session_id, first=expected, last=last)
            yield Hole(expected, last, "missing")
            expected = last + 1

    async def follow(
        self, session_id: str, after: int = 0, *, wait: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> AsyncGenerator[Recorded | Edge, None]:
        """As `events`, and then what is committed while the session lives, by whichever node; ends when the session has ended.

        While there is nothing new it gives an edge, `wait`s for at most so many seconds, looks again, and gives another.
        """
        last = after
        # Looked at before the events are read: then all are read that were committed before its end.
        glimpse = await self._store.peek(session_id)
        stream = self.events(session_id, last)
        while True:
            async with aclosing(stream):
                async for found in stream:
                    last = found.sequence if isinstance(found, JournalEvent) else found.last
                    yield found
            if glimpse is None or not glimpse.has_owner:
                return
            while glimpse is not None and glimpse.has_owner and glimpse.next_sequence <= last + 1:
                yield Edge()
                await wait(self._poll_s)
                glimpse = await self._store.peek(session_id)
            stream = self._since(session_id, last, glimpse)

    async def _since(self, session_id: str, last: int, glimpse: Glimpse | None) -> AsyncGenerator[Recorded, None]:
        """What was committed after that event up to the glimpse: as long as the journal has it, nobody else is asked, time and again."""
        while glimpse is not None and last + 1 < glimpse.next_sequence:
            entries = await self._store.journal(session_id, last, _PAGE_ENTRIES)
            if not entries or entries[0].first_sequence > last + 1:
                break
            for events in _pages(entries, last + 1):
                for event in events:
                    yield event
                last += len(events)
        if glimpse is None or last + 1 < glimpse.next_sequence:
            async with aclosing(self.events(session_id, last)) as stream:
                async for found in stream:
                    yield found

    async def _read(self, part: Part, expected: int) -> AsyncGenerator[Recorded, None]:
        if part.num_events == 0:
            yield Hole(expected, part.last_sequence, "lost")
            return
        try:
            data = await self._object(part)
        except ArchiveDamaged as damage:
            _log.error("archive.part_unreadable", key=part.object_key, reason=damage.reason)
            yield _hole_of(part, expected, damage)
            return
        sequence = part.first_sequence
        chunks = unpack_lines(data)
        while sequence <= part.last_sequence:
            try:
                lines = next(chunks, [])[: part.last_sequence - sequence + 1]
                events = _decode(lines[max(0, expected - sequence) :], max(sequence, expected))
            except ValueError as error:
                _log.error("archive.part_unreadable", key=part.object_key, reason=str(error))
                lines = []
            if not lines:
                yield Hole(max(sequence, expected), part.last_sequence, "damaged")
                return
            for event in events:
                yield event
            sequence += len(lines)
            await self._take_turn()

    async def _take_turn(self) -> None:
        """Return in a turn of the event loop in which no other reader goes on: however many read, what is live waits for one piece only."""
        async with self._turn:
            await asyncio.sleep(0)

    async def _object(self, part: Part) -> bytes:
        """The part's bytes, which are the ones that were stored; `ArchiveDamaged` when there are none or others."""
        if (held := self._held.get(part.object_key)) is not None:
            return held
        data = await self._archive.get(part.object_key)
        if await asyncio.to_thread(digest, data) != part.sha256:
            raise ArchiveDamaged(part.object_key, "its checksum is not the one that was stored")
        self._held.put(part.object_key, data)
        return data

    async def _times(
        self,
        begin: Sequence[JournalEntry],
        end: Sequence[JournalEntry],
        parts: Sequence[Part],
        holes: list[Hole],
    ) -> tuple[int | None, int | None]:
        """When the first and the last event were committed, None of one that cannot be shown; a part that cannot be read becomes a hole."""
        first_ms = begin[0].at_ms if begin and begin[0].first_sequence == 1 else None
        last_ms = end[0].at_ms if end else None
        if last_ms is None and parts:
            last_ms = await self._time(parts[-1], last_line, holes)
        # The first part last: it is read next, and kept till then.
        if first_ms is None and parts:
            first_ms = await self._time(parts[0], first_line, holes)
        return first_ms, last_ms

    async def _time(self, part: Part, line_of: Callable[[bytes], bytes], holes: list[Hole]) -> int | None:
        if part.num_events == 0:
            return None
        try:
            data = await self._object(part)
            return decode_line(await asyncio.to_thread(line_of, data)).at_ms
        except ArchiveDamaged as damage:
            hole = _hole_of(part, part.first_sequence, damage)
        except ValueError:
            hole = Hole(part.first_sequence, part.last_sequence, "damaged")
        if hole not in holes:
            insort(holes, hole, key=lambda hole: hole.first)
        return None

    async def _last_known(self, session_id: str) -> int:
        """The number of the last event that anybody knows was committed."""
        glimpse = await self._store.peek(session_id)
        row = await session_row(self._database, session_id)
        return max(glimpse.next_sequence - 1 if glimpse else 0, row.sequence if row is not None else 0)


def _pages(entries: Iterable[JournalEntry], expected: int) -> Iterator[list[JournalEvent]]:
    """Those of the entries' events from that number on that follow each other without a gap, some at a time."""
    page: list[JournalEvent] = []
    for entry in entries:
        if entry.first_sequence > expected:
            break
        for event in entry.events[expected - entry.first_sequence :]:
            page.append(JournalEvent(expected, entry.at_ms, event))
            expected += 1
            if len(page) == _PAGE_EVENTS:
                yield page
                page = []
    yield page


def _decode(lines: Iterable[bytes], sequence: int) -> list[JournalEvent]:
    events = [decode_line(line) for line in lines]
    if any(event.sequence != number for number, event in enumerate(events, sequence)):
        raise ValueError("its events are not the ones that were stored")
    return events


def _hole_of(part: Part, expected: int, damage: ArchiveDamaged) -> Hole:
    return Hole(expected, part.last_sequence, "missing" if damage.reason == "missing" else "damaged")


def _known_holes(parts: Iterable[Part], first_in_journal: int, last: int) -> Iterator[Hole]:
    """What neither the parts nor the journal, which begins there, can have."""
    expected = 1
    for part in parts:
        if part.first_sequence > expected:
            yield Hole(expected, part.first_sequence - 1, "missing")
        if part.num_events == 0:
            yield Hole(part.first_sequence, part.last_sequence, "lost")
        expected = part.last_sequence + 1
    if (until := min(first_in_journal - 1, last)) >= expected:
        yield Hole(expected, until, "missing")
