"""A node on the scripted engine and the embedded store, which stalls and fails when told to, and the screens of its clients."""

import asyncio
import sqlite3
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager
from pathlib import Path

import msgspec
from msgspec import Struct

from engine.scripted import ScriptedEngine
from server.live import LiveSession
from server.node import Node
from sessions.config import SessionConfig
from sessions.errors import StoreUnavailable
from sessions.generation import Chunk, Prompt
from sessions.journal import Journal
from sessions.records import Record, decode_record
from sessions.sqlite_store import SqliteStore
from sessions.store import Append, AppendStatus, SessionMeta
from tests.sessions.builders import NOW_MS, Json, user_item

WAIT_S = 20.0


class Limits(Struct, frozen=True):
    """`server.node.NodeLimits`."""

    max_sessions: int = 100
    max_session_s: float = 3600.0
    max_items: int = 100
    max_responses_per_session: int = 4
    max_instructions_chars: int = 1000
    max_item_chars: int = 1000
    feedback_reasons: tuple[str, ...] = ("inaccurate", "other")
    keep_prompts: bool = True
    max_outbox_records: int = 1000
    resume_grace_s: float = 30.0
    lease_s: float = 0.3


class StallingStore(SqliteStore):
    """The embedded store, whose answers wait while `gate` is closed; `is_away` refuses new sessions."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.path = path
        self.gate = asyncio.Event()
        self.gate.set()
        self.is_away = False

    async def create(self, meta: SessionMeta, owner: str) -> str:
        await self.gate.wait()
        if self.is_away:
            raise StoreUnavailable("the store is away")
        return await super().create(meta, owner)

    async def append(self, batch: Sequence[Append]) -> list[AppendStatus]:
        await self.gate.wait()
        if self.is_away:
            raise StoreUnavailable("the store is away")
        return await super().append(batch)

    async def renew(self, owner: str, lease_s: float) -> list[str]:
        if self.is_away:
            raise StoreUnavailable("the store is away")
        return await super().renew(owner, lease_s)

    async def forget_everything(self) -> None:
        """Come back empty."""
        with closing(sqlite3.connect(self.path, timeout=WAIT_S)) as database:
            for table in ("journal", "items", "sessions", "outbox"):
                database.execute(f"DELETE FROM {table}")
            database.commit()

    @contextmanager
    def away(self) -> Iterator[None]:
        """Answer nothing that changes it."""
        self.is_away = True
        yield
        self.is_away = False

    @contextmanager
    def stalled(self) -> Iterator[None]:
        self.gate.clear()
        yield
        self.gate.set()


class CountingEngine(ScriptedEngine):
    """Counts what it has streamed, and waits where it is held; a prompt whose text holds "[bug]" meets one."""

    num_chunks = 0
    held_after = float("inf")

    def __init__(self) -> None:
        super().__init__()
        self._released = asyncio.Event()

    def hold(self, *, after: int) -> None:
        """No answer gets beyond so many chunks until `release`: at whatever speed, it is not over before the test has acted."""
        self.held_after = after
        self._released.clear()

    def release(self) -> None:
        """Go on."""
        self.held_after = float("inf")
        self._released.set()

    async def generate(self, prompt: Prompt) -> AsyncGenerator[Chunk, None]:
        if any("[bug]" in getattr(item, "text", "") for item in prompt.items):
            raise ValueError("secret words of the prompt")
        num_chunks = 0
        async for chunk in super().generate(prompt):
            if num_chunks >= self.held_after:
                await self._released.wait()
            num_chunks += 1
            self.num_chunks += 1
            yield chunk


class Screen:
    """A connection that notes what it is sent, and a client that waits for it."""

    def __init__(self) -> None:
        self.payloads: list[bytes] = []
        self.events: list[Json] = []
        self.closed: tuple[int, str] | None = None
        self.is_congested = False
        self._news = asyncio.Event()

    def send_texts(self, payloads: list[bytes]) -> None:
        assert self.closed is None or not payloads, "sent after the close"
        self.payloads += payloads
        self.events += map(msgspec.json.decode, payloads)
        self._news.set()

    def close(self, code: int, reason: str) -> None:
        self.closed = self.closed or (code, reason)
        self._news.set()

    async def until(self, kind: str, count: int = 1) -> Json:
        """The `count`-th event of that type."""
        async with asyncio.timeout(WAIT_S):
            while len(found := [event for event in self.events if event["type"] == kind]) < count:
                await self._wait()
        return found[count - 1]

    async def until_closed(self) -> tuple[int, str]:
        async with asyncio.timeout(WAIT_S):
            while self.closed is None:
                await self._wait()
        return self.closed

    async def _wait(self) -> None:
        self._news.clear()
        await self._news.wait()


class House:
    """A node with its store, engine and journal."""

    def __init__(
        self, node: Node, store: StallingStore, engine: CountingEngine, journal: Journal, beats: asyncio.Task[None]
    ) -> None:
        self._beats = beats
        self.node = node
        self.store = store
        self.engine = engine
        self.journal = journal
        self.sessions: list[LiveSession] = []

    async def open(self, config: SessionConfig | None = None) -> tuple[LiveSession, Screen]:
        """A client that has seen session.created."""
        screen = Screen()
        session = await self.node.open(
            user_id="한나", client_id="kiosk", config=config or SessionConfig(model="demo"), connection=screen
        )
        self.sessions.append(session)
        session.begin()
        await screen.until("session.created")
        return session, screen

    async def resume(self, session: LiveSession, *, after: int) -> tuple[LiveSession, Screen]:
        """The session's client comes back, having seen the events up to `after`."""
        resumed = await self.node.resume(session.session_id, user_id="한나", client_id="kiosk")
        screen = Screen()
        resumed.attach(screen, after=after)
        if resumed is not session:
            self.sessions.append(resumed)
        await screen.until("session.created")
        return resumed, screen

    def stop_beating(self) -> None:
        """The node's lease will lapse."""
        self._beats.cancel()

    async def stored_events(self, session: LiveSession) -> list[bytes]:
        return [event for entry in await self.store.journal(session.session_id, 0, 10_000) for event in entry.events]

    async def records(self) -> list[Record]:
        return [decode_record(delivery.record) for delivery in await self.store.take("test", 1000, 0)]


@asynccontextmanager
async def open_house(
    place: Path | StallingStore, limits: Limits, *, name: str = "node-1", patience_s: float = float("inf")
) -> AsyncIterator[House]:
    """A node on a store of its own at that path, or on one that it shares."""
    async with AsyncExitStack() as stack:
        store = place if isinstance(place, StallingStore) else await stack.enter_async_context(StallingStore(place))
        engine = await stack.enter_async_context(CountingEngine())
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        journal = Journal(store, now_ms=lambda: NOW_MS, patience_s=patience_s)
        node = Node(
            store=store,
            journal=journal,
            engine=engine,
            limits=limits,
            name=name,
            model_version="v1",
            now_ms=lambda: NOW_MS,
            tasks=tasks,
        )
        # Not of the group: a fixture's setup and its teardown are two tasks, and a group cancels only the first.
        commits, beats = asyncio.create_task(journal.run()), asyncio.create_task(node.run())
        house = House(node, store, engine, journal, beats)
        try:
            yield house
        finally:
            store.gate.set()
            store.is_away = False
            beats.cancel()
            for session in house.sessions:
                if session in node:
                    session.end("disconnected")
            async with asyncio.timeout(WAIT_S):
                await asyncio.wait([commits, asyncio.ensure_future(journal.flush())], return_when="FIRST_COMPLETED")
            commits.cancel()
            outcomes = await asyncio.gather(commits, beats, return_exceptions=True)
            assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes), f"crashed: {outcomes}"


def send(live: LiveSession, kind: str, **fields: object) -> None:
    live.receive(msgspec.json.encode({"type": kind, **fields}).decode())


def ask(session: LiveSession, text: str) -> None:
    """A user's message and the wish for an answer."""
    send(session, "conversation.item.create", item=user_item(text))
    send(session, "response.create")


async def turns(count: int) -> None:
    """Let the loop go round so often."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(holds: Callable[[], bool]) -> None:
    """Return once that holds, of which nothing tells."""
    async with asyncio.timeout(WAIT_S):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def response_done(house: House, session: LiveSession) -> Json:
    """The session's first response as it ended, once the store has it."""
    async with asyncio.timeout(WAIT_S):
        while not (found := [event for event in await house.stored_events(session) if b'"response.done"' in event]):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    done: Json = msgspec.json.decode(found[0])["response"]
    return done
