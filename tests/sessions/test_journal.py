"""The journal's group commit, on a store that is slow, fails and loses replies when told to. P2, P3."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from types import TracebackType
from typing import Self

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

import sessions.journal
from sessions.effects import Effects
from sessions.errors import SessionNotFound, StoreUnavailable
from sessions.feedback import Feedback
from sessions.journal import Journal
from sessions.records import TurnRecord, encode_record
from sessions.revocation import Heard, Revocation
from sessions.server_events import InputAudioCleared, encode_event
from sessions.store import (
    Append,
    AppendStatus,
    DeadLetter,
    Delivery,
    Glimpse,
    JournalEntry,
    LoadedSession,
    OutboxLag,
    PlacedItem,
    SessionMeta,
    Store,
    encode_placed,
)
from tests.sessions.builders import NOW_MS, make_placed

FIRST_EPOCH = "1.node"


class FakeStore:
    """`sessions.store.Store` in memory, of which the journal uses `append` alone.

    While `gate` is closed appends wait, each having said so by `arrived`. `failures` are the next calls that fail before anything is
    stored, `lost_replies` the next ones that fail after it.
    """

    def __init__(self) -> None:
        self.batches: list[list[Append]] = []
        self.arrived = asyncio.Semaphore(0)
        self.gate = asyncio.Event()
        self.gate.set()
        self.failures = 0
        self.lost_replies = 0
        self.epochs: dict[str, str] = {}
        self.events: dict[str, list[bytes]] = {}
        self.items: dict[str, dict[str, bytes]] = {}
        self.records: list[bytes] = []

    async def append(self, batch: Sequence[Append]) -> list[AppendStatus]:
        self.batches.append(list(batch))
        self.arrived.release()
        await self.gate.wait()
        if self.failures:
            self.failures -= 1
            raise StoreUnavailable("the store is away")
        statuses = [self._append(part) for part in batch]
        if self.lost_replies:
            self.lost_replies -= 1
            raise StoreUnavailable("the reply was lost")
        return statuses

    def _append(self, part: Append) -> AppendStatus:
        events = self.events.setdefault(part.session_id, [])
        if self.epochs.get(part.session_id, FIRST_EPOCH) != part.epoch:
            return "fenced"
        if part.first_sequence != len(events) + 1:
            return "dup" if part.first_sequence + len(part.events) - 1 <= len(events) else "gap"
        events += part.events
        self.records += part.records
        items = self.items.setdefault(part.session_id, {})
        for item_id in part.dropped_items:
            items.pop(item_id, None)
        items.update(part.saved_items)
        return "ok"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    async def ping(self) -> None:
        if self.failures:
            self.failures -= 1
            raise StoreUnavailable("the store is away")

    async def create(self, meta: SessionMeta, owner: str) -> str:
        return FIRST_EPOCH

    async def claim(
        self, session_id: str, owner: str, *, user_id: str | None = None, client_id: str | None = None
    ) -> LoadedSession:
        raise SessionNotFound(session_id)

    async def epoch(self, session_id: str) -> str | None:
        return self.epochs.get(session_id)

    async def is_adopted(self, session_id: str, since: str) -> bool:
        return False

    async def peek(self, session_id: str) -> Glimpse | None:
        return None

    async def item(self, session_id: str, item_id: str) -> PlacedItem | None:
        return None

    async def rate(self, session_id: str, item_id: str, feedback: Feedback) -> None: ...

    async def renew(self, owner: str, lease_s: float) -> list[str]:
        return []

    async def adopt(self, owner: str, limit: int) -> list[LoadedSession]:
        return []

    async def surrender(self, owner: str) -> None: ...

    async def restore(
        self,
        meta: SessionMeta,
        owner: str,
        epoch: str,
        *,
        next_sequence: int,
        config: bytes,
        items: Sequence[PlacedItem],
    ) -> str | None:
        return None

    async def journal(self, session_id: str, after: int, limit: int) -> list[JournalEntry]:
        return []

    async def trim(self, session_id: str, archived_sequence: int, *, final: bool) -> None: ...

    async def enqueue(self, records: Sequence[bytes]) -> None: ...

    async def take(self, consumer: str, limit: int, wait_s: float) -> list[Delivery]:
        return []

    async def reclaim(self, consumer: str, limit: int, min_idle_s: float) -> list[Delivery]:
        return []

    async def acknowledge(self, receipts: Sequence[str]) -> None: ...

    async def bury(self, delivery: Delivery, error: str) -> None: ...

    async def dead(self, limit: int) -> list[DeadLetter]:
        return []

    async def revive(self, limit: int) -> int:
        return 0

    async def revoke(self, revocation: Revocation) -> None: ...

    async def revocations(self, after: str, wait_s: float) -> Heard:
        return Heard([], after, is_anew=False)

    async def lag(self) -> OutboxLag:
        return OutboxLag(0, 0.0, 0)


class Listener:
    """A live session that notes what it is told."""

    def __init__(self, session_id: str, epoch: str = FIRST_EPOCH) -> None:
        self._session_id = session_id
        self._epoch = epoch
        self.parts: list[Append] = []
        self.refusals: list[AppendStatus] = []
        self.num_abandoned = 0
        self.next_sequence = 1

    @property
    def session_id(self) -> str:
        return self._session_id

    @property
    def epoch(self) -> str:
        return self._epoch

    def committed(self, part: Append) -> None:
        self.parts.append(part)

    def refused(self, part: Append, status: AppendStatus) -> None:
        self.refusals.append(status)

    def abandoned(self) -> None:
        self.num_abandoned += 1

    @property
    def delivered(self) -> list[bytes]:
        return [event for part in self.parts for event in part.events]

    def make_effects(self, num_events: int = 1) -> Effects:
        """So many events, each with its number in the session."""
        begin = self.next_sequence
        self.next_sequence += num_events
        return Effects(
            events=[InputAudioCleared(f"{self.session_id}:{number}") for number in range(begin, self.next_sequence)]
        )

    def say(self, journal: Journal, num_events: int = 1) -> list[bytes]:
        """Append so many events; them as they are encoded."""
        first = self.next_sequence
        effects = self.make_effects(num_events)
        journal.append(self, first, effects)
        return [encode_event(event) for event in effects.events]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries follow at once."""
    monkeypatch.setattr(sessions.journal, "_FIRST_RETRY_S", 0.0)


@asynccontextmanager
async def running(store: Store, *, patience_s: float = float("inf")) -> AsyncIterator[Journal]:
    journal = Journal(store, now_ms=lambda: NOW_MS, patience_s=patience_s)
    task = asyncio.create_task(journal.run())
    try:
        yield journal
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@contextmanager
def closed(store: FakeStore) -> Iterator[None]:
    """Commits do not come back in this block."""
    store.gate.clear()
    yield
    store.gate.set()


async def test_an_append_is_committed_and_delivered() -> None:
    store, listener = FakeStore(), Listener("sess_a")

    async with running(store) as journal:
        events = listener.say(journal, 2)
        await journal.flush()

    assert listener.delivered == store.events["sess_a"] == events
    [part] = listener.parts
    assert (part.first_sequence, part.at_ms, part.epoch, part.config) == (1, NOW_MS, FIRST_EPOCH, None)


async def test_nothing_is_delivered_before_its_commit() -> None:
    """P2."""
    store, listener = FakeStore(), Listener("sess_a")

    async with running(store) as journal:
        with closed(store):
            events = listener.say(journal)
            await store.arrived.acquire()
            listener.say(journal)
            delivered_early = listener.delivered
        await journal.flush()

    assert delivered_early == []
    assert listener.delivered[:1] == events


async def test_what_comes_while_a_commit_is_in_flight_is_the_next_batch() -> None:
    store, one, two = FakeStore(), Listener("sess_a"), Listener("sess_b")

    async with running(store) as journal:
        with closed(store):
            one.say(journal)
            await store.arrived.acquire()
            one.say(journal, 2)
            two.say(journal)
            one.say(journal)
        await journal.flush()

    sizes = [[(part.session_id, part.first_sequence, len(part.events)) for part in batch] for batch in store.batches]
    assert sizes == [[("sess_a", 1, 1)], [("sess_a", 2, 3), ("sess_b", 1, 1)]]
    assert one.delivered == store.events["sess_a"]


async def test_one_batch_takes_everything_of_one_turn_of_the_loop() -> None:
    store = FakeStore()
    listeners = [Listener(f"sess_{number}") for number in range(50)]

    async with running(store) as journal:
        for listener in listeners * 3:
            listener.say(journal)
        await journal.flush()

    assert [len(batch) for batch in store.batches] == [50]
    assert all(len(listener.delivered) == 3 for listener in listeners)


async def test_an_absent_store_is_tried_until_it_is_back() -> None:
    """P9."""
    store, listener = FakeStore(), Listener("sess_a")
    store.failures = 3

    async with running(store) as journal:
        with capture_logs() as logs:
            events = listener.say(journal)
            for _ in range(3):
                await store.arrived.acquire()
            failure, delivered_early = journal.failure(), listener.delivered
            await journal.flush()

    assert (failure, delivered_early) == ("the store is away", [])
    assert journal.failure() is None
    assert listener.delivered == events
    assert len(store.batches) == 4
    assert [entry["event"] for entry in logs] == ["journal.stalled", "journal.resumed"]


async def test_a_lost_reply_is_no_loss_and_no_doubling() -> None:
    """P3."""
    store, listener = FakeStore(), Listener("sess_a")
    store.lost_replies = 2

    async with running(store) as journal:
        events = listener.say(journal, 2)
        await journal.flush()
        events += listener.say(journal)
        await journal.flush()

    assert store.events["sess_a"] == listener.delivered == events
    assert listener.refusals == []


async def test_an_owner_of_the_past_is_refused_and_others_are_not() -> None:
    """P4."""
    store, old, other = FakeStore(), Listener("sess_a"), Listener("sess_b")
    store.epochs["sess_a"] = "2.another"

    async with running(store) as journal:
        old.say(journal)
        events = other.say(journal)
        await journal.flush()

    assert (old.refusals, old.parts) == (["fenced"], [])
    assert store.events["sess_a"] == []
    assert other.delivered == events


async def test_a_gap_is_refused() -> None:
    store, listener = FakeStore(), Listener("sess_a")
    listener.next_sequence = 5

    async with running(store) as journal:
        listener.say(journal)
        await journal.flush()

    assert (listener.refusals, listener.parts) == (["gap"], [])


async def test_flush_waits_for_all_that_was_appended_and_for_nothing_when_idle() -> None:
    store, listener = FakeStore(), Listener("sess_a")

    async with running(store) as journal:
        await journal.flush()
        with closed(store):
            listener.say(journal)
            await store.arrived.acquire()
            listener.say(journal)
            flushing = asyncio.create_task(journal.flush())
            await asyncio.sleep(0)
            was_done_before_the_first = flushing.done()
            # Lets through the commit that waits, not the next one.
            store.gate.set()
            store.gate.clear()
            await store.arrived.acquire()
            await asyncio.sleep(0)
            was_done_before_the_second = flushing.done()
        await flushing
        num_delivered = len(listener.delivered)

    assert (was_done_before_the_first, was_done_before_the_second) == (False, False)
    assert num_delivered == 2


async def test_the_last_state_and_the_last_save_of_a_batch_win_and_records_keep_their_order() -> None:
    store, listener = FakeStore(), Listener("sess_a")
    records = [TurnRecord(f"turn_{number}", "sess_a", number, number, "item", "", 0) for number in range(3)]
    changes = [
        Effects(state=b'{"n":1}', saved_items=[make_placed("a", 1.0, "old")], records=[records[0]]),
        Effects(state=b'{"n":2}', saved_items=[make_placed("a", 1.0, "new")], records=[records[1]]),
        Effects(records=[records[2]]),
    ]

    async with running(store) as journal:
        for effects in changes:
            effects.events = listener.make_effects().events
            journal.append(listener, listener.next_sequence - 1, effects)
        await journal.flush()

    [part] = listener.parts
    assert part.config == b'{"n":2}'
    assert store.items["sess_a"] == {"a": encode_placed(make_placed("a", 1.0, "new"))}
    assert store.records == [encode_record(record) for record in records]


@pytest.mark.parametrize("was_there", [False, True])
@pytest.mark.parametrize("ends_saved", [False, True])
async def test_an_item_that_is_dropped_and_made_again_in_one_batch_ends_as_its_last_change(
    was_there: bool, ends_saved: bool
) -> None:
    """LiveKit's truncation: delete and create with the same id."""
    store, listener = FakeStore(), Listener("sess_a")
    old, new = make_placed("a", 1.0, "old"), make_placed("a", 2.0, "new")
    if was_there:
        store.items["sess_a"] = {"a": encode_placed(old)}
    changes = [
        Effects(saved_items=[old]),
        Effects(dropped_items=["a"]),
        Effects(saved_items=[new]),
        *([] if ends_saved else [Effects(dropped_items=["a"])]),
    ]

    async with running(store) as journal:
        for effects in changes:
            effects.events = listener.make_effects().events
            journal.append(listener, listener.next_sequence - 1, effects)
        await journal.flush()

    assert len(store.batches) == 1
    assert store.items["sess_a"] == ({"a": encode_placed(new)} if ends_saved else {})


_steps = st.lists(
    st.one_of(
        st.tuples(st.just("say"), st.integers(0, 2), st.integers(1, 3)),
        st.tuples(st.sampled_from(["turn", "fail", "lose", "flush"]), st.just(0), st.just(0)),
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(_steps)
def test_any_schedule_of_appends_failures_and_lost_replies_keeps_each_sessions_order(
    steps: list[tuple[str, int, int]],
) -> None:
    """P2, P3."""

    async def play() -> None:
        store = FakeStore()
        listeners = [Listener(f"sess_{number}") for number in range(3)]
        said: list[list[bytes]] = [[], [], []]
        async with running(store) as journal:
            for step, who, num_events in steps:
                match step:
                    case "say":
                        said[who] += listeners[who].say(journal, num_events)
                    case "turn":
                        await asyncio.sleep(0)
                    case "fail":
                        store.failures += 1
                    case "lose":
                        store.lost_replies += 1
                    case "flush":
                        await journal.flush()
                for listener in listeners:
                    stored = store.events.get(listener.session_id, [])
                    assert stored[: len(listener.delivered)] == listener.delivered, "delivered before its commit"
            await journal.flush()
        for listener, events in zip(listeners, said, strict=True):
            assert store.events.get(listener.session_id, []) == listener.delivered == events
            assert listener.refusals == []

    asyncio.run(play())


async def test_what_waits_for_a_store_that_stays_away_is_given_up_and_its_sessions_are_told() -> None:
    """P9: once, and also those that came while it was asked again."""
    store, one, two, idle = FakeStore(), Listener("sess_a"), Listener("sess_b"), Listener("sess_c")
    store.failures = 2

    async with running(store, patience_s=0.0) as journal:
        with closed(store):
            one.say(journal)
            await store.arrived.acquire()
            two.say(journal)
        await journal.flush()

        assert (one.num_abandoned, two.num_abandoned, idle.num_abandoned) == (1, 1, 0)
        assert (one.delivered, two.delivered) == ([], [])
        assert journal.failure() is not None


async def test_a_store_that_is_back_is_found_out_with_nothing_to_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """P9: or else new turns would be refused for ever."""
    monkeypatch.setattr(sessions.journal, "_LAST_RETRY_S", 0.0)
    store, listener = FakeStore(), Listener("sess_a")
    store.failures = 3

    async with running(store, patience_s=0.0) as journal:
        listener.say(journal)
        async with asyncio.timeout(5):
            while not listener.num_abandoned or journal.failure() is not None:  # noqa: ASYNC110
                await asyncio.sleep(0)

        other = Listener("sess_b")
        events = other.say(journal)
        await journal.flush()

    assert other.delivered == events
