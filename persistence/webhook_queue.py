"""What the webhook has yet to deliver: taken in turns by any number of deliverers, put back, done with. Knows no wire.

Whoever takes one has it until its lease is over: a deliverer that dies keeps nothing from the others for longer.
"""

from collections.abc import Collection
from typing import Any

import msgspec
from msgspec import Struct
from sqlalchemy import Row, delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from persistence.feedback import with_answers
from persistence.tables import feedback
from persistence.times import milliseconds, utc_time
from persistence.webhook_event import KnownAnswer
from persistence.webhook_tables import webhook_deliveries
from sessions.records import FeedbackRecord

_columns = webhook_deliveries.c
_decode = msgspec.json.Decoder(FeedbackRecord).decode


class Waiting(Struct, frozen=True, kw_only=True):
    """A rating to be told of, as it was stored. `num_tries`: how often telling anything of this rating failed in a row."""

    feedback_id: str
    delivery_id: str
    record: str
    announced_ms: int
    num_tries: int

    def decoded(self) -> FeedbackRecord:
        """The rating; whatever another release wrote that this one cannot read fails here, and not where all are taken."""
        return _decode(self.record)


async def take_due(connection: AsyncConnection, *, limit: int, now_ms: int, lease_ms: int) -> tuple[Waiting, ...]:
    """What is due, longest first. Until the lease is over nobody else is given it."""
    rows = await connection.execute(
        select(webhook_deliveries)
        .where(_columns.due_at <= utc_time(now_ms))
        .order_by(_columns.due_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    taken = tuple(map(_waiting, rows))
    if taken:
        await connection.execute(
            update(webhook_deliveries)
            .where(_columns.feedback_id.in_([waiting.feedback_id for waiting in taken]))
            .values(due_at=utc_time(now_ms + lease_ms))
        )
    return taken


async def known_answers(connection: AsyncConnection, taken: Collection[Waiting]) -> dict[str, KnownAnswer]:
    """What is known by now of the answer that each is about, by the rating's id; nothing of one that is not stored yet."""
    feedback_ids = [waiting.feedback_id for waiting in taken]
    rows = await connection.execute(with_answers(feedback).where(feedback.c.feedback_id.in_(feedback_ids)))
    return {
        row.feedback_id: KnownAnswer(
            response_id=row.response_id,
            model=row.model,
            model_version=row.model_version,
            prompt_version=row.prompt_version,
            persona=row.persona,
        )
        for row in rows
        if row.model is not None
    }


async def settle(connection: AsyncConnection, delivered: Waiting, *, now_ms: int) -> None:
    """Forget what is delivered; what took its place meanwhile is due at once."""
    await connection.execute(
        delete(webhook_deliveries).where(
            _columns.feedback_id == delivered.feedback_id, _columns.delivery_id == delivered.delivery_id
        )
    )
    await put_back(connection, delivered, due_ms=now_ms, num_tries=0)


async def put_back(connection: AsyncConnection, taken: Waiting, *, due_ms: int, num_tries: int) -> None:
    """Let it be due then, or what took its place meanwhile."""
    await connection.execute(
        update(webhook_deliveries)
        .where(_columns.feedback_id == taken.feedback_id)
        .values(due_at=utc_time(due_ms), num_tries=num_tries)
    )


async def is_empty(connection: AsyncConnection) -> bool:
    """Whether nothing waits."""
    return (await connection.execute(select(_columns.feedback_id).limit(1))).first() is None


def _waiting(row: Row[Any]) -> Waiting:
    return Waiting(
        feedback_id=row.feedback_id,
        delivery_id=row.delivery_id,
        record=row.record,
        announced_ms=milliseconds(row.announced_at),
        num_tries=row.num_tries,
    )
