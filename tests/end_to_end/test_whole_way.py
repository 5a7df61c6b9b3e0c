"""From the client's frame to the row and the archived object and back: nothing is lost on the way, doubled, changed, or left behind."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from sessions.redis_store import RedisStore
from tests.end_to_end.client import WEATHER, Client, open_client
from tests.end_to_end.conftest import Backends
from tests.end_to_end.processes import FluemanProcess, run_command, running, token_of
from tests.end_to_end.stored import STORE_TIMEOUT_S, Records, check_redis, open_records, text_of, until_empty

NUM_SESSIONS = 40
NUM_TURNS = 5
INLINE = (1, 0)
WRITER_APART = (1, 1)
FLEET = (2, 2)


async def talk(port: int, number: int) -> Client:
    """A session of echoes, so that the test knows each answer without the server's help."""
    async with open_client(port, token_of(f"user-{number}")) as client:
        for turn in range(NUM_TURNS):
            words = f'Session {number}, turn {turn}: "grüße" 👋🏽 \\n {{not}} \t tab, 日本語\u2028ende'
            response = await client.ask(f"[echo {words}]")
            assert (response["status"], text_of(response)) == ("completed", words)
    return client


async def talk_with_cuts_and_tools(port: int, number: int) -> Client:
    """A session in which answers are cut short, fail, and call a tool."""
    async with open_client(port, token_of(f"user-{number}")) as client:
        await client.send("session.update", session={"type": "realtime", "tools": [WEATHER]})
        cut = await client.ask_and_cut(f"[tokens 4000] [pace 50] number {number}", num_deltas=number % 7)
        assert cut["status"] == "cancelled"
        call = (await client.ask('[call get_weather {"city":"Köln"}]'))["output"][0]
        output = {"type": "function_call_output", "call_id": call["call_id"], "output": "rain ☔"}
        await client.send("conversation.item.create", item=output)
        assert text_of(await client.answer()) == "The tool answered: rain ☔"
        assert (await client.ask("[fail after 3] [tokens 9]"))["status"] == "failed"
        assert (await client.ask("[empty]"))["output"] == []
    return client


def processes(topology: tuple[int, int], backends: Backends, folder: Path) -> list[FluemanProcess]:
    """So many nodes and writers; with no writer, each node writes itself. More than one node is production."""
    num_nodes, num_writers = topology
    settings = {
        **backends.settings,
        "FLUEMAN_ENVIRONMENT": "production" if num_nodes > 1 else "development",
        "FLUEMAN_WRITER": "none" if num_writers else "inline",
    }
    if num_nodes > 1:
        migrated = run_command(folder, settings, "migrate")
        assert migrated.returncode == 0, migrated.stderr
    nodes = [FluemanProcess(folder / f"node-{n}", settings, "serve") for n in range(num_nodes)]
    return nodes + [FluemanProcess(folder / f"writer-{n}", settings, "write") for n in range(num_writers)]


@pytest.mark.parametrize("topology", [INLINE, WRITER_APART, FLEET], ids=["inline", "writer apart", "fleet"])
async def test_every_turn_is_stored_once_and_replays_to_the_very_bytes(
    topology: tuple[int, int], backends: Backends, records: Records, tmp_path: Path
) -> None:
    """P2, P3, P8."""
    house = processes(topology, backends, tmp_path)
    nodes = house[: topology[0]]
    with running(*house):
        async with asyncio.TaskGroup() as tasks:
            talks = [tasks.create_task(talk(nodes[n % len(nodes)].port, n)) for n in range(NUM_SESSIONS)]
        clients = [done.result() for done in talks]
        await records.until_ended(NUM_SESSIONS)
        async with RedisStore(backends.redis.url, timeout_s=STORE_TIMEOUT_S) as store:
            await until_empty(store)

        counts = await records.counts()

        assert counts.num_sessions == NUM_SESSIONS
        assert counts.num_turns == counts.num_predictions == NUM_SESSIONS * NUM_TURNS
        for client in clients:
            await records.check_rows(client)
            await records.check_archive(client)
        check_redis(backends.redis.url, [client.session_id for client in clients])
        assert [process.errors() for process in house] == [[]] * len(house)


async def test_what_is_cut_short_fails_or_calls_a_tool_is_stored_as_the_client_saw_it(
    backends: Backends, records: Records, tmp_path: Path
) -> None:
    """P3, P5, P6, P8."""
    [node] = processes(INLINE, backends, tmp_path)
    with running(node):
        async with asyncio.TaskGroup() as tasks:
            talks = [tasks.create_task(talk_with_cuts_and_tools(node.port, n)) for n in range(20)]
        clients = [done.result() for done in talks]
        await records.until_ended(len(clients))
        async with RedisStore(backends.redis.url, timeout_s=STORE_TIMEOUT_S) as store:
            await until_empty(store)

        counts = await records.counts()

        assert counts.num_turns == sum(len(client.said) for client in clients)
        assert counts.num_predictions == sum(len(client.answers) for client in clients)
        for client in clients:
            await records.check_rows(client)
            await records.check_archive(client)
        check_redis(backends.redis.url, [client.session_id for client in clients])


async def test_the_embedded_default_stores_every_turn_once_too(
    embedded_settings: dict[str, str], tmp_path: Path
) -> None:
    """P2, P3, P8."""
    node = FluemanProcess(tmp_path / "node", embedded_settings, "serve")
    async with AsyncExitStack() as stack:
        stack.enter_context(running(node))
        var = tmp_path / "var"
        records = await stack.enter_async_context(
            open_records(f"sqlite+aiosqlite:///{var / 'flueman.db'}", str(var / "archive"))
        )
        async with asyncio.TaskGroup() as tasks:
            talks = [tasks.create_task(talk(node.port, n)) for n in range(NUM_SESSIONS)]
        clients = [done.result() for done in talks]
        await records.until_ended(NUM_SESSIONS)

        counts = await records.counts()

        assert counts.num_sessions == NUM_SESSIONS
        assert counts.num_turns == counts.num_predictions == NUM_SESSIONS * NUM_TURNS
        for client in clients:
            await records.check_rows(client)
            await records.check_archive(client)
