"""The application under uvicorn, configured as `flueman serve` does, in the test's own process, to look inside while it serves."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

import uvicorn
from msgspec import Struct

from migrations import upgrade_database
from server import serve
from server.app import create_app
from server.services import Services
from server.settings import Settings


class Served(Struct, frozen=True):
    """A server that serves, and what it shares with its routes."""

    port: int
    services: Services


@asynccontextmanager
async def served(settings: Settings) -> AsyncIterator[Served]:
    """The application on a free port, stopped in good order at the end of the block."""
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    await upgrade_database(settings.database_url)
    with closing(serve._bind("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(serve._config(settings, create_app(settings)))
        # Not `serve`, which would take the signals from pytest.
        task = asyncio.create_task(server._serve(sockets=[listener]))
        try:
            while not server.started:
                assert not task.done(), "the server did not start"
                await asyncio.sleep(0.01)
            yield Served(listener.getsockname()[1], server.lifespan.state["services"])
        finally:
            server.should_exit = True
            await task
