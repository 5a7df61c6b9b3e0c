"""A rating that really changed is announced with the rows that changed it, once, and nothing else is."""

import asyncio
import json
import random
from collections.abc import Sequence

import msgspec
import pytest

from persistence.database import Database
from persistence.errors import DatabaseUnavailable
from persistence.rows import RowRecord, write_rows
from persistence.tables import feedback, webhook_deliveries
from persistence.webhook_changes import announce_ratings
from persistence.webhook_event import version
from sessions.records import FeedbackRecord, decode_record
from tests.persistence.builders import CREATED_MS, all_rows, make_feedback, make_turn, new_id


async def write(database: Database, records: Sequence[RowRecord], *, now_ms: int = CREATED_MS) -> None:
    """What the writer does with a batch."""
    async with (
        database.transaction() as connection,
        announce_ratings(connection, records, now_ms=lambda: now_ms),
    ):
        await write_rows(connection, records, is_mysql=database.is_mysql)


async def announced(database: Database) -> list[FeedbackRecord]:
    """What waits to be told of."""
    records = [decode_record(str(row["record"]).encode()) for row in await all_rows(database, webhook_deliveries)]
    return [record for record in records if isinstance(record, FeedbackRecord)]


async def forget(database: Database) -> None:
    """Deliver everything."""
    async with database.transaction() as connection:
        await connection.execute(webhook_deliveries.delete())


async def test_a_new_a_changed_and_a_withdrawn_rating_are_announced(database: Database) -> None:
    up = make_feedback(new_id("sess"))
    down = msgspec.structs.replace(
        up, rating="down", comment="nö 🙂", start=1, end=3, sequence=20, rated_ms=up.rated_ms + 1
    )
    withdrawn = msgspec.structs.replace(up, rating=None, sequence=21, rated_ms=up.rated_ms + 2)

    for record in (up, down, withdrawn):
        await write(database, [record])

        assert await announced(database) == [record]
        await forget(database)


async def test_what_changes_no_choice_is_not_announced(database: Database) -> None:
    """A redelivered record, an older one, and the same choice once more, also in one batch with others."""
    record = make_feedback(new_id("sess"), rating="down", reason="other")
    older = msgspec.structs.replace(record, rating="up", rated_ms=record.rated_ms - 1)
    again = msgspec.structs.replace(record, rated_ms=record.rated_ms + 5, sequence=30)
    there_and_back = msgspec.structs.replace(record, rating="up", rated_ms=record.rated_ms + 6)
    back = msgspec.structs.replace(record, rated_ms=record.rated_ms + 7)
    await write(database, [record])
    await forget(database)

    for batch in ([record], [older], [again], [back, there_and_back], [make_turn(record.session_id)]):
        await write(database, batch)

    assert await announced(database) == []


async def test_a_change_takes_the_place_of_the_one_that_waits_and_keeps_its_turn(database: Database) -> None:
    first = make_feedback(new_id("sess"))
    second = msgspec.structs.replace(first, rating="down", rated_ms=first.rated_ms + 1)
    await write(database, [first])
    [waiting] = await all_rows(database, webhook_deliveries)

    await write(database, [second], now_ms=CREATED_MS + 60_000)

    [now_waiting] = await all_rows(database, webhook_deliveries)
    assert await announced(database) == [second]
    assert now_waiting["delivery_id"] != waiting["delivery_id"]
    assert now_waiting["due_at"] == waiting["due_at"]


async def test_a_rating_that_is_not_stored_is_not_announced(database: Database) -> None:
    record = make_feedback(new_id("sess"))

    async def fail() -> None:
        async with database.transaction() as connection, announce_ratings(connection, [record]):
            await write_rows(connection, [record], is_mysql=database.is_mysql)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()

    assert await announced(database) == []
    assert await all_rows(database, feedback) == []


async def test_a_writer_that_comes_in_between_does_not_make_a_change_pass_for_none(database: Database) -> None:
    """P3: the receiver ends with what the tables have, whoever of two writers is first with the same rating."""
    first = make_feedback(new_id("sess"), rating="up")
    between = msgspec.structs.replace(first, rating="down", rated_ms=first.rated_ms + 1)
    last = msgspec.structs.replace(first, rating="up", rated_ms=first.rated_ms + 2)
    await write(database, [first])
    await forget(database)

    async with database.transaction() as connection, announce_ratings(connection, [last]):
        other = asyncio.create_task(write(database, [between]))
        # It must wait for us, which no event tells: it is given the time in which it would not have.
        await asyncio.wait({other}, timeout=0.3)
        await write_rows(connection, [last], is_mysql=database.is_mysql)
    await other

    assert [record.rating for record in await announced(database) or [first]] == ["up"]
    assert [row["rating"] for row in await all_rows(database, feedback)] == ["up"]


async def test_several_writers_at_once_announce_what_is_stored_in_the_end(database: Database) -> None:
    """P3: whoever comes first, and however often each comes."""
    session_id = new_id("sess")
    choices = [
        make_feedback(session_id, f"item_{item}", rating=rating, rated_ms=CREATED_MS + number, sequence=number)
        for item in range(3)
        for number, rating in enumerate(["up", "down", None, "up", "down"])
    ]
    shuffled = [record for record in choices for _ in range(2)]
    random.Random(7).shuffle(shuffled)
    batches = [shuffled[start::6] for start in range(6)]

    async def write_all(batch: Sequence[RowRecord]) -> None:
        for record in batch:
            await retried(database, [record])

    async with asyncio.TaskGroup() as tasks:
        for batch in batches:
            tasks.create_task(write_all(batch))

    rows = await all_rows(database, feedback)
    told = {record.feedback_id: record for record in await announced(database)}
    assert {str(row["feedback_id"]): row["rating"] for row in rows} == {
        feedback_id: record.rating for feedback_id, record in told.items()
    }
    assert {record.rating for record in told.values()} == {"down"}


async def retried(database: Database, batch: Sequence[RowRecord]) -> None:
    """As the writer does it: two that lock each other crosswise are told to come again."""
    for _ in range(20):
        try:
            await write(database, batch)
            return
        except DatabaseUnavailable:
            await asyncio.sleep(0)
    raise AssertionError("the database would not have it")


async def test_an_id_is_made_of_the_choice_so_that_the_same_has_the_same_everywhere(database: Database) -> None:
    session_id = new_id("sess")
    records = [make_feedback(session_id, comment=comment) for comment in (None, "a", "b")]
    ids = []
    for record in records + records:
        async with database.transaction() as connection:
            await connection.execute(feedback.delete())
        await forget(database)
        await write(database, [record])
        ids.append((await all_rows(database, webhook_deliveries))[0]["delivery_id"])

    assert ids[:3] == ids[3:]
    assert len(set(ids)) == 3


def test_versions_are_in_the_order_of_the_rows() -> None:
    record = make_feedback("sess_1")
    later = [
        record,
        msgspec.structs.replace(record, received_ms=record.received_ms + 1),
        msgspec.structs.replace(record, sequence=100, received_ms=0),
        msgspec.structs.replace(record, rated_ms=10**13, sequence=0),
    ]

    versions = [version(each) for each in later]

    assert versions == sorted(versions)
    assert len(set(versions)) == 4
    assert json.dumps(versions[0]).isascii()
