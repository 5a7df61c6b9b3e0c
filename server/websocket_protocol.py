"""uvicorn's WebSocket protocol with two short cuts past ASGI and the limits it lacks: fragments, pings, unsent bytes, a stop that waits.

ASGI carries the handshake. Then the application attaches a receiver and returns: frames go to the receiver in the call that read them,
and the journal's task, which has the encoded events of a commit in hand, writes them to the socket in one call. That saves two queues and
two task switches a frame, and some 12 KiB of coroutines, queues and headers an idle connection.
"""

import asyncio
import socket
import struct
from asyncio import BaseTransport, TimerHandle
from collections.abc import Iterable
from typing import Protocol

from msgspec import Struct
from uvicorn.config import Config
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.frames import Frame
from websockets.http11 import Request

EXTENSION = "flueman.connection"
CLOSE_GRACE_S = 2.0
RETRY_AFTER_S = 2

_TEXT = 0x81  # FIN and the opcode of text, RFC 6455 section 5.2
_MEDIUM = struct.Struct("!BBH")
_LARGE = struct.Struct("!BBQ")


class Receiver(Protocol):
    """Whom the frames of an attached connection go to. Each method is called from the event loop and must not block."""

    def received_text(self, text: str) -> None:
        """A whole text message."""

    def received_bytes(self) -> None:
        """A whole binary message, whose content is dropped."""

    def lost(self) -> None:
        """Called once: the connection closes, by whichever side, or is gone."""

    def drained(self) -> None:
        """The connection is no longer congested."""

    def stop(self) -> None:
        """The server stops: close when what is in progress has ended."""


class ConnectionLimits(Struct, frozen=True):
    """Bounds of one connection. `socket_buffer_bytes` bounds what the kernel takes from us for a client that does not read.

    Above `congested_bytes` unsent, answers wait for the client; above `max_output_bytes`, or after `max_congestion_s` of congestion, it is
    closed.
    """

    max_fragments: int = 64
    max_output_bytes: int = 1024 * 1024
    congested_bytes: int = 256 * 1024
    max_congestion_s: float = 10.0
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
        self._receiver: Receiver | None = None
        self._held: list[str | None] = []  # read while paused; None is a binary message
        self._is_detached = False
        self._congestion_timer: TimerHandle | None = None
        # Whether so much is unsent that nobody should produce more; looked at for every token, so no property.
        self.is_congested = False
        self._num_pings_left = float(self.limits.pings_burst)
        self._last_ping_s = 0.0
        self._abort_timer: TimerHandle | None = None

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)
        connection = transport.get_extra_info("socket")
        if connection is not None and connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.limits.socket_buffer_bytes)
        self.transport.set_write_buffer_limits(high=self.limits.congested_bytes)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._abort_timer is not None:
            self._abort_timer.cancel()
        self._end_congestion()
        super().connection_lost(exc)
        self._tell_lost()

    def pause_writing(self) -> None:
        if not self._is_detached:
            super().pause_writing()
        if self._congestion_timer is None:
            self.is_congested = True
            reason = "the client does not read"
            self._congestion_timer = self.loop.call_later(self.limits.max_congestion_s, self.close, 1013, reason)

    def resume_writing(self) -> None:
        if not self._is_detached:
            super().resume_writing()
        self._end_congestion()
        if self._receiver is not None:
            self._receiver.drained()

    def _end_congestion(self) -> None:
        self.is_congested = False
        if self._congestion_timer is not None:
            self._congestion_timer.cancel()
            self._congestion_timer = None

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
            # Pongs to a closed connection, or a client that floods on would pile them up.
            self.conn.data_to_send()
            return
        super().handle_ping()

    def handle_close(self, event: Frame) -> None:
        super().handle_close(event)
        self._tell_lost()

    def handle_parser_exception(self) -> None:
        super().handle_parser_exception()
        self._tell_lost()

    def keepalive_timeout(self) -> None:
        if self.read_paused:
            # The pong may have come: it is we who do not read.
            self.pong_timer = None
            self.pending_ping_payload = None
            self.schedule_ping()
            return
        super().keepalive_timeout()
        self._tell_lost()

    def send_receive_event_to_app(self) -> None:
        if self._receiver is None:
            super().send_receive_event_to_app()
            return
        data = self.frames[0] if len(self.frames) == 1 else b"".join(self.frames)
        self.frames = []
        if self.close_sent:
            return
        try:
            text = data.decode() if self.curr_msg_data_type == "text" else None
        except UnicodeDecodeError:
            self.close(1007, "invalid UTF-8")
            return
        # One read may hold thousands of messages: a pause holds also for those that were read with the one that caused it.
        if self.read_paused or self._held:
            self._held.append(text)
        else:
            self._deliver(text)

    def shutdown(self) -> None:
        # uvicorn would close at once; an answer in progress may end first, within the server's grace.
        if self._receiver is not None and not self.close_sent:
            self._receiver.stop()
            return
        if self.handshake_complete or self.initial_response or self.close_sent:
            super().shutdown()
            return
        # uvicorn would answer 500, which reads as a bug; another node, or this one a moment later, will serve.
        response = self.conn.reject(503, "The server is stopping; connect again.")
        response.headers["Retry-After"] = str(RETRY_AFTER_S)
        self.conn.send_response(response)
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.disconnected = True
        self.transport.close()

    async def run_asgi(self) -> None:
        # As uvicorn's, but for an application that returns after it attached a receiver.
        try:
            await self.app(self.scope, self.receive, self.send)
        except ClientDisconnected:
            pass
        except Exception:
            self.logger.exception("Exception in ASGI application\n")
            self.send_500_response()
            if self.handshake_complete:
                self.close(1011, "internal error")
        if self._receiver is not None and not self.disconnected:
            self._detach()
        elif self.close_timer is None:
            self.transport.close()

    def attach(self, receiver: Receiver) -> None:
        """Hand all further messages to `receiver`; those that came before are handed over now. The ASGI application then returns."""
        self._receiver = receiver
        while not self.queue.empty():
            message = self.queue.get_nowait()
            if message["type"] == "websocket.disconnect":
                self._tell_lost()
                return
            if message["type"] == "websocket.receive":
                self._held.append(message.get("text"))
        # A receiver which pauses what is handed over to it stays paused.
        self.resume_reading()

    @property
    def client_code(self) -> int | None:
        """The code with which the client began to close the connection; None unless it did."""
        close = self.conn.close_rcvd
        return close.code if close is not None and self.conn.close_rcvd_then_sent else None

    def pause_reading(self) -> None:
        """Read nothing from the socket until `resume_reading`; TCP slows the client down."""
        if not self.read_paused and not self.transport.is_closing():
            self.read_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """The inverse of `pause_reading`."""
        if self.read_paused and not self.transport.is_closing():
            self.read_paused = False
            self.transport.resume_reading()
        self._hand_over()

    def _hand_over(self) -> None:
        while self._held and not self.read_paused and not self.close_sent:
            self._deliver(self._held.pop(0))

    def _deliver(self, text: str | None) -> None:
        if self._receiver is None:
            return
        if text is None:
            self._receiver.received_bytes()
        else:
            self._receiver.received_text(text)

    def send_texts(self, payloads: Iterable[bytes]) -> None:
        """Send each payload, UTF-8 text, as one message, all in one write; a peer that does not read is closed 1013.

        Ignored once the connection closes: what was committed stays in the journal.
        """
        if self.close_sent or self.disconnected or self.transport.is_closing():
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
        if self.is_congested and self.transport.get_write_buffer_size() > self.limits.max_output_bytes:
            self.close(1013, "the client does not read")

    def close(self, code: int, reason: str) -> None:
        """Start the closing handshake now; the application sees a disconnect. The transport is cut if the peer does not answer."""
        if self.close_sent or self.disconnected or self.transport.is_closing():
            return
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.conn.send_close(code, reason)
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.resume_reading()
        self.close_timer = self.loop.call_later(self.close_timeout, self.transport.close)
        self._arm_abort()
        self._tell_lost()

    def _arm_abort(self) -> None:
        # A transport with unsent bytes never finishes `close` towards a peer that does not read, whoever began to close.
        if self._abort_timer is None and not self.disconnected:
            self._abort_timer = self.loop.call_later(self.close_timeout + CLOSE_GRACE_S, self.transport.abort)

    def _tell_lost(self) -> None:
        self._arm_abort()
        self._held.clear()
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            receiver.lost()

    def _detach(self) -> None:
        """Let go of what only the handshake and ASGI needed."""
        self._is_detached = True
        self.queue = _NOWHERE  # type: ignore[assignment]
        self.writable = _WRITABLE
        del self.scope, self.request, self.response


class _Nowhere:
    """In place of ASGI's queue once nobody reads it."""

    def put_nowait(self, message: object) -> None:
        """Drop the message."""


_NOWHERE = _Nowhere()
_WRITABLE = asyncio.Event()
_WRITABLE.set()
