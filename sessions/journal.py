"""The node's journal: gathers what all sessions append and commits it in one round trip at a time.

While one commit is in flight the next batch gathers, so that batches grow by themselves under load and a lone token waits one round trip.
Nothing is delivered before its commit (write-ahead). A lost reply is retried: the store answers `dup` for what is already there.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

import structlog

from sessions.effects import Effects
from sessions.errors import StoreUnavailable
from sessions.records import encode_record
from sessions.server_events import ServerEvent, encode_event
from sessions.store import Append, AppendStatus, Store, encode_placed

_log = structlog.get_logger(__name__)

_FIRST_RETRY_S = 0.02
_LAST_RETRY_S = 1.0


class Subscriber(Protocol):
    """The live session that appends: it learns what was committed, in order, and when it may not write any more."""

    @property
    def session_id(self) -> str:
        """Whose journal it appends to."""

    @property
    def epoch(self) -> str:
        """The epoch of its claim."""

    def committed(self, part: Append) -> None:
        """This part is durable and its events may be delivered."""

    def refused(self, part: Append, status: AppendStatus) -> None:
        """Nothing of it is stored: another owner has the session (`fenced`), the store lost events (`gap`, `gone`), or `too_large`."""

    def abandoned(self) -> None:
        """The store was away for too long; whether the last parts are stored is not known, and they are forgotten here."""


class Journal:
    """Group commit over a store. `run` must be running for anything to be committed.

    A store that is away is asked again for `patience_s`; then all that waits is given up, and its subscribers are told.
    """

    def __init__(self, store: Store, *, now_ms: Callable[[], int], patience_s: float = float("inf")) -> None:
        self._store = store
        self._patience_s = patience_s
        self._now_ms = now_ms
        self._pending: dict[Subscriber, Append] = {}
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._failure: str | None = None

    def append(self, subscriber: Subscriber, first_sequence: int, effects: Effects) -> int:
        """Queue one input's effects for the next commit; its events take the numbers from `first_sequence` on. How many bytes they have."""
        part = self._pending.get(subscriber) or self._begin(subscriber, first_sequence)
        events = list(map(encode_event, effects.events))
        part.events += events
        if effects.records:
            part.records.extend(map(encode_record, effects.records))
        for item_id in effects.dropped_items:
            part.saved_items.pop(item_id, None)
            part.dropped_items.append(item_id)
        for placed in effects.saved_items:
            part.saved_items[placed.item.id] = encode_placed(placed)
        if effects.state is not None:
            part.config = effects.state
        if effects.ends:
            part.ends = True
        return sum(map(len, events))

    def append_event(self, subscriber: Subscriber, sequence: int, event: ServerEvent) -> None:
        """Queue one event that has no further effects: nearly every token."""
        part = self._pending.get(subscriber) or self._begin(subscriber, sequence)
        part.events.append(encode_event(event))

    def failure(self) -> str | None:
        """None while commits go through, else why they do not."""
        return self._failure

    async def flush(self) -> None:
        """Return once everything appended so far is committed or refused."""
        await self._idle.wait()

    async def run(self) -> None:
        """Commit for ever; cancel it only after `flush`."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            batch, self._pending = self._pending, {}
            now_ms = self._now_ms()
            for part in batch.values():
                part.at_ms = now_ms
            statuses = await self._commit(list(batch.values()))
            if statuses is None:
                self._give_up(batch)
                await self._back()
                continue
            for (subscriber, part), status in zip(batch.items(), statuses, strict=True):
                if status == "ok" or status == "dup":
                    subscriber.committed(part)
                else:
                    subscriber.refused(part, status)
            if not self._pending:
                self._idle.set()

    def _give_up(self, batch: dict[Subscriber, Append]) -> None:
        waiting, self._pending = batch | self._pending, {}
        _log.error("journal.given_up", reason=self._failure, num_sessions=len(waiting))
        for subscriber in waiting:
            subscriber.abandoned()
        if not self._pending:
            self._idle.set()

    async def _back(self) -> None:
        """Return once the store answers again, or something waits for a commit, which will show whether it does."""
        while not self._pending:
            try:
                await self._store.ping()
            except StoreUnavailable:
                await asyncio.sleep(_LAST_RETRY_S)
            else:
                self._failure = None
                return

    def _begin(self, subscriber: Subscriber, first_sequence: int) -> Append:
        part = Append(subscriber.session_id, subscriber.epoch, first_sequence, 0, [], [], {}, [])
        self._pending[subscriber] = part
        self._wake.set()
        self._idle.clear()
        return part

    async def _commit(self, parts: list[Append]) -> list[AppendStatus] | None:
        retry_s = _FIRST_RETRY_S
        give_up_s: float | None = None
        while True:
            try:
                statuses = await self._store.append(parts)
            except StoreUnavailable as error:
                now_s = asyncio.get_running_loop().time()
                if give_up_s is None:
                    give_up_s = now_s + self._patience_s
                    _log.warning("journal.stalled", reason=str(error), num_sessions=len(parts))
                self._failure = str(error)
                if now_s >= give_up_s:
                    return None
                await asyncio.sleep(retry_s)
                retry_s = min(retry_s * 2, _LAST_RETRY_S)
            else:
                if self._failure is not None:
                    _log.info("journal.resumed", num_sessions=len(parts))
                self._failure = None
                return statuses
