"""Attacks before a connection is one: dripped bytes, silence, huge and broken heads, hoarding."""

import asyncio
import contextlib
import itertools
import time
from contextlib import AsyncExitStack

import pytest
from websockets.exceptions import InvalidStatus

from tests.security.conftest import HEAD_TIMEOUT_S, MAX_CONNECTIONS, PATIENCE_S, Target

UPGRADE = (
    b"GET /v1/realtime?model=demo HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


async def answer_to(target: Target, *parts: bytes, pause_s: float = 0.0) -> bytes:
    """All that the server says to these bytes until it closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
    with contextlib.suppress(ConnectionError):
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause_s)
    try:
        async with asyncio.timeout(PATIENCE_S):
            with contextlib.suppress(ConnectionError):
                return await reader.read()
    finally:
        writer.close()
    return b""


async def test_a_client_that_says_nothing_is_dropped_at_the_deadline(target: Target) -> None:
    started_s = time.monotonic()

    await answer_to(target)

    assert time.monotonic() - started_s > HEAD_TIMEOUT_S * 0.9


async def test_a_head_that_drips_is_dropped_at_the_deadline(target: Target) -> None:
    """Each byte must not start it anew: the head has no end, and would be read for ever."""
    reader, writer = await asyncio.open_connection("127.0.0.1", target.port)

    async def drip() -> None:
        with contextlib.suppress(ConnectionError):
            for byte in itertools.chain(UPGRADE, b"X: ", itertools.repeat(ord("a"))):
                writer.write(bytes((byte,)))
                await writer.drain()
                await asyncio.sleep(0.05)

    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as tasks:
        dripping = tasks.create_task(drip())
        answer = await reader.readline()
        dripping.cancel()

    assert answer.startswith(b"HTTP/1.1 408 ")
    writer.close()


async def test_half_open_handshakes_cost_others_nothing(target: Target) -> None:
    async with AsyncExitStack() as held:
        for _ in range(200):
            _, writer = await asyncio.open_connection("127.0.0.1", target.port)
            held.callback(writer.close)
            writer.write(UPGRADE)

        async with target.session("victim") as victim:
            await victim.is_answered()


@pytest.mark.parametrize(
    ("parts", "statuses"),
    [
        ([UPGRADE + b"X: " + b"a" * 9_000 + b"\r\n\r\n"], {b"431"}),
        ([UPGRADE + b"X: a\r\n" * 200 + b"\r\n"], {b"431"}),
        ([UPGRADE + b"X: " + b"a" * 40_000], {b"431"}),
        ([b"GET /" + b"a" * 60_000 + b" HTTP/1.1\r\n"], {b"431", b"400"}),
        ([b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"], {b"400"}),
        ([b"GET / HTTP/9.9\r\n\r\n"], {b"400", b"505"}),
        ([b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n"], {b"400"}),
        ([b"GET / HTTP/1.1\r\nHost: a\r\n b: c\r\n\r\n"], {b"400"}),
        ([UPGRADE.replace(b"13", b"99") + b"\r\n"], {b"400", b"401", b"426"}),
        ([UPGRADE.replace(b"dGhlIHNhbXBsZSBub25jZQ==", b"short") + b"\r\n"], {b"400", b"401"}),
    ],
    ids=["field", "fields", "unended", "url", "tls", "version", "smuggling", "folding", "ws-version", "ws-key"],
)
async def test_a_broken_or_huge_head_is_refused_at_once(
    target: Target, parts: list[bytes], statuses: set[bytes]
) -> None:
    """Not at the deadline, which is answered 408."""
    answer = await answer_to(target, *parts)

    assert answer.split(b" ", 2)[1] in statuses, answer[:200]
    assert b"Traceback" not in answer


async def test_an_upgrade_while_an_answer_is_in_progress_is_cut(target: Target) -> None:
    """The answer would get into the WebSocket, and its task would wait for ever for a client that does not read."""
    upgrade = UPGRADE + f"Authorization: Bearer {target.token('hasty')}\r\n\r\n".encode()

    answer = await answer_to(target, b"GET /web/app.js HTTP/1.1\r\nHost: x\r\n\r\n" + upgrade)

    assert b" 101 " not in answer


async def test_a_client_that_answers_no_ping_is_dropped(target: Target) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
    writer.write(UPGRADE + f"Authorization: Bearer {target.token('silent')}\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")

    async with asyncio.timeout(PATIENCE_S):  # the ping's interval is 1 s, its timeout 5 s
        with contextlib.suppress(ConnectionError):
            await reader.read()

    writer.close()


async def test_one_user_cannot_hoard_connections_and_gets_them_back(target: Target) -> None:
    async with AsyncExitStack() as held:
        for _ in range(MAX_CONNECTIONS):
            await held.enter_async_context(target.session("hoarder"))

        with pytest.raises(InvalidStatus) as refused:
            async with target.session("hoarder"):
                pass
        async with target.session("victim") as victim:
            await victim.is_answered()

    assert refused.value.response.status_code == 429
    assert int(refused.value.response.headers["retry-after"]) > 0
    async with asyncio.timeout(PATIENCE_S), AsyncExitStack() as again:
        for _ in range(MAX_CONNECTIONS):
            while True:  # the server notices each close a moment later
                try:
                    await again.enter_async_context(target.session("hoarder"))
                    break
                except InvalidStatus:
                    continue
