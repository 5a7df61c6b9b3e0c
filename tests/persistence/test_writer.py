"""The writer against real stores and databases: exactly once in rows, whatever is away, refused or killed."""

import asyncio
import contextlib
from typing import cast

import msgspec
import pytest
import structlog
from msgspec import Raw
from sqlalchemy import func, select, text

import persistence.columns
from persistence.archive import Archive, open_archive
from persistence.database import Database
from persistence.feedback import feedback_of_session
from persistence.history import load_dialogue
from persistence.tables import predictions, sessions, turns
from persistence.upsert import Row
from persistence.writer import Writer
from sessions.records import Record, TurnRecord, decode_record, encode_record
from sessions.store import Store
from tests import services
from tests.persistence.builders import (
    IMPATIENT,
    Crash,
    CrashingDatabase,
    CrashingStore,
    CrashPoint,
    WatchedStore,
    all_rows,
    enqueue,
    journal_events,
    make_archive,
    make_audit,
    make_events,
    make_feedback,
    make_note,
    make_prediction,
    make_request,
    make_session,
    make_trace,
    make_turn,
    new_id,
    running,
    settle,
    until,
)
from tests.persistence.conftest import bucket_url


def make_writer(store: object, database: Database, archive: Archive, consumer: str = "writer-1") -> Writer:
    return Writer(cast("Store", store), database, archive, consumer=consumer, options=IMPATIENT)


def dialogue_records(session_id: str, num_turns: int) -> list[Record]:
    records: list[Record] = [make_session(session_id)]
    for number in range(1, num_turns + 1):
        turn = make_turn(session_id, number)
        records += [turn, make_prediction(session_id, turn.turn_id)]
    return records


async def test_records_become_rows_and_leave_the_outbox(store: Store, database: Database, folder: Archive) -> None:
    session_id = new_id("sess")
    records = dialogue_records(session_id, 3)
    await enqueue(store, records)

    await settle(store, database, folder, len(records))

    dialogue = await load_dialogue(database, session_id)
    assert dialogue is not None
    assert [turn.number for turn in dialogue.turns] == [1, 2, 3]
    assert len(dialogue.predictions) == 3
    assert (await store.lag()).pending == 0


async def test_two_writers_on_one_outbox_store_each_record_once(
    store: Store, database: Database, folder: Archive
) -> None:
    """P3"""
    ids = [new_id("sess") for _ in range(100)]
    records = [record for session_id in ids for record in dialogue_records(session_id, 10)][:2000]
    # Children first: every stub is needed.
    await enqueue(store, records[::-1])
    watched = WatchedStore(store)
    writers = [make_writer(watched, database, folder, f"writer-{number}") for number in range(2)]

    async with running(*writers):
        await watched.until_settled(len(records))

    async with database.snapshot() as connection:
        counts = [
            await connection.scalar(select(func.count()).select_from(table).where(table.c.sequence >= 0))
            for table in (sessions, turns, predictions)
        ]
    assert sum(count or 0 for count in counts) == len(records)
    assert watched.buried == []
    assert (await store.lag()).dead == 0


async def test_a_poison_record_is_found_and_buried_and_its_neighbours_stored(
    store: Store, database: Database, folder: Archive
) -> None:
    session_id = new_id("sess")
    good = dialogue_records(session_id, 20)
    poison = make_prediction(session_id, status_reason="ö" * 256)
    await enqueue(store, [*good[:13], poison, *good[13:]])

    with structlog.testing.capture_logs() as logs:
        watched = await settle(store, database, folder, len(good) + 1)

    assert len(watched.buried) == 1
    assert len(await all_rows(database, turns)) == 20
    assert poison.response_id not in {row["response_id"] for row in await all_rows(database, predictions)}
    lag = await store.lag()
    assert (lag.pending, lag.dead) == (0, 1)
    events = [(entry["event"], entry["log_level"]) for entry in logs]
    assert events == [("record_refused", "warning"), ("record_buried", "error")]
    assert "Flueman" not in repr(logs)
    assert "öö" not in repr(logs)


@pytest.mark.parametrize(
    "junk",
    [b"{", b'{"record":"of a later release"}', b'{"record":"turn"}', b'"' + b"x" * (8 << 20) + b'"'],
    ids=["no JSON", "unknown kind", "fields missing", "too large"],
)
async def test_what_is_no_record_is_tried_again_then_buried(
    sqlite_store: Store, database: Database, folder: Archive, junk: bytes
) -> None:
    await sqlite_store.enqueue([junk, encode_record(make_request())])

    watched = await settle(sqlite_store, database, folder, 2)

    assert (len(watched.acknowledged), len(watched.buried)) == (1, 1)


async def test_json_that_only_this_database_refuses_is_stored_and_read_back_unchanged(
    sqlite_store: Store, database: Database, folder: Archive
) -> None:
    session_id = new_id("sess")
    document = b'{"a":' * 60 + b"1" + b"}" * 60
    prediction = make_prediction(session_id, request=Raw(document), trace=make_trace(sampling=Raw(document)))
    await enqueue(sqlite_store, [prediction, make_session(session_id), make_feedback(session_id)])

    watched = await settle(sqlite_store, database, folder, 3)

    assert watched.buried == []
    dialogue = await load_dialogue(database, session_id)
    assert dialogue is not None
    (found,) = dialogue.predictions
    assert found.request.encode() == document
    assert found.trace is not None
    assert found.trace.sampling.encode() == document
    (rated,) = await feedback_of_session(database, session_id)
    assert rated.response_id == prediction.response_id


async def test_a_record_that_only_waited_long_is_not_buried_for_its_first_refusal(
    store: Store, database: Database, folder: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P3: writers died with it again and again, or what it needs was away."""
    turn = make_turn(new_id("sess"), 1)
    await enqueue(store, [turn])
    await store.take("dead", 100, 0)
    for _ in range(10):
        await store.reclaim("dead", 100, 0)
    healthy, num_tries = persistence.columns.turn_row, 0

    def buggy_at_first(record: TurnRecord) -> Row:
        nonlocal num_tries
        num_tries += 1
        if num_tries == 1:
            raise RuntimeError("the handler is closed")
        return healthy(record)

    monkeypatch.setattr(persistence.columns, "turn_row", buggy_at_first)

    watched = await settle(store, database, folder, 1)

    assert (len(watched.acknowledged), watched.buried) == (1, [])


async def test_a_record_that_brings_out_a_bug_is_buried_and_stops_nobody(
    sqlite_store: Store, database: Database, folder: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P9: or else the writer would die of it at each start, and conversations in its process with it."""
    session_id = new_id("sess")
    good = dialogue_records(session_id, 5)
    bad = make_turn(session_id, 6, text="what nobody may read")
    healthy = persistence.columns.turn_row

    def buggy(record: TurnRecord) -> Row:
        if record.turn_id == bad.turn_id:
            raise KeyError(record.text)
        return healthy(record)

    monkeypatch.setattr(persistence.columns, "turn_row", buggy)
    await enqueue(sqlite_store, [*good[:5], bad, *good[5:]])

    with structlog.testing.capture_logs() as logs:
        await settle(sqlite_store, database, folder, len(good) + 1)

    assert len(await all_rows(database, turns)) == 5
    [letter] = await sqlite_store.dead(10)
    assert letter.error.startswith("KeyError at test_writer.py:")
    assert decode_record(letter.record) == bad
    assert bad.text not in repr(logs)


async def test_a_record_that_the_database_fails_for_without_a_reason_holds_up_nobody_and_is_not_given_up(
    store: Store, mariadb: Database, folder: Archive
) -> None:
    """P3, P9: an error that nobody foresaw may be the database's trouble, so the record waits, alone."""
    session_id = new_id("sess")
    records = dialogue_records(session_id, 6)
    stuck = make_turn(session_id, 7, text="stuck")
    async with mariadb.transaction() as connection:
        await connection.execute(
            text(
                "CREATE TRIGGER stuck BEFORE INSERT ON turns FOR EACH ROW IF NEW.text = 'stuck' THEN"
                " SIGNAL SQLSTATE '45000' SET MYSQL_ERRNO = 31999; END IF"
            )
        )
    await enqueue(store, [*records[:6], stuck, *records[6:]])
    watched = WatchedStore(store)
    options = msgspec.structs.replace(IMPATIENT, num_patient_tries=2)
    writer = Writer(cast("Store", watched), mariadb, folder, consumer="writer-1", options=options)

    async with running(writer):
        await watched.until_settled(len(records))
        # Longer than a refused record would be tried.
        num_retries = writer.figures.num_retries
        await until(lambda: writer.figures.num_retries > num_retries + 2 * IMPATIENT.max_refusals)
        lag = await store.lag()
        async with mariadb.transaction() as connection:
            await connection.execute(text("DROP TRIGGER stuck"))
        await watched.until_settled(len(records) + 1)

    assert (lag.pending, lag.dead, watched.buried) == (1, 0, [])
    assert len(await all_rows(mariadb, turns)) == 7


async def test_rows_that_a_dead_writer_took_are_stored_though_much_before_them_waits_for_the_archive(
    store: Store, database: Database, durable_s3: services.FolderS3Server
) -> None:
    """P9"""
    for ended_id in (new_id("sess") for _ in range(7)):
        await journal_events(store, ended_id, make_events(5), [make_archive(ended_id, 5)])
    session = make_session(new_id("sess"))
    await enqueue(store, [session])
    assert len(await store.take("dead", 100, 0)) == 8
    options = msgspec.structs.replace(IMPATIENT, batch_size=2, max_waiting_archives=1, reclaim_every_s=0.3)
    watched = WatchedStore(store)
    async with open_archive(bucket_url(durable_s3)) as archive:
        durable_s3.kill()
        writer = Writer(cast("Store", watched), database, archive, consumer="heir", options=options)
        async with running(writer):
            await watched.until_settled(1)

    assert (len(watched.acknowledged), watched.buried) == (1, [])
    assert await load_dialogue(database, session.session_id) is not None


@pytest.mark.parametrize("fault", ["pause", "kill"])
async def test_a_database_that_goes_away_and_returns_loses_nothing(
    store: Store, mariadb: Database, folder: Archive, mariadb_service: services.MariadbServer, fault: str
) -> None:
    """P9"""
    session_id = new_id("sess")
    records = dialogue_records(session_id, 10)
    watched = WatchedStore(store)
    writer = make_writer(watched, mariadb, folder)
    # Connections are open before the fault.
    await enqueue(store, records[:3])
    async with running(writer):
        await watched.until_settled(3)
        (mariadb_service.pause if fault == "pause" else mariadb_service.kill)()
        try:
            await enqueue(store, records[3:])
            await until(lambda: writer.figures.num_retries >= 2)
            assert "rows: DatabaseUnavailable" in (writer.failure() or "")
            assert (await store.lag()).pending == len(records) - 3
        finally:
            if fault == "pause":
                mariadb_service.resume()
            else:
                mariadb_service.start()
        await watched.until_settled(len(records))

        assert writer.failure() is None
    dialogue = await load_dialogue(mariadb, session_id)
    assert dialogue is not None
    assert (len(dialogue.turns), len(dialogue.predictions)) == (10, 10)


async def test_a_writer_stops_while_the_database_is_away_and_leaves_the_records(
    sqlite_store: Store, mariadb: Database, folder: Archive, mariadb_service: services.MariadbServer
) -> None:
    await enqueue(sqlite_store, [make_request()])
    writer = make_writer(sqlite_store, mariadb, folder)
    mariadb_service.pause()
    try:
        async with asyncio.timeout(60), running(writer):
            await until(lambda: writer.figures.num_retries > 0)
    finally:
        mariadb_service.resume()

    assert (await sqlite_store.lag()).pending == 1


@pytest.mark.parametrize("step", ["before commit 1", "after commit 1", "before acknowledge", "after acknowledge"])
async def test_a_crash_at_any_step_of_a_batch_is_repaired_by_the_next_writer(
    store: Store, database: Database, folder: Archive, step: str
) -> None:
    """P3"""
    session_id = new_id("sess")
    records = dialogue_records(session_id, 5)
    await enqueue(store, records)
    point = CrashPoint(step)
    crashing = CrashingStore(store, point)
    with pytest.RaisesGroup(Crash):
        await make_writer(crashing, CrashingDatabase(database, point), folder).run()
    num_left = 0 if step == "after acknowledge" else len(records)
    assert (await store.lag()).pending == num_left

    await settle(store, database, folder, num_left)

    dialogue = await load_dialogue(database, session_id)
    assert dialogue is not None
    assert (len(dialogue.turns), len(dialogue.predictions)) == (5, 5)
    assert (await store.lag()).pending == 0


async def test_a_cancelled_writer_leaves_what_it_took_to_the_next(
    store: Store, database: Database, folder: Archive
) -> None:
    records = dialogue_records(new_id("sess"), 5)
    await enqueue(store, records)
    reached = asyncio.Event()

    class HangingDatabase(Database):
        @contextlib.asynccontextmanager
        async def transaction(self):  # type: ignore[no-untyped-def]
            async with super().transaction() as connection:
                yield connection
                reached.set()
                await asyncio.Event().wait()

    task = asyncio.create_task(make_writer(store, HangingDatabase(database.engine, timeout_s=60), folder).run())
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    await settle(store, database, folder, len(records))

    assert len(await all_rows(database, predictions)) == 5


async def test_figures_tell_what_was_stored(sqlite_store: Store, database: Database, folder: Archive) -> None:
    watched = WatchedStore(sqlite_store)
    writer = make_writer(watched, database, folder)
    session_id = new_id("sess")
    beside: list[Record] = [make_request(), make_feedback(session_id), make_note(session_id), make_audit(session_id)]
    await enqueue(sqlite_store, [*dialogue_records(session_id, 2), *beside])

    async with running(writer):
        await watched.until_settled(9)

    figures = msgspec.structs.asdict(writer.figures)
    assert figures.pop("last_success_ms") > 0
    assert figures == {
        "num_stored": {"session": 1, "turn": 2, "prediction": 2, "request": 1, "feedback": 1, "note": 1, "audit": 1},
        "num_refused": 0,
        "num_buried": 0,
        "num_retries": 0,
    }
