"""Keeps summaries, postings and rollups as the other tables have it. Any number of them may work at once, and any may be killed.

A session that was marked is read whole, and everything derived of it is replaced in one transaction: what it adds to a day's sums is
kept with it, so that exactly that is taken out before the new is added. Nothing here logs what a user said.
"""

import asyncio
import time
from collections.abc import Callable, Mapping

import structlog
from msgspec import Struct

from persistence.database import Database
from persistence.derived import replace_derived
from persistence.errors import DatabaseUnavailable
from persistence.facts import load_facts
from persistence.masking import Mask, unmasked
from persistence.stale import lock_stale, postpone, settle_stale, take_stale
from persistence.summaries import DialogueFacts, Digest, digest

log = structlog.get_logger(__name__)


class SummarizerOptions(Struct, frozen=True, kw_only=True):
    """How a summarizer takes and tries. `lease_ms`: after this a session that somebody took is given to another.

    `patience_ms`: how long a session rests that cannot be summarized, while everything else goes on.
    """

    batch_size: int = 50
    poll_s: float = 0.5
    lease_ms: int = 30_000
    patience_ms: int = 600_000
    first_delay_s: float = 0.1
    max_delay_s: float = 10.0


class SummarizerFigures(Struct):
    """What a summarizer has done since it started."""

    num_summarized: int = 0
    num_left: int = 0
    num_retries: int = 0


class Summarizer:
    """One worker on the marked sessions. `mask` takes out of a text what must not be found or shown, before it is kept."""

    def __init__(
        self,
        database: Database,
        *,
        mask: Mask = unmasked,
        options: SummarizerOptions | None = None,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self.figures = SummarizerFigures()
        self._database = database
        self._mask = mask
        self._options = options or SummarizerOptions()
        self._now_ms = now_ms
        self._stopping = asyncio.Event()
        self._failing: str | None = None

    def stop(self) -> None:
        """Take nothing more; `run` returns once what was taken is summarized."""
        self._stopping.set()

    def failure(self) -> str | None:
        """What the summarizer is waiting for, in words, or None while all is well."""
        return self._failing

    async def run(self) -> None:
        """Work until `stop`. What a cancelled run had taken is summarized later, by this or another."""
        delay_s = self._options.first_delay_s
        while not self._stopping.is_set():
            try:
                num_taken = await self.summarize_due()
            except DatabaseUnavailable as error:
                self.figures.num_retries += 1
                self._failing = f"{type(error).__name__}: {error}"
                log.warning("summarizer_waits", reason=str(error), delay_s=delay_s)
                await self._rest(delay_s)
                delay_s = min(delay_s * 2, self._options.max_delay_s)
                continue
            self._failing = None
            delay_s = self._options.first_delay_s
            if num_taken < self._options.batch_size:
                await self._rest(self._options.poll_s)

    async def summarize_due(self) -> int:
        """Summarize a batch of what is due now; how many sessions that were."""
        async with self._database.transaction() as connection:
            taken = await take_stale(
                connection,
                limit=self._options.batch_size,
                now_ms=self._now_ms(),
                lease_ms=self._options.lease_ms,
            )
        if taken:
            await self._summarize(taken)
        return len(taken)

    async def _summarize(self, taken: Mapping[str, int]) -> None:
        """Summarize these; where that fails, each alone, so that none holds up another."""
        try:
            await self._replace(taken)
        except Exception as error:
            if isinstance(error, DatabaseUnavailable) and not await self._answers():
                raise
            # Of whatever kind: a bug that one session brings out must not stop all others, again with each start; nor must sessions that
            # are too much for the time of one transaction.
            if len(taken) > 1:
                for session_id, mark in taken.items():
                    await self._summarize({session_id: mark})
                return
            self.figures.num_left += 1
            (session_id,) = taken
            if isinstance(error, DatabaseUnavailable):
                # It may have been a connection that broke: due again when the lease is over.
                log.warning("session_waits", session_id=session_id, reason=str(error))
                return
            log.error("session_left", session_id=session_id, reason=type(error).__name__)
            async with self._database.transaction() as connection:
                await postpone(connection, taken, until_ms=self._now_ms() + self._options.patience_ms)
        else:
            self.figures.num_summarized += len(taken)

    async def _answers(self) -> bool:
        """Whether the database is there, so that the failure lay in what it was asked for."""
        try:
            await self._database.check()
        except DatabaseUnavailable:
            return False
        return True

    async def _replace(self, taken: Mapping[str, int]) -> None:
        async with self._database.snapshot() as connection:
            facts = await load_facts(connection, taken)
        digests = await asyncio.to_thread(_digests, facts, self._mask)
        async with self._database.transaction() as connection:
            # The marks were read before the facts: while one is there, nobody has stored anything that is newer and would be left so.
            waiting = await lock_stale(connection, taken)
            await replace_derived(
                connection,
                {session_id: digests.get(session_id) for session_id in waiting},
                is_mysql=self._database.is_mysql,
            )
            await settle_stale(
                connection, {session_id: taken[session_id] for session_id in waiting}, now_ms=self._now_ms()
            )

    async def _rest(self, delay_s: float) -> None:
        try:
            async with asyncio.timeout(delay_s):
                await self._stopping.wait()
        except TimeoutError:
            return


def _digests(facts: Mapping[str, DialogueFacts], mask: Mask) -> dict[str, Digest]:
    return {session_id: digest(found, mask) for session_id, found in facts.items()}
