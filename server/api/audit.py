"""`GET /v1/audit`: who looked at what, newest first, for admins. That an admin looked is in the log before the answer."""

import msgspec
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from persistence.audit import AuditFilter, AuditRow, audit_page
from server.api.answer import answer
from server.api.caller import ADMINS, caller
from server.api.cursor import decode_cursor, encode_cursor
from server.api.query import Id, Limit, Name, query_of
from server.personal_data import mask_audit
from server.services import services_of

PATH = "/v1/audit"
_LIST = "audit"


class _Query(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    actor: Name | None = None
    session_id: Id | None = None
    action: Id | None = None
    limit: Limit = 50
    after: str | None = None


class Entry(Struct, frozen=True):
    """One row of the log. `hash` covers it and all rows before it."""

    number: int
    audit_id: str
    at_ms: int
    actor_id: str
    role: str
    client_id: str
    action: str
    session_id: str | None
    detail: msgspec.Raw
    hash: str


class _Page(Struct, frozen=True):
    data: list[Entry]
    next: str | None


async def _list(request: Request) -> Response:
    services = services_of(request)
    principal = await caller(request, ADMINS)
    asked = query_of(request, _Query)
    before = None if asked.after is None else decode_cursor(asked.after, int, of=_LIST)
    wanted = AuditFilter(actor_id=asked.actor, session_id=asked.session_id, action=asked.action)
    # One more than asked for tells whether there are more.
    rows = await audit_page(services.database, wanted, limit=asked.limit + 1, before_number=before)
    detail = {"actor": asked.actor, "action": asked.action, "limit": asked.limit}
    await services.audit.write(principal, "audit.read", session_id=asked.session_id, detail=detail)
    shown = rows[: asked.limit]
    if services.access.is_masked(principal):
        # What was searched for may be what somebody said.
        shown = [mask_audit(row) for row in shown]
    has_more = len(rows) > len(shown)
    return answer(_Page(list(map(_entry, shown)), encode_cursor(shown[-1].number, of=_LIST) if has_more else None))


def _entry(row: AuditRow) -> Entry:
    return Entry(
        number=row.number,
        audit_id=row.audit_id,
        at_ms=row.at_ms,
        actor_id=row.actor_id,
        role=row.role,
        client_id=row.client_id,
        action=row.action,
        session_id=row.session_id,
        detail=msgspec.Raw(row.detail.encode()),
        hash=row.hash,
    )


def audit_routes() -> list[Route]:
    """The route, for admins."""
    return [Route(PATH, _list, methods=["GET"])]
