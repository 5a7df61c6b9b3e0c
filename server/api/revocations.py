"""`POST /v1/revocations`: from the answer on a token, or all that a user has, is refused by every node, and what it opened is closed."""

import time
from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from server.api.answer import answer
from server.api.caller import EVERYONE, caller
from server.api.query import Nothing, body_of, query_of
from server.auth import AuthError, Principal
from server.client_secrets import MAX_TTL_S
from server.services import services_of
from server.tokens import MAX_NAME_CHARS, is_name
from sessions.wire_errors import BadEvent

PATH = "/v1/revocations"

_Name = Annotated[str, Meta(min_length=1, max_length=MAX_NAME_CHARS)]


class _Asked(Struct, frozen=True, forbid_unknown_fields=True):
    token_id: _Name | UnsetType = UNSET
    user_id: _Name | UnsetType = UNSET


class _Revoked(Struct, frozen=True):
    """`issued_until`: a user's later tokens are accepted. `kept_until`: those revoked have all expired. Seconds since the epoch."""

    token_id: str | UnsetType
    user_id: str | UnsetType
    issued_until: int | UnsetType
    kept_until: int
    audit_id: str | None


async def _create(request: Request) -> Response:
    """What was revoked, once the store has it; `{}` is the caller's own token."""
    services = services_of(request)
    principal = await caller(request, EVERYONE)
    query_of(request, Nothing)
    asked = await body_of(request, _Asked)
    token_id, user_id = asked.token_id, asked.user_id
    for param, name in (("token_id", token_id), ("user_id", user_id)):
        if isinstance(name, str) and not is_name(name):
            raise BadEvent("invalid_value", f"No token has such a '{param}'.", param)
    if isinstance(user_id, str):
        if isinstance(token_id, str):
            raise BadEvent("invalid_value", "A token or a user is revoked, not both at once.", "user_id")
        # A browser that was given a secret must not lock its user out, let alone a backend's other users.
        is_own = user_id == principal.subject and principal.parent_token_id is None
        audit_id = await _allowed(request, principal, {"user_id": user_id}, is_own=is_own)
        revoked = await services.revocations.revoke_user(user_id)
        return answer(_Revoked(UNSET, user_id, revoked.issued_until_s, revoked.kept_until_s, audit_id), status=201)
    if not isinstance(token_id, str):
        token_id = principal.token_id
    is_own = token_id == principal.token_id
    audit_id = await _allowed(request, principal, {"token_id": token_id}, is_own=is_own)
    expires_at = _last_use(principal) if is_own else None
    revoked = await services.revocations.revoke_token(token_id, expires_at=expires_at)
    return answer(_Revoked(token_id, UNSET, UNSET, revoked.kept_until_s, audit_id), status=201)


async def _allowed(request: Request, principal: Principal, what: dict[str, str], *, is_own: bool) -> str | None:
    """The id of the audit log's entry about this where it is not one's own, which the outbox holds by now; `AuthError`."""
    if is_own:
        return None
    if principal.role != "admin":
        raise AuthError("forbidden", "Only an admin may revoke what is not the caller's own.", status=403)
    return await services_of(request).audit.write(principal, "token.revoke", detail=what)


def _last_use(principal: Principal) -> int:
    """When the principal's token, and what it minted, is refused anyway, at the latest."""
    if principal.parent_token_id is None:
        return principal.expires_at
    return min(principal.expires_at, int(time.time()) + MAX_TTL_S)


def revocation_routes() -> list[Route]:
    """The route; any role may revoke its own."""
    return [Route(PATH, _create, methods=["POST"])]
