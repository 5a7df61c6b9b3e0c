"""Attacks by frames: too large, too many, compressed, broken, never read; and what they cost others. Keeps P7."""

import asyncio
import contextlib
import json
import os
import struct
import time
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from websockets.exceptions import ConnectionClosed

from tests.security.conftest import EVENTS_BURST, EVENTS_PER_S, MAX_FRAME_BYTES, PATIENCE_S, Client, Target
from tests.security.test_handshake import UPGRADE

LONG_ANSWER = {
    "type": "message",
    "role": "user",
    "content": [{"type": "input_text", "text": "[tokens 20000] [pace 0]"}],
}
NUM_FLOOD_ANSWERS = 1_200  # at the limit four seconds' worth


class RawSocket:
    """A WebSocket client that obeys no rule."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def frame(self, first_byte: int, payload: bytes, *, masked: bool = True) -> None:
        """One frame; `first_byte` holds FIN, the reserved bits and the opcode."""
        size = len(payload)
        mask_bit = 0x80 if masked else 0
        if size < 126:
            head = bytes((first_byte, mask_bit | size))
        elif size < 65_536:
            head = struct.pack("!BBH", first_byte, mask_bit | 126, size)
        else:
            head = struct.pack("!BBQ", first_byte, mask_bit | 127, size)
        self.writer.write(head + (bytes(4) if masked else b"") + payload)  # a mask of zeros changes nothing
        await self.writer.drain()

    async def close_code(self) -> int | None:
        """The code of the server's close frame; None when the connection was cut without one."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    opcode, payload = await self.receive()
                    if opcode == 8:
                        return int.from_bytes(payload[:2])
        return None

    async def receive(self) -> tuple[int, bytes]:
        """The opcode and the payload of the server's next frame."""
        first_byte, length = await self.reader.readexactly(2)
        if length == 126:
            (length,) = struct.unpack("!H", await self.reader.readexactly(2))
        elif length == 127:
            (length,) = struct.unpack("!Q", await self.reader.readexactly(8))
        return first_byte & 0x0F, await self.reader.readexactly(length)


@asynccontextmanager
async def raw(target: Target, subject: str = "eve", extra: str = "") -> AsyncIterator[RawSocket]:
    """An upgraded connection in raw hands."""
    reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
    writer.write(UPGRADE + f"Authorization: Bearer {target.token(subject)}\r\n{extra}\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ")
    assert b"permessage-deflate" not in head.lower()
    try:
        yield RawSocket(reader, writer)
    finally:
        writer.close()


async def talk_during(victim: Client, attack: asyncio.Task[None]) -> None:
    """Let the victim ask, and be answered, again and again until the attack is over, and once more."""
    while not attack.done():
        await victim.is_answered()
        await asyncio.sleep(0.02)
    await attack
    await victim.is_answered()


@pytest.mark.parametrize("size", [MAX_FRAME_BYTES + 1, 1024 * 1024, 15 * 1024 * 1024])
async def test_a_message_over_the_limit_closes_1009(target: Target, size: int) -> None:
    async with raw(target) as attacker:
        with contextlib.suppress(ConnectionError):
            await attacker.frame(0x81, b"a" * size)

        assert await attacker.close_code() in (1009, None if size > 1024 * 1024 else 1009)


async def test_a_message_of_the_limit_is_read(target: Target) -> None:
    async with target.session("large") as client:
        text = '{"type":"x","pad":"' + "a" * (MAX_FRAME_BYTES - 21) + '"}'
        assert len(text) == MAX_FRAME_BYTES
        await client.send(text)

        assert (await client.error())["type"] == "invalid_request_error"


async def test_a_message_too_large_in_fragments_closes_1009(target: Target) -> None:
    async with raw(target) as attacker:
        with contextlib.suppress(ConnectionError):
            await attacker.frame(0x01, b"a" * 40_000)
            await attacker.frame(0x80, b"a" * 40_000)

        assert await attacker.close_code() == 1009


async def test_a_compression_bomb_is_not_inflated(target: Target) -> None:
    bomb = zlib.compress(bytes(15 * 1024 * 1024), 9)
    before = target.memory_bytes()
    async with raw(target, extra="Sec-WebSocket-Extensions: permessage-deflate\r\n") as attacker:
        await attacker.frame(0xC1, bomb)

        assert await attacker.close_code() == 1002
    assert target.memory_bytes() - before < 8 * 1024 * 1024


@pytest.mark.parametrize("payload", [b"", b"a"])
async def test_a_storm_of_fragments_is_cut(target: Target, payload: bytes) -> None:
    async with raw(target) as attacker:
        with contextlib.suppress(ConnectionError):
            await attacker.frame(0x01, b"{")
            for _ in range(20_000):
                await attacker.frame(0x00, payload)

        assert await attacker.close_code() == 1008


async def test_a_message_in_a_few_fragments_is_read(target: Target) -> None:
    async with target.session("parts") as client:
        await client.socket.send(['{"type":', '"no.such', '.event"}'])

        assert (await client.error())["code"] == "invalid_value"


@pytest.mark.parametrize(
    ("first_byte", "payload", "masked", "code"),
    [
        (0x81, b"\xff\xfe{}", True, 1007),
        (0x81, b"\xed\xa0\x80", True, 1007),
        (0x81, b"{}", False, 1002),
        (0x83, b"{}", True, 1002),
        (0x80, b"{}", True, 1002),
        (0xF1, b"{}", True, 1002),
        (0x09, b"a", True, 1002),
        (0x89, b"a" * 126, True, 1002),
        (0x88, b"\x03", True, 1002),
        (0x88, b"\x03\xec", True, 1002),
    ],
    ids=[
        "utf8",
        "surrogate",
        "unmasked",
        "opcode",
        "continuation",
        "reserved",
        "split-ping",
        "long-ping",
        "short-close",
        "code-1004",
    ],
)
async def test_a_broken_frame_closes_with_its_code(
    target: Target, first_byte: int, payload: bytes, masked: bool, code: int
) -> None:
    async with raw(target) as attacker:
        await attacker.frame(first_byte, payload, masked=masked)

        assert await attacker.close_code() == code


async def test_a_binary_message_is_answered_and_closed_1003(target: Target) -> None:
    async with target.session("binary") as client:
        await client.send(b"\x00\xff")

        assert (await client.error())["code"] == "invalid_event"
        assert await client.closed() == 1003


async def test_a_flood_of_pings_is_cut_and_others_are_answered(target: Target) -> None:
    async with target.session("victim") as victim, raw(target) as attacker:

        async def flood() -> None:
            with contextlib.suppress(ConnectionError):
                for _ in range(20_000):
                    await attacker.frame(0x89, b"ping")

        async with asyncio.TaskGroup() as tasks:
            await talk_during(victim, tasks.create_task(flood()))

        assert await attacker.close_code() in (1008, None)


async def test_a_flood_of_messages_is_slowed_and_others_are_answered(target: Target) -> None:
    """However fast the machine, no more is answered than the limit gives in the time that it took."""
    started_s = time.monotonic()
    async with target.session("victim") as victim, target.session("flooder") as flooder:

        async def flood() -> None:
            with contextlib.suppress(ConnectionClosed):
                while True:
                    await flooder.send({"type": "conversation.item.retrieve", "item_id": "x" * 2_000})
                    await asyncio.sleep(0)

        async def answers() -> None:
            for _ in range(NUM_FLOOD_ANSWERS):
                await flooder.next()

        async with asyncio.TaskGroup() as tasks:
            flooding = tasks.create_task(flood())
            await talk_during(victim, tasks.create_task(answers()))
            lasted_s = time.monotonic() - started_s
            flooding.cancel()

    most_answers = 1.2 * (EVENTS_BURST + lasted_s * EVENTS_PER_S)
    assert most_answers > NUM_FLOOD_ANSWERS


async def test_a_client_that_never_reads_is_closed_and_costs_little(target: Target) -> None:
    before = target.memory_bytes()
    async with target.session("victim") as victim, raw(target, "sleeper") as sleeper:
        _, created = await sleeper.receive()
        transport = sleeper.writer.transport
        assert isinstance(transport, asyncio.Transport)
        transport.pause_reading()
        ask = json.dumps(
            {"type": "response.create", "response": {"conversation": "none", "input": [LONG_ANSWER]}}
        ).encode()

        most_bytes: list[int] = [before]

        async def hear_nothing() -> None:
            with contextlib.suppress(ConnectionError):
                for _ in range(4):
                    await sleeper.frame(0x81, ask)
            async with asyncio.timeout(PATIENCE_S):
                while not has_ended(target, json.loads(created)["session"]["id"]):
                    most_bytes.append(target.memory_bytes())
                    await asyncio.sleep(0.05)

        async with asyncio.TaskGroup() as tasks:
            await talk_during(victim, tasks.create_task(hear_nothing()))
        assert max(most_bytes) - before < 32 * 1024 * 1024

        transport.resume_reading()
        assert await sleeper.close_code() == 1013  # behind what the kernel still held for it


def has_ended(target: Target, session_id: str) -> bool:
    """Whether the server says that it has closed the session."""
    lines = (json.loads(line) for line in target.log().splitlines() if session_id in line)
    return any(line["event"] == "session.ended" for line in lines)


async def test_noise_closes_only_its_own_connection(target: Target) -> None:
    async with target.session("victim") as victim:
        for _ in range(30):
            async with raw(target) as attacker:
                attacker.writer.write(os.urandom(2_000))
                with contextlib.suppress(ConnectionError):
                    await attacker.writer.drain()
        await victim.is_answered()
