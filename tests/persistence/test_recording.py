"""What was recorded is shown as it was, from wherever it lies, whoever moves it meanwhile; and what is not there is said so. P8"""

import asyncio
import tracemalloc
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import delete, update

from persistence import recording as recording_module
from persistence.archive import Archive
from persistence.archiver import Archiver
from persistence.database import Database
from persistence.errors import ArchiveUnavailable
from persistence.held import Held
from persistence.part import JournalEvent, decode_line, digest, first_line, last_line, pack, unpack_lines
from persistence.recording import Edge, Extent, Hole, Recorded, Recording
from persistence.tables import archives
from sessions.records import Record
from sessions.sqlite_store import SqliteStore
from sessions.store import Append, Glimpse, JournalEntry, SessionMeta, Store
from tests.persistence.builders import (
    CREATED_MS,
    all_rows,
    enqueue,
    journal_events,
    make_archive,
    make_events,
    make_session,
    new_id,
    settle,
)


def now_ms() -> int:
    return CREATED_MS + 60_000


def make_archiver(store: object, database: Database, archive: Archive, max_part_bytes: int = 8 << 20) -> Archiver:
    return Archiver(cast("Store", store), database, archive, now_ms=now_ms, max_part_bytes=max_part_bytes)


def as_recorded(events: list[bytes], in_commits_of: int = 7) -> list[JournalEvent]:
    return [
        JournalEvent(sequence=index + 1, at_ms=CREATED_MS + index // in_commits_of * in_commits_of, event=event)
        for index, event in enumerate(events)
    ]


async def shown(recording: Recording, session_id: str, after: int = 0) -> list[Recorded]:
    return [found async for found in recording.events(session_id, after)]


async def known(recording: Recording, session_id: str) -> Extent:
    extent = await recording.extent(session_id)
    assert extent is not None
    return extent


async def go_on(store: Store, session_id: str, events: list[bytes], *, after: int, ends: bool = False) -> None:
    """Claim the session and commit more."""
    epoch = (await store.claim(session_id, "node-2")).epoch
    append = Append(session_id, epoch, after + 1, CREATED_MS + after, events, [], {}, [], ends=ends)
    assert await store.append([append]) == ["ok"]


async def archive_in_parts(
    store: Store, database: Database, archive: Archive, session_id: str, num_events: int
) -> list[dict[str, Any]]:
    """Archive the journal up to there, some ten events a part; the parts' rows."""
    archiver = make_archiver(store, database, archive, max_part_bytes=1000)
    assert await archiver.archive(make_archive(session_id, num_events))
    return cast("list[dict[str, Any]]", await all_rows(database, archives))


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording_module, "_PAGE_ENTRIES", 3)
    monkeypatch.setattr(recording_module, "_PAGE_PARTS", 2)


@pytest.mark.parametrize("num_archived", [0, 35, 70, 100])
async def test_a_session_is_shown_byte_for_byte_from_archive_and_journal(
    store: Store, database: Database, archive: Archive, num_archived: int, small_pages: None
) -> None:
    """P8"""
    session_id, events = new_id("sess"), make_events(100)
    await journal_events(store, session_id, events)
    if num_archived:
        await archive_in_parts(store, database, archive, session_id, num_archived)
    recording = Recording(store, database, archive)

    for after in (0, 1, num_archived, 99, 100):
        assert await shown(recording, session_id, after) == as_recorded(events)[after:]
    extent = await known(recording, session_id)

    assert (extent.first_sequence, extent.last_sequence, extent.num_events) == (1, 100, 100)
    assert (extent.first_ms, extent.last_ms) == (CREATED_MS, CREATED_MS + 98)
    assert (extent.meta.user_id, extent.meta.client_id, extent.is_live, extent.holes) == ("anna", "kiosk", True, ())


async def test_a_session_that_the_store_has_forgotten_is_shown_from_the_archive(
    store: Store, database: Database, archive: Archive, sqlite_store: SqliteStore
) -> None:
    session_id, events = new_id("sess"), make_events(30)
    records: list[Record] = [make_archive(session_id, 30), make_session(session_id, sequence=30, status="ended")]
    await journal_events(store, session_id, events, records)
    await settle(store, database, archive, 2)
    # Another store, which never knew it.
    other = cast("Store", _Empty(sqlite_store))

    recording = Recording(other, database, archive)

    assert await shown(recording, session_id) == as_recorded(events)
    extent = await known(recording, session_id)
    assert (extent.last_sequence, extent.first_ms, extent.last_ms) == (30, CREATED_MS, CREATED_MS + 28)
    assert (extent.meta.user_id, extent.meta.created_ms, extent.is_live) == ("anna", CREATED_MS, False)
    assert await recording.meta(session_id) == extent.meta


async def test_an_unknown_session_has_no_extent_and_no_events(
    sqlite_store: SqliteStore, database: Database, folder: Archive
) -> None:
    recording = Recording(sqlite_store, database, folder)

    assert await recording.extent("sess_nobody") is None
    assert await recording.meta("sess_nobody") is None
    assert await shown(recording, "sess_nobody") == []


async def test_a_session_without_events_yet_is_told_as_such(
    sqlite_store: SqliteStore, database: Database, folder: Archive
) -> None:
    session_id = new_id("sess")
    await journal_events(sqlite_store, session_id, [])

    extent = await known(Recording(sqlite_store, database, folder), session_id)

    assert (extent.last_sequence, extent.num_events, extent.first_ms, extent.last_ms) == (0, 0, CREATED_MS, CREATED_MS)


async def test_the_archiver_may_move_the_seam_between_any_two_reads(
    store: Store, database: Database, folder: Archive, small_pages: None
) -> None:
    """Parts are archived and trimmed after the nth look at the store, for every n: nothing is lost, doubled or held to be missing."""
    moves = 0
    for nth in range(1, 100):
        session_id, events = new_id("sess"), make_events(40)
        await journal_events(store, session_id, events, in_commits_of=2)
        archiver = make_archiver(store, database, folder, max_part_bytes=1000)
        await archiver.archive(make_archive(session_id, 10, final=False))

        async def move(session_id: str = session_id, archiver: Archiver = archiver) -> None:
            await archiver.archive(make_archive(session_id, 36, final=False))

        watched = _Watched(store, nth, move)
        recording = Recording(cast("Store", watched), database, folder)

        assert await shown(recording, session_id) == as_recorded(events, in_commits_of=2), f"moved at look {nth}"
        if watched.num_looks < nth:
            break
        moves += 1
    assert moves >= 8


async def test_what_is_committed_while_the_end_is_read_is_no_hole(
    store: Store, database: Database, folder: Archive
) -> None:
    session_id, events = new_id("sess"), make_events(20)
    await journal_events(store, session_id, events[:14])

    async def grow() -> None:
        await go_on(store, session_id, events[14:], after=14)

    # The first look finds 14 events, the second none more; then six are committed.
    recording = Recording(cast("Store", _Watched(store, 2, grow, comes="after")), database, folder)

    assert await shown(recording, session_id) == as_recorded(events)


DAMAGES = {
    "gone": "missing",
    "cut": "damaged",
    "other bytes": "damaged",
    "of another session": "damaged",
    "not zstd though summed": "damaged",
    "fewer lines though summed": "damaged",
    "wrong numbers though summed": "damaged",
    "declared lost": "lost",
    "row gone": "missing",
}


@pytest.mark.parametrize(("damage", "reason"), DAMAGES.items())
@pytest.mark.parametrize("which", [0, 2, -1], ids=["first", "middle", "last"])
async def test_a_part_that_cannot_be_read_is_a_hole_and_what_follows_is_shown(
    sqlite_store: SqliteStore, database: Database, folder: Archive, tmp_path: Path, damage: str, reason: str, which: int
) -> None:
    session_id, events = new_id("sess"), make_events(60)
    await journal_events(sqlite_store, session_id, events)
    rows = await archive_in_parts(sqlite_store, database, folder, session_id, 60)
    assert len(rows) > 4
    row = rows[which]
    first = await spoil(tmp_path, database, row, damage)
    recording = Recording(sqlite_store, database, folder)

    found = await shown(recording, session_id)
    extent = await known(recording, session_id)

    hole = Hole(first, row["last_sequence"], cast("Any", reason))
    kept = [event for event in as_recorded(events) if not hole.first <= event.sequence <= hole.last]
    assert [entry for entry in found if isinstance(entry, JournalEvent)] == kept
    assert [entry for entry in found if isinstance(entry, Hole)] == [hole]
    assert [entry.first if isinstance(entry, Hole) else entry.sequence for entry in found] == sorted(
        entry.first if isinstance(entry, Hole) else entry.sequence for entry in found
    )
    assert (extent.first_sequence, extent.last_sequence) == (1, 60)
    assert extent.first_ms >= CREATED_MS
    assert extent.last_ms <= CREATED_MS + 98
    if which != 2 and "though summed" not in damage:
        assert extent.holes == (hole,)
        assert extent.num_events == len(kept)


async def spoil(tmp_path: Path, database: Database, row: dict[str, Any], damage: str) -> int:
    """Harm the part; the number of the first event that cannot be shown then."""
    path = tmp_path / "archive" / row["object_key"]
    data, first = path.read_bytes(), int(row["first_sequence"])
    lines = [line for some in unpack_lines(data) for line in some]
    replaced = {
        "cut": data[:-9],
        "other bytes": data[:20] + bytes([data[20] ^ 1]) + data[21:],
        "of another session": pack([b'{"sequence":1,"at_ms":1,"event":{}}']),
        "not zstd though summed": b"not zstd",
        "fewer lines though summed": pack(lines[:-2]),
        "wrong numbers though summed": pack([lines[0], *lines[:-1]]),
    }
    if damage == "gone":
        path.unlink()
    elif damage in replaced:
        path.write_bytes(replaced[damage])
    is_part = archives.c.object_key == row["object_key"]
    async with database.transaction() as connection:
        if damage == "declared lost":
            await connection.execute(update(archives).where(is_part).values(num_events=0, sha256=None))
        if damage == "row gone":
            await connection.execute(delete(archives).where(is_part))
        if "though summed" in damage:
            sha256 = digest(replaced[damage])
            await connection.execute(update(archives).where(is_part).values(sha256=sha256))
    return int(row["last_sequence"]) - 1 if damage == "fewer lines though summed" else first


async def test_a_session_whose_events_are_nowhere_is_no_empty_success(
    sqlite_store: SqliteStore, database: Database, folder: Archive
) -> None:
    session_id = new_id("sess")
    await enqueue(sqlite_store, [make_session(session_id, sequence=12, status="ended")])
    await settle(sqlite_store, database, folder, 1)
    recording = Recording(sqlite_store, database, folder)

    assert await shown(recording, session_id) == [Hole(1, 12, "missing")]
    extent = await known(recording, session_id)
    assert (extent.last_sequence, extent.num_events, extent.holes) == (12, 0, (Hole(1, 12, "missing"),))


async def test_events_that_a_store_came_back_without_are_a_hole_until_and_after_they_are_declared(
    store: Store, database: Database, folder: Archive
) -> None:
    session_id, events = new_id("sess"), make_events(40)
    meta = SessionMeta(session_id, user_id="anna", client_id="kiosk", model="demo", created_ms=CREATED_MS)
    epoch = await store.restore(meta, "node", "5.gone", next_sequence=31, config=b"{}", items=())
    assert epoch is not None
    append = Append(session_id, epoch, 31, CREATED_MS, events[30:], [], {}, [])
    assert await store.append([append]) == ["ok"]
    recording = Recording(store, database, folder)

    before = await shown(recording, session_id)
    known_before = await known(recording, session_id)
    archiver = make_archiver(store, database, folder)
    await archiver.archive(make_archive(session_id, 40, forgotten_sequence=30))
    after = await shown(recording, session_id)
    known_after = await known(recording, session_id)

    assert before[0] == known_before.holes[0] == Hole(1, 30, "missing")
    assert after[0] == known_after.holes[0] == Hole(1, 30, "lost")
    assert before[1:] == after[1:]
    assert [event.sequence for event in after[1:] if isinstance(event, JournalEvent)] == list(range(31, 41))
    assert known_before.num_events == known_after.num_events == 10


async def test_an_archive_that_is_away_is_no_hole(
    sqlite_store: SqliteStore, database: Database, folder: Archive
) -> None:
    session_id = new_id("sess")
    await journal_events(sqlite_store, session_id, make_events(20))
    await archive_in_parts(sqlite_store, database, folder, session_id, 20)
    recording = Recording(sqlite_store, database, cast("Archive", _Away()))

    with pytest.raises(ArchiveUnavailable):
        await shown(recording, session_id)
    with pytest.raises(ArchiveUnavailable):
        await recording.extent(session_id)


async def test_a_live_session_is_followed_until_it_ends(store: Store, database: Database, folder: Archive) -> None:
    session_id, events = new_id("sess"), make_events(30)
    await journal_events(store, session_id, events[:14])
    recording = Recording(store, database, folder, poll_s=0.01)
    found: list[Recorded] = []
    num_edges = 0

    async with asyncio.timeout(30), aclosing(cast("Any", recording.follow(session_id))) as stream:
        async for entry in stream:
            if not isinstance(entry, Edge):
                found.append(entry)
                continue
            num_edges += 1
            if num_edges == 1:
                await go_on(store, session_id, events[14:21], after=14)
            else:
                await go_on(store, session_id, events[21:], after=21, ends=True)

    assert found == as_recorded(events[:14]) + [
        JournalEvent(number, CREATED_MS + (14 if number < 22 else 21), events[number - 1]) for number in range(15, 31)
    ]
    assert num_edges == 2


async def test_each_look_for_more_gives_an_edge_as_soon_as_the_wait_before_it_ends(
    sqlite_store: SqliteStore, database: Database, folder: Archive
) -> None:
    session_id, events = new_id("sess"), make_events(3)
    waited_s: list[float] = []

    async def wait(seconds: float) -> None:
        waited_s.append(seconds)
        if len(waited_s) == 4:
            await go_on(sqlite_store, session_id, [b"{}"], after=3, ends=True)

    await journal_events(sqlite_store, session_id, events)
    recording = Recording(sqlite_store, database, folder, poll_s=3600)

    found = [entry async for entry in recording.follow(session_id, wait=wait)]

    assert [isinstance(entry, Edge) for entry in found] == [False] * 3 + [True] * 4 + [False]
    assert waited_s == [3600] * 4


async def test_an_ended_session_is_followed_to_its_end_only(
    sqlite_store: SqliteStore, database: Database, folder: Archive
) -> None:
    session_id, events = new_id("sess"), make_events(10)
    await journal_events(sqlite_store, session_id, events)
    await go_on(sqlite_store, session_id, [b"{}"], after=10, ends=True)

    found = [entry async for entry in Recording(sqlite_store, database, folder).follow(session_id)]

    assert len(found) == 11
    assert not any(isinstance(entry, Edge) for entry in found)


@pytest.mark.parametrize("tables_url", ["sqlite"], indirect=True)
async def test_a_hundred_thousand_events_are_never_in_memory_at_once(
    sqlite_store: SqliteStore, database: Database, folder: Archive
) -> None:
    """Neither from the journal nor from the archive."""
    session_id, num_events = new_id("sess"), 100_000
    event = b'{"type":"response.output_text.delta","event_id":"event_%026d","item_id":"item_1","delta":"some words"}'
    await journal_events(sqlite_store, session_id, [event % number for number in range(num_events)], in_commits_of=250)
    recording = Recording(sqlite_store, database, folder)

    from_journal = await most_memory(recording, session_id, num_events)
    await make_archiver(sqlite_store, database, folder).archive(make_archive(session_id, num_events))
    from_archive = await most_memory(recording, session_id, num_events)

    # All of it would be 13 MB as bytes and 40 MB as events.
    assert from_journal < 12 << 20
    assert from_archive < 4 << 20


async def most_memory(recording: Recording, session_id: str, num_events: int) -> int:
    """Read all; the bytes that Python held at most for it."""
    tracemalloc.start()
    try:
        num_read = 0
        async for _ in recording.events(session_id):
            num_read += 1
        assert num_read == num_events
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_lines_come_as_they_are_asked_for_and_damage_is_found() -> None:
    lines = [b'{"sequence":%d,"at_ms":1,"event":{"x":"%s"}}' % (number, b"y" * number) for number in range(1, 2000)]
    data = pack(lines)

    pieces = list(unpack_lines(data))

    assert len(pieces) > 10
    assert [line for piece in pieces for line in piece] == lines
    assert (first_line(data), last_line(data)) == (lines[0], lines[-1])
    assert decode_line(first_line(data)).sequence == 1
    for broken in (b"", b"zstd?", data[:10] + b"!!!!" + data[14:]):
        with pytest.raises(ValueError, match=r"."):
            last_line(broken)


def test_objects_are_held_up_to_a_bound_and_the_oldest_go_first() -> None:
    held = Held(100)

    for number in range(5):
        held.put(f"part {number}", bytes(30))
        held.get("part 0")
    held.put("too large", bytes(101))

    assert [number for number in range(5) if held.get(f"part {number}") is not None] == [0, 3, 4]
    assert held.get("too large") is None


class _Watched:
    """A store that something happens to before or after the nth look at it."""

    def __init__(self, store: Store, nth: int, happen: Callable[[], Any], comes: str = "before") -> None:
        self._store = store
        self._nth = nth
        self._happen = happen
        self._comes = comes
        self.num_looks = 0

    async def journal(self, session_id: str, after: int, limit: int) -> list[JournalEntry]:
        is_now = await self._look()
        found = await self._store.journal(session_id, after, limit)
        if is_now and self._comes == "after":
            await self._happen()
        return found

    async def peek(self, session_id: str) -> Glimpse | None:
        is_now = await self._look()
        found = await self._store.peek(session_id)
        if is_now and self._comes == "after":
            await self._happen()
        return found

    async def _look(self) -> bool:
        self.num_looks += 1
        is_now = self.num_looks == self._nth
        if is_now and self._comes == "before":
            await self._happen()
        return is_now


class _Empty:
    """A store that knows of nothing any more."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def journal(self, session_id: str, after: int, limit: int) -> list[JournalEntry]:
        return []

    async def peek(self, session_id: str) -> Glimpse | None:
        return None


class _Away:
    """An archive that does not answer."""

    async def get(self, key: str) -> bytes:
        raise ArchiveUnavailable("away")
