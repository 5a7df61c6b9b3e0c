"""The audit log: each row once, in a chain without holes, whoever appends; and what is done to it afterwards is found."""

import asyncio
import hashlib
from collections.abc import Sequence
from typing import cast

import msgspec
import pytest
from msgspec import Raw
from sqlalchemy import event, text

from persistence.archive import Archive
from persistence.audit import (
    FIRST_HASH,
    AuditEnd,
    AuditFilter,
    AuditRow,
    BrokenRow,
    append,
    audit_page,
    verify,
)
from persistence.database import Database
from persistence.errors import PoisonRecord
from persistence.rows import RowRecord, write_rows
from persistence.tables import audit_head, audit_logs, requests
from persistence.writer import Writer
from sessions.records import AuditRecord
from sessions.store import Store
from tests.persistence.builders import (
    CREATED_MS,
    IMPATIENT,
    Crash,
    CrashingDatabase,
    CrashPoint,
    WatchedStore,
    all_rows,
    enqueue,
    make_audit,
    make_request,
    new_id,
    running,
    settle,
)


async def write(database: Database, records: Sequence[RowRecord]) -> None:
    async with database.transaction() as connection:
        await write_rows(connection, records, is_mysql=database.is_mysql)


async def audited_ids(database: Database) -> list[object]:
    """In their order; the log is intact."""
    rows = await all_rows(database, audit_logs)
    end = await verify(database)
    assert isinstance(end, AuditEnd), end
    assert [row["number"] for row in rows] == list(range(1, end.number + 1))
    return [row["audit_id"] for row in rows]


async def execute(database: Database, statement: str) -> None:
    async with database.transaction() as connection:
        await connection.execute(text(statement))


async def test_an_empty_log_is_intact(database: Database) -> None:
    assert await verify(database) == AuditEnd(0, FIRST_HASH)


async def test_a_row_says_who_did_what_and_its_hash_can_be_computed_by_anybody(database: Database) -> None:
    record = make_audit("sess_1", actor_id="säm 🙂 ", detail=Raw(b'{"b":"\\u00e9",  "a":1.50}'))

    await write(database, [record])

    (row,) = await audit_page(database, AuditFilter(), limit=9)
    assert (row.number, row.actor_id, row.action, row.session_id) == (1, "säm 🙂 ", "session.view", "sess_1")
    assert (row.at_ms, row.detail) == (record.at_ms, '{"b":"\\u00e9",  "a":1.50}')
    canonical = (
        '{"action":"session.view","actor_id":"säm 🙂 ",'
        f'"at":{record.at_ms}000,"audit_id":"{record.audit_id}","client_id":"kiosk",'
        r'"detail":"{\"b\":\"\\u00e9\",  \"a\":1.50}",'
        f'"number":1,"previous_hash":"{FIRST_HASH}","role":"support","session_id":"sess_1"}}'
    )
    assert row.hash == hashlib.sha256(canonical.encode()).hexdigest()


async def test_what_is_delivered_again_is_added_once(database: Database) -> None:
    first, second, third = (make_audit() for _ in range(3))

    await write(database, [first, second, first])
    await write(database, [second, third])
    await write(database, [third])

    assert await audited_ids(database) == [first.audit_id, second.audit_id, third.audit_id]


async def test_two_writers_that_append_at_once_make_one_chain(
    store: Store, database: Database, folder: Archive
) -> None:
    """P3"""
    records = [make_audit() for _ in range(300)]
    await enqueue(store, records)
    watched = WatchedStore(store)
    options = msgspec.structs.replace(IMPATIENT, batch_size=7)
    writers = [
        Writer(cast("Store", watched), database, folder, consumer=f"writer-{number}", options=options)
        for number in range(2)
    ]

    async with running(*writers):
        await watched.until_settled(len(records))

    assert watched.buried == []
    assert sorted(map(str, await audited_ids(database))) == sorted(record.audit_id for record in records)
    assert all(writer.figures.num_stored["audit"] for writer in writers)


async def test_a_writer_waits_for_the_one_that_is_appending(mariadb: Database) -> None:
    """Between reading the end of the log and adding to it nobody else adds: there is neither a fork nor a hole."""
    first, second = make_audit(), make_audit()
    waiting = asyncio.Event()

    async def write_second() -> None:
        async with mariadb.transaction() as connection:
            waiting.set()
            await append(connection, [second])

    async with asyncio.TaskGroup() as tasks, mariadb.transaction() as connection:
        await append(connection, [first])
        tasks.create_task(write_second())
        await waiting.wait()
        # A round trip of its own: the other statement is at the server, and waits.
        async with mariadb.snapshot() as other:
            while not await other.scalar(text("SELECT COUNT(*) FROM information_schema.innodb_lock_waits")):
                pass

    assert await audited_ids(mariadb) == [first.audit_id, second.audit_id]


async def test_a_crash_between_any_two_statements_leaves_all_of_a_batch_or_nothing(database: Database) -> None:
    """P3"""
    batch: list[RowRecord] = [make_request(), make_audit(), make_audit()]
    ids = [record.audit_id for record in batch if isinstance(record, AuditRecord)]
    point = CrashPoint("")
    event.listen(database.engine.sync_engine, "before_cursor_execute", lambda *_: point.reach("statement"))
    num_crashes = 0
    while True:
        point = CrashPoint("statement", num_crashes + 1)
        try:
            await write(database, batch)
        except Crash:
            num_crashes += 1
            point = CrashPoint("")
            assert (await audited_ids(database), await all_rows(database, requests)) == ([], [])
        else:
            point = CrashPoint("")
            break

    assert num_crashes >= 4
    assert await audited_ids(database) == ids
    for step in ("before commit 1", "after commit 1"):
        more = make_audit()
        crashing = CrashingDatabase(database, CrashPoint(step))
        with pytest.raises(Crash):
            await write(crashing, [*batch, more])
        await write(database, [*batch, more])
        ids.append(more.audit_id)
        assert await audited_ids(database) == ids


async def test_poison_beside_it_costs_an_audit_neither_its_place_nor_its_neighbours(
    store: Store, database: Database, folder: Archive
) -> None:
    good = [make_audit() for _ in range(9)]
    poison = make_audit(actor_id="ö" * 256)
    await enqueue(store, [*good[:4], poison, *good[4:]])

    watched = await settle(store, database, folder, 10)

    assert len(watched.buried) == 1
    assert sorted(map(str, await audited_ids(database))) == sorted(record.audit_id for record in good)


DAMAGE = {
    "an edited actor": ("UPDATE audit_logs SET actor_id = 'nobody' WHERE number = 4", 4, "was changed"),
    "an edited time": ("UPDATE audit_logs SET at = '2026-11-23 00:00:00' WHERE number = 4", 4, "was changed"),
    "an edited detail": ("UPDATE audit_logs SET detail = '{}' WHERE number = 1", 1, "was changed"),
    "a removed session": ("UPDATE audit_logs SET session_id = NULL WHERE number = 2", 2, "was changed"),
    "an edited hash": (f"UPDATE audit_logs SET hash = '{'0' * 64}' WHERE number = 3", 3, "was changed"),
    "a deleted first row": ("DELETE FROM audit_logs WHERE number = 1", 1, "is missing"),
    "a deleted row": ("DELETE FROM audit_logs WHERE number = 3", 3, "is missing"),
    "a deleted last row": ("DELETE FROM audit_logs WHERE number = 5", 5, "is missing, as are all after it"),
    "two deleted last rows": ("DELETE FROM audit_logs WHERE number >= 4", 4, "is missing, as are all after it"),
    "all rows deleted": ("DELETE FROM audit_logs", 1, "is missing, as are all after it"),
    "a moved row": ("UPDATE audit_logs SET number = 0 WHERE number = 1", 0, "was put in"),
    "the head deleted": (
        "DELETE FROM audit_head",
        6,
        "cannot be told to be the next: the log's head was taken away",
    ),
    "the head put back": ("UPDATE audit_head SET number = 3", 4, "is not what the log's head says"),
}


@pytest.mark.parametrize("damage", DAMAGE)
async def test_what_is_done_to_the_log_is_found_and_the_first_bad_row_named(database: Database, damage: str) -> None:
    statement, number, reason = DAMAGE[damage]
    await write(database, [make_audit("sess_1") for _ in range(5)])
    assert isinstance(await verify(database), AuditEnd)

    await execute(database, statement)

    assert await verify(database) == BrokenRow(number, reason)


async def rewrite(database: Database, audit_ids: Sequence[str]) -> None:
    """What somebody could do who knows how the log is made, and may write to all of its tables."""
    async with database.transaction() as connection:
        await connection.execute(text("DELETE FROM audit_logs"))
        await connection.execute(text(f"UPDATE audit_head SET number = 0, hash = '{FIRST_HASH}'"))
        await append(connection, [make_audit(audit_id=audit_id, actor_id="nobody") for audit_id in audit_ids])


@pytest.mark.parametrize(
    ("num_left", "bad"),
    [(5, BrokenRow(4, "is another than it was")), (3, BrokenRow(4, "is missing, as are all after it"))],
)
async def test_a_log_that_was_written_anew_is_found_by_whoever_kept_its_end(
    database: Database, num_left: int, bad: BrokenRow
) -> None:
    records = [make_audit() for _ in range(5)]
    await write(database, records[:4])
    known = await verify(database)
    assert isinstance(known, AuditEnd)
    await write(database, records[4:])
    assert isinstance(await verify(database, known), AuditEnd)

    await rewrite(database, [record.audit_id for record in records[:num_left]])

    assert isinstance(await verify(database), AuditEnd)
    assert await verify(database, known) == bad


async def test_without_its_head_nothing_is_appended_and_nothing_lost(
    sqlite_store: Store, database: Database, folder: Archive
) -> None:
    """A head made anew would hide that the log was cut."""
    await execute(database, "DELETE FROM audit_head")
    await enqueue(sqlite_store, [make_audit(), make_request()])

    watched = await settle(sqlite_store, database, folder, 2)

    assert (len(watched.acknowledged), len(watched.buried)) == (1, 1)
    (letter,) = await sqlite_store.dead(9)
    assert "the head of the audit log was taken away" in letter.error
    with pytest.raises(PoisonRecord):
        await write(database, [make_audit()])


async def test_a_long_log_is_verified_page_by_page(database: Database) -> None:
    await write(database, [make_audit() for _ in range(1203)])

    end = await verify(database)
    await execute(database, "UPDATE audit_logs SET role = 'user' WHERE number = 1100")

    assert isinstance(end, AuditEnd)
    assert end.number == 1203
    assert await verify(database) == BrokenRow(1100, "was changed")
    (head,) = await all_rows(database, audit_head)
    assert head == {"head_id": 1, "number": 1203, "hash": end.hash}


async def test_pages_hold_each_row_once_the_newest_first_and_filters_choose(database: Database) -> None:
    session_id = new_id("sess")
    records = [
        make_audit(session_id if number % 3 == 0 else None, actor_id=f"actor{number % 2}", action=f"act{number % 4}")
        for number in range(12)
    ]
    await write(database, records)

    async def ids(wanted: AuditFilter) -> list[str]:
        rows: list[AuditRow] = []
        while page := await audit_page(database, wanted, limit=5, before_number=rows[-1].number if rows else None):
            rows += page
        return [row.audit_id for row in rows]

    newest_first = records[::-1]
    assert await ids(AuditFilter()) == [record.audit_id for record in newest_first]
    assert await ids(AuditFilter(actor_id="actor1")) == [it.audit_id for it in newest_first if it.actor_id == "actor1"]
    assert await ids(AuditFilter(session_id=session_id, action="act0")) == [
        it.audit_id for it in newest_first if it.session_id == session_id and it.action == "act0"
    ]


async def test_an_audit_of_what_was_never_there_is_kept(database: Database) -> None:
    await write(database, [make_audit("sess_that_never_was"), make_audit(at_ms=CREATED_MS - 10**11)])

    assert len(await audited_ids(database)) == 2
