"""What only the store on SQLite can break: its file, its lock, expiry, and what `kill -9` leaves."""

import asyncio
import resource
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec
import pytest

from sessions import sqlite_schema, sqlite_store, sqlite_transactions
from sessions.errors import SessionNotFound, StoreUnavailable
from sessions.sqlite_store import SqliteStore, StoreInUse
from sessions.store import encode_placed
from tests.sessions.stores import OTHER, SESSION, make_append, make_meta, make_placed, read_events, take_all


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


_OLD_SHAPE = """
CREATE TABLE sessions (
  session_id TEXT PRIMARY KEY,
  meta BLOB NOT NULL,
  owner TEXT NOT NULL,
  epoch INTEGER NOT NULL,
  next_sequence INTEGER NOT NULL,
  archived_sequence INTEGER NOT NULL,
  config BLOB NOT NULL,
  expires_ms INTEGER
) WITHOUT ROWID;
CREATE INDEX sessions_expiring ON sessions (expires_ms) WHERE expires_ms IS NOT NULL;
CREATE TABLE items (
  session_id TEXT NOT NULL REFERENCES sessions ON DELETE CASCADE,
  item_id TEXT NOT NULL,
  placed BLOB NOT NULL,
  PRIMARY KEY (session_id, item_id)
) WITHOUT ROWID;
CREATE TABLE journal (
  session_id TEXT NOT NULL REFERENCES sessions ON DELETE CASCADE,
  last_sequence INTEGER NOT NULL,
  first_sequence INTEGER NOT NULL,
  at_ms INTEGER NOT NULL,
  events BLOB NOT NULL,
  PRIMARY KEY (session_id, last_sequence)
) WITHOUT ROWID;
CREATE TABLE outbox (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  record BLOB NOT NULL,
  added_ms INTEGER NOT NULL,
  consumer TEXT,
  taken_ms INTEGER,
  num_deliveries INTEGER NOT NULL DEFAULT 0
);
INSERT INTO outbox (record, added_ms) VALUES (x'31', 1795305600000);
"""


def make_old_database(path: Path) -> None:
    """Two sessions as they were stored when epochs were numbers: one that goes on, and one that has ended."""
    with closing(sqlite3.connect(path)) as database:
        database.executescript(_OLD_SHAPE)
        for session_id, expires_ms in ((SESSION, None), (OTHER, 10**14)):
            meta = msgspec.json.encode(make_meta(session_id))
            row = (session_id, meta, "host.1", 3, 3, 1, b"{}", expires_ms)
            database.execute("INSERT INTO sessions VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
            database.execute(
                "INSERT INTO items VALUES (?, 'item_1', ?)", (session_id, encode_placed(make_placed("item_1", 1)))
            )
            database.execute("INSERT INTO journal VALUES (?, 2, 2, 7, ?)", (session_id, b"2"))
        database.commit()


async def test_a_file_of_the_older_shape_is_opened_with_everything_in_it(tmp_path: Path) -> None:
    """P3."""
    path = tmp_path / "sessions.sqlite"
    make_old_database(path)

    for _ in range(2):
        async with SqliteStore(path) as store:
            await store.ping()
    async with SqliteStore(path) as store:
        old = await store.append([make_append(3, [b"3"], epoch="3.host.1"), make_append(4, epoch="2.host.1")])
        adopted = await store.adopt("node-2", 10)
        ended = await store.claim(OTHER, "node-2")
        events = [await read_events(store), await read_events(store, OTHER)]
        records = await take_all(store)

    assert old == ["ok", "fenced"]
    assert [(loaded.meta, loaded.epoch) for loaded in adopted] == [(make_meta(), "4.node-2")]
    for loaded in (*adopted, ended):
        assert (loaded.archived_sequence, loaded.config, loaded.items) == (1, b"{}", (make_placed("item_1", 1),))
    assert (ended.epoch, ended.next_sequence) == ("4.node-2", 3)
    assert events == [[b"2", b"3"], [b"2"]]
    assert records == [b"1"]
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA foreign_key_check").fetchall() == []
        assert database.execute("SELECT count(*) FROM sqlite_master WHERE name = 'sessions_expiring'").fetchone() == (
            1,
        )


async def test_a_migration_that_is_cut_short_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """P3."""
    path = tmp_path / "sessions.sqlite"
    make_old_database(path)
    with monkeypatch.context() as patched:
        patched.setattr(sqlite_schema, "_FROM_NUMBERS", (*sqlite_schema._FROM_NUMBERS, "SELECT 1 FROM nothing"))
        with pytest.raises(StoreUnavailable):
            async with SqliteStore(path):
                pass

    async with SqliteStore(path) as store:
        assert (await store.claim(SESSION, "node-2")).epoch == "4.node-2"


async def test_whoever_opens_the_file_may_adopt_at_once(tmp_path: Path) -> None:
    """P6: who had a lease is gone, says the lock."""
    path = tmp_path / "sessions.sqlite"
    async with SqliteStore(path) as store:
        await store.create(make_meta(), "node-1")
        await store.renew("node-1", 3600)

    async with SqliteStore(path) as store:
        assert [loaded.epoch for loaded in await store.adopt("node-2", 10)] == ["2.node-2"]


async def test_no_owner_stays_in_sqlite(tmp_path: Path) -> None:
    path = tmp_path / "sessions.sqlite"
    async with SqliteStore(path) as store:
        for session_id in (SESSION, OTHER):
            await store.create(make_meta(session_id), "node-1")
        await store.renew("node-1", 0.001)
        await store.renew("node-2", 60)
        await store.claim(OTHER, "node-2")
        with closing(sqlite3.connect(path, isolation_level=None)) as database:
            database.execute("UPDATE taken SET taken_ms = taken_ms - 3600000")
            await store.renew("node-2", 60)
            assert database.execute("SELECT * FROM taken").fetchall() == []
        await asyncio.sleep(0.01)
        await store.adopt("node-2", 10)
        await store.renew("node-1", 60)
        await store.claim(OTHER, "node-1")
        await store.claim(OTHER, "node-2")
        await store.surrender("node-1")

    with closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT owner FROM owners").fetchall() == [("node-2",)]
        assert database.execute("SELECT * FROM taken").fetchall() == []


async def test_a_claim_that_was_cut_short_is_adopted_by_the_claimer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P6: it was done after all, and its owner, which lives, knows nothing of it."""
    path = tmp_path / "sessions.sqlite"
    loop, transact, begins = asyncio.get_running_loop(), sqlite_store._transact, asyncio.Event()

    def transact_and_tell(database: sqlite3.Connection, work: Callable[[], object]) -> object:
        loop.call_soon_threadsafe(begins.set)
        return transact(database, work)

    async with SqliteStore(path) as store:
        await store.create(make_meta(), "node-1")
        await store.renew("node-1", 60)
        with closing(sqlite3.connect(path, isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")
            monkeypatch.setattr(sqlite_store, "_transact", transact_and_tell)
            cut = asyncio.ensure_future(store.claim(SESSION, "node-2"))
            # Before its thread has it, it would be called off and not cut short.
            await begins.wait()
            cut.cancel()
            with pytest.raises(asyncio.CancelledError):
                await cut
            database.execute("ROLLBACK")
        with pytest.raises(SessionNotFound):
            await store.claim(SESSION, "node-2", user_id="a stranger")

        assert [loaded.epoch for loaded in await store.adopt("node-2", 10)] == ["3.node-2"]
        assert await store.adopt("node-2", 10) == []


async def test_a_full_sqlite_refuses_and_goes_on_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P9."""
    path = tmp_path / "sessions.sqlite"
    monkeypatch.setattr(sqlite_schema, "_PRAGMAS", sqlite_schema._PRAGMAS + "PRAGMA max_page_count=100;")
    async with SqliteStore(path) as store:
        await store.create(make_meta(), "node-1")

        with pytest.raises(StoreUnavailable, match="full"):
            await store.append([make_append(1, [bytes(1_000_000)], records=[b"record"])])
        assert await store.append([make_append(1, records=[b"record"])]) == ["ok"]

        assert await take_all(store) == [b"record"]


async def test_an_input_output_error_is_unavailable_and_passes(tmp_path: Path) -> None:
    """P9: the disk refuses to write."""
    async with SqliteStore(tmp_path / "sessions.sqlite") as store:
        await store.create(make_meta(), "node-1")
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
        try:
            with pytest.raises(StoreUnavailable):
                await store.append([make_append(1, [bytes(2_000_000)], records=[b"record"])])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

        assert await store.append([make_append(1, records=[b"record"])]) == ["ok"]
        assert await take_all(store) == [b"record"]


async def test_a_folder_that_is_missing_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="No such file"):
        async with SqliteStore(tmp_path / "missing" / "sessions.sqlite"):
            pass


async def test_an_owner_that_renews_just_before_it_is_adopted_keeps_its_session_in_sqlite(
    sqlite_store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P4."""
    await sqlite_store.create(make_meta(), "node-1")
    search = sqlite_transactions.lapsed

    def search_and_renew(database: sqlite3.Connection, owner: str, limit: int, now_ms: int) -> dict[str, str]:
        found = search(database, owner, limit, now_ms)
        sqlite_transactions.renew(database, sqlite_transactions.Claimer("node-1", 60_000, now_ms))
        return found

    monkeypatch.setattr(sqlite_transactions, "lapsed", search_and_renew)

    assert await sqlite_store.adopt("node-2", 10) == []
    assert await sqlite_store.append([make_append(1)]) == ["ok"]


async def test_a_restored_session_lasts_in_sqlite_until_it_ends_again(tmp_path: Path) -> None:
    path = tmp_path / "sessions.sqlite"
    async with SqliteStore(path) as store:
        await store.create(make_meta(), "node-1")
        await store.trim(SESSION, 0, final=True)

        await store.restore(make_meta(), "node-1", "1.node-1", next_sequence=2, config=b"", items=())

    with closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT expires_ms FROM sessions").fetchall() == [(None,)]
