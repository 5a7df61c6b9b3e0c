"""Something behind the server is away: conversations go on or pause, readiness names what is away, and nothing is missing after."""

import asyncio
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus

from sessions.redis_store import RedisStore
from tests.end_to_end.client import DELTA, open_client
from tests.end_to_end.conftest import Backends
from tests.end_to_end.processes import FluemanProcess, running, token_of
from tests.end_to_end.stored import STORE_TIMEOUT_S, Records, journaled, text_of, until, until_empty

# Only with MySQL, which hangs: a Redis that is killed refuses at once, and one that is well may be slow.
IMPATIENT = {"FLUEMAN_DATABASE_TIMEOUT_S": "1"}


async def until_named(node: FluemanProcess, part: str, *, status: int) -> None:
    """Wait until readiness answers with that status, and names that part."""

    async def is_named() -> bool:
        found, checks = node.readiness()
        return found == status and checks[part] != "ok"

    await until(is_named)


async def until_only(node: FluemanProcess, parts: set[str]) -> None:
    """Wait until readiness complains of none but those; a busy machine may be late with other checks."""

    async def is_so() -> bool:
        return {name for name, said in node.readiness()[1].items() if said != "ok"} <= parts

    await until(is_so)


async def until_ready(node: FluemanProcess) -> None:
    """Wait until readiness is green again."""

    async def is_green() -> bool:
        status, checks = node.readiness()
        return status == 200 and set(checks.values()) == {"ok"}

    await until(is_green)


@pytest.mark.parametrize("away", ["database", "archive"])
async def test_conversations_go_on_while_mysql_or_s3_is_away_and_all_is_stored_afterwards(
    away: str, backends: Backends, records: Records, tmp_path: Path
) -> None:
    """P9, P3: MySQL hangs, S3 is dead."""
    node = FluemanProcess(tmp_path / "node", {**backends.settings, **IMPATIENT}, "serve")
    with running(node):
        async with open_client(node.port, token_of("mia")) as before:
            assert (await before.ask("[echo before]"))["status"] == "completed"
            backends.mariadb.pause() if away == "database" else backends.s3.kill()
            try:
                await until_named(node, away, status=200)
                async with open_client(node.port, token_of("tom")) as during:
                    for client in (before, during):
                        assert text_of(await client.ask("[echo all the same]")) == "all the same"
                await before.close()
                await until_only(node, {away, "writer", "summarizer"})
            finally:
                backends.mariadb.resume() if away == "database" else backends.s3.start()
        async with RedisStore(backends.redis.url, timeout_s=STORE_TIMEOUT_S) as store:
            await until_empty(store)

        await records.until_ended(2)
        for client in (before, during):
            await records.check_rows(client)
            await records.check_archive(client)
        await until_ready(node)


async def test_an_answer_pauses_while_redis_is_away_and_goes_on_with_no_token_lost_or_doubled(
    backends: Backends, records: Records, tmp_path: Path
) -> None:
    """P2, P9."""
    node = FluemanProcess(tmp_path / "node", {**backends.settings, **IMPATIENT}, "serve")
    words = " ".join(f"word{number}" for number in range(120))
    with running(node):
        async with open_client(node.port, token_of("mia")) as client:
            await client.say(f"[echo {words}] [pace 80]")
            await client.send("response.create")
            for _ in range(20):
                await client.until(DELTA)

            backends.redis.kill()
            await until_named(node, "store", status=503)
            with pytest.raises(InvalidStatus) as refused:
                async with open_client(node.port, token_of("tom")):
                    pass
            backends.redis.start()
            response = (await client.until("response.done"))["response"]

            assert refused.value.response.status_code == 503
            assert "retry-after" in refused.value.response.headers
            assert (response["status"], text_of(response)) == ("completed", words)
            assert client.streamed(response["id"]) == words
            async with RedisStore(backends.redis.url, timeout_s=STORE_TIMEOUT_S) as store:
                assert await journaled(store, client.session_id) == client.frames
            await asyncio.sleep(0)
            await until_ready(node)
        await records.until_ended(1)
        await records.check_rows(client)
        await records.check_archive(client)
        assert node.errors() == []
