"""`GET /v1/me`: who the caller is, for a page that has only its token."""

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from server.api.answer import answer
from server.api.caller import EVERYONE, caller
from server.auth import Role


class Me(Struct, frozen=True):
    """`expires_at`: seconds since the epoch, as in the token."""

    subject: str
    role: Role
    client_id: str
    scopes: list[str]
    expires_at: int


async def _show(request: Request) -> Response:
    principal = await caller(request, EVERYONE)
    return answer(
        Me(principal.subject, principal.role, principal.client_id, sorted(principal.scopes), principal.expires_at)
    )


def me_routes() -> list[Route]:
    """The route; any role may ask."""
    return [Route("/v1/me", _show, methods=["GET"])]
