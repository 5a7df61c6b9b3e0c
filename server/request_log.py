"""The API's request log on its way to the outbox: gathered, so that a request never waits for the store."""

import asyncio
import time
from collections import deque

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.identifiers import new_id
from sessions.errors import StoreUnavailable
from sessions.records import RequestRecord, encode_record
from sessions.store import Store

_log = structlog.get_logger(__name__)

_MAX_WAITING = 10_000
_GATHER_S = 0.2
_RETRY_S = 1.0
MAX_PATH_CHARS = 255


class RequestLog:
    """Bounded: with the store away for long, the oldest entries are dropped, counted and said so."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: deque[bytes] = deque()
        self._wake = asyncio.Event()
        # A stop's flush waits for the batch that is on its way.
        self._passing_on = asyncio.Lock()
        self.num_dropped = 0

    def add(self, record: RequestRecord) -> None:
        """Take one entry; never blocks. A request of nobody known is only logged: strangers must not fill the outbox and the tables."""
        if record.user_id is None:
            _log.info("request.of_nobody", method=record.method, path=record.path, status=record.status)
            return
        self._waiting.append(encode_record(record))
        self._drop_oldest()
        self._wake.set()

    async def run(self) -> None:
        """Pass entries on for ever."""
        while True:
            await self._wake.wait()
            await asyncio.sleep(_GATHER_S)
            self._wake.clear()
            try:
                await self.flush()
            except StoreUnavailable as error:
                _log.warning(
                    "request_log.waiting",
                    reason=str(error),
                    num_waiting=len(self._waiting),
                    num_dropped=self.num_dropped,
                )
                self._wake.set()
                await asyncio.sleep(_RETRY_S)

    async def flush(self) -> None:
        """Pass on what waits; `StoreUnavailable` keeps it waiting."""
        async with self._passing_on:
            batch = list(self._waiting)
            self._waiting.clear()
            if not batch:
                return
            try:
                await self._store.enqueue(batch)
            except StoreUnavailable:
                self._waiting.extendleft(reversed(batch))
                self._drop_oldest()
                raise

    def _drop_oldest(self) -> None:
        while len(self._waiting) > _MAX_WAITING:
            self._waiting.popleft()
            self.num_dropped += 1


class RequestLogMiddleware:
    """Adds every HTTP request of the API (`/v1/…`) to the log; WebSockets add themselves, since they know more.

    Whoever authenticates a request says so in `request.state.user_id`.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self._app(scope, receive, send)
            return
        status = 500

        async def noting_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        started_s = time.monotonic()
        created_ms = time.time_ns() // 1_000_000
        try:
            await self._app(scope, receive, noting_send)
        finally:
            log: RequestLog = scope["state"]["services"].requests
            log.add(
                RequestRecord(
                    request_id=new_id("req_"),
                    user_id=scope["state"].get("user_id"),
                    method=scope["method"],
                    path=scope["path"][:MAX_PATH_CHARS],
                    status=status,
                    duration_ms=(time.monotonic() - started_s) * 1000,
                    created_ms=created_ms,
                )
            )
