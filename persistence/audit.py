"""The audit log: who looked at or changed what is not their own, in rows that only follow one another, each chained to the one before.

A row's hash covers its contents and the hash before it, and the head says which row is the last: what is changed, put in, taken out or cut
off afterwards is found by `verify`. Nothing here changes or deletes a row.
"""

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec
from msgspec import Struct
from sqlalchemy import func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from persistence.database import Database
from persistence.errors import PoisonRecord
from persistence.tables import audit_head, audit_logs
from persistence.times import microseconds, milliseconds, utc_time
from sessions.records import AuditRecord

FIRST_HASH: Final = "0" * 64

# By name, so that a column added later leaves the hashes of older rows as they are.
_HASHED: Final = (
    "number",
    "audit_id",
    "at",
    "actor_id",
    "role",
    "client_id",
    "action",
    "session_id",
    "detail",
    "previous_hash",
)
_HEAD_ID: Final = 1
_LOWEST_NUMBER: Final = -(2**63)
_PAGE_ROWS: Final = 500


class AuditRow(Struct, frozen=True):
    """One row of the log. `detail` is a JSON object; `hash` is the row's own."""

    number: int
    audit_id: str
    at_ms: int
    actor_id: str
    role: str
    client_id: str
    action: str
    session_id: str | None
    detail: str
    hash: str


class AuditFilter(Struct, frozen=True, kw_only=True):
    """Which rows are wanted; None is any."""

    actor_id: str | None = None
    session_id: str | None = None
    action: str | None = None


class AuditEnd(Struct, frozen=True):
    """The last row of a log that is intact. Whoever keeps it elsewhere can tell later whether that log was cut off or written anew."""

    number: int
    hash: str


class BrokenRow(Struct, frozen=True):
    """The first row that is not as it was written."""

    number: int
    reason: str


async def append(connection: AsyncConnection, records: Sequence[AuditRecord]) -> None:
    """Add the records that are not in the log yet, within a transaction of the caller's, which then holds the head's lock to its end."""
    if not records:
        return
    end = await _locked_end(connection)
    found = await connection.execute(
        select(audit_logs.c.audit_id).where(audit_logs.c.audit_id.in_(sorted({record.audit_id for record in records})))
    )
    known = set(found.scalars())
    rows: list[dict[str, object]] = []
    for record in records:
        if record.audit_id not in known:
            known.add(record.audit_id)
            rows.append(_row_after(end, record))
            end = AuditEnd(end.number + 1, str(rows[-1]["hash"]))
    if rows:
        await connection.execute(insert(audit_logs), rows)
        head = update(audit_head).where(audit_head.c.head_id == _HEAD_ID)
        await connection.execute(head.values(number=end.number, hash=end.hash))


async def audit_page(
    database: Database, wanted: AuditFilter, *, limit: int, before_number: int | None = None
) -> list[AuditRow]:
    """Up to `limit` rows, the newest first, of those numbered below `before_number`."""
    query = select(audit_logs).order_by(audit_logs.c.number.desc()).limit(limit)
    for name, value in msgspec.structs.asdict(wanted).items():
        if value is not None:
            query = query.where(audit_logs.c[name] == value)
    if before_number is not None:
        query = query.where(audit_logs.c.number < before_number)
    async with database.snapshot() as connection:
        return [
            AuditRow(
                number=row.number,
                audit_id=row.audit_id,
                at_ms=milliseconds(row.at),
                actor_id=row.actor_id,
                role=row.role,
                client_id=row.client_id,
                action=row.action,
                session_id=row.session_id,
                detail=row.detail,
                hash=row.hash,
            )
            for row in await connection.execute(query)
        ]


async def verify(database: Database, known: AuditEnd | None = None) -> AuditEnd | BrokenRow:
    """Read the whole log and compute every hash anew; with an end `known` from before, also whether it is the log that had that end."""
    end = AuditEnd(0, FIRST_HASH)
    after = _LOWEST_NUMBER
    while True:
        for row in await _page(database, after):
            flaw = _flaw(row, end, known)
            if flaw is not None:
                return flaw
            end = AuditEnd(row["number"], row["hash"])
            after = end.number
        head, newest = await _head_and_newest(database)
        if newest is None or newest <= end.number:
            break
    if head is None:
        return BrokenRow(end.number + 1, "cannot be told to be the next: the log's head was taken away")
    if end.number < max(head.number, known.number if known else 0):
        return BrokenRow(end.number + 1, "is missing, as are all after it")
    if head != end:
        return BrokenRow(min(head.number + 1, end.number), "is not what the log's head says")
    return end


def _row_after(end: AuditEnd, record: AuditRecord) -> dict[str, object]:
    row: dict[str, object] = {
        "number": end.number + 1,
        "audit_id": record.audit_id,
        "at": utc_time(record.at_ms),
        "actor_id": record.actor_id,
        "role": record.role,
        "client_id": record.client_id,
        "action": record.action,
        "session_id": record.session_id,
        "detail": bytes(record.detail).decode(),
        "previous_hash": end.hash,
    }
    return row | {"hash": _hash(row)}


def _hash(row: Mapping[str, Any]) -> str:
    content = {name: microseconds(row[name]) if isinstance(row[name], datetime) else row[name] for name in _HASHED}
    return hashlib.sha256(msgspec.json.encode(content, order="sorted")).hexdigest()


def _flaw(row: Mapping[str, Any], before: AuditEnd, known: AuditEnd | None) -> BrokenRow | None:
    expected = before.number + 1
    number: int = row["number"]
    if number > expected:
        return BrokenRow(expected, "is missing")
    if number < expected:
        return BrokenRow(number, "was put in")
    if row["hash"] != _hash(row):
        return BrokenRow(number, "was changed")
    if row["previous_hash"] != before.hash:
        return BrokenRow(number, "does not follow the row before it")
    if known is not None and number == known.number and row["hash"] != known.hash:
        return BrokenRow(number, "is another than it was")
    return None


async def _locked_end(connection: AsyncConnection) -> AuditEnd:
    # SQLite knows no such lock and needs none: its transactions for writing follow one another.
    query = select(audit_head.c.number, audit_head.c.hash).where(audit_head.c.head_id == _HEAD_ID).with_for_update()
    head = (await connection.execute(query)).one_or_none()
    if head is None:
        raise PoisonRecord("the head of the audit log was taken away")
    return AuditEnd(*head)


async def _page(database: Database, after: int) -> list[dict[str, Any]]:
    query = select(audit_logs).where(audit_logs.c.number > after).order_by(audit_logs.c.number).limit(_PAGE_ROWS)
    async with database.snapshot() as connection:
        return [{**row} for row in (await connection.execute(query)).mappings()]


async def _head_and_newest(database: Database) -> tuple[AuditEnd | None, int | None]:
    # In one statement, or else a writer may add a row between the two.
    newest = select(func.max(audit_logs.c.number)).scalar_subquery()
    query = select(newest, audit_head.c.number, audit_head.c.hash).where(audit_head.c.head_id == _HEAD_ID)
    async with database.snapshot() as connection:
        row = (await connection.execute(query)).one_or_none()
        if row is None:
            return None, await connection.scalar(select(func.max(audit_logs.c.number)))
    return AuditEnd(row[1], row[2]), row[0]
