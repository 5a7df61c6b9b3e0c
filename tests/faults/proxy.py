"""A TCP proxy that fails on purpose: it resets, stalls, delays, swallows replies, and springs traps on what passes through it."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Literal

from msgspec import Struct

_HOST = "127.0.0.1"
_CHUNK_BYTES = 65_536

Moment = Literal["request", "reply"]


class Trap(Struct, eq=False):
    """Springs once, when a request holds `marker`: at once, before it is passed on, or when the reply to it comes, which is swallowed."""

    marker: bytes
    moment: Moment
    action: Callable[[], Awaitable[None]]
    sprung: asyncio.Event


class _Link:
    """One connection through the proxy."""

    def __init__(self, client: asyncio.StreamWriter) -> None:
        self.client = client
        self.server: asyncio.StreamWriter | None = None
        self.awaited: Trap | None = None
        self.carriers: list[asyncio.Task[None]] = []

    def cut(self, *, reset: bool) -> None:
        """End both sides; `reset` is a connection that breaks (RST), otherwise each side sees an end (FIN)."""
        for writer in (self.client, self.server):
            if writer is None:
                continue
            if reset and (sock := writer.get_extra_info("socket")) is not None:
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        for carrier in self.carriers:
            carrier.cancel()


class Proxy:
    """Stands before `target_port`, which may change when the server behind it comes back elsewhere."""

    def __init__(self, name: str, target_port: int) -> None:
        self.name = name
        self.target_port = target_port
        self.port = 0
        self.delay_s = 0.0
        self._links: set[_Link] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._traps: list[Trap] = []
        self._loses_reply = False

    def cut(self, *, reset: bool = True) -> None:
        """Break every connection."""
        for link in tuple(self._links):
            link.cut(reset=reset)

    def stall(self) -> None:
        """Pass nothing on, in either direction, until `flow`. Connections are still taken."""
        self._flowing.clear()

    def flow(self) -> None:
        """Pass on what waited."""
        self._flowing.set()

    def lose_next_reply(self) -> None:
        """The next reply, on any connection, is swallowed and its connection broken."""
        self._loses_reply = True

    def mend(self) -> None:
        """Carry everything from here on, at once."""
        self.delay_s = 0.0
        self._loses_reply = False
        self._traps.clear()
        self.flow()

    def set_trap(self, marker: bytes, moment: Moment, action: Callable[[], Awaitable[None]]) -> Trap:
        """Lay a trap; `remove_trap` takes it away again if it has not sprung."""
        trap = Trap(marker, moment, action, asyncio.Event())
        self._traps.append(trap)
        return trap

    def remove_trap(self, trap: Trap) -> None:
        """Forget a trap that has not sprung."""
        if trap in self._traps:
            self._traps.remove(trap)

    async def carry(self, client_reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        """One connection, from its begin to its end."""
        link = _Link(client)
        self._links.add(link)
        try:
            server_reader, link.server = await asyncio.open_connection(_HOST, self.target_port)
            link.carriers = [
                asyncio.create_task(self._carry_requests(link, client_reader, link.server)),
                asyncio.create_task(self._carry_replies(link, server_reader)),
            ]
            await asyncio.wait(link.carriers, return_when=asyncio.FIRST_COMPLETED)
        except OSError:
            pass
        finally:
            link.cut(reset=False)
            await asyncio.gather(*link.carriers, return_exceptions=True)
            self._links.discard(link)

    async def _carry_requests(self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_CHUNK_BYTES):
            await self._pass()
            for trap in tuple(self._traps):
                if trap.marker in data:
                    self._traps.remove(trap)
                    if trap.moment == "reply":
                        link.awaited = trap
                    else:
                        await _spring(trap)
                        return
            writer.write(data)
            await writer.drain()

    async def _carry_replies(self, link: _Link, reader: asyncio.StreamReader) -> None:
        while data := await reader.read(_CHUNK_BYTES):
            await self._pass()
            if link.awaited is not None:
                await _spring(link.awaited)
                return
            if self._loses_reply:
                self._loses_reply = False
                link.cut(reset=True)
                return
            link.client.write(data)
            await link.client.drain()

    async def _pass(self) -> None:
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        await self._flowing.wait()


async def _spring(trap: Trap) -> None:
    await trap.action()
    trap.sprung.set()


@asynccontextmanager
async def open_proxy(name: str, target_port: int) -> AsyncIterator[Proxy]:
    """A proxy on a free port of 127.0.0.1."""
    proxy = Proxy(name, target_port)
    carriers: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(proxy.carry(reader, writer))
        carriers.add(task)
        task.add_done_callback(carriers.discard)

    server = await asyncio.start_server(accept, _HOST, 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        proxy.cut(reset=False)
        await asyncio.gather(*carriers, return_exceptions=True)
        await server.wait_closed()
