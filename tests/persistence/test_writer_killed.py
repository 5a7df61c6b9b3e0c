"""`kill -9` of a writer's process between any two of its statements: the next writers make each row and each object once."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import cast

import msgspec
import pytest

from migrations import upgrade_database
from persistence.archive import Archive, open_archive
from persistence.audit import AuditEnd, verify
from persistence.database import Database, open_database
from persistence.history import archived_events, load_dialogue
from persistence.tables import (
    answer_items,
    archives,
    audit_logs,
    feedback,
    heard,
    notes,
    predictions,
    requests,
    sent,
    sessions,
    traces,
    turns,
    webhook_deliveries,
)
from persistence.webhook_changes import announce_ratings
from persistence.writer import Writer
from sessions.records import Record
from sessions.redis_store import RedisStore
from sessions.store import Store
from tests import services
from tests.persistence.builders import (
    IMPATIENT,
    all_rows,
    enqueue,
    journal_events,
    make_archive,
    make_audit,
    make_events,
    make_feedback,
    make_heard,
    make_note,
    make_prediction,
    make_request,
    make_session,
    make_trace,
    make_turn,
    new_id,
    running,
)
from tests.persistence.conftest import bucket_url
from tests.persistence.doomed import Order

NUM_EVENTS = 20
MAX_REACHED = 60
_TABLES = (
    sessions,
    turns,
    predictions,
    sent,
    heard,
    answer_items,
    traces,
    feedback,
    webhook_deliveries,
    notes,
    audit_logs,
    requests,
    archives,
)


class Doom:
    """Writers' processes that are killed, one after the other."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def run(self, order: Order) -> bool:
        """Let one work; whether it was killed, since it reached its point."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(order) + b"\n")
        self._process.stdin.flush()
        ended_by = int(self._process.stdout.readline())
        assert ended_by in (0, signal.SIGKILL)
        return ended_by == signal.SIGKILL


@pytest.fixture(scope="module")
def doom() -> Iterator[Doom]:
    """The process that makes them."""
    credentials = {
        "AWS_ACCESS_KEY_ID": services.S3_ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": services.S3_SECRET_KEY,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "tests.persistence.doomed"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        env=os.environ | credentials,
    ) as process:
        yield Doom(process)
        assert process.stdin is not None
        process.stdin.close()


class Installation:
    """What writers work on, and what they must leave."""

    def __init__(self, store: RedisStore, database: Database, archive: Archive, order: Order) -> None:
        self.store = store
        self.order = order
        self._database = database
        self._archive = archive
        self._session_ids: list[str] = []
        self._num_poisoned = 0

    async def add_session(self, *poison: Record) -> None:
        """A session whose records are in the outbox, the latest first, its journal to be archived; and these."""
        session_id = new_id("sess")
        self._session_ids.append(session_id)
        self._num_poisoned += len(poison)
        turn = make_turn(session_id)
        prediction = make_prediction(session_id, turn.turn_id, sent_chars=7, trace=make_trace())
        await journal_events(
            self.store, session_id, make_events(NUM_EVENTS), [make_archive(session_id, NUM_EVENTS), *poison]
        )
        heard_of = make_heard(session_id, prediction.response_id)
        beside: list[Record] = [
            make_request(),
            make_audit(session_id),
            make_note(session_id),
            make_feedback(session_id),
        ]
        await enqueue(self.store, [*beside, heard_of, prediction, turn, make_session(session_id)])

    async def settle(self) -> None:
        """Two writers at once take over what the dead left."""
        writers = [
            Writer(
                cast("Store", self.store),
                self._database,
                self._archive,
                consumer=f"heir-{number}",
                announce=announce_ratings,
                options=IMPATIENT,
            )
            for number in range(2)
        ]
        async with running(*writers):
            await self.until_empty()

    async def until_empty(self) -> None:
        """Wait until every record is stored or buried."""
        async with asyncio.timeout(60):
            while (await self.store.lag()).pending:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def check(self) -> None:
        """Everything is there exactly once, and what was poison is among the dead letters, once."""
        num_sessions = len(self._session_ids)
        for table in _TABLES:
            assert len(await all_rows(self._database, table)) == num_sessions, table.name
        end = await verify(self._database)
        assert isinstance(end, AuditEnd)
        assert end.number == num_sessions
        for session_id in self._session_ids:
            dialogue = await load_dialogue(self._database, session_id)
            assert dialogue is not None
            assert [turn.number for turn in dialogue.turns] == [1]
            assert [(found.sent_chars, found.heard_chars) for found in dialogue.predictions] == [(7, 12)]
            events = [event async for event in archived_events(self._database, self._archive, session_id)]
            assert [event.event for event in events] == make_events(NUM_EVENTS)
            assert await self.store.journal(session_id, 0, 100) == []
        lag = await self.store.lag()
        assert (lag.pending, lag.dead) == (0, self._num_poisoned)


@pytest.fixture
async def installation(
    own_redis: services.RedisServer, mariadb_service: services.MariadbServer, s3: services.S3Server
) -> AsyncIterator[Installation]:
    """Redis, MariaDB and S3."""
    with mariadb_service.fresh_database() as database_url:
        await upgrade_database(database_url)
        order = Order(own_redis.url, database_url, bucket_url(s3), step="", nth=1)
        async with (
            RedisStore(own_redis.url, timeout_s=10) as store,
            open_database(database_url) as database,
            open_archive(order.archive_url) as archive,
        ):
            yield Installation(store, database, archive, order)


async def kill_at_each(doom: Doom, installation: Installation, step: str, *poison: Record) -> int:
    """Kill one writer the first time it reaches a step of this kind, another the second time, and so on; how often that was."""
    for nth in range(1, MAX_REACHED):
        await installation.add_session(*poison)
        was_killed = doom.run(msgspec.structs.replace(installation.order, step=step, nth=nth))
        if was_killed:
            await installation.settle()
        await installation.check()
        if not was_killed:
            return nth - 1
    raise AssertionError(f"{step} is reached without end")


@pytest.mark.parametrize(
    ("step", "num_times"),
    [
        ("before statement", 20),
        # Of the rows, of the claim of a part of the archive, of the word that it is stored.
        ("before commit", 3),
        ("after commit", 3),
        ("before put", 1),
        ("after put", 1),
        ("before trim", 1),
        ("after trim", 1),
        ("before acknowledge", 2),
        ("after acknowledge", 2),
    ],
)
async def test_a_writer_killed_between_any_two_steps_leaves_the_next_to_store_each_record_once(
    doom: Doom, installation: Installation, step: str, num_times: int
) -> None:
    """P3: between MySQL and S3, between the object and its row, between all of it and the acknowledgement."""
    assert await kill_at_each(doom, installation, step) >= num_times


@pytest.mark.parametrize("step", ["before bury", "after bury"])
async def test_a_writer_killed_at_a_burial_loses_no_dead_letter_and_doubles_none(
    doom: Doom, installation: Installation, step: str
) -> None:
    """P3."""
    poison = make_request(request_id="req_" + "x" * 61)

    assert await kill_at_each(doom, installation, step, poison) >= 1
