"""The webhook's receiver hears of each rating at least once, whatever it does and whoever is killed, and ends with what the tables have."""

import asyncio
import base64
import hashlib
import hmac
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from persistence.database import Database
from persistence.feedback import StoredFeedback, feedback_of_session
from persistence.rows import RowRecord
from persistence.tables import webhook_deliveries
from persistence.webhook import Deliverer, DelivererOptions
from persistence.webhook_event import AnnouncedFeedback
from persistence.webhook_receiver import open_receiver
from tests.persistence.builders import (
    CREATED_MS,
    all_rows,
    make_feedback,
    make_prediction,
    make_trace,
    make_turn,
    new_id,
    until,
)
from tests.persistence.receiver import FakeReceiver, Received, answering, closing, fake_receiver, hanging
from tests.persistence.test_webhook_changes import write
from tests.sessions.builders import Json

KEY = bytes(range(32))
EAGER = DelivererOptions(
    poll_s=0.02, first_delay_ms=20, max_delay_ms=100, lease_ms=600_000, answer_patience_ms=0, first_wait_s=0.02
)
HOUR_MS = 3_600_000


@pytest.fixture
async def receiver() -> AsyncIterator[FakeReceiver]:
    """One that takes everything, until told otherwise."""
    async with fake_receiver() as receiver:
        yield receiver


def make_deliverer(database: Database, receiver: FakeReceiver, *, timeout_s: float = 15.0, **changes: Any) -> Deliverer:
    arguments: dict[str, Any] = {"key": KEY, "options": EAGER} | changes
    return Deliverer(database, open_receiver(receiver.url, timeout_s=timeout_s), **arguments)


@asynccontextmanager
async def running(*deliverers: Deliverer) -> AsyncIterator[None]:
    """The deliverers at work, stopped at the end of the block."""
    async with asyncio.TaskGroup() as tasks:
        for deliverer in deliverers:
            tasks.create_task(deliverer.run())
        try:
            yield
        finally:
            for deliverer in deliverers:
                deliverer.stop()


async def until_told(database: Database) -> None:
    """Wait until nothing waits."""
    async with asyncio.timeout(60):
        while await all_rows(database, webhook_deliveries):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def rated_session() -> tuple[str, list[RowRecord]]:
    """A session with an answer."""
    session_id = new_id("sess")
    turn = make_turn(session_id)
    return session_id, [turn, make_prediction(session_id, turn.turn_id, trace=make_trace())]


def kept(received: Sequence[Received]) -> dict[str, Json]:
    """What a receiver keeps that keeps the greatest version of each rating."""
    ratings: dict[str, Json] = {}
    for event in (each.event for each in received):
        data = event["data"]
        feedback_id = data["feedback"]["feedback_id"]
        if feedback_id not in ratings or data["version"] > ratings[feedback_id]["version"]:
            ratings[feedback_id] = data
    return {feedback_id: data["feedback"] for feedback_id, data in ratings.items()}


def assert_signed(received: Received) -> None:
    """By the words of the specification, and by none of our code."""
    secret = KEY
    signed = f"{received.headers['webhook-id']}.{received.headers['webhook-timestamp']}.".encode() + received.body
    expected = base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode()
    assert received.headers["webhook-signature"] == f"v1,{expected}"


async def test_a_rating_arrives_signed_as_it_is_listed(database: Database, receiver: FakeReceiver) -> None:
    session_id, answered = rated_session()
    record = make_feedback(session_id, "item_2", rating="down", reason="other", comment="<b>ä</b> 🙂", start=0, end=2)
    await write(database, [*answered, record])

    async with running(make_deliverer(database, receiver)):
        [received] = await receiver.until(1)
        await until_told(database)

    [listed] = await feedback_of_session(database, session_id)
    assert received.event == {
        "type": "feedback.created",
        "id": received.id,
        "timestamp": "2026-11-22T23:59:58.123Z",
        "data": {
            "feedback": msgspec.to_builtins(listed),
            "version": f"{record.rated_ms:015d}-000000000018-{record.received_ms:015d}",
        },
    }
    assert listed.model is not None
    assert received.target == "/hooks?to=us"
    assert received.headers["content-type"] == "application/json"
    assert_signed(received)


def test_what_is_sent_has_the_fields_that_are_listed() -> None:
    assert AnnouncedFeedback.__struct_fields__ == StoredFeedback.__struct_fields__


async def test_a_withdrawal_is_told_too(database: Database, receiver: FakeReceiver) -> None:
    record = make_feedback(new_id("sess"), rating=None)
    await write(database, [record])

    async with running(make_deliverer(database, receiver)):
        [received] = await receiver.until(1)

    assert received.event["type"] == "feedback.deleted"
    assert received.event["data"]["feedback"]["rating"] is None


@pytest.mark.parametrize(
    "fault",
    [
        answering("500 No"),
        answering("302 Elsewhere", "location: http://127.0.0.1:1/"),
        answering("400 What"),
        closing,
        hanging,
        answering("429 Later", "retry-after: 0"),
        answering("500 No", body=b"x" * 100_000),
    ],
    ids=["500", "302", "400", "closed", "hangs", "429", "a long answer"],
)
async def test_a_delivery_that_fails_is_sent_again_with_the_same_id_until_it_is_taken(
    database: Database, receiver: FakeReceiver, fault: Any
) -> None:
    """Killed between receipt and answer among them: at least once, and the id says that it is the same."""
    receiver.behave = [fault, fault, answering("200 Fine")]
    session_id, answered = rated_session()
    await write(database, [*answered, make_feedback(session_id)])
    deliverer = make_deliverer(database, receiver, timeout_s=0.3 if fault is hanging else 15.0)

    async with running(deliverer):
        received = await receiver.until(3)
        await until_told(database)
        await until(lambda: deliverer.failure() is None)

    # On a slow machine the answer to the third may come too late as well.
    assert len(received) >= 3 if fault is hanging else len(received) == 3
    assert len({each.id for each in received}) == 1
    assert len({each.body for each in received}) == 1
    for each in received:
        assert_signed(each)
    assert (deliverer.figures.num_failed, deliverer.figures.num_delivered) == (len(received) - 1, 1)


async def test_failure_is_told_while_it_lasts_and_reveals_no_address(
    database: Database, receiver: FakeReceiver
) -> None:
    receiver.behave = [answering("503 Away")]
    await write(database, [make_feedback(new_id("sess"))])
    deliverer = make_deliverer(database, receiver)

    async with running(deliverer):
        await until(lambda: deliverer.failure() is not None)
        reason = deliverer.failure()

        receiver.behave = [answering("204 Fine")]

        await until(lambda: deliverer.failure() is None)

    assert reason is not None
    assert reason.startswith("the receiver answered 503; ")
    assert "127.0.0.1" not in reason


async def test_a_receiver_that_is_not_there_is_waited_for(database: Database) -> None:
    await write(database, [make_feedback(new_id("sess"))])
    async with fake_receiver() as gone:
        pass
    deliverer = make_deliverer(database, gone)

    async with running(deliverer):
        await until(lambda: deliverer.figures.num_failed >= 2)

    assert deliverer.failure() == f"the receiver failed: ConnectError; {deliverer.figures.num_failed} deliveries failed"
    assert len(await all_rows(database, webhook_deliveries)) == 1


async def test_what_another_delivered_is_no_failure_for_long(database: Database, receiver: FakeReceiver) -> None:
    receiver.behave = [answering("500 No"), answering("204 Fine")]
    await write(database, [make_feedback(new_id("sess"))])
    slow = msgspec.structs.replace(EAGER, poll_s=0.2)
    first = make_deliverer(database, receiver, options=slow)

    async with running(first):
        await until(lambda: first.failure() is not None)
        async with running(make_deliverer(database, receiver)):
            await until_told(database)

        await until(lambda: first.failure() is None)


class Clock:
    """Stands still until it is set."""

    def __init__(self) -> None:
        self.ms = CREATED_MS

    def __call__(self) -> int:
        return self.ms


async def test_tries_come_less_and_less_often_and_end_after_days(database: Database, receiver: FakeReceiver) -> None:
    receiver.behave = [answering("500 No")]
    clock = Clock()
    await write(database, [make_feedback(new_id("sess"))])
    options = DelivererOptions(answer_patience_ms=0)
    deliverer = make_deliverer(database, receiver, options=options, now_ms=clock)
    delays = []
    async with open_receiver(receiver.url) as opened:
        while rows := await all_rows(database, webhook_deliveries):
            due: Any = rows[0]["due_at"]
            due_ms = round(due.timestamp() * 1000)
            delays.append(due_ms - clock.ms)
            clock.ms = due_ms

            assert await deliverer.deliver_due(opened) == 1

    assert all(500 * 2**n <= delay <= 1000 * 2**n for n, delay in enumerate(delays[1:12]))
    assert all(HOUR_MS // 2 <= delay <= HOUR_MS for delay in delays[13:])
    assert 72 * HOUR_MS <= clock.ms - CREATED_MS <= 73 * HOUR_MS
    assert deliverer.figures.num_given_up == 1


async def test_a_receiver_that_asks_for_time_is_given_it_by_all_deliveries(
    database: Database, receiver: FakeReceiver
) -> None:
    receiver.behave = [answering("503 Later", "retry-after: 600"), answering("204 Fine")]
    clock = Clock()
    session_id, answered = rated_session()
    await write(database, [*answered, make_feedback(session_id, "item_1")])
    deliverer = make_deliverer(database, receiver, options=DelivererOptions(answer_patience_ms=0), now_ms=clock)

    async with open_receiver(receiver.url) as opened:
        await deliverer.deliver_due(opened)
        await write(database, [make_feedback(session_id, "item_2")])
        clock.ms += 599_000
        assert await deliverer.deliver_due(opened) == 0
        clock.ms += 1_000
        assert await deliverer.deliver_due(opened) == 2

    assert len(receiver.received) == 3


async def test_a_receiver_that_is_gone_is_left_alone_and_nothing_is_forgotten(
    database: Database, receiver: FakeReceiver
) -> None:
    receiver.behave = [answering("410 Gone")]
    await write(database, [make_feedback(new_id("sess"))])
    deliverer = make_deliverer(database, receiver)

    async with running(deliverer):
        await until(lambda: deliverer.failure() is not None)
        await write(database, [make_feedback(new_id("sess"))])
        assert await deliverer.deliver_due(None) == 0  # type: ignore[arg-type]

    assert "410" in str(deliverer.failure())
    assert len(receiver.received) == 1
    assert len(await all_rows(database, webhook_deliveries)) == 2


async def test_two_deliverers_at_once_deliver_each_rating_once(database: Database, receiver: FakeReceiver) -> None:
    """While both live: only a death makes doubles."""
    session_id, answered = rated_session()
    await write(database, [*answered, *(make_feedback(session_id, f"item_{number}") for number in range(60))])
    deliverers = [make_deliverer(database, receiver) for _ in range(2)]

    async with running(*deliverers):
        await until_told(database)

    assert len(receiver.received) == len({each.id for each in receiver.received}) == 60


class Killed(BaseException):
    """The deliverer's process ends here."""


class DyingDatabase(Database):
    """After so many transactions none is begun: the process was killed there."""

    def __init__(self, database: Database, num_left: int) -> None:
        super().__init__(database.engine, timeout_s=30.0)
        self._num_left = num_left

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        if self._num_left == 0:
            raise Killed
        self._num_left -= 1
        async with super().transaction() as connection:
            yield connection


@pytest.mark.parametrize("num_received", [0, 1], ids=["before the post", "after the post"])
async def test_a_deliverer_that_is_killed_leaves_what_it_took_to_another(
    database: Database, receiver: FakeReceiver, num_received: int
) -> None:
    """P3: what was taken is nobody else's until the lease is over, and then it is delivered, again if need be."""
    await write(database, [make_feedback(new_id("sess"))])
    clock = Clock()
    dying = make_deliverer(DyingDatabase(database, num_received), receiver, now_ms=clock)
    heir = make_deliverer(database, receiver, now_ms=clock)

    async with open_receiver(receiver.url) as opened:
        with pytest.raises(Killed):
            await dying.deliver_due(opened)
        assert await heir.deliver_due(opened) == 1 - num_received
        clock.ms += EAGER.lease_ms
        assert await heir.deliver_due(opened) == num_received

    assert len(receiver.received) == 1 + num_received
    assert len({each.id for each in receiver.received}) == 1
    assert await all_rows(database, webhook_deliveries) == []


async def test_a_deliverer_that_is_cancelled_in_the_middle_of_a_post_leaves_it_to_another(
    database: Database, receiver: FakeReceiver
) -> None:
    """P3."""
    receiver.behave = [hanging, answering("204 Fine")]
    await write(database, [make_feedback(new_id("sess"))])
    clock = Clock()
    task = asyncio.create_task(make_deliverer(database, receiver, now_ms=clock).run())
    await receiver.until(1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    heir = make_deliverer(database, receiver, now_ms=clock)

    async with open_receiver(receiver.url) as opened:
        assert await heir.deliver_due(opened) == 0
        clock.ms += EAGER.lease_ms
        assert await heir.deliver_due(opened) == 1

    assert len({each.id for each in receiver.received}) == 1
    assert await all_rows(database, webhook_deliveries) == []


async def test_what_changes_while_an_older_choice_is_on_its_way_is_told_next(
    database: Database, receiver: FakeReceiver
) -> None:
    session_id, answered = rated_session()
    first = make_feedback(session_id, "item_2")
    second = msgspec.structs.replace(first, rating="down", rated_ms=first.rated_ms + 1)
    await write(database, [*answered, first])

    async def change_meanwhile(received: Received, writer: asyncio.StreamWriter) -> None:
        await write(database, [second])
        await answering("204 Fine")(received, writer)

    receiver.behave = [change_meanwhile, answering("204 Fine")]
    async with running(make_deliverer(database, receiver)):
        await until_told(database)

    assert [each.event["data"]["feedback"]["rating"] for each in receiver.received] == ["up", "down"]
    assert len({each.id for each in receiver.received}) == 2


async def test_a_receiver_that_keeps_the_greatest_version_ends_with_what_the_tables_have(
    database: Database, receiver: FakeReceiver
) -> None:
    """P3: also when an older delivery, stuck for long, arrives last."""
    session_id, answered = rated_session()
    first = make_feedback(session_id)
    second = msgspec.structs.replace(first, rating="down", rated_ms=first.rated_ms + 1)
    await write(database, [*answered, first])
    async with running(make_deliverer(database, receiver)):
        await receiver.until(1)
        await write(database, [second])
        await receiver.until(2)
        await until_told(database)

    late = [*receiver.received, receiver.received[0]]

    assert kept(late)[first.feedback_id]["rating"] == "down"


async def test_a_rating_waits_a_while_for_its_answer_which_may_still_stream(
    database: Database, receiver: FakeReceiver
) -> None:
    clock = Clock()
    session_id, answered = rated_session()
    await write(database, [make_feedback(session_id, "item_2"), make_feedback(session_id, "item_9")])
    options = DelivererOptions()
    deliverer = make_deliverer(database, receiver, options=options, now_ms=clock)
    async with open_receiver(receiver.url) as opened:
        await deliverer.deliver_due(opened)
        assert receiver.received == []
        await write(database, answered)
        clock.ms += options.answer_poll_ms
        await deliverer.deliver_due(opened)
        assert [each.event["data"]["feedback"]["model"] for each in receiver.received] == ["demo"]

        clock.ms += options.answer_patience_ms
        await deliverer.deliver_due(opened)

    assert receiver.received[1].event["data"]["feedback"]["model"] is None


async def test_what_is_personal_is_masked(database: Database, receiver: FakeReceiver) -> None:
    session_id = new_id("sess")
    ratings = [
        make_feedback(session_id, role=role, user_id="Anna", comment="call Anna") for role in ("user", "support")
    ]

    for record in ratings:
        await write(database, [msgspec.structs.replace(record, feedback_id=new_id("fb"), item_id=record.role)])
    async with running(make_deliverer(database, receiver, mask=lambda text: text.replace("Anna", "••••"))):
        received = await receiver.until(2)

    sent = {each.event["data"]["feedback"]["role"]: each.event["data"]["feedback"] for each in received}
    assert {feedback["comment"] for feedback in sent.values()} == {"call ••••"}
    assert (sent["user"]["user_id"], sent["support"]["user_id"]) == ("••••", "Anna")


async def test_a_rating_that_brings_out_a_bug_holds_up_no_other(database: Database, receiver: FakeReceiver) -> None:
    def mask(text: str) -> str:
        if text == "bad":
            raise ZeroDivisionError
        return text

    await write(database, [make_feedback(new_id("sess"), comment=comment) for comment in ("bad", "good")])
    deliverer = make_deliverer(database, receiver, mask=mask)

    async with running(deliverer):
        [received] = await receiver.until(1)
        await until(lambda: deliverer.figures.num_left == 1)

    assert received.event["data"]["feedback"]["comment"] == "good"
    assert len(await all_rows(database, webhook_deliveries)) == 1


async def test_a_database_that_goes_away_is_waited_for(
    receiver: FakeReceiver, mariadb: Database, mariadb_service: Any
) -> None:
    deliverer = make_deliverer(mariadb, receiver)
    async with running(deliverer):
        mariadb_service.pause()
        try:
            await until(lambda: deliverer.figures.num_retries > 0)
            assert "DatabaseUnavailable" in str(deliverer.failure())
        finally:
            mariadb_service.resume()
        await until(lambda: deliverer.failure() is None)
        await write(mariadb, [make_feedback(new_id("sess"))])

        await receiver.until(1)
