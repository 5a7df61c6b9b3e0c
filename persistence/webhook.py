"""Tells the webhook's receiver of each changed rating, at least once, for days if need be. Any number may work at once, and be killed.

Of a rating that changes again while it waits only the latest choice is sent. Each delivery has an id and a version: a receiver that keeps
the greatest version of each rating has what the tables have, however often and in whatever order deliveries come. Logs no content.
"""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager

import structlog
from msgspec import Struct

from persistence.database import Database
from persistence.errors import DatabaseUnavailable
from persistence.masking import Mask, unmasked
from persistence.webhook_event import KnownAnswer, event_body, signed_headers
from persistence.webhook_queue import Waiting, is_empty, known_answers, put_back, settle, take_due
from persistence.webhook_receiver import Answer, Receiver

log = structlog.get_logger(__name__)


class DelivererOptions(Struct, frozen=True, kw_only=True):
    """How a deliverer takes and tries. `lease_ms`, longer than any post: then what somebody took is given to another.

    `give_up_ms`: so long after a rating changed it is told of no more. `answer_patience_ms`: so long a rating waits for its answer, which
    may still stream, so that the receiver learns of its model too. `patience_ms`: how long one rests whose telling brings out a bug.
    """

    max_at_once: int = 8
    poll_s: float = 0.5
    lease_ms: int = 60_000
    first_delay_ms: int = 1_000
    max_delay_ms: int = 3_600_000
    give_up_ms: int = 3 * 24 * 3_600_000
    answer_patience_ms: int = 30_000
    answer_poll_ms: int = 1_000
    patience_ms: int = 600_000
    first_wait_s: float = 0.1
    max_wait_s: float = 10.0


class DelivererFigures(Struct):
    """What a deliverer has done since it started."""

    num_delivered: int = 0
    num_failed: int = 0
    num_given_up: int = 0
    num_left: int = 0
    num_retries: int = 0


class Deliverer:
    """One worker on what is to be told. `receiver` is opened for as long as it runs; `mask` covers what must not leave."""

    def __init__(
        self,
        database: Database,
        receiver: AbstractAsyncContextManager[Receiver],
        *,
        key: bytes,
        mask: Mask = unmasked,
        options: DelivererOptions | None = None,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self.figures = DelivererFigures()
        self._database = database
        self._receiver = receiver
        self._key = key
        self._mask = mask
        self._options = options or DelivererOptions()
        self._now_ms = now_ms
        self._stopping = asyncio.Event()
        self._is_gone = False
        self._not_before_ms = 0
        self._failing: str | None = None
        self._waiting_for: str | None = None

    def stop(self) -> None:
        """Take nothing more; `run` returns once what was taken is answered."""
        self._stopping.set()

    def failure(self) -> str | None:
        """What the deliverer is waiting for, in words, or None while all is well."""
        if self._is_gone:
            return "the receiver answered 410, it wants no more: nothing is delivered until the next start"
        return self._waiting_for or self._failing

    async def run(self) -> None:
        """Work until `stop`. What a cancelled run had taken is delivered later, by this or another."""
        wait_s = self._options.first_wait_s
        async with self._receiver as receiver:
            while not self._stopping.is_set():
                try:
                    num_taken = await self.deliver_due(receiver)
                except DatabaseUnavailable as error:
                    self.figures.num_retries += 1
                    self._waiting_for = f"{type(error).__name__}: {error}"
                    log.warning("webhook_waits", reason=str(error), delay_s=wait_s)
                    await self._rest(wait_s)
                    wait_s = min(wait_s * 2, self._options.max_wait_s)
                    continue
                self._waiting_for = None
                wait_s = self._options.first_wait_s
                if num_taken < self._options.max_at_once:
                    await self._rest(self._options.poll_s)

    async def deliver_due(self, receiver: Receiver) -> int:
        """Deliver a batch of what is due now; how many that were."""
        if self._is_gone or self._now_ms() < self._not_before_ms:
            return 0
        options = self._options
        async with self._database.transaction() as connection:
            taken = await take_due(
                connection, limit=options.max_at_once, now_ms=self._now_ms(), lease_ms=options.lease_ms
            )
        if taken:
            await self._deliver_all(receiver, taken)
        elif self._failing is not None:
            await self._look_for_others()
        return len(taken)

    async def _look_for_others(self) -> None:
        """What failed here may have been delivered by another."""
        async with self._database.snapshot() as connection:
            if await is_empty(connection):
                self._failing = None

    async def _deliver_all(self, receiver: Receiver, taken: Sequence[Waiting]) -> None:
        async with self._database.snapshot() as connection:
            answers = await known_answers(connection, taken)
        # What fails for want of the database is taken again after its lease; the next batch tells of it.
        outcomes = await asyncio.gather(
            *(self._deliver(receiver, waiting, answers.get(waiting.feedback_id)) for waiting in taken),
            return_exceptions=True,
        )
        for waiting, outcome in zip(taken, outcomes, strict=True):
            match outcome:
                case None | DatabaseUnavailable():
                    pass
                case Exception():
                    # Of whatever kind: a bug that one rating brings out must not stop all others, again with each start.
                    self.figures.num_left += 1
                    log.error("webhook_left", delivery_id=waiting.delivery_id, reason=type(outcome).__name__)
                    await self._put_back(waiting, self._options.patience_ms)
                case BaseException():
                    raise outcome

    async def _deliver(self, receiver: Receiver, waiting: Waiting, known: KnownAnswer | None) -> None:
        if known is None and self._now_ms() - waiting.announced_ms < self._options.answer_patience_ms:
            async with self._database.transaction() as connection:
                due_ms = self._now_ms() + self._options.answer_poll_ms
                await put_back(connection, waiting, due_ms=due_ms, num_tries=waiting.num_tries)
            return
        body = await asyncio.to_thread(self._body, waiting, known)
        now_s = self._now_ms() // 1000
        answer = await receiver.post(body, signed_headers(waiting.delivery_id, body, key=self._key, now_s=now_s))
        if answer.failure is None:
            self.figures.num_delivered += 1
            self._failing = None
            await self._settle(waiting)
        else:
            await self._retry_later(waiting, answer, answer.failure)

    def _body(self, waiting: Waiting, known: KnownAnswer | None) -> bytes:
        return event_body(
            waiting.delivery_id,
            waiting.decoded(),
            known,
            announced_ms=waiting.announced_ms,
            mask=self._mask,
        )

    async def _retry_later(self, waiting: Waiting, answer: Answer, failure: str) -> None:
        self.figures.num_failed += 1
        about = {"delivery_id": waiting.delivery_id, "num_tries": waiting.num_tries + 1, "reason": failure}
        self._failing = f"the receiver {failure}; {self.figures.num_failed} deliveries failed"
        if answer.is_gone:
            self._is_gone = True
            log.error("webhook_gone", **about)
        elif self._now_ms() - waiting.announced_ms >= self._options.give_up_ms:
            self.figures.num_given_up += 1
            log.error("webhook_given_up", feedback_id=waiting.feedback_id, **about)
            await self._settle(waiting)
            return
        else:
            log.warning("webhook_failed", **about)
        await self._put_back(waiting, self._delay_ms(waiting, answer))

    def _delay_ms(self, waiting: Waiting, answer: Answer) -> int:
        options = self._options
        if answer.retry_after_s is not None:
            # It speaks of itself, not of this delivery: everything else waits too.
            delay_ms = min(int(answer.retry_after_s * 1000), options.max_delay_ms)
            self._not_before_ms = max(self._not_before_ms, self._now_ms() + delay_ms)
            return delay_ms
        longest_ms = min(options.first_delay_ms << min(waiting.num_tries, 30), options.max_delay_ms)
        return int(longest_ms * random.uniform(0.5, 1.0))  # noqa: S311

    async def _settle(self, waiting: Waiting) -> None:
        async with self._database.transaction() as connection:
            await settle(connection, waiting, now_ms=self._now_ms())

    async def _put_back(self, waiting: Waiting, delay_ms: int) -> None:
        async with self._database.transaction() as connection:
            due_ms = self._now_ms() + delay_ms
            await put_back(connection, waiting, due_ms=due_ms, num_tries=waiting.num_tries + 1)

    async def _rest(self, delay_s: float) -> None:
        try:
            async with asyncio.timeout(delay_s):
                await self._stopping.wait()
        except TimeoutError:
            return
