"""The pages: `server/web` as static files under a strict content policy. Knows no session, no token and no user.

The console's addresses (`/console/…`) are all one page, which finds its way by itself, so that a search or a session can be linked to.
"""

from os import PathLike, stat_result
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

WEB_DIRECTORY = Path(__file__).parent / "web"

# No inline script or style and no HTML sink (trusted types): text that a model or a user wrote can never become markup.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",  # covers ws: and wss: of the same host (CSP level 3)
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)

HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    # Kept, but asked about each time: the modules of one release must not be mixed with those of the next.
    "Cache-Control": "no-cache",
}


class PageFiles(StaticFiles):
    """Static files, each (also 304) with the pages' headers."""

    def file_response(
        self, full_path: str | PathLike[str], stat_result: stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers.update(HEADERS)
        return response


def page_routes() -> list[BaseRoute]:
    """Routes for `/`, `/console…`, `/favicon.ico` and `/web/…`; GET and HEAD only."""
    files = PageFiles(directory=WEB_DIRECTORY)

    async def conversation(request: Request) -> Response:
        return await files.get_response("index.html", request.scope)

    async def console(request: Request) -> Response:
        return await files.get_response("console/index.html", request.scope)

    async def icon(request: Request) -> Response:
        return await files.get_response("favicon.svg", request.scope)

    return [
        Route("/", conversation, methods=["GET"]),
        Route("/console", console, methods=["GET"]),
        Route("/console/{place:path}", console, methods=["GET"]),
        Route("/favicon.ico", icon, methods=["GET"]),
        Mount("/web", files, name="web"),
    ]
