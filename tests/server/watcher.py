"""A viewer of a replay over a real socket, which keeps every frame as it came."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlencode

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from tests.sessions.builders import Json

WAIT_S = 60.0


class Watcher:
    """A viewer's connection, with all that it was sent."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.frames: list[bytes] = []
        self.events: list[Json] = []
        self.recorded: list[bytes] = []  # frames with a sequence number

    async def next(self) -> Json:
        """The next event; `ConnectionClosed` when there is none."""
        async with asyncio.timeout(WAIT_S):
            frame = await self.socket.recv(decode=False)
        self.frames.append(frame)
        self.events.append(json.loads(frame))
        if "sequence_number" in self.events[-1]:
            self.recorded.append(frame)
        return self.events[-1]

    async def until(self, kind: str) -> Json:
        """The next event of that type."""
        while (event := await self.next())["type"] != kind:
            pass
        return event

    async def until_recorded(self, num_events: int) -> None:
        """Wait until so many recorded events were shown."""
        while len(self.recorded) < num_events:
            await self.next()

    async def send(self, kind: str, **fields: object) -> None:
        """Send one client event."""
        await self.socket.send(json.dumps({"type": kind, **fields}))

    async def closed(self) -> tuple[int | None, str | None]:
        """The close code and reason, once it is closed."""
        with suppress(ConnectionClosed):
            while True:
                await self.next()
        return self.socket.close_code, self.socket.close_reason


@asynccontextmanager
async def watching(
    port: int, session_id: str, bearer: str | None, *, subprotocols: Sequence[str] = (), **query: object
) -> AsyncIterator[Watcher]:
    """A connection that replays the session; a refused handshake raises `InvalidStatus`."""
    headers = {} if bearer is None else {"authorization": f"Bearer {bearer}"}
    async with connect(
        f"ws://127.0.0.1:{port}/v1/realtime?{urlencode({'replay': session_id, **query})}",
        additional_headers=headers,
        subprotocols=[Subprotocol(name) for name in subprotocols] or None,
        compression=None,
        max_size=None,
        ping_interval=None,
        proxy=None,
        open_timeout=WAIT_S,
        close_timeout=1,
    ) as socket:
        yield Watcher(socket)
