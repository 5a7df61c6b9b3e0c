"""uvicorn's HTTP protocol with the limits it lacks: a deadline for each request's head and body and for a client that does not read, and a
bound on the head's size.
"""

import asyncio
import contextlib
import fcntl
import struct
import termios
from asyncio import TimerHandle

import msgspec
from uvicorn import Config
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

MAX_HEAD_BYTES = 32 * 1024
# One field is at most what the WebSocket library takes in a line (8,192 bytes with its name and line end).
MAX_FIELD_BYTES = 8_192 - 4
MAX_FIELDS = 100
BODY_TIMEOUT_S = 60.0
# How often a client that holds us up is looked at; one that took nothing since the last look is cut.
STALL_TIMEOUT_S = 10.0

_STATUS_LINES = {400: b"400 Bad Request", 408: b"408 Request Timeout", 431: b"431 Request Header Fields Too Large"}
_CODES = {400: "invalid_request", 408: "request_timeout", 431: "request_too_large"}


class FluemanConfig(Config):
    """uvicorn's configuration, plus the deadline for the request that opens a connection."""

    head_timeout_s: float = 10.0


class FluemanHttpProtocol(HttpToolsProtocol):
    """One HTTP connection, until it ends or becomes a WebSocket."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, object],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._head_timeout_s = (
            config.head_timeout_s if isinstance(config, FluemanConfig) else FluemanConfig.head_timeout_s
        )
        self._deadline: TimerHandle | None = None
        self._answering: RequestResponseCycle | None = None
        self._stall_timer: TimerHandle | None = None
        self._num_unsent_bytes = 0  # at the last look; 0 where there was no need to look
        self._head_bytes = 0
        self._is_in_head = True
        self._refusal = 400

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._set_deadline(self._head_timeout_s)
        self._set_stall_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._clear_deadline()
        self._clear_stall_timer()
        if self._answering is not None and not self._answering.response_complete:
            # uvicorn tells the request that came last; the one that is answered would write into what is closed.
            self._answering.disconnected = True
            self._answering.message_event.set()
        super().connection_lost(exc)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def resume_writing(self) -> None:
        self._num_unsent_bytes = 0
        super().resume_writing()

    def handle_websocket_upgrade(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            # The answer in progress would get into the WebSocket, and wait for ever where only that one is told to go on.
            self.transport.abort()
            return
        self._clear_stall_timer()
        super().handle_websocket_upgrade()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._is_in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._is_in_head and self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse(431)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_in_head = True
        if self._deadline is None:
            self._set_deadline(self._head_timeout_s)

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(name) + len(value) > MAX_FIELD_BYTES or len(self.headers) >= MAX_FIELDS:
            self._refusal = 431
            raise ValueError  # the parser turns it into its own error, uvicorn into `send_400_response`
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        self._head_bytes = 0
        self._clear_deadline()
        super().on_headers_complete()
        if not self.parser.should_upgrade():
            self._set_deadline(BODY_TIMEOUT_S)

    def on_message_complete(self) -> None:
        self._clear_deadline()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no request, or one whose head is too large."""
        self._refuse(self._refusal)

    def _refuse(self, status: int) -> None:
        error = {
            "message": "The request was refused.",
            "type": "invalid_request_error",
            "code": _CODES[status],
            "param": None,
        }
        body = msgspec.json.encode({"error": error})
        head = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        self.transport.write(head % (_STATUS_LINES[status], len(body)) + body)
        self._clear_deadline()
        self.transport.close()

    def _set_deadline(self, timeout_s: float) -> None:
        self._clear_deadline()
        self._deadline = self.loop.call_later(timeout_s, self._on_deadline)

    def _clear_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _on_deadline(self) -> None:
        self._deadline = None
        if self._is_in_head and not self.transport.is_closing():
            self._refuse(408)
        else:
            self.transport.abort()

    def _set_stall_timer(self) -> None:
        self._stall_timer = self.loop.call_later(STALL_TIMEOUT_S, self._on_stall_timer)

    def _clear_stall_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def _on_stall_timer(self) -> None:
        # Paused or closing, nothing is added to what is unsent: a client that reads, however slowly, leaves less at each look. A
        # transport that closes has no other end than this one, as long as its client does not read.
        is_held_up = self.flow.write_paused or self.transport.is_closing()
        num_bytes = self.transport.get_write_buffer_size() + self._num_kernel_bytes() if is_held_up else 0
        if 0 < self._num_unsent_bytes <= num_bytes:
            self.transport.abort()
            return
        self._num_unsent_bytes = num_bytes
        self._set_stall_timer()

    def _num_kernel_bytes(self) -> int:
        """Bytes that the kernel took from us and the client has not acknowledged.

        Linux takes more only when a third of its buffer, which may be of 4 MiB, is free again: a slow client needs long for that.
        """
        with contextlib.suppress(OSError):
            fileno = self.transport.get_extra_info("socket").fileno()
            num_bytes: int = struct.unpack("i", fcntl.ioctl(fileno, termios.TIOCOUTQ, bytes(4)))[0]
            return num_bytes
        return 0
