"""`/healthz`: the process is alive. `/readyz`: it can do its work, and if not, which part cannot."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

from msgspec import Struct
from msgspec.json import encode
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

Check = Callable[[], Awaitable[str | None]]

CHECK_TIMEOUT_S = 2.0
MAX_AGE_S = 1.0


class Readiness(Struct, frozen=True):
    """`checks` has "ok" or the reason for each part; a draining node is not ready though all its parts are."""

    status: str
    build: str
    checks: dict[str, str]
    num_sessions: int


class Health:
    """Runs the checks of all parts side by side, at most once in `MAX_AGE_S`, so that probes cost nothing."""

    def __init__(
        self,
        checks: Mapping[str, Check],
        *,
        build_id: str,
        is_draining: Callable[[], bool],
        num_sessions: Callable[[], int],
    ) -> None:
        self._checks = dict(checks)
        self._build_id = build_id
        self._is_draining = is_draining
        self._num_sessions = num_sessions
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
        is_ready = all(reason == "ok" for reason in found.values())
        return Readiness("ok" if is_ready else "unavailable", self._build_id, found, self._num_sessions())

    async def _run(self, check: Check) -> str:
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                return await check() or "ok"
        except TimeoutError:
            return f"no answer within {CHECK_TIMEOUT_S:g} s"
        except Exception as error:
            # Whatever a part raises means that it does not work; the text is for operators, so it names the kind only.
            return f"failed: {type(error).__name__}"


def health_routes(health_of: Callable[[Request], Health]) -> list[BaseRoute]:
    """The two routes, neither of which needs a token."""

    async def alive(request: Request) -> Response:
        return _json(200, {"status": "ok", "build": health_of(request).build_id})

    async def ready(request: Request) -> Response:
        readiness = await health_of(request).readiness()
        return _json(200 if readiness.status == "ok" else 503, readiness)

    return [Route("/healthz", alive), Route("/readyz", ready)]


def _json(status: int, body: Readiness | dict[str, str]) -> Response:
    return Response(encode(body), status, {"cache-control": "no-store"}, media_type="application/json")
