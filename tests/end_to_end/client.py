"""A client that keeps every frame as it came, so that what the server stored can be compared with it byte for byte."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlencode

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from tests.sessions.builders import Json, user_item

PATIENCE_S = 60.0
DELTA = "response.output_text.delta"
WEATHER = {"type": "function", "name": "get_weather", "parameters": {"type": "object", "properties": {}}}


class Client:
    """One session over one connection. `frames` are its events as they came, `events` the same, decoded."""

    def __init__(self, socket: ClientConnection) -> None:
        self.frames: list[bytes] = []
        self.events: list[Json] = []
        self.said: list[str] = []
        self._socket = socket

    @property
    def session_id(self) -> str:
        """The session's id."""
        session_id: str = self.events[0]["session"]["id"]
        return session_id

    @property
    def conversation_id(self) -> str:
        """The session's id as a resuming client names it."""
        return self.session_id.replace("sess_", "conv_")

    @property
    def numbers(self) -> list[int]:
        """The sequence numbers of its events, for a client that asked for them."""
        return [event["sequence_number"] for event in self.events]

    @property
    def acknowledged(self) -> list[str]:
        """The ids of the user's messages that the server has acknowledged, in order."""
        items = [event["item"] for event in self.events if event["type"] == "conversation.item.done"]
        return [item["id"] for item in items if item.get("role") == "user"]

    @property
    def answers(self) -> list[Json]:
        """The responses that have ended, as their `response.done` tells."""
        return [event["response"] for event in self.events if event["type"] == "response.done"]

    def streamed(self, response_id: str) -> str:
        """The deltas of that response, put together."""
        deltas = (event for event in self.events if event["type"] == DELTA)
        return "".join(event["delta"] for event in deltas if event["response_id"] == response_id)

    async def send(self, kind: str, **fields: object) -> None:
        """Send one client event."""
        await self._socket.send(json.dumps({"type": kind, **fields}))

    async def next(self) -> Json:
        """The next event; `ConnectionClosed` when there is none."""
        async with asyncio.timeout(PATIENCE_S):
            frame = await self._socket.recv(decode=False)
        event: Json = json.loads(frame)
        self.frames.append(frame)
        self.events.append(event)
        return event

    async def until(self, kind: str) -> Json:
        """The next event of that type."""
        while (event := await self.next())["type"] != kind:
            assert event["type"] != "error", event
        return event

    async def say(self, text: str) -> None:
        """Send a user's message; nobody waits for its acknowledgement."""
        self.said.append(text)
        await self.send("conversation.item.create", item=user_item(text))

    async def ask(self, text: str) -> Json:
        """A whole turn; the response as it ended."""
        await self.say(text)
        return await self.answer()

    async def answer(self) -> Json:
        """Ask for an answer to what is there; the response as it ended."""
        await self.send("response.create")
        response: Json = (await self.until("response.done"))["response"]
        return response

    async def ask_and_cut(self, text: str, num_deltas: int) -> Json:
        """A turn that is cancelled after so many deltas; the response as it ended."""
        await self.say(text)
        await self.send("response.create")
        for _ in range(num_deltas):
            await self.until(DELTA)
        await self.send("response.cancel")
        response: Json = (await self.until("response.done"))["response"]
        return response

    async def drain(self) -> int:
        """Take what still comes until the connection is closed; the close code."""
        try:
            while True:
                await self.next()
        except ConnectionClosed:
            return self.close_code

    @property
    def close_code(self) -> int:
        """The code with which the connection was closed."""
        assert self._socket.close_code is not None
        return self._socket.close_code

    async def close(self) -> None:
        """Leave in good order."""
        await self._socket.close()

    def cut(self) -> None:
        """Lose the connection."""
        self._socket.transport.abort()


@asynccontextmanager
async def open_client(
    port: int,
    token: str | None = None,
    *,
    model: str | None = "demo",
    subprotocols: Sequence[str] = (),
    resuming: tuple[str, object] | None = None,
) -> AsyncIterator[Client]:
    """A session that has begun, or that resumes this conversation after this number; a refused handshake raises `InvalidStatus`."""
    query = {} if model is None else {"model": model}
    if resuming is not None:
        query |= {"conversation_id": resuming[0], "starting_after": str(resuming[1])}
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    options: dict[str, Any] = {"compression": None, "max_size": None, "ping_interval": None, "proxy": None}
    async with connect(
        f"ws://127.0.0.1:{port}/v1/realtime?{urlencode(query)}",
        additional_headers=headers,
        subprotocols=[Subprotocol(name) for name in subprotocols] or None,
        open_timeout=PATIENCE_S,
        close_timeout=5,
        **options,
    ) as socket:
        client = Client(socket)
        assert (await client.next())["type"] == "session.created"
        yield client
