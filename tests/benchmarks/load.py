"""A cheap WebSocket client for load: counts deltas by their bytes, parses nothing but the end of an answer.

The client shares the machine with what it measures, so every microsecond it spends a frame is taken from the server.
"""

import asyncio
import base64
import os
import struct
import time
from typing import cast

import msgspec
from msgspec import Struct

from tests.benchmarks.figures import Answer

_TEXT, _PING, _PONG = 0x81, 0x89, 0x8A  # with FIN set
_DELTA = b'{"type":"response.output_text.delta"'
_DONE = b'{"type":"response.done"'
_CREATED = b'{"type":"session.created"'


class _Usage(Struct):
    output_tokens: int


class _Response(Struct):
    status: str
    usage: _Usage | None


class _ResponseDone(Struct):
    response: _Response


_decode_done = msgspec.json.Decoder(_ResponseDone).decode


class Talker(asyncio.Protocol):
    """One session: asks one thing at a time."""

    def __init__(self, *, keep_arrivals: bool) -> None:
        self._keep_arrivals = keep_arrivals
        self._buffer = b""
        self._upgraded = False
        self._created: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._done: asyncio.Future[Answer] | None = None
        self._asked_s = 0.0
        self._first_s = 0.0
        self._num_deltas = 0
        self._arrivals_s: list[float] = []
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        error = ConnectionError("the server closed the connection")
        for waiting in (self._created, self._done):
            if waiting is not None and not waiting.done():
                waiting.set_exception(error)

    def data_received(self, data: bytes) -> None:
        data = self._buffer + data if self._buffer else data
        if not self._upgraded:
            head, end, rest = data.partition(b"\r\n\r\n")
            if not end:
                self._buffer = data
                return
            if b" 101 " not in head.split(b"\r\n", 1)[0]:
                self._created.set_exception(ConnectionError(head.decode("latin-1")))
                return
            self._upgraded, self._buffer, data = True, b"", rest
        now_s = time.perf_counter()
        position, size = 0, len(data)
        while size - position >= 2:
            length = data[position + 1]
            start = position + 2
            if length == 126:
                if size - start < 2:
                    break
                length = int.from_bytes(data[start : start + 2])
                start += 2
            elif length == 127:
                if size - start < 8:
                    break
                length = int.from_bytes(data[start : start + 8])
                start += 8
            if size - start < length:
                break
            if data.startswith(_DELTA, start):
                if not self._num_deltas:
                    self._first_s = now_s
                self._num_deltas += 1
                if self._keep_arrivals:
                    self._arrivals_s.append(now_s)
            elif data.startswith(_DONE, start):
                self._end(data[start : start + length], now_s)
            elif data[position] == _PING:
                self._write(_PONG, data[start : start + length])
            elif data.startswith(_CREATED, start) and not self._created.done():
                self._created.set_result(None)
            position = start + length
        self._buffer = data[position:]

    def _end(self, payload: bytes, now_s: float) -> None:
        response = _decode_done(payload).response
        num_tokens = response.usage.output_tokens if response.usage else 0
        if self._done is not None and not self._done.done():
            self._done.set_result(
                Answer(self._asked_s, self._first_s or now_s, now_s, num_tokens, self._num_deltas, self._arrivals_s)
            )

    async def upgrade(self, host: str, token: str, model: str) -> None:
        """Open the session and wait for its first event."""
        key = base64.b64encode(os.urandom(16)).decode()
        self._transport.write(
            f"GET /v1/realtime?model={model} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
        )
        await self._created

    async def ask(self, text: str, *, max_output_tokens: int | None = None) -> Answer:
        """One turn: the question, and the answer to its end. The session's earlier items stay."""
        self._done = asyncio.get_running_loop().create_future()
        self._num_deltas, self._first_s, self._arrivals_s = 0, 0.0, []
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}
        response = {"max_output_tokens": max_output_tokens} if max_output_tokens else {}
        self._asked_s = time.perf_counter()
        self._send({"type": "conversation.item.create", "item": item})
        self._send({"type": "response.create", "response": response})
        return await self._done

    async def ask_alone(self, text: str, *, max_output_tokens: int | None = None) -> Answer:
        """One question outside the conversation, so that every round has the same prompt."""
        self._done = asyncio.get_running_loop().create_future()
        self._num_deltas, self._first_s, self._arrivals_s = 0, 0.0, []
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}
        response: dict[str, object] = {"conversation": "none", "input": [item]}
        if max_output_tokens:
            response["max_output_tokens"] = max_output_tokens
        self._asked_s = time.perf_counter()
        self._send({"type": "response.create", "response": response})
        return await self._done

    def close(self) -> None:
        """Cut the connection."""
        self._transport.close()

    def _send(self, event: dict[str, object]) -> None:
        self._write(_TEXT, msgspec.json.encode(event))

    def _write(self, opcode: int, payload: bytes) -> None:
        size = len(payload)
        head = bytes((opcode, 0x80 | size)) if size < 126 else struct.pack("!BBH", opcode, 0x80 | 126, size)
        # A mask of zeros is a mask (RFC 6455, 5.3) and costs nothing.
        self._transport.write(head + b"\0\0\0\0" + payload)


async def connect(port: int, token: str, model: str, *, keep_arrivals: bool = False) -> Talker:
    """An open session on this machine."""
    loop = asyncio.get_running_loop()
    _, talker = await loop.create_connection(lambda: Talker(keep_arrivals=keep_arrivals), "127.0.0.1", port)
    await talker.upgrade(f"127.0.0.1:{port}", token, model)
    return talker
