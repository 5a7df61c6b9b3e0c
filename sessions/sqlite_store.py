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

from sessions import sqlite_revocations
from sessions import sqlite_transactions as transactions
from sessions.errors import SessionError, SessionNotFound, StoreUnavailable
from sessions.feedback import Feedback
from sessions.lost_claims import LostClaims
from sessions.revocation import Heard, Revocation
from sessions.sqlite_schema import open_database
from sessions.store import (
    Append,
    AppendStatus,
    DeadLetter,
    Delivery,
    Glimpse,
    JournalEntry,
    LoadedSession,
    OutboxLag,
    PlacedItem,
    SessionMeta,
)

_P = ParamSpec("_P")
_T = TypeVar("_T")


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
        self._is_revoked = asyncio.Event()
        self._lease_ms: dict[str, int] = {}
        self._lost_claims = LostClaims()

    async def __aenter__(self) -> Self:
        self._lock_file = _lock(self._path)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sqlite-store")
        try:
            self._database = await self._call(lambda: open_database(self._path))
            await self._run(transactions.begin_alone, _now_ms())
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
        await self._run(transactions.ping)

    async def create(self, meta: SessionMeta, owner: str) -> str:
        try:
            epoch = await self._run(transactions.create, meta, self._claimer(owner))
        except (StoreUnavailable, asyncio.CancelledError):
            self._lost_claims.add(owner, [meta.session_id])
            raise
        self._lost_claims.discard(owner, meta.session_id)
        if epoch is None:
            raise SessionError(f"session {meta.session_id} exists already")
        return epoch

    async def claim(
        self, session_id: str, owner: str, *, user_id: str | None = None, client_id: str | None = None
    ) -> LoadedSession:
        whose = (user_id, client_id)
        try:
            loaded = await self._run(transactions.claim, session_id, self._claimer(owner), whose, self._retention_ms)
        except (StoreUnavailable, asyncio.CancelledError):
            self._lost_claims.add(owner, [session_id])
            raise
        if loaded is None:
            raise SessionNotFound(session_id)
        self._lost_claims.discard(owner, session_id)
        return loaded

    async def epoch(self, session_id: str) -> str | None:
        return await self._run(transactions.epoch, session_id)

    async def is_adopted(self, session_id: str, since: str) -> bool:
        return await self._run(transactions.is_adopted, session_id, since)

    async def peek(self, session_id: str) -> Glimpse | None:
        return await self._run(transactions.peek, session_id, _now_ms())

    async def item(self, session_id: str, item_id: str) -> PlacedItem | None:
        return await self._run(transactions.item, session_id, item_id, _now_ms())

    async def rate(self, session_id: str, item_id: str, feedback: Feedback) -> None:
        await self._run(transactions.rate, session_id, item_id, feedback, _now_ms())

    async def renew(self, owner: str, lease_s: float) -> list[str]:
        self._lease_ms[owner] = max(1, int(lease_s * 1000))
        taken = await self._run(transactions.renew, self._claimer(owner))
        if taken:
            # Only now they are told: had this call been cut short, the next would bring them.
            await self._run(transactions.forget_taken, owner, taken)
        return list(taken)

    async def adopt(self, owner: str, limit: int) -> list[LoadedSession]:
        if limit <= 0:
            return []
        owner_of = dict.fromkeys(self._lost_claims.take(owner, limit), owner)
        try:
            owner_of |= await self._run(transactions.lapsed, owner, limit - len(owner_of), _now_ms())
            return await self._run(transactions.adopt, owner_of, self._claimer(owner), self._retention_ms)
        except (StoreUnavailable, asyncio.CancelledError):
            self._lost_claims.add(owner, owner_of)
            raise

    async def surrender(self, owner: str) -> None:
        self._lease_ms.pop(owner, None)
        await self._run(transactions.surrender, owner)

    async def restore(
        self,
        meta: SessionMeta,
        owner: str,
        epoch: str,
        *,
        next_sequence: int,
        config: bytes,
        items: Sequence[PlacedItem],
    ) -> str | None:
        return await self._run(
            transactions.restore, meta, self._claimer(owner), epoch, next_sequence, config, list(items)
        )

    async def append(self, batch: Sequence[Append]) -> list[AppendStatus]:
        if not batch:
            return []
        statuses = await self._run(transactions.append, batch, _now_ms(), self._retention_ms)
        if any(part.records for part in batch):
            self._announce()
        return statuses

    async def journal(self, session_id: str, after: int, limit: int) -> list[JournalEntry]:
        return await self._run(transactions.journal, session_id, after, limit)

    async def trim(self, session_id: str, archived_sequence: int, *, final: bool) -> None:
        await self._run(
            transactions.trim, session_id, archived_sequence, _now_ms(), self._retention_ms if final else None
        )

    async def enqueue(self, records: Sequence[bytes]) -> None:
        if not records:
            return
        await self._run(transactions.enqueue, records, _now_ms())
        self._announce()

    async def take(self, consumer: str, limit: int, wait_s: float) -> list[Delivery]:
        deadline = time.monotonic() + wait_s
        while True:
            arrival = self._arrival
            deliveries = await self._run(transactions.take, consumer, limit, _now_ms())
            remaining_s = deadline - time.monotonic()
            if deliveries or remaining_s <= 0:
                return deliveries
            try:
                async with asyncio.timeout(remaining_s):
                    await arrival.wait()
            except TimeoutError:
                return []

    async def reclaim(self, consumer: str, limit: int, min_idle_s: float) -> list[Delivery]:
        return await self._run(transactions.reclaim, consumer, limit, _now_ms(), int(min_idle_s * 1000))

    async def acknowledge(self, receipts: Sequence[str]) -> None:
        await self._run(transactions.acknowledge, receipts)

    async def bury(self, delivery: Delivery, error: str) -> None:
        await self._run(transactions.bury, delivery, error, _now_ms())

    async def dead(self, limit: int) -> list[DeadLetter]:
        return await self._run(transactions.dead, limit)

    async def revive(self, limit: int) -> int:
        num_revived = await self._run(transactions.revive, limit, _now_ms())
        if num_revived:
            self._announce()
        return num_revived

    async def lag(self) -> OutboxLag:
        return await self._run(transactions.lag, _now_ms())

    async def revoke(self, revocation: Revocation) -> None:
        await self._run(sqlite_revocations.revoke, revocation, time.time_ns() // 1000)
        self._is_revoked.set()

    async def revocations(self, after: str, wait_s: float) -> Heard:
        self._is_revoked.clear()
        heard = await self._run(sqlite_revocations.revocations, after)
        if heard.revocations or wait_s <= 0:
            return heard
        try:
            async with asyncio.timeout(wait_s):
                await self._is_revoked.wait()
        except TimeoutError:
            return heard
        later = await self._run(sqlite_revocations.revocations, heard.mark)
        return later._replace(is_anew=later.is_anew or heard.is_anew)

    def _claimer(self, owner: str) -> transactions.Claimer:
        return transactions.Claimer(owner, self._lease_ms.get(owner, 0), _now_ms())

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
        except (sqlite3.Error, OSError) as error:
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
    try:
        descriptor = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreUnavailable(f"the store {path} cannot be opened: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise StoreInUse(path) from error
    return descriptor


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
