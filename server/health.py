"""`/healthz`: the process is alive. `/readyz`: it can do its work, and if not, which part cannot.

A node without MySQL, S3 or a writer that keeps up is degraded, and still ready: conversations go on, and the outbox keeps what waits.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Literal

from msgspec import Struct
from msgspec.json import encode
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from sessions.errors import StoreUnavailable
from sessions.store import OutboxLag

Check = Callable[[], Awaitable[str | None]]
Status = Literal["ok", "degraded", "unavailable"]

CHECK_TIMEOUT_S = 2.0
MAX_AGE_S = 1.0
MAX_OUTBOX_AGE_S = 300.0

# What conversations can do without. Taking a node out of service for these would end them for nothing: every other lacks the same.
_BEHIND_THE_OUTBOX: Final = frozenset({"database", "archive", "outbox", "writer", "webhook"})


class Readiness(Struct, frozen=True):
    """`checks` has "ok" or the reason for each part; a draining node is not ready though all its parts are.

    `outbox` is how much waits to be stored, None while nobody can tell.
    """

    status: Status
    build: str
    checks: dict[str, str]
    num_sessions: int
    outbox: OutboxLag | None = None


class Health:
    """Runs the checks of all parts side by side, at most once in `MAX_AGE_S`, so that probes cost nothing.

    `lag` measures the outbox, which is a part like the others: it complains when its oldest record is older than `MAX_OUTBOX_AGE_S`.
    """

    def __init__(
        self,
        checks: Mapping[str, Check],
        *,
        build_id: str,
        is_draining: Callable[[], bool],
        num_sessions: Callable[[], int],
        lag: Callable[[], Awaitable[OutboxLag]] | None = None,
    ) -> None:
        self._checks = dict(checks)
        if lag is not None:
            self._checks["outbox"] = self._check_outbox
        self._build_id = build_id
        self._is_draining = is_draining
        self._num_sessions = num_sessions
        self._lag = lag
        self._outbox: OutboxLag | None = None
        self._found: dict[str, str] = {}
        self._found_at_s = float("-inf")
        self._lock = asyncio.Lock()

    @property
    def build_id(self) -> str:
        """Which build this is."""
        return self._build_id

    async def readiness(self) -> Readiness:
        """What works and what does not."""
        async with self._lock:
            if time.monotonic() - self._found_at_s > MAX_AGE_S:
                reasons = await asyncio.gather(*(self._run(check) for check in self._checks.values()))
                self._found = dict(zip(self._checks, reasons, strict=True))
                self._found_at_s = time.monotonic()
        found = dict(self._found)
        if self._is_draining():
            found["drain"] = "the server is stopping"
        return Readiness(_status(found), self._build_id, found, self._num_sessions(), self._outbox)

    async def _check_outbox(self) -> str | None:
        assert self._lag is not None
        self._outbox = None
        try:
            self._outbox = lag = await self._lag()
        except StoreUnavailable:
            # The store's own check says so, and decides.
            return "unknown: the store is away"
        if lag.oldest_s > MAX_OUTBOX_AGE_S:
            return f"{lag.pending} records wait, the oldest for {lag.oldest_s:.0f} s"
        return None

    async def _run(self, check: Check) -> str:
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                return await check() or "ok"
        except TimeoutError:
            return f"no answer within {CHECK_TIMEOUT_S:g} s"
        except Exception as error:
            # Whatever a part raises means that it does not work; the text is for operators, so it names the kind only.
            return f"failed: {type(error).__name__}"


def _status(found: Mapping[str, str]) -> Status:
    broken = {part for part, reason in found.items() if reason != "ok"}
    if not broken:
        return "ok"
    return "degraded" if broken <= _BEHIND_THE_OUTBOX else "unavailable"


def health_routes(health_of: Callable[[Request], Health]) -> list[BaseRoute]:
    """The two routes, neither of which needs a token."""

    async def alive(request: Request) -> Response:
        return _json(200, {"status": "ok", "build": health_of(request).build_id})

    async def ready(request: Request) -> Response:
        readiness = await health_of(request).readiness()
        return _json(503 if readiness.status == "unavailable" else 200, readiness)

    return [Route("/healthz", alive), Route("/readyz", ready)]


def _json(status: int, body: Readiness | dict[str, str]) -> Response:
    return Response(encode(body), status, {"cache-control": "no-store"}, media_type="application/json")
