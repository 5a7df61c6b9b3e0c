"""`GET /v1/overview`: sums by day and model, of the digital humans that the caller works for."""

from collections.abc import Sequence

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from persistence.rollups import DayFigures, overview
from server.api.answer import answer
from server.api.caller import caller
from server.api.query import Milliseconds, Name, query_of
from server.services import services_of
from sessions.wire_errors import BadEvent

PATH = "/v1/overview"
DAY_MS = 24 * 3600 * 1000
DEFAULT_SPAN_MS = 30 * DAY_MS
MAX_SPAN_MS = 366 * DAY_MS


class _Query(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    from_ms: Milliseconds | None = None
    to_ms: Milliseconds | None = None
    model: Name | None = None
    client: Name | None = None


class _Overview(Struct, frozen=True):
    days: Sequence[DayFigures]


async def _show(request: Request) -> Response:
    services = services_of(request)
    principal = await caller(request)
    asked = query_of(request, _Query)
    from_ms, to_ms = _span(asked, services.node.now_ms())
    sight = services.access.sight(principal)
    days = await overview(
        services.database,
        from_ms=from_ms,
        to_ms=to_ms,
        model=asked.model,
        client_id=asked.client,
        clients=sight.clients,
        hidden_clients=sight.hidden_clients,
    )
    detail = {"from_ms": from_ms, "to_ms": to_ms, "model": asked.model, "client": asked.client}
    await services.audit.write(principal, "overview.read", detail=detail)
    return answer(_Overview(days))


def _span(asked: _Query, now_ms: int) -> tuple[int, int]:
    """The days asked for: the last thirty, unless said otherwise; `BadEvent` for none at all, or for more than a year."""
    to_ms = now_ms if asked.to_ms is None else asked.to_ms
    from_ms = max(0, to_ms - DEFAULT_SPAN_MS) if asked.from_ms is None else asked.from_ms
    if to_ms < from_ms:
        raise BadEvent("invalid_value", "to_ms must not be before from_ms.", "to_ms")
    if to_ms - from_ms > MAX_SPAN_MS:
        raise BadEvent("invalid_value", "At most 366 days are told at once.", "from_ms")
    return from_ms, to_ms


def overview_routes() -> list[Route]:
    """The route, for staff."""
    return [Route(PATH, _show, methods=["GET"])]
