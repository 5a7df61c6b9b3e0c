"""HTTP errors as OpenAI's API words them: `{"error": {message, type, code, param}}`, plus an id to find the log line by. Never a trace."""

import http
import secrets
from collections.abc import Mapping

import msgspec
import structlog
from msgspec import Struct
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ExceptionHandler

from persistence.errors import ArchiveUnavailable, DatabaseUnavailable
from server.tokens import AuthError
from sessions.errors import SessionNotFound, StoreUnavailable
from sessions.wire_errors import BadEvent

log = structlog.get_logger(__name__)

RETRY_AFTER_S = 2

_CODES = {404: "not_found", 405: "method_not_allowed", 413: "request_too_large", 429: "rate_limit_exceeded"}


class Problem(Struct, frozen=True):
    """The body's `error`. `id` is also logged where someone may have to look."""

    message: str
    type: str
    code: str | None
    param: str | None
    id: str


class _Body(Struct, frozen=True):
    error: Problem


def problem_response(
    status: int,
    code: str,
    message: str,
    *,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
    id: str | None = None,
) -> Response:
    """An error response; its type follows from the status."""
    problem = Problem(message, _type_of(status), code, param, id or new_problem_id())
    all_headers = {"cache-control": "no-store", "x-content-type-options": "nosniff", **(headers or {})}
    return Response(msgspec.json.encode(_Body(problem)), status, all_headers, media_type="application/json")


def auth_problem_response(error: AuthError) -> Response:
    """The refusal of a credential or an origin."""
    return problem_response(error.status, error.code, error.message, headers=error.headers)


def new_problem_id() -> str:
    """An id that a user can quote and an operator can find in the log."""
    return f"err_{secrets.token_hex(12)}"


def _type_of(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"


async def _on_auth_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, AuthError)
    return auth_problem_response(error)


async def _on_mistake(request: Request, error: Exception) -> Response:
    assert isinstance(error, BadEvent)
    return problem_response(400, error.code, error.message, param=error.param)


async def _on_unknown_session(request: Request, error: Exception) -> Response:
    """A session that never was, or that is not for the caller's eyes: the two look alike."""
    return problem_response(404, "not_found", "There is no such session.")


async def _on_unavailable(request: Request, error: Exception) -> Response:
    problem_id = new_problem_id()
    log.warning("request.unavailable", error_id=problem_id, path=request.url.path, reason=type(error).__name__)
    message = "What this needs cannot be reached now; try again soon."
    return problem_response(503, "unavailable", message, headers={"retry-after": str(RETRY_AFTER_S)}, id=problem_id)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    phrase = http.HTTPStatus(error.status_code).phrase
    code = _CODES.get(error.status_code, "server_error" if error.status_code >= 500 else "invalid_request")
    # Starlette's detail may quote the request; the status says enough.
    return problem_response(error.status_code, code, f"{phrase}.", headers=error.headers)


async def _on_disconnect(request: Request, error: Exception) -> Response:
    """For the log of requests alone: a client that went before its body was here is no error of ours."""
    return problem_response(408, "request_timeout", "The request did not come in time.")


async def _on_exception(request: Request, error: Exception) -> Response:
    problem_id = new_problem_id()
    log.error("request_failed", error_id=problem_id, method=request.method, path=request.url.path, exc_info=error)
    return problem_response(500, "server_error", "The server had an error.", id=problem_id)


# For Starlette's `exception_handlers`.
EXCEPTION_HANDLERS: Mapping[object, ExceptionHandler] = {
    AuthError: _on_auth_error,
    HTTPException: _on_http_exception,
    BadEvent: _on_mistake,
    SessionNotFound: _on_unknown_session,
    StoreUnavailable: _on_unavailable,
    DatabaseUnavailable: _on_unavailable,
    ArchiveUnavailable: _on_unavailable,
    ClientDisconnect: _on_disconnect,
    Exception: _on_exception,
}
