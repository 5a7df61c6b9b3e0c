"""SIGTERM and Ctrl-C: what is being answered is answered to its end, everybody is told to come back, nobody new is let in."""

import asyncio
import http.client
import signal
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import redis

from tests.end_to_end.client import DELTA, Client, open_client
from tests.end_to_end.conftest import Backends
from tests.end_to_end.processes import FluemanProcess, get, run_python, running, token_of
from tests.end_to_end.stored import Records
from tests.services import free_port

NUM_ANSWERS = 20
CRASHING = """
import sys
from server.__main__ import main
from server.request_log import RequestLog

async def crash(self):
    raise ZeroDivisionError("planted")

RequestLog.run = crash
sys.exit(main(["serve"]))
"""


async def until_closed_to_new(port: int) -> None:
    """Wait until the port accepts nobody, or says that it is not ready."""
    while True:
        try:
            if get(port, "/readyz")[0] == 503:
                return
        except (OSError, http.client.HTTPException):
            return
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
async def test_a_stopping_server_finishes_its_answers_and_loses_nothing(
    how: signal.Signals, backends: Backends, records: Records, tmp_path: Path
) -> None:
    """P3, P6: the port closes first, so that a probe of readiness finds nobody."""
    node = FluemanProcess(tmp_path / "node", backends.settings, "serve")
    writer = FluemanProcess(tmp_path / "writer", backends.settings, "write")
    async with AsyncExitStack() as stack:
        stack.enter_context(running(node))
        clients: list[Client] = [
            await stack.enter_async_context(open_client(node.port, token_of(f"user-{number}")))
            for number in range(NUM_ANSWERS + 1)
        ]
        *talking, idle = clients
        for client in talking:
            await client.say("[tokens 80] [pace 40]")
            await client.send("response.create")
        for client in talking:
            await client.until(DELTA)

        node.signal(how)
        await until_closed_to_new(node.port)
        # The server's answers are two seconds long: none has ended yet.
        with pytest.raises(OSError, match="Connect call failed"):
            async with open_client(node.port, token_of("late")):
                pass
        assert await idle.drain() == 1012
        assert not any(client.answers for client in talking), "nobody was being answered any more"
        codes = [await client.drain() for client in talking]
        status = node.wait()

        assert codes == [1012] * NUM_ANSWERS
        assert [[answer["status"] for answer in client.answers] for client in talking] == [["completed"]] * NUM_ANSWERS
        assert status == 0
        assert node.errors() == []
        # What the outbox still held at the end is the next writer's.
        stack.enter_context(running(writer))
        await records.until_ended(len(clients))
        for client in clients:
            await records.check_rows(client)
            await records.check_archive(client)


async def test_a_stopping_writer_leaves_nothing_taken_and_not_stored(backends: Backends, tmp_path: Path) -> None:
    """P3: the next writer need not wait until it may claim what these had taken."""
    node = FluemanProcess(tmp_path / "node", {**backends.settings, "FLUEMAN_WRITER": "none"}, "serve")
    terminated = FluemanProcess(tmp_path / "terminated", backends.settings, "write")
    interrupted = FluemanProcess(tmp_path / "interrupted", backends.settings, "write")
    with running(node, terminated, interrupted), redis.Redis.from_url(backends.redis.url) as connection:
        async with open_client(node.port, token_of("mia")) as client:
            # Both are at it once both are known as consumers.
            while len(connection.xinfo_consumers("fl:{0}:outbox", "writer")) < 2:
                await client.ask("[echo more]")
            terminated.signal(signal.SIGTERM)
            interrupted.signal(signal.SIGINT)
            for _ in range(20):
                await client.ask("[echo more]")

            assert (terminated.wait(), interrupted.wait()) == (0, 0)
            assert connection.xpending("fl:{0}:outbox", "writer")["pending"] == 0
            assert terminated.errors() + interrupted.errors() == []


def test_a_server_that_stops_by_itself_because_a_part_of_it_crashed_counts_as_failed(
    embedded_settings: dict[str, str], tmp_path: Path
) -> None:
    settings = embedded_settings | {"FLUEMAN_PORT": str(free_port())}

    done = run_python(tmp_path, settings, "-c", CRASHING)

    assert done.returncode == 1
    assert "task.crashed" in done.stdout + done.stderr
    assert done.stderr.endswith("flueman: the server stopped because of an error; the log says which\n")
