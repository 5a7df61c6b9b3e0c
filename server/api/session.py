"""`GET /v1/sessions/{id}`: one session with all that is known of it; `GET …/prompts/{response_id}`: a prompt of a long one's."""

import asyncio
import re

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from persistence.masking import mask, unmasked
from persistence.prompts import find_prompt
from server.api.answer import answer
from server.api.caller import caller
from server.api.query import Nothing, query_of
from server.api.subject import audited, subject_of
from server.api.whole_session import whole_session
from server.personal_data import mask_prompt, mask_session
from server.problems import problem_response
from server.services import services_of

RESPONSE_ID = re.compile(r"[!-~]{1,64}", re.ASCII)
PATH = "/v1/sessions/{session_id}"


async def _show(request: Request) -> Response:
    services = services_of(request)
    principal = await caller(request)
    query_of(request, Nothing)
    subject = await subject_of(request, services, principal)
    is_masked = services.access.is_masked(principal, user_id=subject.meta.user_id)
    found = await whole_session(services, subject.meta, mask if is_masked else unmasked)
    if is_masked:
        found = await asyncio.to_thread(mask_session, found)
    audit_id = await audited(services, principal, subject, "session.view")
    return answer(msgspec.structs.replace(found, audit_id=audit_id))


async def _show_prompt(request: Request) -> Response:
    services = services_of(request)
    principal = await caller(request)
    query_of(request, Nothing)
    subject = await subject_of(request, services, principal)
    response_id = request.path_params["response_id"]
    is_id = RESPONSE_ID.fullmatch(response_id) is not None
    found = await find_prompt(services.database, subject.meta.session_id, response_id) if is_id else None
    if found is None:
        return problem_response(404, "not_found", "No prompt of such an answer is kept.")
    if services.access.is_masked(principal, user_id=subject.meta.user_id):
        found = await asyncio.to_thread(mask_prompt, found)
    await audited(services, principal, subject, "session.view", part="prompt", response_id=response_id)
    return answer(found)


def whole_session_routes() -> list[Route]:
    """The routes, for staff."""
    return [
        Route(PATH, _show, methods=["GET"]),
        Route(f"{PATH}/prompts/{{response_id}}", _show_prompt, methods=["GET"]),
    ]
