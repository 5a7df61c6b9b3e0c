"""Records with sensible contents, a session with a journal, a store that tells when its outbox is settled, faults to order."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import msgspec
from msgspec import Raw
from sqlalchemy import Table, select
from sqlalchemy.ext.asyncio import AsyncConnection
from ulid import ULID

from persistence.archive import Archive, PutResult
from persistence.database import Database
from persistence.writer import Writer, WriterOptions
from sessions.feedback import feedback_id
from sessions.records import (
    ArchiveRecord,
    AuditRecord,
    FeedbackRecord,
    HeardRecord,
    NoteRecord,
    PredictionRecord,
    Record,
    RequestRecord,
    SentRecord,
    SessionRecord,
    Trace,
    TurnRecord,
    encode_record,
)
from sessions.store import Append, Delivery, SessionMeta, Store

# 2026-11-22T23:59:58.123Z
CREATED_MS = 1_795_391_998_123
IMPATIENT = WriterOptions(
    wait_s=0.05, reclaim_every_s=0.05, min_idle_s=0.1, max_refusals=2, first_delay_s=0.02, max_delay_s=0.1
)


def new_id(prefix: str) -> str:
    return f"{prefix}_{ULID()}"


def make_session(session_id: str, **changes: Any) -> SessionRecord:
    record = SessionRecord(
        session_id=session_id,
        sequence=1,
        user_id="anna",
        client_id="kiosk",
        model="demo",
        status="active",
        created_ms=CREATED_MS,
        updated_ms=CREATED_MS,
    )
    return msgspec.structs.replace(record, **changes)


def make_turn(session_id: str, number: int = 1, **changes: Any) -> TurnRecord:
    record = TurnRecord(
        turn_id=new_id("turn"),
        session_id=session_id,
        sequence=10 * number,
        number=number,
        item_id=f"item_é{number}",
        text="Wie heißt du? 🙂",
        created_ms=CREATED_MS + 1000 * number,
    )
    return msgspec.structs.replace(record, **changes)


def make_prediction(session_id: str, turn_id: str | None = None, **changes: Any) -> PredictionRecord:
    record = PredictionRecord(
        response_id=new_id("resp"),
        session_id=session_id,
        sequence=15,
        turn_id=turn_id,
        model="demo",
        model_version="1",
        status="completed",
        status_reason=None,
        text="Ich heiße Flueman.",
        output=Raw(b'[{"type":"message","id":"item_2"}]'),
        request=Raw(b'{"instructions":"","tools":[]}'),
        input_tokens=12,
        output_tokens=5,
        cached_tokens=8,
        created_ms=CREATED_MS + 1500,
        first_token_ms=CREATED_MS + 1531,
        done_ms=CREATED_MS + 1720,
    )
    return msgspec.structs.replace(record, **changes)


def make_sent(session_id: str, response_id: str, **changes: Any) -> SentRecord:
    record = SentRecord(response_id, session_id, sequence=16, sent_chars=18, at_ms=CREATED_MS + 2000)
    return msgspec.structs.replace(record, **changes)


def make_heard(session_id: str, response_id: str, **changes: Any) -> HeardRecord:
    record = HeardRecord(
        response_id=response_id,
        item_id="item_é2",
        session_id=session_id,
        sequence=17,
        heard_text="Ich heiße 🙂",
        heard_chars=12,
        at_ms=CREATED_MS + 2100,
    )
    return msgspec.structs.replace(record, **changes)


def make_trace(**changes: Any) -> Trace:
    trace = Trace(
        prompt="<|user|>Wie heißt du? 🙂<|assistant|>",
        sampling=Raw(b'{"temperature":0.8,"max_tokens":64}'),
        queued_ms=CREATED_MS + 1503,
        engine_first_token_ms=CREATED_MS + 1529,
        last_token_ms=CREATED_MS + 1715,
        prompt_version="sha256:0123456789ab",
        persona="kiosk",
    )
    return msgspec.structs.replace(trace, **changes)


def make_feedback(session_id: str, item_id: str = "item_2", user_id: str = "anna", **changes: Any) -> FeedbackRecord:
    record = FeedbackRecord(
        feedback_id=feedback_id(session_id, item_id, user_id),
        session_id=session_id,
        item_id=item_id,
        user_id=user_id,
        role="user",
        sequence=18,
        rating="up",
        rated_ms=CREATED_MS + 3000,
        received_ms=CREATED_MS + 3020,
    )
    return msgspec.structs.replace(record, **changes)


def make_note(session_id: str, **changes: Any) -> NoteRecord:
    record = NoteRecord(
        note_id=new_id("note"),
        session_id=session_id,
        author_id="sam",
        text="Zögert hier. 🙂",
        position_ms=1720,
        created_ms=CREATED_MS + 60_000,
    )
    return msgspec.structs.replace(record, **changes)


def make_audit(session_id: str | None = None, **changes: Any) -> AuditRecord:
    record = AuditRecord(
        audit_id=new_id("audit"),
        actor_id="sam",
        role="support",
        client_id="kiosk",
        action="session.view",
        session_id=session_id,
        detail=Raw(b'{"b":"\\u00e9","a":1}'),
        at_ms=CREATED_MS + 60_000,
    )
    return msgspec.structs.replace(record, **changes)


def make_request(**changes: Any) -> RequestRecord:
    record = RequestRecord(
        request_id=new_id("req"),
        user_id="anna",
        method="GET",
        path="/v1/sessions",
        status=200,
        duration_ms=1.25,
        created_ms=CREATED_MS,
    )
    return msgspec.structs.replace(record, **changes)


def make_archive(session_id: str, last_sequence: int, **changes: Any) -> ArchiveRecord:
    record = ArchiveRecord(
        session_id=session_id,
        sequence=last_sequence,
        created_ms=CREATED_MS,
        last_sequence=last_sequence,
        final=True,
    )
    return msgspec.structs.replace(record, **changes)


def make_events(num_events: int) -> list[bytes]:
    """Events whose bytes no JSON library would write again: spaces, escapes, a nested mark like the one of our lines."""
    return [
        b'{ "type":"response.output_text.delta","delta":"\\u00e9\\/ %d","x":{"a":1,"event":{"b": 2.50}}}' % number
        for number in range(1, num_events + 1)
    ]


async def journal_events(
    store: Store, session_id: str, events: Sequence[bytes], records: Sequence[Record] = (), *, in_commits_of: int = 7
) -> None:
    """Create the session and commit the events, with the records in the last commit."""
    meta = SessionMeta(session_id=session_id, user_id="anna", client_id="kiosk", model="demo", created_ms=CREATED_MS)
    epoch = await store.create(meta, "node")
    for start in range(0, len(events), in_commits_of):
        part = list(events[start : start + in_commits_of])
        is_last = start + in_commits_of >= len(events)
        append = Append(
            session_id=session_id,
            epoch=epoch,
            first_sequence=start + 1,
            at_ms=CREATED_MS + start,
            events=part,
            records=[encode_record(record) for record in records] if is_last else [],
            saved_items={},
            dropped_items=[],
        )
        assert await store.append([append]) == ["ok"]


async def enqueue(store: Store, records: Sequence[Record]) -> None:
    await store.enqueue([encode_record(record) for record in records])


async def all_rows(database: Database, table: Table) -> list[dict[str, object]]:
    async with database.snapshot() as connection:
        rows = await connection.execute(select(table).order_by(*table.primary_key.columns))
    return [dict(row) for row in rows.mappings()]


class WatchedStore:
    """A store, whose acknowledgements and burials can be waited for."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._changed = asyncio.Condition()
        self.acknowledged: list[str] = []
        self.buried: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def acknowledge(self, receipts: Sequence[str]) -> None:
        await self._store.acknowledge(receipts)
        await self._note(self.acknowledged, receipts)

    async def bury(self, delivery: Delivery, error: str) -> None:
        await self._store.bury(delivery, error)
        await self._note(self.buried, [delivery.receipt])

    async def until_settled(self, num_records: int) -> None:
        """Wait until so many different records are acknowledged or buried."""
        async with asyncio.timeout(60), self._changed:
            await self._changed.wait_for(lambda: len({*self.acknowledged, *self.buried}) >= num_records)

    async def _note(self, where: list[str], receipts: Sequence[str]) -> None:
        async with self._changed:
            where.extend(receipts)
            self._changed.notify_all()


async def until(condition: Callable[[], bool]) -> None:
    """Wait until a figure of the writer's says so; it sends no signal that could be waited for."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@asynccontextmanager
async def running(*writers: Writer) -> AsyncIterator[None]:
    """The writers at work, stopped at the end of the block."""
    async with asyncio.TaskGroup() as tasks:
        for writer in writers:
            tasks.create_task(writer.run())
        try:
            yield
        finally:
            for writer in writers:
                writer.stop()


async def settle(
    store: Store, database: Database, archive: Archive, num_records: int, options: WriterOptions = IMPATIENT
) -> WatchedStore:
    """Run one writer until so many records are settled."""
    watched = WatchedStore(store)
    writer = Writer(cast("Store", watched), database, archive, consumer="writer-1", options=options)
    async with running(writer):
        await watched.until_settled(num_records)
    return watched


class Crash(BaseException):
    """The process is killed here: nothing catches that."""


class CrashPoint:
    """Raises `Crash` when the named step is reached, the given time."""

    def __init__(self, step: str, nth: int = 1) -> None:
        self._step = step
        self._left = nth
        self.reached: list[str] = []

    def reach(self, step: str) -> None:
        self.reached.append(step)
        if step == self._step:
            self._left -= 1
            if self._left == 0:
                raise Crash(step)


class CrashingDatabase(Database):
    """Crashes before or after the commit of a transaction."""

    def __init__(self, database: Database, point: CrashPoint) -> None:
        super().__init__(database.engine, timeout_s=5.0)
        self._point = point
        self._numbers = itertools.count(1)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        number = next(self._numbers)
        async with super().transaction() as connection:
            yield connection
            self._point.reach(f"before commit {number}")
        self._point.reach(f"after commit {number}")


class CrashingArchive:
    """Crashes before or after a put."""

    def __init__(self, archive: Archive, point: CrashPoint) -> None:
        self._archive = archive
        self._point = point

    async def put(self, key: str, data: bytes) -> PutResult:
        self._point.reach("before put")
        result = await self._archive.put(key, data)
        self._point.reach("after put")
        return result

    async def get(self, key: str) -> bytes:
        return await self._archive.get(key)

    async def check(self) -> None:
        await self._archive.check()


class CrashingStore(WatchedStore):
    """Crashes before or after a trim, an acknowledgement or a burial."""

    def __init__(self, store: Store, point: CrashPoint) -> None:
        super().__init__(store)
        self._point = point

    async def trim(self, session_id: str, archived_sequence: int, *, final: bool) -> None:
        self._point.reach("before trim")
        await self._store.trim(session_id, archived_sequence, final=final)
        self._point.reach("after trim")

    async def acknowledge(self, receipts: Sequence[str]) -> None:
        self._point.reach("before acknowledge")
        await super().acknowledge(receipts)
        self._point.reach("after acknowledge")

    async def bury(self, delivery: Delivery, error: str) -> None:
        self._point.reach("before bury")
        await super().bury(delivery, error)
        self._point.reach("after bury")
