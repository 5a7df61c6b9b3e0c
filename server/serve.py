"""Runs the server: one socket, bound before anything is loaded, and uvicorn with our limits on it, in one process or several."""

import errno
import math
import os
import socket
from contextlib import closing
from types import FrameType

import structlog
import uvicorn
from starlette.applications import Starlette
from uvicorn.supervisors import Multiprocess

from server.http_protocol import FluemanConfig, FluemanHttpProtocol
from server.logs import configure_logs
from server.settings import Settings, load_settings, variable
from server.websocket_protocol import FluemanWebSocketProtocol

log = structlog.get_logger(__name__)

BACKLOG = 2_048


class CannotListen(Exception):
    """The address cannot be listened on; the text says which and why."""


class Crashed(Exception):
    """The server stopped by itself; the log says why."""


class Server(uvicorn.Server):
    """uvicorn's, but a stop that was asked for is a success: no signal is raised again, which would end the process, with a trace."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.should_exit and sockets:
            log.info("listening", url=_url(sockets[0]))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        self._captured_signals.clear()


def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; `CannotListen` when the port cannot be had, `Crashed` when the server could not go on."""
    configure_logs(level=settings.log_level, format=settings.log_format)
    with closing(_bind(settings.host, settings.port)) as listener:
        log.info("starting", url=_url(listener), build_id=settings.build_id, workers=settings.workers)
        if settings.workers == 1:
            from server.app import create_app

            server = Server(_config(settings, create_app(settings)))
            server.run(sockets=[listener])
            if server.lifespan.should_exit:
                raise Crashed
            return
        # The workers read the same environment; what the command line set is put there.
        for field in ("host", "port", "workers"):
            os.environ[variable(field)] = str(getattr(settings, field))
        config = _config(settings, "server.serve:app_of_worker")
        Multiprocess(config, sockets=[listener]).run()


def app_of_worker() -> Starlette:
    """The application of one worker process, from its environment."""
    from server.app import create_app

    settings = load_settings()
    configure_logs(level=settings.log_level, format=settings.log_format)
    return create_app(settings)


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise CannotListen(f"cannot listen on {host}: no such address") from error
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        reason = (
            "another program listens there; choose another --port"
            if error.errno == errno.EADDRINUSE
            else error.strerror
        )
        raise CannotListen(f"cannot listen on {host}:{port}: {reason}") from error
    listener.set_inheritable(True)
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _config(settings: Settings, app: Starlette | str) -> FluemanConfig:
    config = FluemanConfig(
        app,
        factory=isinstance(app, str),
        workers=settings.workers,
        loop="uvloop",
        http=FluemanHttpProtocol,
        ws=FluemanWebSocketProtocol,
        ws_max_size=settings.max_frame_bytes,
        ws_ping_interval=settings.ping_interval_s,
        ws_ping_timeout=settings.ping_timeout_s,
        ws_per_message_deflate=False,  # 4 us and 35 KiB a connection, and a door for compression bombs
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,  # any client may send X-Forwarded-For
        server_header=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=math.ceil(settings.stop_grace_s),
    )
    config.head_timeout_s = settings.handshake_timeout_s
    return config
