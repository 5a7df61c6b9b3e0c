"""The network between a page and its server: it can be cut, and be down for a while."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.services import TcpProxy, free_port

_HOST = "127.0.0.1"


class Link:
    """A port of this machine that leads to the server's while it is up."""

    def __init__(self, server_port: int) -> None:
        self.port = free_port()
        self.url = f"http://{_HOST}:{self.port}/"
        self._proxy = TcpProxy(server_port)
        self._listener: asyncio.Server | None = None

    async def go_up(self) -> None:
        """Connections can be made from now on."""
        self._listener = await asyncio.start_server(self._carry, _HOST, self.port)

    async def go_down(self) -> None:
        """Every connection is cut, and no new one can be made."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        await self.cut()

    async def cut(self) -> None:
        """Every connection is cut; a new one can be made at once."""
        await self._proxy.close_links()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A cut cancels the task of the connection, which asyncio's streams would report as a failure of the callback.
        with contextlib.suppress(asyncio.CancelledError):
            await self._proxy.run(reader, writer)


@asynccontextmanager
async def link_to(server_port: int) -> AsyncIterator[Link]:
    """A link that is up."""
    link = Link(server_port)
    await link.go_up()
    try:
        yield link
    finally:
        await link.go_down()
