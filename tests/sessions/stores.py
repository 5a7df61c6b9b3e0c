"""Builders and readers for the tests of the stores, and what puts a store back to an older state."""

import asyncio
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Protocol

from redis import Redis

from sessions.items import InputText, MessageItem
from sessions.store import Append, LoadedSession, PlacedItem, SessionMeta, Store, encode_placed

SESSION = "sess_01JD0000000000000000000000"
OTHER = "sess_01JD0000000000000000000001"
# Of a session that "node-1" created.
FIRST_EPOCH = "1.node-1"


def make_meta(session_id: str = SESSION) -> SessionMeta:
    return SessionMeta(session_id, user_id="한나", client_id="kiosk", model="demo", created_ms=1_795_305_600_123)


def make_append(
    first_sequence: int,
    events: Sequence[bytes] = (b'{"n":1}',),
    *,
    session_id: str = SESSION,
    epoch: str = FIRST_EPOCH,
    at_ms: int = 1_795_305_600_456,
    records: Sequence[bytes] = (),
    saved: Sequence[PlacedItem] = (),
    dropped: Sequence[str] = (),
    config: bytes | None = None,
    ends: bool = False,
) -> Append:
    saved_items = {placed.item.id: encode_placed(placed) for placed in saved}
    return Append(
        session_id, epoch, first_sequence, at_ms, list(events), list(records), saved_items, list(dropped), config, ends
    )


def make_placed(item_id: str, rank: float, text: str = "hello") -> PlacedItem:
    return PlacedItem(rank, MessageItem(item_id, "user", (InputText(text),)))


async def take_records(store: Store) -> list[bytes]:
    return [delivery.record for delivery in await store.take("writer-1", 100, 0)]


async def read_events(store: Store, session_id: str = SESSION) -> list[bytes]:
    return [event for entry in await store.journal(session_id, 0, 1000) for event in entry.events]


async def take_all(store: Store) -> list[bytes]:
    records: list[bytes] = []
    while taken := await take_records(store):
        records += taken
    return records


async def adopt_when_lapsed(store: Store, owner: str, limit: int = 100) -> list[LoadedSession]:
    """What there is to adopt, once there is something: a lease runs by the store's clock, which nobody can wait on."""
    async with asyncio.timeout(30):
        while not (adopted := await store.adopt(owner, limit)):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return adopted


class Backup(Protocol):
    """A store's data, behind its back."""

    def take(self) -> None:
        """Remember the state of now."""

    def put_back(self) -> None:
        """The store is as it was then."""

    def wipe(self) -> None:
        """The store is empty."""


class RedisBackup:
    """Every key of a Redis."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._dumps: dict[bytes, bytes] = {}

    def take(self) -> None:
        with Redis.from_url(self._url) as client:
            self._dumps = {key: client.dump(key) for key in client.scan_iter()}

    def put_back(self) -> None:
        with Redis.from_url(self._url) as client:
            client.flushall()
            for key, dump in self._dumps.items():
                client.restore(key, 0, dump)

    def wipe(self) -> None:
        with Redis.from_url(self._url) as client:
            client.flushall()


class SqliteBackup:
    """Every page of a SQLite database."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._copy = path.with_suffix(".backup")

    def take(self) -> None:
        self._write(self._path, self._copy)

    def put_back(self) -> None:
        self._write(self._copy, self._path)

    def wipe(self) -> None:
        with closing(sqlite3.connect(self._path, isolation_level=None)) as database:
            for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                database.execute(f"DELETE FROM {table}")

    def _write(self, source: Path, target: Path) -> None:
        with closing(sqlite3.connect(source)) as database, closing(sqlite3.connect(target)) as other:
            database.backup(other)


async def check_mixed_batch(store: Store) -> None:
    """Each fourth session is fenced, a gap, or a retry; each brings a record, an item and a config, so that no part takes another's."""
    ids = [f"sess_{number:026}" for number in range(64)]
    for session_id in ids:
        await store.create(make_meta(session_id), "node-1")
    for session_id in ids[1::4]:
        await store.claim(session_id, "node-2")
    for session_id in ids[3::4]:
        await store.append([make_append(1, [b'{"first":1}'], session_id=session_id)])

    statuses = await store.append(
        [
            make_append(
                5 if number % 4 == 2 else 1,
                [f'{{"of":{number}}}'.encode()] * (1 + number % 3 if number % 4 != 3 else 1),
                session_id=session_id,
                records=[f"record {number}.{index}".encode() for index in range(number % 5)],
                saved=[make_placed(f"item_{number}", 1.0)],
                dropped=["item_gone"],
                config=str(number).encode() if number % 8 else None,
            )
            for number, session_id in enumerate(ids)
        ]
    )

    assert statuses == ["ok", "fenced", "gap", "dup"] * 16
    records = [f"record {number}.{index}".encode() for number in range(0, 64, 4) for index in range(number % 5)]
    assert sorted(await take_all(store)) == sorted(records)
    for number, session_id in enumerate(ids):
        loaded = await store.claim(session_id, "node-3")
        events = await read_events(store, session_id)
        stored = number % 4 == 0
        assert [placed.item.id for placed in loaded.items] == ([f"item_{number}"] if stored else [])
        assert loaded.config == (str(number).encode() if stored and number % 8 else b"")
        if stored:
            assert events == [f'{{"of":{number}}}'.encode()] * (1 + number % 3)
        assert loaded.next_sequence == len(events) + 1
