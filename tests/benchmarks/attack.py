"""Four hostile clients at once, in a process of its own: `on` and `off` on its standard input begin and end the attack.

At each `off` it prints what it did since `on`, as a line of JSON. A client that is closed comes back after a short pause. The process
gives way to every other (SCHED_IDLE), so that what it costs itself is not taken for the server's slowness.
"""

import asyncio
import base64
import os
import random
import select
import socket
import struct
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import msgspec
from msgspec import Struct

from tests.end_to_end.processes import token_of

PAUSE_S = 0.25
EVENTS_PER_S = 10_000
NUM_EVENTS_AT_ONCE = 100
DRIP_S = 0.1
GIB = 1 << 30
_CHUNK = bytes(256 * 1024)
_TEXT = 0x81
_MASK = bytes(4)  # a mask of zeros is a mask
# A little longer than the server bears a client that does not read (10 s), for such a client does not learn that it was closed.
_LONGEST_S = 12.0
_HEAD_TIMEOUT_S = 15.0


class Tally(Struct):
    """What one hostile client did: connections begun, those that the server refused or closed, and what it sent."""

    num_connections: int = 0
    num_ended: int = 0
    num_sent: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(*(getattr(self, name) + getattr(other, name) for name in self.__struct_fields__))


Attack = Callable[[int, Tally], Awaitable[None]]


def _frame(event: object) -> bytes:
    payload = msgspec.json.encode(event)
    size = len(payload)
    head = bytes((_TEXT, 0x80 | size)) if size < 126 else struct.pack("!BBH", _TEXT, 0x80 | 126, size)
    return head + _MASK + payload


def _handshake(port: int, name: str) -> bytes:
    key = base64.b64encode(os.urandom(16)).decode()
    return (
        f"GET /v1/realtime?model=demo HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\nAuthorization: Bearer {token_of(name)}\r\n\r\n"
    ).encode()


@asynccontextmanager
async def _connection(port: int) -> AsyncIterator[socket.socket]:
    with socket.socket() as connection:
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
        yield connection


@asynccontextmanager
async def _session(port: int, name: str) -> AsyncIterator[socket.socket]:
    """A connection that has become a WebSocket; `ConnectionError` when it is refused."""
    loop = asyncio.get_running_loop()
    async with _connection(port) as connection:
        await loop.sock_sendall(connection, _handshake(port, name))
        head = b""
        while b"\r\n\r\n" not in head:
            data = await loop.sock_recv(connection, 4096)
            if not data:
                raise ConnectionError("closed in the handshake")
            head += data
        if b" 101 " not in head.split(b"\r\n", 1)[0]:
            raise ConnectionError("refused")
        yield connection


async def never_read(port: int, tally: Tally) -> None:
    """Ask for four long answers, as fast as they can be made, and read not one byte of them."""
    loop = asyncio.get_running_loop()
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "[tokens 4000] [pace 0]"}]}
    question = {"type": "response.create", "response": {"conversation": "none", "input": [item]}}
    async with _session(port, "never-reads") as connection:
        for _ in range(4):
            await loop.sock_sendall(connection, _frame(question))
            tally.num_sent += 1
        hung_up = select.poll()
        hung_up.register(connection, select.POLLRDHUP | select.POLLHUP | select.POLLERR)
        until_s = time.monotonic() + _LONGEST_S
        # The event loop tells only of what can be read, and this one never reads.
        while not hung_up.poll(0) and time.monotonic() < until_s:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def flood(port: int, tally: Tally) -> None:
    """Send 10,000 events a second, as far as they are taken: items, settings, cancels of nothing, and what is no event at all."""
    loop = asyncio.get_running_loop()
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "one of very many"}]}
    kinds = [
        _frame({"type": "conversation.item.create", "item": item}),
        _frame({"type": "session.update", "session": {"type": "realtime", "instructions": "Hurry."}}),
        _frame({"type": "response.cancel"}),
        _frame({"type": "no.such.event"}),
        _frame("no event"),
    ]
    chance = random.Random(1)
    async with _session(port, "floods") as connection, asyncio.TaskGroup() as tasks:
        tasks.create_task(_discard(connection))
        due_s = loop.time()
        while True:
            await loop.sock_sendall(connection, b"".join(chance.choices(kinds, k=NUM_EVENTS_AT_ONCE)))
            tally.num_sent += NUM_EVENTS_AT_ONCE
            due_s = max(due_s + NUM_EVENTS_AT_ONCE / EVENTS_PER_S, loop.time() - 1.0)
            await asyncio.sleep(due_s - loop.time())


async def _discard(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    while await loop.sock_recv(connection, 65_536):
        pass
    raise ConnectionError("closed")


async def drip(port: int, tally: Tally) -> None:
    """Send a handshake byte by byte."""
    loop = asyncio.get_running_loop()
    async with _connection(port) as connection, asyncio.timeout(_HEAD_TIMEOUT_S):
        for byte in _handshake(port, "drips"):
            await loop.sock_sendall(connection, bytes((byte,)))
            tally.num_sent += 1
            await asyncio.sleep(DRIP_S)


async def send_gigantic_frame(port: int, tally: Tally) -> None:
    """Announce a frame of 1 GiB and push its bytes for as long as they are taken."""
    loop = asyncio.get_running_loop()
    async with _session(port, "sends-gigantic-frames") as connection, asyncio.TaskGroup() as tasks:
        tasks.create_task(_discard(connection))
        await loop.sock_sendall(connection, struct.pack("!BBQ", _TEXT, 0x80 | 127, GIB) + _MASK)
        for _ in range(GIB // len(_CHUNK)):
            await loop.sock_sendall(connection, _CHUNK)
            tally.num_sent += len(_CHUNK)
        raise ConnectionError("all was taken")


ATTACKS: tuple[tuple[str, Attack], ...] = (
    ("never reads", never_read),
    ("10,000 events/s", flood),
    ("drips a handshake", drip),
    ("frames of 1 GiB", send_gigantic_frame),
)


async def again_and_again(attack: Attack, port: int, tally: Tally) -> None:
    """One hostile client, for ever."""
    while True:
        tally.num_connections += 1
        try:
            await attack(port, tally)
        except* (OSError, TimeoutError):
            pass
        tally.num_ended += 1
        await asyncio.sleep(PAUSE_S)


async def obey(port: int, names: Sequence[str]) -> None:
    """Attack on `on`, tell and rest on `off`, end with the input."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    attackers: list[asyncio.Task[None]] = []
    tallies: dict[str, Tally] = {}
    while command := await reader.readline():
        if command == b"on\n":
            tallies = {name: Tally() for name in names}
            attackers = [
                asyncio.create_task(again_and_again(attack, port, tallies[name]))
                for name, attack in ATTACKS
                if name in names
            ]
            continue
        for attacker in attackers:
            attacker.cancel()
        await asyncio.gather(*attackers, return_exceptions=True)
        print(msgspec.json.encode(tallies).decode(), flush=True)


if __name__ == "__main__":
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    asyncio.run(obey(int(sys.argv[1]), sys.argv[2:]))
