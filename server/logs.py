"""Logs: one JSON line an event on standard output, uvicorn's and every library's through the same processors.

Whoever logs leaves out texts, tokens and query strings; what looks like a token is struck out here once more, in case one forgot.
A user may be known by an address or a telephone number: it is masked.
"""

import logging
import re
import sys
from typing import Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from persistence.masking import mask

REDACTED = "[redacted]"

# A JWT starts with the base64url of `{"`; then client secrets and OpenAI-style keys; then anything said to be a credential.
_SECRETS = re.compile(
    r"(?:ek_)?eyJ[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*){0,4}"
    r"|\b(?:ek|sk)[_-][A-Za-z0-9_.-]{16,}"
    r"|(?<=openai-insecure-api-key\.)[^\s,;\"']+"
    r"|(?i:(?<=bearer )[^\s,;\"']+)"
)
_URL_CREDENTIALS = re.compile(r"(?<=://)[^/\s@\"']+(?=@)")
_QUERY = re.compile(r"(?<=[\w/.~%-])\?[\w.~%-]+=[^\s\"']*")
# What a terminal or a line reader acts on: C0 but for nothing, DEL, C1, line separators, bidi controls, half characters.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

_NOISY = (
    "httpx",
    "httpcore",
    "httpx2",
    "httpcore2",
    "botocore",
    "aiobotocore",
    "urllib3",
    "asyncio",
    "websockets",
    "aiosqlite",
)

LogLevel = Literal["debug", "info", "warning", "error"]


def clean(text: str) -> str:
    """The text without secrets and query strings, on one line, its control characters written as escapes."""
    text = _SECRETS.sub(REDACTED, text)
    text = _URL_CREDENTIALS.sub(REDACTED, text)
    text = _QUERY.sub("?" + REDACTED, text)
    return _CONTROLS.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return {0x0A: "\\n", 0x0D: "\\r", 0x09: "\\t"}.get(code) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")


def clean_fields(logger: WrappedLogger, method: str, fields: EventDict) -> EventDict:
    """structlog's processor that cleans every name and value of a line, to any depth; a trace keeps its lines."""
    trace = fields.pop("exception", None)
    if isinstance(user_id := fields.get("user_id"), str):
        fields["user_id"] = mask(user_id)
    cleaned: EventDict = {clean(str(name)): _clean_value(value) for name, value in fields.items()}
    if trace is not None:
        cleaned["exception"] = "\n".join(clean(line) for line in str(trace).split("\n"))
    return cleaned


def _clean_value(value: object) -> object:
    match value:
        case None | bool() | int() | float():
            return value
        case str():
            return clean(value)
        case bytes() | bytearray() | memoryview():
            return f"<{len(value)} bytes>"
        case dict():
            return {clean(str(name)): _clean_value(inner) for name, inner in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_clean_value(inner) for inner in value]
        case _:
            return clean(str(value))


class ClientMistakeFilter(logging.Filter):
    """Drops what uvicorn and websockets say, partly at ERROR with a trace, of clients that are refused, leave or break the protocol.

    Such lines hold whole URLs, need nobody to act, and cost a flooder nothing to cause. Our own events count them.
    """

    _STARTS = (
        "connection rejected",
        "connection open",
        "connection closed",
        "opening handshake failed",
        "parser failed",
        "Invalid UTF-8 sequence",
        "Invalid HTTP request",
        "Unsupported upgrade request",
        "ASGI callable returned without completing handshake",
        '%s - "WebSocket',
    )

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to keep the line."""
        return not str(record.msg).startswith(self._STARTS)


def configure_logs(
    *, level: LogLevel = "info", format: Literal["json", "console"] = "json", stream: TextIO | None = None
) -> None:
    """Route structlog, the standard library and uvicorn to `stream` (default standard output); may be called again."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        clean_fields,
    ]
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    renderer: Processor = (
        structlog.processors.JSONRenderer() if format == "json" else structlog.dev.ConsoleRenderer(colors=False)
    )
    handler = logging.StreamHandler(stream or sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.ExtraAdder(allow={"session_id", "response_id"}), *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi"):
        _hand_over(logging.getLogger(name))
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(True)


def _hand_over(logger: logging.Logger) -> None:
    logger.handlers.clear()
    logger.propagate = True
    # Never below INFO, whatever FLUEMAN_LOG_LEVEL says: at DEBUG websockets logs every frame and every header.
    logger.setLevel(max(logging.INFO, logging.getLogger().level))
    if logger.name == "uvicorn.access":
        logger.disabled = True  # the server logs requests itself, without query strings
    if not any(isinstance(known, ClientMistakeFilter) for known in logger.filters):
        logger.addFilter(ClientMistakeFilter())
