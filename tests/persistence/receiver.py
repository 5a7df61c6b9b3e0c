"""A webhook's receiver: a real HTTP server on loopback that takes deliveries in, and fails in whatever way it is told to."""

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from msgspec import Struct

from tests.sessions.builders import Json


class Received(Struct, frozen=True):
    """One request, whole."""

    target: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def event(self) -> Json:
        """The body, decoded."""
        event: Json = json.loads(self.body)
        return event

    @property
    def id(self) -> str:
        """What a receiver knows it by."""
        return self.headers["webhook-id"]


Behave = Callable[[Received, asyncio.StreamWriter], Awaitable[None]]


def answering(status: str, *headers: str, body: bytes = b"") -> Behave:
    """What answers with that status line, such as `500 No`."""

    async def behave(_: Received, writer: asyncio.StreamWriter) -> None:
        lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", *headers, "", ""]
        writer.write("\r\n".join(lines).encode() + body)
        await writer.drain()

    return behave


async def closing(_: Received, writer: asyncio.StreamWriter) -> None:
    """Has the delivery, and dies before it can say so."""
    writer.close()


async def hanging(_: Received, writer: asyncio.StreamWriter) -> None:
    """Never answers."""
    await writer.wait_closed()


class FakeReceiver:
    """Behaves as told for each delivery, and then as the last one says. `received` is everything that arrived whole."""

    def __init__(self) -> None:
        self.port = 0
        self.received: list[Received] = []
        self.num_connections = 0
        self.behave: list[Behave] = [answering("204 Fine")]
        self._arrived = asyncio.Condition()
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}/hooks?to=us"

    async def until(self, num_received: int) -> Sequence[Received]:
        """Wait until so many deliveries arrived; all of them."""
        async with asyncio.timeout(60), self._arrived:
            await self._arrived.wait_for(lambda: len(self.received) >= num_received)
        return self.received

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self.num_connections += 1
        self._writers.add(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while not writer.is_closing():
                received = await _read(reader)
                behave = self.behave.pop(0) if len(self.behave) > 1 else self.behave[0]
                async with self._arrived:
                    self.received.append(received)
                    self._arrived.notify_all()
                await behave(received, writer)
        self._writers.discard(writer)
        writer.close()

    def hang_up(self) -> None:
        """Close every connection."""
        for writer in self._writers:
            writer.close()


async def _read(reader: asyncio.StreamReader) -> Received:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
    body = await reader.readexactly(int(headers["content-length"]))
    return Received(head[0].split(" ")[1], headers, body)


@asynccontextmanager
async def fake_receiver(tls: ssl.SSLContext | None = None) -> AsyncIterator[FakeReceiver]:
    """One that listens until the end of the block."""
    receiver = FakeReceiver()
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.create_task(receiver.serve(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls)
    receiver.port = server.sockets[0].getsockname()[1]
    try:
        yield receiver
    finally:
        server.close()
        receiver.hang_up()
        for task in tasks:
            task.cancel()
        results: list[Any] = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result
