"""An endpoint in the place of OpenAI's, answering as it is told, that notices when its caller goes."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

Answer = Callable[["Request"], Awaitable[None]]


class Request:
    """One request as it came, and the means to answer it piece by piece."""

    def __init__(self, path: str, headers: dict[str, str], body: bytes, writer: asyncio.StreamWriter) -> None:
        self.path = path
        self.headers = headers
        self.content = body
        self.body: Any = json.loads(body) if body else None
        self._writer = writer

    async def begin(self, status: int = 200, **headers: str) -> None:
        lines = [
            f"HTTP/1.1 {status} X",
            "transfer-encoding: chunked",
            *(f"{k}: {v}" for k, v in headers.items()),
            "",
            "",
        ]
        await self.send_raw("\r\n".join(lines).encode())

    async def send(self, piece: bytes) -> None:
        await self.send_raw(b"%x\r\n%b\r\n" % (len(piece), piece))

    async def event(self, **fields: object) -> None:
        await self.send(b"data: " + json.dumps(fields, ensure_ascii=False).encode() + b"\n\n")

    async def delta(self, finish_reason: str | None = None, **delta: object) -> None:
        await self.event(choices=[{"index": 0, "delta": delta, "finish_reason": finish_reason}])

    async def end(self, *, is_done: bool = True) -> None:
        if is_done:
            await self.send(b"data: [DONE]\n\n")
        await self.send_raw(b"0\r\n\r\n")

    async def refuse(self, status: int, message: str, code: str = "x", **headers: str) -> None:
        await self.begin(status, **headers)
        await self.send(json.dumps({"error": {"message": message, "code": code}}).encode())
        await self.end(is_done=False)

    async def send_raw(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()


class Upstream:
    """What came in, and what to do with the next chat request."""

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[Request] = []
        self.answers: list[Answer] = []
        self.model: dict[str, object] = {"id": "m", "owned_by": "vllm", "max_model_len": 1000}
        self.num_connections = 0
        self.num_gone = 0
        self.gone = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                first, *lines = head.decode().strip().split("\r\n")
                headers = {key.lower(): value for key, value in (line.split(": ", 1) for line in lines)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                request = Request(first.split(" ")[1], headers, body, writer)
                if request.path.endswith("/models"):
                    await request.begin()
                    await request.send(json.dumps({"data": [self.model]}).encode())
                    await request.end(is_done=False)
                    continue
                self.requests.append(request)
                answer = asyncio.create_task(_awaited(self.answers.pop(0)(request)))
                gone = asyncio.create_task(reader.read(1))
                await asyncio.wait([answer, gone], return_when=asyncio.FIRST_COMPLETED)
                if gone.done() and not answer.done():
                    answer.cancel()
                    self.num_gone += 1
                    self.gone.set()
                    return
                gone.cancel()
                await asyncio.wait([gone])
                await answer
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


async def _awaited(answer: Awaitable[None]) -> None:
    await answer


@asynccontextmanager
async def upstream() -> AsyncIterator[Upstream]:
    it = Upstream()
    server = await asyncio.start_server(it.serve, "127.0.0.1", 0)
    async with server:
        it.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        yield it
