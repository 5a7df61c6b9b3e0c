"""`POST /v1/realtime/client_secrets`, as OpenAI's: a backend asks for a short-lived secret that a browser may open sessions with."""

from typing import Literal

import msgspec
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from ulid import ULID

from server.api.answer import answer
from server.api.caller import count_call
from server.api.query import read_body
from server.auth import credentials
from server.client_secrets import DEFAULT_TTL_S, MAX_TTL_S, MIN_TTL_S, SessionTooLarge
from server.problems import problem_response
from server.services import services_of
from server.tokens import MAX_TOKEN_BYTES
from sessions.config import SessionConfig, merge, parse_session_patch
from sessions.server_events import SessionObject, session_object
from sessions.wire_errors import BadEvent, from_validation_error

PATH = "/v1/realtime/client_secrets"


class _ExpiresAfter(Struct, frozen=True, forbid_unknown_fields=True):
    anchor: Literal["created_at"] = "created_at"
    seconds: int = DEFAULT_TTL_S


class _Request(Struct, frozen=True, forbid_unknown_fields=True):
    expires_after: _ExpiresAfter | None = None
    session: msgspec.Raw = msgspec.Raw(b"null")


class _Response(Struct, frozen=True):
    value: str
    expires_at: int
    session: SessionObject


def client_secret_routes() -> list[Route]:
    """The route; without a key for client secrets it answers 501."""

    async def create(request: Request) -> Response:
        services = services_of(request)
        client_secrets = services.client_secrets
        # Not `authenticate`: a client secret may open sessions, never mint others.
        principal = await services.authenticator.authenticate_jwt(credentials(request.scope).token)
        count_call(services, principal)
        request.state.user_id = principal.subject
        if client_secrets is None:
            return problem_response(501, "not_configured", "This server has no key for client secrets.")
        body = await read_body(request)
        try:
            seconds, session, config = _parse(body, services.served_model)
        except BadEvent as error:
            return problem_response(400, error.code, error.message, param=error.param)
        try:
            secret = client_secrets.mint(principal, session, ttl_s=seconds)
        except SessionTooLarge:
            message = (
                f"The session does not fit into a secret of {MAX_TOKEN_BYTES} bytes; send the rest by session.update."
            )
            return problem_response(400, "string_above_max_length", message, param="session")
        shown = session_object(config, session_id=f"sess_{ULID()}", expires_at=0)
        return answer(_Response(secret.value, secret.expires_at, shown))

    return [Route(PATH, create, methods=["POST"])]


def _parse(body: bytes, served_model: str) -> tuple[int, bytes, SessionConfig]:
    """Life in seconds, the session's JSON and what it amounts to; `BadEvent` names what is wrong."""
    try:
        asked = msgspec.json.decode(body or b"{}", type=_Request)
        session = bytes(asked.session)
        if session == b"null":
            session = b'{"type":"realtime"}'
        patch = parse_session_patch(session)
    except msgspec.ValidationError as error:
        raise from_validation_error(error) from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadEvent("invalid_json", "The body is not valid JSON.") from error
    seconds = (asked.expires_after or _ExpiresAfter()).seconds
    if seconds < MIN_TTL_S:
        raise BadEvent("integer_below_min_value", f"Expected a value of at least {MIN_TTL_S}.", "expires_after.seconds")
    if seconds > MAX_TTL_S:
        raise BadEvent("integer_above_max_value", f"Expected a value of at most {MAX_TTL_S}.", "expires_after.seconds")
    model = patch.model if isinstance(patch.model, str) else served_model
    return seconds, session, merge(SessionConfig(model=model), patch)
