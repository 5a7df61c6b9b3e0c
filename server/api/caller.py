"""Who calls a route of the API: the principal of the request's token, if its role may."""

import math
import time
from collections.abc import Collection

from starlette.requests import Request

from server.access import STAFF
from server.admission import TooManyCalls
from server.auth import AuthError, Principal, Role, credentials
from server.services import Services, services_of

EVERYONE: frozenset[Role] = frozenset({"user", "support", "admin"})
ADMINS: frozenset[Role] = frozenset({"admin"})


async def caller(request: Request, roles: Collection[Role] = STAFF) -> Principal:
    """The principal; `AuthError` when there is none, it is of another role, or it calls too fast.

    No origin is checked: a browser adds no token by itself, and no page of a stranger's is let see an answer (no CORS headers).
    """
    services = services_of(request)
    principal = await services.authenticator.authenticate(credentials(request.scope).token)
    count_call(services, principal)
    request.state.user_id = principal.subject
    if principal.role not in roles:
        # The same for every id that may be asked for, so it tells of none.
        raise AuthError("forbidden", f"This needs the role {' or '.join(sorted(roles))}.", status=403)
    return principal


def count_call(services: Services, principal: Principal) -> None:
    """`AuthError` when the principal calls too fast. Then nobody is to be named to the request log either: it goes to the outbox too."""
    try:
        services.admission.call(user_id=principal.subject, now_s=time.monotonic())
    except TooManyCalls as refusal:
        retry_after_s = math.ceil(refusal.retry_after_s)
        raise AuthError("rate_limit_exceeded", str(refusal), status=429, retry_after_s=retry_after_s) from None
