"""uvicorn's WebSocket protocol with a direct writer and the limits it lacks: fragments, pings, unsent bytes, and a stop that lets answers
end.

The direct writer skips a task switch and two queues a frame: the journal's task, which has the encoded events of a commit in hand, frames
them and writes them to the socket in one call.
"""

import asyncio
import socket
import struct
from asyncio import BaseTransport, TimerHandle
from collections.abc import Callable, Iterable

from msgspec import Struct
from uvicorn.config import Config
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.frames import Frame
from websockets.http11 import Request

EXTENSION = "flueman.connection"
CLOSE_GRACE_S = 2.0

_TEXT = 0x81  # FIN and the opcode of text, RFC 6455 section 5.2
_MEDIUM = struct.Struct("!BBH")
_LARGE = struct.Struct("!BBQ")


class ConnectionLimits(Struct, frozen=True):
    """Bounds of one connection. `socket_buffer_bytes` bounds what the kernel takes from us for a client that does not read."""

    max_fragments: int = 64
    max_output_bytes: int = 1024 * 1024
    pings_per_s: float = 5.0
    pings_burst: int = 20
    socket_buffer_bytes: int = 128 * 1024


class FluemanWebSocketProtocol(WebSocketsSansIOProtocol):
    """One WebSocket. The application finds it in its scope's extensions under `EXTENSION`."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, object],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        limits = app_state.get("connection_limits")
        self.limits = limits if isinstance(limits, ConnectionLimits) else ConnectionLimits()
        self.on_shutdown: Callable[[], None] | None = None
        self._num_pings_left = float(self.limits.pings_burst)
        self._last_ping_s = 0.0
        self._abort_timer: TimerHandle | None = None

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)
        connection = transport.get_extra_info("socket")
        if connection is not None and connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.limits.socket_buffer_bytes)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._abort_timer is not None:
            self._abort_timer.cancel()
        self.on_shutdown = None
        super().connection_lost(exc)

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        if hasattr(self, "scope"):
            extensions: dict[str, object] = self.scope["extensions"]  # type: ignore[assignment]
            extensions[EXTENSION] = self

    def handle_cont(self, event: Frame) -> None:
        if len(self.frames) >= self.limits.max_fragments:
            self.frames = []
            self.close(1008, f"more than {self.limits.max_fragments} fragments")
            return
        if self.frames:
            super().handle_cont(event)

    def handle_ping(self) -> None:
        now_s = self.loop.time()
        refill = (now_s - self._last_ping_s) * self.limits.pings_per_s
        self._num_pings_left = min(self._num_pings_left + refill, self.limits.pings_burst) - 1
        self._last_ping_s = now_s
        if self._num_pings_left < 0:
            self.close(1008, "too many pings")
            return
        super().handle_ping()

    def shutdown(self) -> None:
        # uvicorn would close at once; an answer in progress may end first, within the server's grace.
        if self.on_shutdown is not None and self.handshake_complete and not self.close_sent:
            self.on_shutdown()
        else:
            super().shutdown()

    def send_texts(self, payloads: Iterable[bytes]) -> None:
        """Send each payload, UTF-8 text, as one message, all in one write; a peer that does not read is closed 1013.

        Ignored once the connection closes: what was committed stays in the journal.
        """
        if self.close_sent or self.disconnected:
            return
        parts: list[bytes] = []
        for payload in payloads:
            size = len(payload)
            if size < 126:
                parts.append(bytes((_TEXT, size)))
            elif size < 65_536:
                parts.append(_MEDIUM.pack(_TEXT, 126, size))
            else:
                parts.append(_LARGE.pack(_TEXT, 127, size))
            parts.append(payload)
        self.transport.write(b"".join(parts))
        if self.transport.get_write_buffer_size() > self.limits.max_output_bytes:
            self.close(1013, "the client does not read")

    def close(self, code: int, reason: str) -> None:
        """Start the closing handshake now; the application sees a disconnect. The transport is cut if the peer does not answer."""
        if self.close_sent or self.disconnected or self.transport.is_closing():
            return
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.conn.send_close(code, reason)
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
        self.close_timer = self.loop.call_later(self.close_timeout, self.transport.close)
        # A transport with unsent bytes never finishes `close` towards a peer that does not read.
        self._abort_timer = self.loop.call_later(self.close_timeout + CLOSE_GRACE_S, self.transport.abort)
