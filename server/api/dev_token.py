"""`POST /dev/token`: a client secret for the pages, in development only, only on this machine and only for a page of this very server."""

import time

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from server.auth import LOOPBACK, AuthError, Principal, check_origin
from server.services import services_of

TTL_S = 600
LIFE_S = 24 * 3600


async def _create(request: Request) -> Response:
    services = services_of(request)
    if request.client is None or request.client.host not in LOOPBACK:
        # A development server may listen on a whole network; its tokens are for whoever sits at it.
        raise AuthError(
            "not_local", "Tokens are given away only on the server's own machine; use `flueman token`.", status=403
        )
    check_origin(request.headers, services.allowed_origins, development=True)
    assert services.client_secrets is not None
    expires_at = int(time.time()) + LIFE_S
    principal = Principal("developer", "user", frozenset(), "page", expires_at, "dev")
    secret = services.client_secrets.mint(principal, b'{"type":"realtime"}', ttl_s=TTL_S)
    body = {"value": secret.value, "expires_at": secret.expires_at, "model": services.served_model}
    return Response(msgspec.json.encode(body), headers={"cache-control": "no-store"}, media_type="application/json")


def dev_token_routes() -> list[Route]:
    """The route; production does not have it."""
    return [Route("/dev/token", _create, methods=["POST"])]
