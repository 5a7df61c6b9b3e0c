"""What is left when all is over, read without the product's own reading code: rows in MySQL, objects in S3's folder, keys in Redis."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pymysql  # type: ignore[import-untyped]
import redis
import zstandard
from msgspec import Struct

from tests.faults.fleet import Fleet

_EVENT = b',"event":'
_SEQUENCE = b'{"sequence":'
_PREDICTIONS = (
    "SELECT p.response_id, p.session_id, p.status, p.status_reason, p.text, h.heard_chars"
    " FROM predictions p LEFT JOIN heard h ON h.session_id = p.session_id AND h.response_id = p.response_id"
)
_MOST_SHOWN = 5
_DEAD = "SELECT error, record FROM dead_letters ORDER BY id"
_ARCHIVED = "SELECT session_id, first_sequence, last_sequence FROM archives WHERE stored_at IS NOT NULL ORDER BY 1, 2"


class Turn(Struct, frozen=True):
    """A row of `turns`."""

    session_id: str
    number: int | None
    item_id: str | None
    text: str | None


class Prediction(Struct, frozen=True):
    """A row of `predictions`. `heard` is None where nothing was told of it."""

    response_id: str
    session_id: str
    status: str
    status_reason: str | None
    text: str
    heard: int | None = None


class Part(Struct, frozen=True):
    """An object of the archive: where it says that it is, and the events in it by number."""

    session_id: str
    first_sequence: int
    last_sequence: int
    events: tuple[tuple[int, bytes], ...]


class Evidence(Struct):
    """All that is stored. `sessions` are their statuses; `archived` the ranges that MySQL says are in S3."""

    sessions: dict[str, str | None]
    turns: list[Turn]
    predictions: list[Prediction]
    archived: dict[str, list[tuple[int, int]]]
    parts: list[Part]
    num_waiting: int = 0
    waiting: tuple[str, ...] = ()
    dead: tuple[str, ...] = ()
    leaked_keys: tuple[str, ...] = ()


def gather(fleet: Fleet) -> Evidence:
    """What this fleet has stored."""
    evidence = Evidence({}, [], [], {}, [])
    # Before the tables: what is stored between the two looks is then seen in both places, never in neither.
    _read_redis(fleet, evidence)
    port = fleet.members["mariadb"].service.port
    connection = pymysql.connect(
        host="127.0.0.1", port=port, user="flueman", password="flueman", database=fleet.database, connect_timeout=5
    )
    with closing(connection), connection.cursor() as cursor:

        def rows(query: str) -> list[tuple[Any, ...]]:
            cursor.execute(query)
            return list(cursor.fetchall())

        _read_tables(rows, fleet.bucket, evidence)
    return evidence


def gather_embedded(data_dir: Path) -> Evidence:
    """What the embedded default has stored, from a copy of its folder."""
    evidence = Evidence({}, [], [], {}, [])
    with closing(sqlite3.connect(data_dir / "flueman.db")) as tables:
        _read_tables(lambda query: tables.execute(query).fetchall(), data_dir / "archive", evidence)
    with closing(sqlite3.connect(data_dir / "sessions.db")) as store:
        [(evidence.num_waiting, num_events)] = store.execute(
            "SELECT (SELECT count(*) FROM outbox), (SELECT count(*) FROM journal)"
        )
        evidence.dead = tuple(f"{error} {record!r}" for error, record in store.execute(_DEAD))
        evidence.leaked_keys = ("journal",) if num_events else ()
    return evidence


def _read_tables(rows: Callable[[str], list[tuple[Any, ...]]], archive: Path, evidence: Evidence) -> None:
    evidence.sessions = dict(rows("SELECT session_id, status FROM sessions"))
    evidence.turns = [Turn(*row) for row in rows("SELECT session_id, number, item_id, text FROM turns")]
    evidence.predictions = [Prediction(*row) for row in rows(_PREDICTIONS)]
    for session_id, first, last in rows(_ARCHIVED):
        evidence.archived.setdefault(session_id, []).append((first, last))
    evidence.parts = list(read_parts(archive))


def read_parts(bucket: Path) -> Iterator[Part]:
    """The archive's objects in a folder."""
    for path in sorted(bucket.rglob("*.jsonl.zst")):
        first, last = path.name.removesuffix(".jsonl.zst").split("-")
        lines = zstandard.ZstdDecompressor().decompress(path.read_bytes()).splitlines()
        yield Part(path.parent.name, int(first), int(last), tuple(_event(line) for line in lines))


def _event(line: bytes) -> tuple[int, bytes]:
    head, mark, event = line.partition(_EVENT)
    assert mark, line
    sequence = head.removeprefix(_SEQUENCE).split(b",")[0]
    return int(sequence), event[:-1]


def _read_redis(fleet: Fleet, evidence: Evidence) -> None:
    port = fleet.members["redis"].service.port
    leaked: list[str] = []
    with redis.Redis(port=port) as connection:
        for key in sorted(key.decode() for key in connection.scan_iter(count=1000)):
            if key.endswith(":outbox"):
                waiting = _waiting(connection, key)
                evidence.num_waiting += len(waiting)
                evidence.waiting += waiting[:_MOST_SHOWN]
            elif key.endswith(":dead"):
                evidence.dead += _dead(connection, key)
            elif key.endswith(":owners"):
                num_owners = int(connection.zcard(key))
                if num_owners > len(fleet.named("node")):
                    leaked.append(f"{key} has {num_owners} owners")
            elif key.endswith(":journal") or int(connection.pttl(key)) < 0:
                leaked.append(key)
    evidence.leaked_keys = tuple(leaked)


def _dead(connection: redis.Redis, letters: str) -> tuple[str, ...]:
    """The dead letters, each with the error that it was buried for."""
    entries: Any = connection.xrange(letters)
    return tuple(f"{fields[b'error']} after {fields[b'deliveries']} {fields[b'record']}" for _, fields in entries)


def _waiting(connection: redis.Redis, outbox: str) -> tuple[str, ...]:
    """The records in the outbox, each with what the writers' group knows of it."""
    entries: Any = connection.xrange(outbox)
    if not entries:
        return ()
    groups: Any = connection.xinfo_groups(outbox)
    pending: Any = connection.xpending_range(outbox, "writer", "-", "+", 1000)
    known = {entry["message_id"]: entry for entry in pending}
    of_group = f"delivered up to {groups[0]['last-delivered-id']}"
    return tuple(f"{entry_id} {known.get(entry_id)} ({of_group}) {fields}" for entry_id, fields in entries)
