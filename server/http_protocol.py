"""uvicorn's HTTP protocol with the limits it lacks: a deadline for each request's head and body, and a bound on the head's size."""

import asyncio
from asyncio import TimerHandle

import msgspec
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

MAX_HEAD_BYTES = 32 * 1024
# One field is at most what the WebSocket library takes in a line (8,192 bytes with its name and line end).
MAX_FIELD_BYTES = 8_192 - 4
MAX_FIELDS = 100
BODY_TIMEOUT_S = 60.0

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
        self._head_bytes = 0
        self._is_in_head = True
        self._refusal = 400

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._set_deadline(self._head_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._clear_deadline()
        super().connection_lost(exc)

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
