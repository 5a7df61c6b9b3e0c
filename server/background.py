"""What runs beside the requests for as long as the server lives, and how each part of it ends without losing anything."""

import asyncio
import signal
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Protocol

import structlog

from persistence.writer import Writer
from server.request_log import RequestLog
from sessions.errors import StoreUnavailable
from sessions.journal import Journal
from sessions.store import Store

_log = structlog.get_logger(__name__)

SETTLE_TIMEOUT_S = 5.0
DRAIN_TIMEOUT_S = 5.0
DRAIN_POLL_S = 0.05


class Worker(Protocol):
    """What works beside the writer: a summarizer, a deliverer."""

    def stop(self) -> None:
        """Take nothing more."""

    async def run(self) -> None:
        """Work until `stop`."""


async def settle(journal: Journal, requests: RequestLog) -> None:
    """Commit what waits in the journal and the request log, or say what was not within a time."""
    try:
        async with asyncio.timeout(SETTLE_TIMEOUT_S):
            await journal.flush()
            await requests.flush()
    except (TimeoutError, StoreUnavailable) as error:
        _log.error("stop.uncommitted", reason=type(error).__name__)


@asynccontextmanager
async def running_writer(writer: Writer, store: Store) -> AsyncIterator[None]:
    """The writer at work; at the end it stores what is left, as far as it can within a time."""
    task = asyncio.create_task(_essential(writer.run()))
    try:
        yield
    finally:
        try:
            async with asyncio.timeout(DRAIN_TIMEOUT_S):
                await _drained(writer, store)
        except (TimeoutError, StoreUnavailable) as error:
            _log.warning("stop.undrained", reason=type(error).__name__)
        writer.stop()
        await task


@asynccontextmanager
async def running_beside(worker: Worker) -> AsyncIterator[None]:
    """The worker at work; at the end it finishes what it has taken."""
    task = asyncio.create_task(_essential(worker.run()))
    try:
        yield
    finally:
        worker.stop()
        # Cut off it loses nothing: what it had taken is done after the next start.
        _, unfinished = await asyncio.wait({task}, timeout=DRAIN_TIMEOUT_S)
        for late in unfinished:
            late.cancel()
        await asyncio.gather(*unfinished, return_exceptions=True)
        if not unfinished:
            task.result()


async def _drained(writer: Writer, store: Store) -> None:
    """Return when the outbox is empty, or at once where something is unavailable: what is left there is safe, and stored later."""
    # Other processes share the outbox, so there is no event to wait for.
    while writer.failure() is None and (await store.lag()).pending:  # noqa: ASYNC110
        await asyncio.sleep(DRAIN_POLL_S)


@asynccontextmanager
async def running(*coroutines: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """These at work until the end of the block, each of them essential."""
    tasks = [asyncio.create_task(_essential(coroutine)) for coroutine in coroutines]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome


async def _essential(coroutine: Coroutine[None, None, None]) -> None:
    """Run what the process cannot live without: if it crashes the process stops, to be started again, instead of going on lame.

    The exception is raised once more when all else is closed, so that the stop counts as a failure.
    """
    try:
        await coroutine
    except Exception:
        _log.exception("task.crashed", task=getattr(coroutine, "__qualname__", ""))
        signal.raise_signal(signal.SIGTERM)
        raise
