"""The application: routes, their errors, and the lifespan that opens and closes everything they use."""

import gc
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import structlog
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import WebSocketRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.base import EngineError
from persistence.errors import PersistenceError
from server.api.audit import audit_routes
from server.api.client_secrets import client_secret_routes
from server.api.dev_token import dev_token_routes
from server.api.export import export_routes
from server.api.feedback import feedback_routes
from server.api.me import me_routes
from server.api.notes import note_routes
from server.api.overview import overview_routes
from server.api.revocations import revocation_routes
from server.api.session import whole_session_routes
from server.api.sessions import session_routes
from server.health import Health, health_routes
from server.jwks import JwksError
from server.pages import page_routes
from server.problems import EXCEPTION_HANDLERS
from server.realtime import realtime
from server.request_log import RequestLogMiddleware
from server.services import Services, State, services_of
from server.settings import Settings
from server.websocket_protocol import ConnectionLimits
from server.wiring import open_services
from sessions.errors import SessionError

_log = structlog.get_logger(__name__)


def create_app(settings: Settings) -> Starlette:
    """The ASGI application; nothing is opened before its lifespan starts."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[State]:
        limits = ConnectionLimits(max_fragments=settings.max_fragments, max_output_bytes=settings.max_output_bytes)
        async with _plainly_failing(open_services(settings)) as services:
            # What is loaded by now stays: the collector need not walk through it again and again (vLLM alone is a million objects).
            gc.collect()
            gc.freeze()
            yield {"services": services, "connection_limits": limits}

    routes = [
        WebSocketRoute("/v1/realtime", realtime),
        *client_secret_routes(),
        *me_routes(),
        *feedback_routes(),
        *session_routes(),
        *whole_session_routes(),
        *export_routes(),
        *note_routes(),
        *overview_routes(),
        *audit_routes(),
        *revocation_routes(),
        *health_routes(_health_of),
        *([] if settings.is_production else dev_token_routes()),
        *page_routes(),
    ]
    app = Starlette(routes=routes, exception_handlers=dict(EXCEPTION_HANDLERS), lifespan=lifespan)
    app.add_middleware(RequestLogMiddleware)
    app.add_middleware(PlainStart)
    return app


class PlainStart:
    """Keeps the traceback of a failed start to itself where one plain line has said why."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return

        async def plain_send(message: Message) -> None:
            if message["type"] == "lifespan.startup.failed" and CannotStart.__name__ in message.get("message", ""):
                message = {"type": message["type"], "message": ""}
            await send(message)

        await self._app(scope, receive, plain_send)


class CannotStart(Exception):
    """A part could not be opened; the log has said which and why."""


@asynccontextmanager
async def _plainly_failing(services: AbstractAsyncContextManager[Services]) -> AsyncIterator[Services]:
    """The services; where one of their known errors keeps them from opening, one line that an operator can act on."""
    is_open = False
    try:
        async with services as opened:
            is_open = True
            yield opened
    except (EngineError, SessionError, PersistenceError, JwksError) as error:
        if is_open:
            raise
        _log.error("start.failed", reason=str(error))
        raise CannotStart from error


def _health_of(request: Request) -> Health:
    return services_of(request).health
