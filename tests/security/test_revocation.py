"""Attacks with a token that was taken back: refused on every node, for whatever it opened or minted. Rows of SECURITY.md."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import jwt
import pytest
from redis.asyncio import Redis
from websockets.exceptions import InvalidStatus

from tests.end_to_end.client import Client, open_client
from tests.end_to_end.conftest import COMMON
from tests.end_to_end.processes import FluemanProcess, request, running, token_of
from tests.end_to_end.stored import until
from tests.server.watcher import watching
from tests.services import RedisServer

CLOSED_WITHIN_S = 30.0
STREAM = "fl:revoked"
CLOSED = (4401, "Your token has been revoked.")


class Fleet:
    """Nodes on one Redis; the last is started by the test, if at all."""

    def __init__(self, folder: Path, redis: RedisServer) -> None:
        self.redis = redis
        self.nodes = [
            FluemanProcess(
                folder / f"node-{number}",
                COMMON | {"FLUEMAN_REDIS_URL": redis.url, "FLUEMAN_DATA_DIR": str(folder / f"node-{number}" / "var")},
                "serve",
            )
            for number in range(3)
        ]


@pytest.fixture
def fleet(own_redis: RedisServer, tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path, own_redis)
    first, second, later = fleet.nodes
    with running(first, second):
        try:
            yield fleet
        finally:
            later.stop()
    assert [node.errors() for node in fleet.nodes if node.port] == [[] for node in fleet.nodes if node.port]


def id_of(token: str) -> str:
    token_id: str = jwt.decode(token, options={"verify_signature": False})["jti"]
    return token_id


def post(node: FluemanProcess, path: str, token: str, body: object) -> tuple[int, dict[str, Any]]:
    status, answer = request(node.port, "POST", path, body=body, headers={"authorization": f"Bearer {token}"})
    return status, json.loads(answer)


def revoke(node: FluemanProcess, token: str, **what: str) -> dict[str, Any]:
    status, answer = post(node, "/v1/revocations", token, what)
    assert status == 201, answer
    return answer


def secret_of(node: FluemanProcess, token: str) -> str:
    secret: str = post(node, "/v1/realtime/client_secrets", token, {})[1]["value"]
    return secret


async def closed_with(client: Client) -> tuple[int, str | None]:
    """The close code and reason, once the server has closed."""
    async with asyncio.timeout(CLOSED_WITHIN_S):
        code = await client.drain()
    return code, client._socket.close_reason


async def is_let_in(node: FluemanProcess, token: str) -> bool:
    """Whether a token opens a session, and calls the API; one that is refused is refused both."""
    status, answer = request(node.port, "GET", "/v1/me", headers={"authorization": f"Bearer {token}"})
    if status == 200:
        async with open_client(node.port, token):
            return True
    with pytest.raises(InvalidStatus) as refused:
        async with open_client(node.port, token):
            pass
    assert (refused.value.response.status_code, status) == (401, 401)
    for body in (refused.value.response.body, answer):
        assert json.loads(body)["error"]["code"] == "token_revoked"
    return False


async def test_what_a_user_has_is_closed_and_refused_on_every_node_and_nobody_elses(fleet: Fleet) -> None:
    first, second, later = fleet.nodes
    token, other, own = token_of("mia"), token_of("mia"), token_of("mia")
    secret = secret_of(second, other)
    async with AsyncExitStack() as stack:
        here = await stack.enter_async_context(open_client(first.port, token))
        there = await stack.enter_async_context(open_client(second.port, secret))
        viewer = await stack.enter_async_context(watching(second.port, here.session_id, other))
        stranger = await stack.enter_async_context(open_client(second.port, token_of("tom")))
        await there.say("[hang]")
        await there.send("response.create")
        await there.until("response.created")

        revoke(first, own, user_id="mia")

        async with asyncio.timeout(CLOSED_WITHIN_S):
            assert await viewer.closed() == CLOSED
        assert [await closed_with(here), await closed_with(there)] == [CLOSED] * 2
        later.start()
        for node in fleet.nodes:
            assert [await is_let_in(node, held) for held in (token, other, own, secret)] == [False] * 4
            # Issued after that second.
            assert await is_let_in(node, token_of("mia", age_s=-2))
        assert (await stranger.ask("[echo still here]"))["status"] == "completed"


async def test_a_token_is_revoked_on_every_node_also_after_redis_was_restarted(fleet: Fleet) -> None:
    """P9: what was known is, and what comes is heard of."""
    first, second, _ = fleet.nodes
    admin, early, late = token_of("ada", role="admin"), token_of("mia"), token_of("mia")
    secrets = [secret_of(first, late) for _ in range(2)]
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(open_client(node.port, token))
            for node in (first, second)
            for token in (early, late, secrets[0], token_of("mia"))
        ]
        of_early, of_late, of_secret, others = [clients[number::4] for number in range(4)]

        revoke(second, admin, token_id=id_of(early))
        assert [await closed_with(client) for client in of_early] == [CLOSED] * 2
        fleet.redis.kill()
        assert [await is_let_in(node, early) for node in (first, second)] == [False] * 2
        fleet.redis.start()
        for node in (first, second):
            await until_ready(node)
        revoke(first, admin, token_id=id_of(late))

        assert [await closed_with(client) for client in (*of_late, *of_secret)] == [CLOSED] * 4
        for node in (first, second):
            assert [await is_let_in(node, held) for held in (early, late, *secrets)] == [False] * 4
        for client in others:
            assert (await client.ask("[echo still here]"))["status"] == "completed"


async def test_what_redis_lost_is_refused_by_a_node_that_is_started_later(fleet: Fleet) -> None:
    """P9: Redis came back without the newest it had; the nodes that run still know it."""
    first, second, later = fleet.nodes
    admin, early, late = token_of("ada", role="admin"), token_of("mia"), token_of("mia")
    async with Redis.from_url(fleet.redis.url) as redis:
        revoke(first, admin, token_id=id_of(early))
        await until_told(second, early)
        revoke(first, admin, token_id=id_of(late))
        await until_told(second, late)

        [[newest, _]] = await redis.execute_command("XREVRANGE", STREAM, "+", "-", "COUNT", 1)  # type: ignore[no-untyped-call]
        await redis.xdel(STREAM, newest)

        await until(lambda: holds(redis, id_of(late)))
    later.start()
    assert [await is_let_in(later, held) for held in (early, late)] == [False] * 2
    assert await is_let_in(later, token_of("mia"))


async def until_told(node: FluemanProcess, token: str) -> None:
    """Until that node refuses the token."""

    async def is_told() -> bool:
        return not await is_let_in(node, token)

    await until(is_told)


async def holds(redis: Redis, token_id: str) -> bool:
    """Whether Redis has a revocation of that token."""
    entries = await redis.execute_command("XRANGE", STREAM, "-", "+")  # type: ignore[no-untyped-call]
    return token_id in str(entries)


async def until_ready(node: FluemanProcess) -> None:
    async def is_ready() -> bool:
        return node.readiness()[0] == 200

    await until(is_ready)
