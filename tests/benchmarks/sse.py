"""A cheap client for `vllm serve`: chat completions over SSE, chunks counted by their bytes."""

import asyncio
import re
import time

import msgspec

from tests.benchmarks.figures import Answer

_COMPLETION_TOKENS = re.compile(rb'"completion_tokens":(\d+)')


class Asker:
    """One stream: asks one thing at a time on a connection that it keeps."""

    def __init__(self, port: int, model: str) -> None:
        self._port = port
        self._model = model
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    async def connect(self) -> None:
        """Open the connection."""
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 20)

    async def ask(self, question: str, max_tokens: int) -> Answer:
        """One question, and the answer to its end."""
        body = msgspec.json.encode(
            {
                "model": self._model,
                "messages": [{"role": "user", "content": question}],
                "max_tokens": max_tokens,
                "temperature": 0,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
        )
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        asked_s = time.perf_counter()
        self._writer.write(head.encode() + body)
        arrivals_s: list[float] = []
        tail = b""
        while True:
            data = await self._reader.read(1 << 16)
            if not data:
                raise ConnectionError("the server closed the connection")
            now_s = time.perf_counter()
            arrivals_s += [now_s] * data.count(b'"delta":{"content"')
            tail = (tail + data)[-2048:]
            if b"data: [DONE]" in tail and tail.endswith(b"0\r\n\r\n"):
                break
        usage = _COMPLETION_TOKENS.search(tail)
        assert usage is not None
        return Answer(asked_s, arrivals_s[0], now_s, int(usage[1]), len(arrivals_s), arrivals_s)

    def close(self) -> None:
        """Close the connection."""
        self._writer.close()
