"""`GET /v1/me`: who the caller is and what it may choose from, for a page that has only its token."""

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from server.api.answer import answer
from server.api.caller import EVERYONE, caller
from server.auth import Role
from server.services import services_of


class Me(Struct, frozen=True):
    """`expires_at`: seconds since the epoch, as in the token. `feedback_reasons`: what a rating may give as its reason."""

    subject: str
    role: Role
    client_id: str
    scopes: list[str]
    expires_at: int
    feedback_reasons: tuple[str, ...]


async def _show(request: Request) -> Response:
    principal = await caller(request, EVERYONE)
    return answer(
        Me(
            subject=principal.subject,
            role=principal.role,
            client_id=principal.client_id,
            scopes=sorted(principal.scopes),
            expires_at=principal.expires_at,
            feedback_reasons=services_of(request).node.dialogue_limits.feedback_reasons,
        )
    )


def me_routes() -> list[Route]:
    """The route; any role may ask."""
    return [Route("/v1/me", _show, methods=["GET"])]
