"""A replay is the same stream: two hundred random sessions, with cuts, tools, lost connections and ratings, on MariaDB, Redis and S3. P8"""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct

from persistence.history import archived_events
from persistence.part import JournalEvent
from sessions.playback import Playback
from sessions.redis_store import RedisStore
from sessions.server_events import with_sequence_number
from sessions.store import Store
from tests.end_to_end.client import DELTA, WEATHER, Client, open_client
from tests.end_to_end.conftest import Backends
from tests.end_to_end.processes import FluemanProcess, run_command, running, token_of
from tests.end_to_end.stored import STORE_TIMEOUT_S, Records, journaled, until, until_empty
from tests.server.watcher import Watcher, watching

NUM_SESSIONS = 200
NUM_AT_ONCE = 16
SEED = 4
FASTEST: Any = {"speed": 100, "max_silence_ms": 0}


class Talk(Struct):
    """A session: what its journal held at its end, the frames that its connections received, and who watched it live."""

    session_id: str
    journal: list[bytes]
    clients: list[Client]
    watched: list[bytes] | None


class Talker:
    """A user who does at random what users do, on two nodes."""

    def __init__(self, rng: random.Random, user_id: str, ports: tuple[int, int], stack: AsyncExitStack) -> None:
        self._rng = rng
        self._token = token_of(user_id)
        self._ports = ports
        self._stack = stack
        self.clients: list[Client] = []

    @property
    def client(self) -> Client:
        return self.clients[-1]

    async def begin(self) -> None:
        self.clients.append(await self._stack.enter_async_context(open_client(self._port(), self._token)))
        session = {"type": "realtime", "resumption": {"enabled": True}, "tools": [WEATHER]}
        await self.client.send("session.update", session=session)
        await self.client.until("session.updated")

    async def act(self) -> None:
        acts = [
            self._ask,
            self._ask,
            self._cut,
            self._call,
            self._fail,
            self._rate,
            self._lose_connection,
            self._delete,
        ]
        await self._rng.choice(acts)()

    def _port(self) -> int:
        return self._rng.choice(self._ports)

    async def _ask(self) -> None:
        await self.client.ask(f'[echo "grüße" 👋🏽 \\n {self._rng.random()} \u2028 日本語]')

    async def _cut(self) -> None:
        await self.client.ask_and_cut("[tokens 4000] [pace 100] go on", num_deltas=self._rng.randrange(5))

    async def _call(self) -> None:
        call = (await self.client.ask('[call get_weather {"city":"Köln"}]'))["output"][0]
        output = {"type": "function_call_output", "call_id": call["call_id"], "output": "rain ☔"}
        await self.client.send("conversation.item.create", item=output)
        await self.client.answer()

    async def _fail(self) -> None:
        await self.client.ask("[fail after 3] [tokens 9]")

    async def _rate(self) -> None:
        response = await self.client.ask("[tokens 5]")
        for _ in range(self._rng.randint(1, 2)):
            feedback = {"rating": self._rng.choice(["up", "down"]), "comment": "weil … 🙂"}
            await self.client.send("avatar.feedback.create", item_id=response["output"][0]["id"], feedback=feedback)
            await self.client.until("avatar.feedback.created")

    async def _delete(self) -> None:
        response = await self.client.ask("[tokens 3]")
        await self.client.send("conversation.item.delete", item_id=response["output"][0]["id"])
        await self.client.until("conversation.item.deleted")

    async def _lose_connection(self) -> None:
        """In the middle of an answer, which the next connection sees to its end."""
        old = self.client
        await old.say("[tokens 30] [pace 100] go on")
        await old.send("response.create")
        for _ in range(self._rng.randrange(1, 6)):
            await old.until(DELTA)
        old.cut()
        await old.drain()
        resuming = (self.clients[0].conversation_id, old.events[-1]["sequence_number"])
        again = open_client(self._port(), self._token, resuming=resuming)
        self.clients.append(await self._stack.enter_async_context(again))
        if not any(event["type"] == "response.done" for event in old.events[-1:]):
            await self.client.until("response.done")


async def talk(number: int, ports: tuple[int, int], store: Store) -> Talk:
    """One random session, each tenth of which is watched while it lives, by a node that may not be its own."""
    rng = random.Random(f"{SEED}.{number}")
    async with AsyncExitStack() as stack:
        talker = Talker(rng, f"user-{number}", ports, stack)
        await talker.begin()
        session_id = talker.client.session_id
        watcher = None
        if number % 10 == 0:
            watcher = await stack.enter_async_context(
                watching(rng.choice(ports), session_id, token_of("ann", role="support"), **FASTEST)
            )
        for _ in range(rng.randint(1, 4)):
            await talker.act()
        if watcher is not None:
            await watcher.until_recorded(len(await journaled(store, session_id)))
        journal = await journaled(store, session_id)
        await talker.client.close()
        if watcher is not None:
            await watcher.until("avatar.replay.done")
    return Talk(session_id, journal, talker.clients, None if watcher is None else watcher.recorded)


async def replayed(port: int, session_id: str) -> Watcher:
    """The whole session, as fast as it goes."""
    async with watching(port, session_id, token_of("ann", role="support"), **FASTEST) as watcher:
        await watcher.until("avatar.replay.done")
    return watcher


async def until_over(store: Store, talks: list[Talk]) -> None:
    """Wait until every session has ended and all of it is archived."""

    async def have_ended() -> bool:
        glimpses = [await store.peek(talk.session_id) for talk in talks]
        return not any(glimpse is None or glimpse.has_owner for glimpse in glimpses)

    await until(have_ended)
    await until_empty(store)


def check_frames(talk: Talk, recorded: list[bytes], archived: list[JournalEvent]) -> None:
    """What is replayed is what was journaled and what the user's own connections received, byte for byte."""
    assert recorded == [with_sequence_number(event.event, event.sequence) for event in archived]
    assert [event.sequence for event in archived] == list(range(1, len(archived) + 1))
    assert [event.event for event in archived][: len(talk.journal)] == talk.journal
    if talk.watched is not None:
        assert talk.watched == recorded
    numbered = {json.loads(frame)["sequence_number"]: frame for frame in recorded}
    num_compared = 0
    for number, client in enumerate(talk.clients):
        # The greeting of a connection that came back is said to it alone.
        for frame, event in list(zip(client.frames, client.events, strict=True))[1 if number else 0 :]:
            sequence = event.get("sequence_number")
            if sequence is None:
                # It came before the client asked for numbers.
                assert frame == talk.journal[client.frames.index(frame)]
            else:
                assert frame == numbered[sequence]
            num_compared += 1
    assert num_compared >= len(talk.journal)


def check_schedule(archived: list[JournalEvent]) -> None:
    """On a clock that is never late, each event is due after the one before exactly as it was committed after it."""
    playback, first_ms, now_s = (
        Playback(speed=1.0, is_paused=False, max_silence_ms=None, now_s=7.0),
        archived[0].at_ms,
        7.0,
    )
    latest_ms = first_ms
    for event in archived:
        due_s = playback.due_s(event.at_ms - first_ms)
        assert due_s is not None
        assert abs((due_s - now_s) - max(0, event.at_ms - latest_ms) / 1000) < 1e-6
        playback.passed(event.at_ms - first_ms, due_s)
        now_s, latest_ms = due_s, max(latest_ms, event.at_ms)


@asynccontextmanager
async def house(backends: Backends, folder: Path) -> AsyncIterator[tuple[FluemanProcess, FluemanProcess]]:
    """Two nodes and a writer."""
    settings = {**backends.settings, "FLUEMAN_WRITER": "none", "FLUEMAN_MAX_CONNECTIONS_PER_USER": "100"}
    migrated = await asyncio.to_thread(run_command, folder, settings, "migrate")
    assert migrated.returncode == 0, migrated.stderr
    first, second = (FluemanProcess(folder / f"node-{n}", settings, "serve") for n in range(2))
    with running(first, second, FluemanProcess(folder / "writer", settings, "write")):
        yield first, second


@pytest.mark.timeout(600)
async def test_two_hundred_random_sessions_are_replayed_byte_for_byte_as_they_were_journaled_and_received(
    backends: Backends, records: Records, tmp_path: Path
) -> None:
    """P8"""
    async with (
        house(backends, tmp_path) as (first, second),
        RedisStore(backends.redis.url, timeout_s=STORE_TIMEOUT_S) as store,
    ):
        turnstile = asyncio.Semaphore(NUM_AT_ONCE)
        ports = (first.port, second.port)

        async def one(number: int) -> Talk:
            async with turnstile:
                return await talk(number, ports, store)

        async def check(number: int, told: Talk) -> int:
            async with turnstile:
                assert await journaled(store, told.session_id) == [], "what is archived is trimmed"
                events = archived_events(records.database, records.archive, told.session_id)
                archived = [event async for event in events]
                watcher = await replayed(ports[number % 2], told.session_id)
                check_frames(told, watcher.recorded, archived)
                check_schedule(archived)
                return len(archived)

        async with asyncio.TaskGroup() as tasks:
            talking = [tasks.create_task(one(number)) for number in range(NUM_SESSIONS)]
        talks = [task.result() for task in talking]
        await until_over(store, talks)
        async with asyncio.TaskGroup() as tasks:
            checking = [tasks.create_task(check(number, told)) for number, told in enumerate(talks)]
        num_events = sum(task.result() for task in checking)
        kinds = {json.loads(frame)["type"] for told in talks for frame in told.journal}

    assert num_events > 20 * NUM_SESSIONS
    assert kinds >= {
        "response.output_text.delta",
        "response.function_call_arguments.done",
        "avatar.feedback.created",
        "conversation.item.deleted",
        "response.done",
    }
    assert sum(len(told.clients) > 1 for told in talks) > NUM_SESSIONS / 10
