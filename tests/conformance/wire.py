"""A raw connection that trusts nothing: each frame must be one event of openai-python's own types, with no field that these do not name."""

import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, get_args

from openai.types.realtime import (
    RealtimeErrorEvent,
    RealtimeResponse,
    RealtimeServerEvent,
    ResponseCreatedEvent,
    ResponseDoneEvent,
)
from pydantic import BaseModel
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from tests.conformance.conftest import Served

_EVENTS: dict[str, type[BaseModel]] = {
    name: model
    for model in get_args(get_args(RealtimeServerEvent)[0])
    for name in get_args(model.model_fields["type"].annotation)
}
# The session's own identity, which openai-python's request type lacks and OpenAI's server sends.
_SESSION_EXTRAS = {"session.id", "session.object", "session.expires_at"}
MAX_CLIENT_FRAME_BYTES = 1024 * 1024  # the default of `websockets`, which Pipecat and others leave as it is

Json = dict[str, Any]

MESSAGE_ORDER = [
    "response.created",
    "response.output_item.added",
    "conversation.item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "conversation.item.done",
    "response.output_item.done",
    "response.done",
]
CALL_ORDER = [
    "response.created",
    "response.output_item.added",
    "conversation.item.added",
    "response.function_call_arguments.delta",
    "response.function_call_arguments.done",
    "conversation.item.done",
    "response.output_item.done",
    "response.done",
]
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather in a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def parse(frame: str | bytes) -> BaseModel:
    """The event in a frame, validated strictly."""
    assert isinstance(frame, str), "events are text frames"
    assert len(frame.encode()) < MAX_CLIENT_FRAME_BYTES
    kind = json.loads(frame)["type"]
    assert kind in _EVENTS, f"openai-python knows no event {kind!r}"
    event = _EVENTS[kind].model_validate_json(frame, strict=True)
    unknown = set(_unknown_fields(event, ())) - (_SESSION_EXTRAS if kind.startswith("session.") else set())
    assert not unknown, f"{kind} has fields that no client asked for: {unknown}"
    return event


def _unknown_fields(value: object, path: tuple[str, ...]) -> Iterator[str]:
    if isinstance(value, BaseModel):
        yield from (".".join((*path, name)) for name in value.model_extra or {})
        for name in type(value).model_fields:
            yield from _unknown_fields(getattr(value, name), (*path, name))
    elif isinstance(value, list):
        for entry in value:
            yield from _unknown_fields(entry, path)


class Wire:
    """One connection; `log` holds every event that came, as its JSON."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.log: list[Json] = []

    async def send(self, kind: str, **fields: object) -> None:
        """Send one client event."""
        await self.socket.send(json.dumps({"type": kind, **fields}))

    async def recv(self) -> BaseModel:
        """The next event."""
        frame = await self.socket.recv()
        event = parse(frame)
        self.log.append(json.loads(frame))
        return event

    async def next(self, kind: str) -> Json:
        """The next event, which must be of that type."""
        await self.recv()
        assert self.log[-1]["type"] == kind, self.log[-1]
        return self.log[-1]

    async def until(self, kind: str) -> list[Json]:
        """The events up to and including the next of that type."""
        start = len(self.log)
        while True:
            await self.recv()
            if self.log[-1]["type"] == kind:
                return self.log[start:]

    async def fence(self) -> list[Json]:
        """What came before the answer to an event sent now: by the order of the wire, all that earlier events caused at once."""
        await self.send("conversation.item.retrieve", item_id="fence", event_id="fence")
        start = len(self.log)
        while True:
            event = await self.recv()
            if isinstance(event, RealtimeErrorEvent) and event.error.event_id == "fence":
                return self.log[start:-1]

    async def error(self) -> Json:
        """The error that must come next."""
        found: Json = (await self.next("error"))["error"]
        return found

    async def say(self, text: str, **fields: object) -> Json:
        """Add a user's message; the item as the server has it."""
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}
        await self.send("conversation.item.create", item=item, **fields)
        await self.next("conversation.item.added")
        done: Json = (await self.next("conversation.item.done"))["item"]
        return done

    async def answer(self, **params: object) -> list[Json]:
        """The events of one response, from response.created to response.done."""
        await self.send("response.create", **({"response": params} if params else {}))
        return await self.until("response.done")

    async def update(self, **session: object) -> Json:
        """Change the session; the session as the server then has it."""
        await self.send("session.update", session={"type": "realtime", **session})
        updated: Json = (await self.next("session.updated"))["session"]
        return updated


@asynccontextmanager
async def open_wire(served: Served, *, model: str = "gpt-realtime") -> AsyncIterator[Wire]:
    """A fresh session, its session.created already read."""
    async with dial(served, f"?model={model}") as socket:
        wire = Wire(socket)
        await wire.next("session.created")
        yield wire


def dial(
    served: Served, query: str, *, token: str | None = None, subprotocols: Sequence[str] = (), **headers: str
) -> connect:
    """A WebSocket to the realtime endpoint; with subprotocols the token goes there, as from a browser."""
    if not subprotocols:
        headers["Authorization"] = f"Bearer {token or served.token}"
    return connect(
        f"{served.ws_url}{query}",
        additional_headers={name.replace("_", "-"): value for name, value in headers.items()},
        subprotocols=[Subprotocol(name) for name in subprotocols] or None,
        open_timeout=60,
    )


def order(events: Sequence[Json]) -> list[str]:
    """The types of the events, runs of one type as one; rate_limits.updated may come anywhere or not at all."""
    kinds: list[str] = []
    for event in events:
        kind = event["type"]
        if kind != "rate_limits.updated" and kinds[-1:] != [kind]:
            kinds.append(kind)
    return kinds


def joined(events: Sequence[Json], kind: str = "response.output_text.delta") -> str:
    """The deltas of that type, put together."""
    return "".join(event["delta"] for event in events if event["type"] == kind)


def started(event: Json) -> RealtimeResponse:
    """The response of a response.created."""
    return ResponseCreatedEvent.model_validate(event).response


def ended(events: Sequence[Json]) -> RealtimeResponse:
    """The response of the response.done that ends the events."""
    return ResponseDoneEvent.model_validate(events[-1]).response


def only(events: list[Json], kind: str) -> Json:
    """The one event of that type."""
    found = [event for event in events if event["type"] == kind]
    assert len(found) == 1, f"{len(found)} events {kind}"
    return found[0]


def of(events: list[Json], response_id: str) -> list[Json]:
    """The events of one response."""
    return [e for e in events if response_id in (e.get("response_id"), e.get("response", {}).get("id"))]


async def close_code(socket: ClientConnection) -> int | None:
    """The code of the close that comes now, after whatever events come before it."""
    try:
        while True:
            parse(await socket.recv())
    except ConnectionClosed as closed:
        return closed.rcvd.code if closed.rcvd else None
