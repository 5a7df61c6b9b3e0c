"""The store of one process without Redis: a SQLite file that survives `kill -9` with everything acknowledged.

One thread owns the database; each call is one transaction there. A lock file keeps a second process out: two would not see each other's
arrivals in the outbox, and nobody should own a session twice.
"""

import asyncio
import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Concatenate, ParamSpec, Self, TypeVar

import msgspec

from sessions.errors import SessionError, SessionNotFound, StoreUnavailable
from sessions.store import (
    Append,
    AppendStatus,
    Delivery,
    JournalEntry,
    LoadedSession,
    OutboxLag,
    SessionMeta,
    decode_placed,
)

_P = ParamSpec("_P")
_T = TypeVar("_T")

_encode_meta = msgspec.json.Encoder().encode
_decode_meta = msgspec.json.Decoder(SessionMeta).decode

# synchronous=FULL: a commit is on the disk before it is acknowledged.
_PRAGMAS = "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON;"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS sessions (
  session_id TEXT PRIMARY KEY,
  meta BLOB NOT NULL,
  owner TEXT NOT NULL,
  epoch INTEGER NOT NULL,
  next_sequence INTEGER NOT NULL,
  archived_sequence INTEGER NOT NULL,
  config BLOB NOT NULL,
  expires_ms INTEGER
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS sessions_expiring ON sessions (expires_ms) WHERE expires_ms IS NOT NULL;
CREATE TABLE IF NOT EXISTS items (
  session_id TEXT NOT NULL REFERENCES sessions ON DELETE CASCADE,
  item_id TEXT NOT NULL,
  placed BLOB NOT NULL,
  PRIMARY KEY (session_id, item_id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS journal (
  session_id TEXT NOT NULL REFERENCES sessions ON DELETE CASCADE,
  last_sequence INTEGER NOT NULL,
  first_sequence INTEGER NOT NULL,
  at_ms INTEGER NOT NULL,
  events BLOB NOT NULL,
  PRIMARY KEY (session_id, last_sequence)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS outbox (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  record BLOB NOT NULL,
  added_ms INTEGER NOT NULL,
  consumer TEXT,
  taken_ms INTEGER,
  num_deliveries INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS outbox_new ON outbox (id) WHERE consumer IS NULL;
CREATE TABLE IF NOT EXISTS dead_letters (
  id INTEGER PRIMARY KEY,
  record BLOB NOT NULL,
  error TEXT NOT NULL,
  num_deliveries INTEGER NOT NULL,
  buried_ms INTEGER NOT NULL
);
"""


class StoreInUse(SessionError):
    """Another process holds the store at `path`."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"another process uses the store {path}: stop it, or give this one a store of its own")
        self.path = path


class SqliteStore:
    """`sessions.store.Store` in the file `path`, for one process (`StoreInUse` for the second).

    Every call answers within `timeout_s` or raises `StoreUnavailable`. A session that was trimmed for good is forgotten after
    `retention_s` without a change.
    """

    def __init__(self, path: Path, *, retention_s: float = 7 * 86_400, timeout_s: float = 10.0) -> None:
        self._path = path
        self._retention_ms = max(1, int(retention_s * 1000))
        self._timeout_s = timeout_s
        self._arrival = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._lock_file = _lock(self._path)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sqlite-store")
        try:
            self._database = await self._call(lambda: _open(self._path))
            await self._run(_forget_expired, _now_ms())
            await self._run(_release_taken)
        except BaseException:
            self._let_go()
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self._call(lambda: self._database.close())
        finally:
            self._let_go()

    async def ping(self) -> None:
        await self._run(_ping)

    async def create(self, meta: SessionMeta, owner: str) -> int:
        epoch = await self._run(_create, meta, owner, _now_ms())
        if epoch is None:
            raise SessionError(f"session {meta.session_id} exists already")
        return epoch

    async def claim(self, session_id: str, owner: str) -> LoadedSession:
        loaded = await self._run(_claim, session_id, owner, _now_ms(), self._retention_ms)
        if loaded is None:
            raise SessionNotFound(session_id)
        return loaded

    async def append(self, batch: Sequence[Append]) -> list[AppendStatus]:
        if not batch:
            return []
        statuses = await self._run(_append, batch, _now_ms(), self._retention_ms)
        if any(part.records for part in batch):
            self._announce()
        return statuses

    async def journal(self, session_id: str, after: int, limit: int) -> list[JournalEntry]:
        return await self._run(_journal, session_id, after, limit)

    async def trim(self, session_id: str, archived_sequence: int, *, final: bool) -> None:
        await self._run(_trim, session_id, archived_sequence, _now_ms(), self._retention_ms if final else None)

    async def enqueue(self, records: Sequence[bytes]) -> None:
        if not records:
            return
        await self._run(_enqueue, records, _now_ms())
        self._announce()

    async def take(self, consumer: str, limit: int, wait_s: float) -> list[Delivery]:
        deadline = time.monotonic() + wait_s
        while True:
            arrival = self._arrival
            deliveries = await self._run(_take, consumer, limit, _now_ms())
            remaining_s = deadline - time.monotonic()
            if deliveries or remaining_s <= 0:
                return deliveries
            try:
                async with asyncio.timeout(remaining_s):
                    await arrival.wait()
            except TimeoutError:
                return []

    async def reclaim(self, consumer: str, limit: int, min_idle_s: float) -> list[Delivery]:
        return await self._run(_reclaim, consumer, limit, _now_ms(), int(min_idle_s * 1000))

    async def acknowledge(self, receipts: Sequence[str]) -> None:
        await self._run(_acknowledge, receipts)

    async def bury(self, delivery: Delivery, error: str) -> None:
        await self._run(_bury, delivery, error, _now_ms())

    async def lag(self) -> OutboxLag:
        return await self._run(_lag, _now_ms())

    def _announce(self) -> None:
        # A new event for those who wait from now on: clearing the old one could swallow it for another who has not seen it yet.
        arrival, self._arrival = self._arrival, asyncio.Event()
        arrival.set()

    async def _run(
        self, work: Callable[Concatenate[sqlite3.Connection, _P], _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        """Do this in one transaction. A caller that is cancelled meanwhile does not know whether it was committed."""
        return await self._call(lambda: _transact(self._database, lambda: work(self._database, *args, **kwargs)))

    async def _call(self, work: Callable[[], _T]) -> _T:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except (sqlite3.Error, TimeoutError) as error:
            raise StoreUnavailable(
                f"the store {self._path} does not answer: {error or type(error).__name__}"
            ) from error

    def _let_go(self) -> None:
        self._thread.shutdown(wait=False)
        os.close(self._lock_file)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _lock(path: Path) -> int:
    """The descriptor that holds the lock until it is closed, at the latest by the kernel when this process dies."""
    descriptor = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise StoreInUse(path) from error
    return descriptor


def _open(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        database.executescript(_PRAGMAS)
        database.executescript(_SCHEMA)
    except BaseException:
        database.close()
        raise
    return database


def _transact(database: sqlite3.Connection, work: Callable[[], _T]) -> _T:
    database.execute("BEGIN IMMEDIATE")
    try:
        result = work()
        database.execute("COMMIT")
    except BaseException:
        # A full disk may have rolled back already.
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise
    return result


def _ping(database: sqlite3.Connection) -> None:
    database.execute("SELECT 1 FROM sessions LIMIT 1")


def _release_taken(database: sqlite3.Connection) -> None:
    # The lock says that we are alone: whoever took these is gone, and waiting for it to come back would only delay them.
    database.execute("UPDATE outbox SET consumer = NULL, taken_ms = NULL WHERE consumer IS NOT NULL")


def _forget_expired(database: sqlite3.Connection, now_ms: int) -> None:
    database.execute("DELETE FROM sessions WHERE expires_ms <= ?", (now_ms,))


def _create(database: sqlite3.Connection, meta: SessionMeta, owner: str, now_ms: int) -> int | None:
    _forget_expired(database, now_ms)
    encoded = _encode_meta(meta)
    row = database.execute(
        "SELECT owner, epoch, next_sequence, meta FROM sessions WHERE session_id = ?", (meta.session_id,)
    ).fetchone()
    if row is None:
        database.execute("INSERT INTO sessions VALUES (?, ?, ?, 1, 1, 0, x'', NULL)", (meta.session_id, encoded, owner))
    elif row != (owner, 1, 1, encoded):
        return None
    return 1


def _claim(
    database: sqlite3.Connection, session_id: str, owner: str, now_ms: int, retention_ms: int
) -> LoadedSession | None:
    _forget_expired(database, now_ms)
    row = database.execute(
        "UPDATE sessions SET epoch = epoch + 1, owner = ?, expires_ms = iif(expires_ms IS NULL, NULL, ?) WHERE session_id = ?"
        " RETURNING meta, epoch, next_sequence, archived_sequence, config",
        (owner, now_ms + retention_ms, session_id),
    ).fetchone()
    if row is None:
        return None
    meta, epoch, next_sequence, archived_sequence, config = row
    items = [
        decode_placed(placed)
        for (placed,) in database.execute("SELECT placed FROM items WHERE session_id = ?", (session_id,))
    ]
    items.sort(key=lambda placed: (placed.rank, placed.item.id))
    return LoadedSession(_decode_meta(meta), epoch, next_sequence, archived_sequence, config, tuple(items))


def _append(
    database: sqlite3.Connection, batch: Sequence[Append], now_ms: int, retention_ms: int
) -> list[AppendStatus]:
    _forget_expired(database, now_ms)
    return [_append_part(database, part, now_ms, retention_ms) for part in batch]


def _append_part(database: sqlite3.Connection, part: Append, now_ms: int, retention_ms: int) -> AppendStatus:
    session_id, first = part.session_id, part.first_sequence
    last = first + len(part.events) - 1
    row = database.execute("SELECT epoch, next_sequence FROM sessions WHERE session_id = ?", (session_id,)).fetchone()
    if row is None or row[0] != part.epoch:
        return "fenced"
    if row[1] != first:
        return "dup" if first <= last < row[1] else "gap"
    if part.events:
        database.execute(
            "INSERT INTO journal VALUES (?, ?, ?, ?, ?)", (session_id, last, first, part.at_ms, b"\n".join(part.events))
        )
    database.execute(
        "UPDATE sessions SET next_sequence = ?, config = ifnull(?, config), expires_ms = iif(expires_ms IS NULL, NULL, ?)"
        " WHERE session_id = ?",
        (last + 1, part.config, now_ms + retention_ms, session_id),
    )
    _enqueue(database, part.records, now_ms)
    database.executemany(
        "DELETE FROM items WHERE session_id = ? AND item_id = ?",
        [(session_id, item_id) for item_id in part.dropped_items],
    )
    database.executemany(
        "INSERT OR REPLACE INTO items VALUES (?, ?, ?)",
        [(session_id, item_id, placed) for item_id, placed in part.saved_items.items()],
    )
    return "ok"


def _journal(database: sqlite3.Connection, session_id: str, after: int, limit: int) -> list[JournalEntry]:
    rows = database.execute(
        "SELECT first_sequence, at_ms, events FROM journal WHERE session_id = ? AND last_sequence > ?"
        " ORDER BY last_sequence LIMIT ?",
        (session_id, after, limit),
    )
    return [JournalEntry(first, at_ms, tuple(events.split(b"\n"))) for first, at_ms, events in rows]


def _trim(
    database: sqlite3.Connection, session_id: str, archived_sequence: int, now_ms: int, retention_ms: int | None
) -> None:
    _forget_expired(database, now_ms)
    database.execute("DELETE FROM journal WHERE session_id = ? AND last_sequence <= ?", (session_id, archived_sequence))
    database.execute(
        "UPDATE sessions SET archived_sequence = max(archived_sequence, ?), expires_ms = ifnull(?, expires_ms)"
        " WHERE session_id = ?",
        (archived_sequence, None if retention_ms is None else now_ms + retention_ms, session_id),
    )


def _enqueue(database: sqlite3.Connection, records: Sequence[bytes], now_ms: int) -> None:
    database.executemany(
        "INSERT INTO outbox (record, added_ms) VALUES (?, ?)", [(record, now_ms) for record in records]
    )


def _take(database: sqlite3.Connection, consumer: str, limit: int, now_ms: int) -> list[Delivery]:
    rows = database.execute(
        "SELECT id, record, num_deliveries FROM outbox WHERE consumer IS NULL ORDER BY id LIMIT ?", (limit,)
    )
    return _deliver(database, rows.fetchall(), consumer, now_ms)


def _reclaim(database: sqlite3.Connection, consumer: str, limit: int, now_ms: int, min_idle_ms: int) -> list[Delivery]:
    rows = database.execute(
        "SELECT id, record, num_deliveries FROM outbox WHERE taken_ms <= ? ORDER BY id LIMIT ?",
        (now_ms - min_idle_ms, limit),
    )
    return _deliver(database, rows.fetchall(), consumer, now_ms)


def _deliver(
    database: sqlite3.Connection, rows: list[tuple[int, bytes, int]], consumer: str, now_ms: int
) -> list[Delivery]:
    database.executemany(
        "UPDATE outbox SET consumer = ?, taken_ms = ?, num_deliveries = num_deliveries + 1 WHERE id = ?",
        [(consumer, now_ms, row[0]) for row in rows],
    )
    return [Delivery(str(row_id), record, num_deliveries + 1) for row_id, record, num_deliveries in rows]


def _acknowledge(database: sqlite3.Connection, receipts: Sequence[str]) -> None:
    database.executemany("DELETE FROM outbox WHERE id = ?", [(int(receipt),) for receipt in receipts])


def _bury(database: sqlite3.Connection, delivery: Delivery, error: str, now_ms: int) -> None:
    # Only who takes it out of the outbox buries it, so that a retry buries it once.
    if database.execute("DELETE FROM outbox WHERE id = ?", (int(delivery.receipt),)).rowcount == 1:
        database.execute(
            "INSERT INTO dead_letters VALUES (?, ?, ?, ?, ?)",
            (int(delivery.receipt), delivery.record, error, delivery.num_deliveries, now_ms),
        )


def _lag(database: sqlite3.Connection, now_ms: int) -> OutboxLag:
    pending, oldest_ms = database.execute("SELECT count(*), min(added_ms) FROM outbox").fetchone()
    (dead,) = database.execute("SELECT count(*) FROM dead_letters").fetchone()
    return OutboxLag(pending, 0.0 if oldest_ms is None else max(0, now_ms - oldest_ms) / 1000, dead)
