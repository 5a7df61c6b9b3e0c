"""`GET /v1/sessions/{id}`: one session with all that is known of it."""

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from server.api.answer import answer
from server.api.caller import caller
from server.api.query import Nothing, query_of
from server.api.subject import audited, subject_of
from server.api.whole_session import whole_session
from server.services import services_of

PATH = "/v1/sessions/{session_id}"


async def _show(request: Request) -> Response:
    services = services_of(request)
    principal = await caller(request)
    query_of(request, Nothing)
    subject = await subject_of(request, services, principal)
    found = await whole_session(services, subject.meta)
    audit_id = await audited(services, principal, subject, "session.view")
    return answer(msgspec.structs.replace(found, audit_id=audit_id))


def whole_session_routes() -> list[Route]:
    """The route, for staff."""
    return [Route(PATH, _show, methods=["GET"])]
