"""Takes records from the outbox and makes them rows and archived objects, each once, whatever is killed in between.

It acknowledges a record only after the commit that holds it. What is unavailable is waited for; a record that cannot be stored ends
among the dead letters with its error, and never holds up another. Nothing here logs what a user said.
"""

import asyncio
import random
import time
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import structlog
from msgspec import Struct

from persistence.archive import Archive
from persistence.archiver import Archiver
from persistence.database import Database
from persistence.errors import ArchiveUnavailable, DatabaseUnavailable, PersistenceError, PoisonRecord
from persistence.rows import RowRecord, quoted, write_rows
from persistence.stale import changed_sessions, mark_stale
from persistence.webhook_changes import Announce, announce_nothing
from sessions.errors import StoreUnavailable
from sessions.records import ArchiveRecord, PredictionRecord, decode_record
from sessions.store import Delivery, Store

T = TypeVar("T")

# Of so many records it is known how often they were refused; most of these another writer has stored meanwhile.
_MAX_REFUSED: Final = 10_000
# A larger row may exceed `max_allowed_packet` once its quotes are escaped, which looks like a lost connection, for ever.
_MAX_RECORD_BYTES: Final = 7 << 20

log = structlog.get_logger(__name__)


class WriterOptions(Struct, frozen=True, kw_only=True):
    """How a writer takes and tries. So many `max_refusals` by one writer bury a record; deliveries do not count: it may only have waited.

    After `num_patient_tries` a batch that fails while the database answers is taken apart, to find what it fails for. `wait_s` is how long
    the outbox is waited for at once, and so what a stop may take.
    """

    batch_size: int = 500
    wait_s: float = 0.25
    reclaim_every_s: float = 5.0
    min_idle_s: float = 30.0
    max_refusals: int = 5
    first_delay_s: float = 0.1
    max_delay_s: float = 10.0
    num_patient_tries: int = 5
    num_archivers: int = 4
    max_waiting_archives: int = 1000


class WriterFigures(Struct):
    """What the writer has done since it started. `num_stored` counts by kind of record; times are milliseconds since the epoch."""

    num_stored: Counter[str]
    num_refused: int = 0
    num_buried: int = 0
    num_retries: int = 0
    last_success_ms: int | None = None


class RowDelivery(Struct, frozen=True):
    """A record that becomes rows, and its place in the outbox."""

    delivery: Delivery
    record: RowRecord


class ArchiveDelivery(Struct, frozen=True):
    """A record that asks for archiving, and its place in the outbox."""

    delivery: Delivery
    record: ArchiveRecord


class Unexplained(Exception):
    """The database answers, but fails for these records, in a way that does not say whose fault it is."""


class Writer:
    """One worker on the outbox, called `consumer` there; any number of them may share it. `announce` notes whom else to tell of what."""

    def __init__(
        self,
        store: Store,
        database: Database,
        archive: Archive,
        *,
        consumer: str,
        announce: Announce = announce_nothing,
        options: WriterOptions | None = None,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self.figures = WriterFigures(num_stored=Counter())
        self._store = store
        self._database = database
        self._archiver = Archiver(store, database, archive, now_ms=now_ms)
        self._consumer = consumer
        self._announce = announce
        self._options = options or WriterOptions()
        self._now_ms = now_ms
        self._stopping = asyncio.Event()
        self._failing: dict[str, str] = {}
        self._num_refusals: dict[str, int] = {}
        self._archives: asyncio.Queue[ArchiveDelivery | None] = asyncio.Queue()
        self._archiving: set[str] = set()

    def stop(self) -> None:
        """Take nothing more; `run` returns once what was taken is stored, or at once where something is unavailable."""
        self._stopping.set()

    def failure(self) -> str | None:
        """What the writer is waiting for, in words, or None while all is well."""
        return "; ".join(f"{step}: {error}" for step, error in sorted(self._failing.items())) or None

    async def run(self) -> None:
        """Work until `stop`. What a cancelled run had taken is taken again by another, later."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._options.num_archivers):
                tasks.create_task(self._archive_waiting())
            try:
                await self._store_taken()
            finally:
                for _ in range(self._options.num_archivers):
                    self._archives.put_nowait(None)

    async def _store_taken(self) -> None:
        reclaimed_at = time.monotonic()
        while not self._stopping.is_set():
            if time.monotonic() - reclaimed_at >= self._options.reclaim_every_s:
                reclaimed_at = time.monotonic()
                await self._handle_abandoned()
            await self._handle(await self._until_available("outbox", self._take) or [])

    async def _handle_abandoned(self) -> None:
        # All of it: the oldest may be waiting for the archive, to be reclaimed again and again, and would hide what comes after them.
        num_taken = self._options.batch_size
        while num_taken == self._options.batch_size and not self._stopping.is_set():
            deliveries = await self._until_available("outbox", self._reclaim) or []
            await self._handle(deliveries)
            num_taken = len(deliveries)

    async def _take(self) -> list[Delivery]:
        return await self._store.take(self._consumer, self._options.batch_size, self._options.wait_s)

    async def _reclaim(self) -> list[Delivery]:
        return await self._store.reclaim(self._consumer, self._options.batch_size, self._options.min_idle_s)

    async def _handle(self, deliveries: Sequence[Delivery]) -> None:
        rows: list[RowDelivery] = []
        for delivery in deliveries:
            try:
                record = decode_record(_checked(delivery.record))
            except Exception as error:
                # Perhaps a newer release's record: one of its writers may know it, before the tries end.
                await self._refuse(delivery, error)
                continue
            if isinstance(record, ArchiveRecord):
                self._queue_archive(ArchiveDelivery(delivery, record))
            else:
                rows.append(RowDelivery(delivery, record))
        await self._store_rows(rows)

    def _queue_archive(self, work: ArchiveDelivery) -> None:
        # While the archive is away these pile up and must not hold back the rows: what does not fit stays in the outbox, reclaimed later.
        receipt = work.delivery.receipt
        if receipt not in self._archiving and len(self._archiving) < self._options.max_waiting_archives:
            self._archiving.add(receipt)
            self._archives.put_nowait(work)

    async def _store_rows(self, rows: list[RowDelivery]) -> None:
        """Store a batch in one transaction; halve it where it is refused, until what is refused stands alone."""
        groups = [rows] if rows else []
        while groups:
            group = groups.pop()
            try:
                if not await self._until_available("rows", self._write(group)):
                    return
            except Exception as error:
                # Of whatever kind: a bug that one record brings out must not stop all others, again with each start.
                if len(group) > 1:
                    middle = len(group) // 2
                    groups += [group[middle:], group[:middle]]
                elif isinstance(error, Unexplained):
                    # Waiting loses nothing, burying a good record would: it stays in the outbox, to be reclaimed, and the lag tells of it.
                    log.error("record_left", receipt=group[0].delivery.receipt, reason=str(error))
                else:
                    await self._refuse(group[0].delivery, error)
                continue
            await self._acknowledge([row.delivery for row in group], [row.record for row in group])

    def _write(self, group: Sequence[RowDelivery]) -> Callable[[], Awaitable[bool]]:
        """What stores these records when called, as often as it takes."""
        num_left = self._options.num_patient_tries

        async def write() -> bool:
            nonlocal num_left
            try:
                await self._store_records([row.record for row in group])
            except DatabaseUnavailable as error:
                num_left -= 1
                if num_left > 0:
                    raise
                await self._database.check()
                raise Unexplained(str(error)) from error
            return True

        return write

    async def _store_records(self, records: Sequence[RowRecord]) -> None:
        try:
            await self._commit(records)
        except PoisonRecord:
            match records:
                case [PredictionRecord() as prediction]:
                    await self._commit([quoted(prediction)])
                case _:
                    raise

    async def _commit(self, records: Sequence[RowRecord]) -> None:
        is_mysql = self._database.is_mysql
        async with self._database.transaction() as connection:
            await mark_stale(connection, changed_sessions(records), now_ms=self._now_ms(), is_mysql=is_mysql)
            async with self._announce(connection, records):
                await write_rows(connection, records, is_mysql=is_mysql)

    async def _archive_waiting(self) -> None:
        while (work := await self._archives.get()) is not None:
            # Once something is away, a stopping writer tries no further: the records are safe where they are.
            if not (self._stopping.is_set() and "archive" in self._failing):
                await self._archive(work)
            self._archiving.discard(work.delivery.receipt)

    async def _archive(self, work: ArchiveDelivery) -> None:
        try:
            archived = await self._until_available("archive", partial(self._archiver.archive, work.record))
        except Exception as error:
            await self._refuse(work.delivery, error)
            return
        if archived:
            await self._acknowledge([work.delivery], [work.record])

    async def _until_available(self, step: str, work: Callable[[], Awaitable[T]]) -> T | None:
        """The result of `work`, tried again for as long as something it needs is away; None when the writer stops meanwhile."""
        delay_s = self._options.first_delay_s
        while True:
            try:
                result = await work()
            except (DatabaseUnavailable, ArchiveUnavailable, StoreUnavailable) as error:
                self.figures.num_retries += 1
                self._failing[step] = f"{type(error).__name__}: {error}"
                log.warning("writer_waits", step=step, kind=type(error).__name__, reason=str(error), delay_s=delay_s)
            else:
                self._failing.pop(step, None)
                return result
            if await self._stopped_within(delay_s * random.uniform(0.5, 1.0)):  # noqa: S311
                return None
            delay_s = min(delay_s * 2, self._options.max_delay_s)

    async def _stopped_within(self, delay_s: float) -> bool:
        try:
            async with asyncio.timeout(delay_s):
                await self._stopping.wait()
        except TimeoutError:
            return False
        return True

    async def _acknowledge(self, deliveries: Sequence[Delivery], records: Sequence[object]) -> None:
        self.figures.num_stored.update(type(record).__name__.removesuffix("Record").lower() for record in records)
        self.figures.last_success_ms = self._now_ms()
        try:
            await self._store.acknowledge([delivery.receipt for delivery in deliveries])
        except StoreUnavailable as error:
            # They are delivered once more, and change nothing then.
            log.warning("acknowledgement_lost", num_records=len(deliveries), reason=str(error))

    async def _refuse(self, delivery: Delivery, error: Exception) -> None:
        """Leave the record for another try, or bury it when it had enough."""
        reason = _reason(error)
        num_refusals = self._num_refusals.pop(delivery.receipt, 0) + 1
        tries = {"receipt": delivery.receipt, "num_refusals": num_refusals, "reason": reason}
        if num_refusals < self._options.max_refusals:
            self._num_refusals[delivery.receipt] = num_refusals
            if len(self._num_refusals) > _MAX_REFUSED:
                del self._num_refusals[next(iter(self._num_refusals))]
            self.figures.num_refused += 1
            log.warning("record_refused", **tries)
            return
        try:
            await self._store.bury(delivery, reason)
        except StoreUnavailable as unavailable:
            log.warning("burial_postponed", receipt=delivery.receipt, reason=str(unavailable))
            return
        self.figures.num_buried += 1
        log.error("record_buried", **tries)


def _reason(error: Exception) -> str:
    """In words. An error of another package may quote the record: of that only its kind and where it arose."""
    if isinstance(error, PersistenceError):
        return str(error)
    *_, place = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}"


def _checked(record: bytes) -> bytes:
    if len(record) > _MAX_RECORD_BYTES:
        raise PoisonRecord(f"a record of {len(record)} bytes")
    return record
