"""`POST /dev/token`: a token for the pages, in development only, only on this machine and only for a page of this very server.

The conversation page asks for nothing and gets a client secret of a user; `{"role": "support"}` gets an access token of staff.
"""

import re
import time
from typing import Literal

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from server.api.answer import answer
from server.api.query import body_of
from server.auth import LOOPBACK, AuthError, Principal, check_origin
from server.problems import problem_response
from server.services import services_of

TTL_S = 600
LIFE_S = 24 * 3600

_LOCAL_HOST = re.compile(r"(?:localhost|127\.0\.0\.1|\[::1\])(?::[0-9]+)?", re.ASCII | re.IGNORECASE)
_FORWARDED = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip")


class _Wish(Struct, frozen=True, forbid_unknown_fields=True):
    role: Literal["user", "support", "admin"] = "user"


async def _create(request: Request) -> Response:
    services = services_of(request)
    if not _is_local(request):
        # A development server may listen on a whole network; its tokens are for whoever sits at it.
        raise AuthError(
            "not_local", "Tokens are given away only on the server's own machine; use `flueman token`.", status=403
        )
    check_origin(request.headers, services.allowed_origins, development=True)
    wish = await body_of(request, _Wish)
    if wish.role != "user":
        if services.development_tokens is None:
            message = "This server has no key to sign tokens with; they come from the issuer of its public keys."
            return problem_response(501, "not_configured", message)
        token = services.development_tokens.mint(wish.role)
        return answer({"value": token.value, "expires_at": token.expires_at, "model": services.served_model})
    assert services.client_secrets is not None
    now = int(time.time())
    principal = Principal("developer", "user", frozenset(), "page", now + LIFE_S, "dev", now)
    secret = services.client_secrets.mint(principal, b'{"type":"realtime"}', ttl_s=TTL_S)
    return answer({"value": secret.value, "expires_at": secret.expires_at, "model": services.served_model})


def _is_local(request: Request) -> bool:
    """Whether it came from this machine and from no further: the near end of a proxy or a tunnel is on this machine too."""
    hosts = request.headers.getlist("host")
    return (
        request.client is not None
        and request.client.host in LOOPBACK
        and len(hosts) == 1
        and _LOCAL_HOST.fullmatch(hosts[0]) is not None
        and not any(name in request.headers for name in _FORWARDED)
    )


def dev_token_routes() -> list[Route]:
    """The route; production does not have it."""
    return [Route("/dev/token", _create, methods=["POST"])]
