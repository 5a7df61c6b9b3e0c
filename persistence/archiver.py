"""Moves a session's journal into the archive, part by part, so that any number of writers may do it at once and die at any step.

Events that the store lost are declared by a part without events, which has no object.

The steps of a part: (1) its row is inserted without `stored_at`, which settles for everybody where it begins and ends; (2) the
object is put; (3) the row gets its checksum and `stored_at`; (4) the journal is trimmed. Whoever finds a row without `stored_at`
finishes it: the same events give the same bytes under the same key.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from typing import Final

import structlog
from msgspec import Struct
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from persistence.archive import Archive
from persistence.columns import session_stub
from persistence.database import Database
from persistence.errors import ArchiveConflict, JournalGap
from persistence.part import JournalEvent, digest, encode_line, pack, part_key, unpack
from persistence.tables import archives, sessions
from persistence.times import utc_time
from persistence.upsert import upsert
from sessions.records import ArchiveRecord
from sessions.store import Store

_log = structlog.get_logger(__name__)

# A part is compressed in memory.
_MAX_PART_BYTES: Final = 8 << 20
_PAGE_ENTRIES: Final = 500


class Part(Struct, frozen=True):
    """A row of `archives`: the range of one part, and whether its object is known to be stored."""

    first_sequence: int
    last_sequence: int
    object_key: str
    stored_at: datetime | None


class Lines(Struct, frozen=True):
    """Lines of consecutive events, as read from the journal."""

    first_sequence: int
    lines: list[bytes]

    @property
    def last_sequence(self) -> int:
        """The number of the last line's event."""
        return self.first_sequence + len(self.lines) - 1


class Archiver:
    """Archives journals of `store` in `archive`, and remembers in `database` what lies where."""

    def __init__(
        self,
        store: Store,
        database: Database,
        archive: Archive,
        *,
        now_ms: Callable[[], int],
        max_part_bytes: int = _MAX_PART_BYTES,
    ) -> None:
        self._store = store
        self._database = database
        self._archive = archive
        self._now_ms = now_ms
        self._max_part_bytes = max_part_bytes

    async def archive(self, record: ArchiveRecord) -> bool:
        """True once the journal up to `last_sequence` is archived and trimmed. Doing it again does nothing.

        Raises the `…Unavailable` errors, after which it may be tried again, and `JournalGap` or `ArchiveConflict`.
        """
        archived = 0
        read = Lines(first_sequence=1, lines=[])
        while True:
            newest = await self._newest_part(record.session_id)
            if newest is not None and newest.stored_at is not None:
                archived = newest.last_sequence
                if archived >= record.last_sequence:
                    break
            elif newest is None and record.last_sequence <= 0:
                break
            try:
                if (newest is None or newest.stored_at is not None) and archived < record.forgotten_sequence:
                    # A journal is trimmed only after its part is stored, so these are in no archive and never will be.
                    await self._declare_lost(record, archived + 1)
                elif newest is None or newest.stored_at is not None:
                    read = await self._reserve(record, archived + 1)
                else:
                    await self._finish(record.session_id, newest, read)
            except JournalGap:
                # Another writer may have archived and trimmed these events while we were reading them.
                if await self._newest_part(record.session_id) == newest:
                    raise
        await self._store.trim(record.session_id, archived, final=record.final)
        return True

    async def _newest_part(self, session_id: str) -> Part | None:
        query = (
            select(archives.c.first_sequence, archives.c.last_sequence, archives.c.object_key, archives.c.stored_at)
            .where(archives.c.session_id == session_id)
            .order_by(archives.c.first_sequence.desc())
            .limit(1)
        )
        async with self._database.snapshot() as connection:
            row = (await connection.execute(query)).one_or_none()
        return None if row is None else Part(*row)

    async def _reserve(self, record: ArchiveRecord, first_sequence: int) -> Lines:
        """Claim the next part, unless another writer just did; the lines that were read for it."""
        lines = await self._read(
            record.session_id, first_sequence, record.last_sequence, max_bytes=self._max_part_bytes
        )
        last_sequence = first_sequence + len(lines) - 1
        row = {column.name: None for column in archives.columns} | {
            "session_id": record.session_id,
            "first_sequence": first_sequence,
            "last_sequence": last_sequence,
            "object_key": part_key(record.session_id, record.created_ms, first_sequence, last_sequence),
            "num_events": len(lines),
            "created_at": utc_time(self._now_ms()),
        }
        async with self._database.transaction() as connection:
            is_mysql = self._database.is_mysql
            await upsert(connection, sessions, [session_stub(record.session_id)], is_mysql=is_mysql)
            await upsert(connection, archives, [row], is_mysql=is_mysql)
        return Lines(first_sequence=first_sequence, lines=lines)

    async def _declare_lost(self, record: ArchiveRecord, first_sequence: int) -> None:
        last_sequence = record.forgotten_sequence
        now = utc_time(self._now_ms())
        row = {column.name: None for column in archives.columns} | {
            "session_id": record.session_id,
            "first_sequence": first_sequence,
            "last_sequence": last_sequence,
            "object_key": part_key(record.session_id, record.created_ms, first_sequence, last_sequence) + ".lost",
            "num_events": 0,
            "created_at": now,
            "stored_at": now,
        }
        async with self._database.transaction() as connection:
            is_mysql = self._database.is_mysql
            await upsert(connection, sessions, [session_stub(record.session_id)], is_mysql=is_mysql)
            await upsert(connection, archives, [row], is_mysql=is_mysql)
        _log.error("archive.events_lost", session_id=record.session_id, first=first_sequence, last=last_sequence)

    async def _finish(self, session_id: str, part: Part, read: Lines) -> None:
        """Put the part's object and say so in its row. `read` spares reading the journal again for a part of one's own claiming."""
        lines = read.lines
        # Another writer may have claimed another part meanwhile.
        if (read.first_sequence, read.last_sequence) != (part.first_sequence, part.last_sequence):
            lines = await self._read(session_id, part.first_sequence, part.last_sequence, max_bytes=None)
        data = await asyncio.to_thread(pack, lines)
        if await self._archive.put(part.object_key, data) == "exists":
            data = await self._accept(part.object_key, data)
        async with self._database.transaction() as connection:
            await _mark_stored(connection, session_id, part, data, utc_time(self._now_ms()))

    async def _accept(self, key: str, data: bytes) -> bytes:
        """The object that is there already, if it holds the same events: a newer compressor may write them in other bytes."""
        held = await self._archive.get(key)
        if held != data and not await asyncio.to_thread(_same_events, held, data):
            raise ArchiveConflict(key)
        return held

    async def _read(
        self, session_id: str, first_sequence: int, last_sequence: int, *, max_bytes: int | None
    ) -> list[bytes]:
        """The lines of the events in this range, in order and without a gap; fewer once they come to `max_bytes`."""
        lines: list[bytes] = []
        num_bytes = 0
        async for event in self._events(session_id, first_sequence, last_sequence):
            lines.append(encode_line(event))
            num_bytes += len(lines[-1])
            if max_bytes is not None and num_bytes >= max_bytes:
                break
        return lines

    async def _events(self, session_id: str, first_sequence: int, last_sequence: int) -> AsyncIterator[JournalEvent]:
        expected = first_sequence
        while expected <= last_sequence:
            entries = await self._store.journal(session_id, expected - 1, _PAGE_ENTRIES)
            if not entries:
                raise JournalGap(session_id, expected)
            for entry in entries:
                for sequence, event in enumerate(entry.events, entry.first_sequence):
                    # An entry that is cut by our range comes whole.
                    if not expected <= sequence <= last_sequence:
                        continue
                    if sequence > expected:
                        raise JournalGap(session_id, expected)
                    yield JournalEvent(sequence=sequence, at_ms=entry.at_ms, event=event)
                    expected += 1


async def _mark_stored(
    connection: AsyncConnection, session_id: str, part: Part, data: bytes, stored_at: datetime
) -> None:
    await connection.execute(
        update(archives)
        .where(
            archives.c.session_id == session_id,
            archives.c.first_sequence == part.first_sequence,
            archives.c.stored_at.is_(None),
        )
        .values(num_bytes=len(data), sha256=digest(data), stored_at=stored_at)
    )


def _same_events(first: bytes, second: bytes) -> bool:
    try:
        return list(unpack(first)) == list(unpack(second))
    except ValueError:
        return False
