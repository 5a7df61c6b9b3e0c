"""The application: routes, their errors, and the lifespan that opens and closes everything they use."""

import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import WebSocketRoute

from server.api.client_secrets import client_secret_routes
from server.api.dev_token import dev_token_routes
from server.health import Health, health_routes
from server.pages import page_routes
from server.problems import EXCEPTION_HANDLERS
from server.realtime import realtime
from server.request_log import RequestLogMiddleware
from server.services import State, services_of
from server.settings import Settings
from server.websocket_protocol import ConnectionLimits
from server.wiring import open_services


def create_app(settings: Settings) -> Starlette:
    """The ASGI application; nothing is opened before its lifespan starts."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[State]:
        limits = ConnectionLimits(max_fragments=settings.max_fragments, max_output_bytes=settings.max_output_bytes)
        async with open_services(settings) as services:
            # What is loaded by now stays: the collector need not walk through it again and again (vLLM alone is a million objects).
            gc.collect()
            gc.freeze()
            yield {"services": services, "connection_limits": limits}

    routes = [
        WebSocketRoute("/v1/realtime", realtime),
        *client_secret_routes(),
        *health_routes(_health_of),
        *([] if settings.is_production else dev_token_routes()),
        *page_routes(),
    ]
    app = Starlette(routes=routes, exception_handlers=dict(EXCEPTION_HANDLERS), lifespan=lifespan)
    app.add_middleware(RequestLogMiddleware)
    return app


def _health_of(request: Request) -> Health:
    return services_of(request).health
