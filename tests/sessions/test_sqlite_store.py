"""What only the store on SQLite can break: its file, its lock, expiry, and what `kill -9` leaves."""

import asyncio
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from sessions.errors import SessionNotFound, StoreUnavailable
from sessions.sqlite_store import SqliteStore, StoreInUse
from tests.sessions.stores import SESSION, make_append, make_meta, make_placed, read_events, take_all


async def test_a_final_session_expires_from_sqlite(tmp_path: Path) -> None:
    path = tmp_path / "sessions.sqlite"
    async with SqliteStore(path, retention_s=0.05) as store:
        await store.create(make_meta(), "node-1")
        await store.append([make_append(1, [b"1", b"2"], saved=[make_placed("item_1", 1.0)])])
        await store.trim(SESSION, 1, final=True)
        await asyncio.sleep(0.06)
        with pytest.raises(SessionNotFound):
            await store.claim(SESSION, "node-2")

    with closing(sqlite3.connect(path)) as database:
        counts = [
            database.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            for table in ("sessions", "items", "journal")
        ]
    assert counts == [0, 0, 0]


@pytest.mark.parametrize("by_append", [True, False])
async def test_a_change_starts_the_retention_of_a_final_session_anew(tmp_path: Path, by_append: bool) -> None:
    path, long_ago_ms, never_ms = tmp_path / "sessions.sqlite", 1_000_000_000_000, 10**15
    async with SqliteStore(path, retention_s=60) as store:
        await store.create(make_meta(), "node-1")
        await store.trim(SESSION, 0, final=True)
        with closing(sqlite3.connect(path, isolation_level=None)) as database:
            database.execute("UPDATE sessions SET expires_ms = ?", (never_ms,))

            if by_append:
                await store.append([make_append(1)])
            else:
                await store.claim(SESSION, "node-2")

            (expires_ms,) = database.execute("SELECT expires_ms FROM sessions").fetchone()
    assert long_ago_ms < expires_ms < never_ms


async def test_a_second_user_of_the_file_is_refused_by_name_until_the_first_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "sessions.sqlite"
    async with SqliteStore(path):
        with pytest.raises(StoreInUse, match=r"sessions\.sqlite"):
            async with SqliteStore(path):
                pass

    async with SqliteStore(path) as store:
        await store.ping()


async def test_sqlite_without_its_folder_is_unavailable_and_leaves_no_lock(tmp_path: Path) -> None:
    (tmp_path / "sessions.sqlite").mkdir()

    with pytest.raises(StoreUnavailable):
        async with SqliteStore(tmp_path / "sessions.sqlite"):
            pass
    (tmp_path / "sessions.sqlite").rmdir()

    async with SqliteStore(tmp_path / "sessions.sqlite") as store:
        await store.ping()


_APPENDER = """
import asyncio, sys
from pathlib import Path
from sessions.sqlite_store import SqliteStore
from tests.sessions.stores import SESSION, make_append, make_meta, make_placed

async def main():
    async with SqliteStore(Path(sys.argv[1])) as store:
        await store.create(make_meta(), "node-1")
        sequence = 1
        while True:
            events = [str(sequence).encode(), str(sequence + 1).encode()]
            item = make_placed(f"item_{sequence}", sequence)
            await store.append([make_append(sequence, events, records=[str(sequence).encode()], saved=[item])])
            sequence += 2
            print(sequence, flush=True)

asyncio.run(main())
"""


@contextmanager
def appending(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that appends to the store and prints the next sequence number after each acknowledgement."""
    command = [sys.executable, "-c", _APPENDER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as appender:
        try:
            yield appender
        finally:
            appender.kill()


async def test_sqlite_keeps_everything_acknowledged_before_kill_9(tmp_path: Path) -> None:
    """P3: and the lock of the dead process is gone."""
    path = tmp_path / "sessions.sqlite"
    with appending(path) as appender:
        assert appender.stdout is not None
        output = "".join(appender.stdout.readline() for _ in range(50))
        with pytest.raises(StoreInUse):
            async with SqliteStore(path):
                pass
        appender.send_signal(signal.SIGKILL)
        output += appender.stdout.read()

    async with SqliteStore(path) as store:
        loaded = await store.claim(SESSION, "node-2")
        events = await read_events(store)
        records = await take_all(store)

    acknowledged = int(output.split()[-1])
    # One append may be committed and not yet acknowledged.
    assert loaded.next_sequence in (acknowledged, acknowledged + 2)
    assert events == [str(number).encode() for number in range(1, loaded.next_sequence)]
    assert records == [str(number).encode() for number in range(1, loaded.next_sequence, 2)]
    assert len(loaded.items) == len(records)
