"""Journals become objects: byte for byte, each event once, whoever dies or races in between."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import zstandard

from persistence.archive import Archive, open_archive
from persistence.archiver import Archiver
from persistence.database import Database
from persistence.errors import ArchiveConflict, ArchiveDamaged, JournalGap
from persistence.history import archived_events, archived_sequence
from persistence.part import JournalEvent, decode_line, encode_line, pack, part_key, unpack
from persistence.tables import archives
from persistence.writer import Writer
from sessions.sqlite_store import SqliteStore
from sessions.store import JournalEntry, Store
from tests import services
from tests.persistence.builders import (
    CREATED_MS,
    IMPATIENT,
    Crash,
    CrashingArchive,
    CrashingDatabase,
    CrashingStore,
    CrashPoint,
    WatchedStore,
    all_rows,
    journal_events,
    make_archive,
    make_events,
    make_session,
    new_id,
    running,
    settle,
    until,
)
from tests.persistence.conftest import bucket_url


def now_ms() -> int:
    return CREATED_MS + 60_000


def make_archiver(store: object, database: Database, archive: Archive, **changes: Any) -> Archiver:
    return Archiver(cast("Store", store), database, archive, now_ms=now_ms, **changes)


async def replayed(database: Database, archive: Archive, session_id: str, after: int = 0) -> list[JournalEvent]:
    return [event async for event in archived_events(database, archive, session_id, after=after)]


def expected(events: list[bytes], in_commits_of: int = 7) -> list[JournalEvent]:
    return [
        JournalEvent(sequence=index + 1, at_ms=CREATED_MS + index // in_commits_of * in_commits_of, event=event)
        for index, event in enumerate(events)
    ]


def objects(tmp_path: Path) -> list[str]:
    root = tmp_path / "archive"
    return sorted(
        str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and ".incoming" not in path.parts
    )


async def test_an_archived_session_reads_back_byte_for_byte(store: Store, database: Database, archive: Archive) -> None:
    """P8"""
    session_id = new_id("sess")
    events = make_events(100)
    await journal_events(store, session_id, events, [make_archive(session_id, 100), make_session(session_id)])

    await settle(store, database, archive, 2)

    assert await replayed(database, archive, session_id) == expected(events)
    assert await replayed(database, archive, session_id, after=98) == expected(events)[98:]
    (row,) = await all_rows(database, archives)
    assert row["object_key"] == f"sessions/2026/11/22/{session_id}/000000000001-000000000100.jsonl.zst"
    assert await store.journal(session_id, 0, 10) == []
    assert (await store.claim(session_id, "next")).archived_sequence == 100


@pytest.mark.parametrize(
    "step",
    [
        "before commit 1",
        "after commit 1",
        "before put",
        "after put",
        "before commit 2",
        "after commit 2",
        "before trim",
        "after trim",
        "before acknowledge",
    ],
)
@pytest.mark.parametrize("archive", ["folder", "moto"], indirect=True)
async def test_a_crash_between_any_two_steps_is_repaired_by_redelivery(
    store: Store, database: Database, archive: Archive, step: str
) -> None:
    """P3"""
    session_id = new_id("sess")
    events = make_events(40)
    await journal_events(store, session_id, events, [make_archive(session_id, 40)])
    point = CrashPoint(step)
    writer = Writer(
        cast("Store", CrashingStore(store, point)),
        CrashingDatabase(database, point),
        CrashingArchive(archive, point),
        consumer="doomed",
        options=IMPATIENT,
    )
    with pytest.RaisesGroup(Crash):
        await writer.run()
    assert point.reached[-1] == step
    assert (await store.lag()).pending == 1

    await settle(store, database, archive, 1)

    assert await replayed(database, archive, session_id) == expected(events)
    assert len(await all_rows(database, archives)) == 1
    assert (await store.lag()).pending == 0
    assert await store.journal(session_id, 0, 10) == []


async def test_an_archive_away_holds_up_only_what_is_to_be_archived(
    store: Store, database: Database, durable_s3: services.FolderS3Server
) -> None:
    """P9"""
    session_id = new_id("sess")
    events = make_events(30)
    watched = WatchedStore(store)
    async with open_archive(bucket_url(durable_s3)) as archive:
        writer = Writer(cast("Store", watched), database, archive, consumer="writer-1", options=IMPATIENT)
        durable_s3.kill()
        await journal_events(store, session_id, events, [make_archive(session_id, 30), make_session(session_id)])
        async with running(writer):
            await watched.until_settled(1)
            await until(lambda: "archive: ArchiveUnavailable" in (writer.failure() or ""))
            assert len(await store.journal(session_id, 0, 100)) > 0
            durable_s3.start()
            await watched.until_settled(2)

        assert await replayed(database, archive, session_id) == expected(events)
    assert watched.buried == []


async def test_many_writers_archiving_one_session_leave_each_event_in_one_object(
    store: Store, database: Database, folder: Archive, tmp_path: Path
) -> None:
    """P3"""
    session_id = new_id("sess")
    events = make_events(90)
    await journal_events(store, session_id, events)
    archivers = [make_archiver(store, database, folder, max_part_bytes=1500) for _ in range(4)]

    await asyncio.gather(
        *(
            archiver.archive(make_archive(session_id, last, final=last == 90))
            for archiver, last in zip(archivers, (20, 50, 70, 90), strict=True)
        )
    )

    assert await replayed(database, folder, session_id) == expected(events)
    rows = await all_rows(database, archives)
    assert len(rows) > 4
    assert objects(tmp_path) == sorted(str(row["object_key"]) for row in rows)
    assert await store.journal(session_id, 0, 10) == []


async def test_archiving_goes_on_where_the_last_part_ends(store: Store, database: Database, folder: Archive) -> None:
    session_id = new_id("sess")
    events = make_events(50)
    await journal_events(store, session_id, events)
    archiver = make_archiver(store, database, folder)

    await archiver.archive(make_archive(session_id, 33, final=False))
    left = await store.journal(session_id, 33, 100)
    await archiver.archive(make_archive(session_id, 50))
    await archiver.archive(make_archive(session_id, 33, final=False))

    # The entry that event 33 cuts is kept whole.
    assert left[0].first_sequence <= 34
    assert [row["first_sequence"] for row in await all_rows(database, archives)] == [1, 34]
    assert await replayed(database, folder, session_id) == expected(events)
    assert await archived_sequence(database, session_id) == 50


async def test_another_writers_trim_while_we_read_is_no_gap(
    sqlite_store: SqliteStore, database: Database, folder: Archive
) -> None:
    session_id = new_id("sess")
    events = make_events(20)
    await journal_events(sqlite_store, session_id, events)

    class OvertakenStore(WatchedStore):
        async def journal(self, session_id: str, after: int, limit: int) -> list[JournalEntry]:
            if not self.acknowledged:
                self.acknowledged.append("overtaken")
                await make_archiver(sqlite_store, database, folder).archive(make_archive(session_id, 20))
            return await self._store.journal(session_id, after, limit)

    await make_archiver(OvertakenStore(sqlite_store), database, folder).archive(make_archive(session_id, 20))

    assert await replayed(database, folder, session_id) == expected(events)


async def test_a_claim_lost_to_another_writer_never_lends_it_our_lines(
    sqlite_store: SqliteStore, database: Database, folder: Archive
) -> None:
    """The other claims and stores 1 to 10, then claims 11 to 20 and dies, all while we hold ten lines read for 1 to 10."""
    session_id = new_id("sess")
    events = make_events(20)
    await journal_events(sqlite_store, session_id, events, in_commits_of=10)
    num_bytes = sum(len(encode_line(event)) for event in expected(events, 10)[:10])
    dying = CrashingArchive(folder, CrashPoint("before put", nth=2))
    other = make_archiver(sqlite_store, database, dying, max_part_bytes=num_bytes)

    class OvertakenStore(WatchedStore):
        async def journal(self, session_id: str, after: int, limit: int) -> list[JournalEntry]:
            entries = await self._store.journal(session_id, after, limit)
            if not self.acknowledged:
                self.acknowledged.append("overtaken")
                with pytest.raises(Crash):
                    await other.archive(make_archive(session_id, 20))
            return entries

    ours = make_archiver(OvertakenStore(sqlite_store), database, folder)
    await ours.archive(make_archive(session_id, 10, final=False))

    assert [row["first_sequence"] for row in await all_rows(database, archives)] == [1, 11]
    assert await replayed(database, folder, session_id) == expected(events, 10)


async def test_a_journal_that_lost_events_is_never_archived_as_if_whole(
    store: Store, database: Database, folder: Archive, tmp_path: Path
) -> None:
    session_id = new_id("sess")
    await journal_events(store, session_id, make_events(20))
    await store.trim(session_id, 7, final=False)

    with pytest.raises(JournalGap):
        await make_archiver(store, database, folder).archive(make_archive(session_id, 20))
    with pytest.raises(JournalGap):
        await make_archiver(store, database, folder).archive(make_archive(new_id("sess"), 5))

    assert objects(tmp_path) == []
    assert await all_rows(database, archives) == []


async def test_what_a_store_lost_is_declared_and_the_rest_is_archived(
    store: Store, database: Database, folder: Archive
) -> None:
    """P3, P9: a store came back empty, and its owner wrote the session back."""
    session_id = new_id("sess")
    events = make_events(20)
    await journal_events(store, session_id, events)
    await store.trim(session_id, 7, final=False)
    record = make_archive(session_id, 20, forgotten_sequence=7)

    for _ in range(2):
        await make_archiver(store, database, folder).archive(record)

    assert await replayed(database, folder, session_id) == expected(events)[7:]
    assert await replayed(database, folder, session_id, after=10) == expected(events)[10:]
    rows = {
        (row["first_sequence"], row["last_sequence"], row["num_events"]) for row in await all_rows(database, archives)
    }
    assert rows == {(1, 7, 0), (8, 20, 13)}


async def test_a_part_that_was_archived_is_not_declared_lost(store: Store, database: Database, folder: Archive) -> None:
    session_id = new_id("sess")
    events = make_events(20)
    await journal_events(store, session_id, events)
    archiver = make_archiver(store, database, folder)
    await archiver.archive(make_archive(session_id, 7))

    await archiver.archive(make_archive(session_id, 20, forgotten_sequence=7))

    assert await replayed(database, folder, session_id) == expected(events)


async def test_a_session_without_events_is_done_at_once(store: Store, database: Database, folder: Archive) -> None:
    session_id = new_id("sess")
    await journal_events(store, session_id, [])

    await make_archiver(store, database, folder).archive(make_archive(session_id, 0))

    assert await all_rows(database, archives) == []


@pytest.mark.parametrize("archive", ["folder", "moto"], indirect=True)
async def test_other_bytes_under_the_key_are_a_conflict_unless_they_hold_the_same_events(
    sqlite_store: SqliteStore, database: Database, archive: Archive
) -> None:
    same_id, other_id = new_id("sess"), new_id("sess")
    events = make_events(9)
    for session_id in (same_id, other_id):
        await journal_events(sqlite_store, session_id, events)
    lines = b"".join(encode_line(event) + b"\n" for event in expected(events))
    same = zstandard.ZstdCompressor(level=1).compress(lines)
    keys = [part_key(session_id, CREATED_MS, 1, 9) for session_id in (same_id, other_id)]
    await archive.put(keys[0], same)
    await archive.put(keys[1], zstandard.ZstdCompressor().compress(lines.replace(b"2.50", b"2.51")))
    archiver = make_archiver(sqlite_store, database, archive)

    await archiver.archive(make_archive(same_id, 9))
    with pytest.raises(ArchiveConflict):
        await archiver.archive(make_archive(other_id, 9))

    assert await replayed(database, archive, same_id) == expected(events)
    assert len(await sqlite_store.journal(other_id, 0, 100)) == 2


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-1], lambda data: data[:9] + bytes([data[9] ^ 1]) + data[10:], lambda _: b""],
    ids=["cut", "one bit", "empty"],
)
async def test_a_damaged_object_is_never_replayed(
    sqlite_store: SqliteStore,
    database: Database,
    folder: Archive,
    tmp_path: Path,
    damage: Callable[[bytes], bytes],
) -> None:
    session_id = new_id("sess")
    await journal_events(sqlite_store, session_id, make_events(30))
    await make_archiver(sqlite_store, database, folder).archive(make_archive(session_id, 30))
    (name,) = objects(tmp_path)
    path = tmp_path / "archive" / name
    path.write_bytes(damage(path.read_bytes()))

    with pytest.raises(ArchiveDamaged):
        await replayed(database, folder, session_id)


def test_a_part_is_deterministic_and_its_lines_keep_every_byte() -> None:
    events = [JournalEvent(sequence=3, at_ms=5, event=b'{"a" : ",\\"event\\":\\r","event":{}}\r')]
    lines = [encode_line(event) for event in events]

    assert lines == [b'{"sequence":3,"at_ms":5,"event":{"a" : ",\\"event\\":\\r","event":{}}\r}']
    assert pack(lines) == pack(lines)
    assert zstandard.frame_content_size(pack(lines)) == len(lines[0]) + 1
    assert list(unpack(pack(lines))) == events
    with pytest.raises(ValueError, match="not a line"):
        decode_line(b'{"sequence":3}')
