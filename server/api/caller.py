"""Who calls a route of the API: the principal of the request's token, if its role may."""

from collections.abc import Collection

from starlette.requests import Request

from server.access import STAFF
from server.auth import AuthError, Principal, Role, credentials
from server.services import services_of

EVERYONE: frozenset[Role] = frozenset({"user", "support", "admin"})
ADMINS: frozenset[Role] = frozenset({"admin"})


async def caller(request: Request, roles: Collection[Role] = STAFF) -> Principal:
    """The principal; `AuthError` when there is none, or it is of another role.

    No origin is checked: a browser adds no token by itself, and no page of a stranger's is let see an answer (no CORS headers).
    """
    principal = await services_of(request).authenticator.authenticate(credentials(request.scope).token)
    request.state.user_id = principal.subject
    if principal.role not in roles:
        # The same for every id that may be asked for, so it tells of none.
        raise AuthError("forbidden", f"This needs the role {' or '.join(sorted(roles))}.", status=403)
    return principal
