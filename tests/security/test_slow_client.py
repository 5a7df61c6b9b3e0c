"""Attacks by clients that are slow on purpose, on a server that waits less long than others do: answers nobody reads, bodies that drip."""

import asyncio
import contextlib
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from server.pages import WEB_DIRECTORY
from server.settings import ROOT
from tests.security.conftest import Target, _is_ready, assert_survived
from tests.server.test_auth import SECRET
from tests.services import Service

NUM_REQUESTS = 800
PAGE = "console/session.js"
REQUEST = f"GET /web/{PAGE} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
# More than the kernels of both sides take: some 10 MB.
REQUESTS = REQUEST * (NUM_REQUESTS - 1) + REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
IMPATIENTLY = (
    "import sys; from server import http_protocol as http; from server.__main__ import main;"
    "http.STALL_TIMEOUT_S = 3.0; http.BODY_TIMEOUT_S = 1.0; sys.exit(main(sys.argv[1:]))"
)


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """A server of short deadlines."""
    folder = tmp_path_factory.mktemp("impatient")
    environment = {
        "FLUEMAN_ENGINE": "scripted",
        "FLUEMAN_DATA_DIR": str(folder / "var"),
        "FLUEMAN_JWT_SECRET": SECRET.decode(),
        "PYTHONPATH": str(ROOT),
    }
    removed = [option for name in os.environ if name.startswith("FLUEMAN_") for option in ("-u", name)]
    settings = [f"{name}={value}" for name, value in environment.items()]
    service = Service(
        "flueman",
        folder,
        lambda port: ["env", *removed, *settings, sys.executable, "-c", IMPATIENTLY, "serve", "--port", str(port)],
        _is_ready,
    )
    service.start()
    try:
        yield Target(service)
        assert_survived(service)
    finally:
        service.stop()
    lines = [json.loads(line) for line in service.log_path.read_text().splitlines()]
    assert [line for line in lines if line["level"] in ("error", "critical")] == []


def num_sockets(target: Target) -> int:
    """Sockets that the server has open."""
    descriptors = Path(f"/proc/{target.service.pid}/fd")
    num = 0
    for descriptor in descriptors.iterdir():
        with contextlib.suppress(FileNotFoundError):
            num += os.readlink(descriptor).startswith("socket:")
    return num


def client_that_asks(target: Target, requests: bytes = REQUESTS) -> socket.socket:
    """A client whose requests have got through, for the first byte of an answer is here; whoever calls reads on, or does not."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 * 1024)
    client.settimeout(60)
    client.connect(("127.0.0.1", target.port))
    client.sendall(requests)
    assert client.recv(1) == b"H"
    return client


async def until(condition: Callable[[], bool]) -> None:
    """Return when it holds."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


def all_that_comes(client: socket.socket) -> bytes:
    """What is still to be read, until the server's end of the connection closes."""
    parts = [b""]
    with contextlib.suppress(ConnectionError):
        while part := client.recv(1024 * 1024):
            parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize("last_words", [b"", b"\x16\x03\x01"], ids=["silent", "talks rubbish"])
async def test_clients_that_never_read_are_dropped_and_leave_nothing_behind(
    impatient: Target, last_words: bytes
) -> None:
    num_before = num_sockets(impatient)

    with ExitStack() as held:
        clients = [held.enter_context(client_that_asks(impatient)) for _ in range(8)]
        for client in clients:
            with contextlib.suppress(ConnectionError):
                client.sendall(last_words)
        async with impatient.session("victim") as victim:
            await victim.is_answered()
        await until(lambda: num_sockets(impatient) <= num_before)

        # They did not end because they were served.
        received = await asyncio.gather(*(asyncio.to_thread(all_that_comes, client) for client in clients))
        assert all(answers.count(b"HTTP/1.1 200 ") < NUM_REQUESTS for answers in received)


async def test_a_client_that_reads_slowly_gets_everything(impatient: Target) -> None:
    num_before = num_sockets(impatient)
    page = (WEB_DIRECTORY / PAGE).read_bytes()

    with client_that_asks(impatient) as slow, client_that_asks(impatient):
        received = b"H"

        def the_other_is_dropped() -> bool:
            nonlocal received
            received += slow.recv(16 * 1024)
            return num_sockets(impatient) <= num_before + 1

        await until(the_other_is_dropped)
        assert received.count(page) < NUM_REQUESTS
        received += await asyncio.to_thread(all_that_comes, slow)

    assert received.count(page) == NUM_REQUESTS


async def test_a_body_that_drips_is_dropped_at_the_deadline(impatient: Target) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", impatient.port)
    head = f"Authorization: Bearer {impatient.token()}\r\nContent-Length: 10000\r\n\r\n"
    writer.write(f"POST /v1/realtime/client_secrets HTTP/1.1\r\nHost: x\r\n{head}".encode())

    async def drip() -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.05)

    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        dripping = tasks.create_task(drip())
        answer = b"none"
        with contextlib.suppress(ConnectionError):
            answer = await reader.read()
        dripping.cancel()

    assert answer in (b"", b"none")
    writer.close()
