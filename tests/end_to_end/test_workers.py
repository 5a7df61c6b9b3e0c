"""`flueman serve --workers 2`: several processes on one port, where the store allows it."""

import asyncio
import signal
from pathlib import Path

import psutil
import redis

from tests.end_to_end.client import Client, open_client
from tests.end_to_end.conftest import Backends
from tests.end_to_end.processes import FluemanProcess, run_command, running, token_of
from tests.end_to_end.stored import Records, until


async def talk(port: int, number: int) -> Client:
    async with open_client(port, token_of(f"user-{number}")) as client:
        assert (await client.ask(f"[echo {number}]"))["status"] == "completed"
    return client


async def test_two_workers_share_the_port_and_store_everything(
    backends: Backends, records: Records, tmp_path: Path
) -> None:
    """P3."""
    node = FluemanProcess(tmp_path / "node", backends.settings, "serve", "--workers", "2")
    with running(node):

        async def all_serve() -> bool:
            return node.log_path.read_text().count("Application startup complete") == 2

        await until(all_serve)
        clients: list[Client] = []
        with redis.Redis.from_url(backends.redis.url) as connection:
            owners: set[bytes] = set()
            # The kernel shares the connections out as it likes.
            while len(owners) < 2:
                async with asyncio.TaskGroup() as tasks:
                    talks = [tasks.create_task(talk(node.port, len(clients) + n)) for n in range(8)]
                clients += [done.result() for done in talks]
                # The epoch names the owner, and stays when the session has ended.
                owners = {connection.hget(f"fl:{{0}}:{client.session_id}:state", "epoch") for client in clients}
        await records.until_ended(len(clients))
        workers = node.children()

        for client in clients:
            await records.check_rows(client)
            await records.check_archive(client)
        node.signal(signal.SIGTERM)
        assert node.wait() == 0
        _, left = psutil.wait_procs(workers, timeout=10)
        assert left == []
        assert node.errors() == []


def test_two_workers_are_refused_where_one_process_owns_the_store(
    embedded_settings: dict[str, str], tmp_path: Path
) -> None:
    done = run_command(tmp_path, embedded_settings, "serve", "--workers", "2")

    assert done.returncode == 2
    assert (
        "FLUEMAN_WORKERS: more than one worker needs FLUEMAN_REDIS_URL: the embedded store belongs to one process"
        in (done.stderr)
    )
