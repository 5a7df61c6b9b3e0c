"""Logs: JSON lines that nobody can forge, without tokens or query strings, whoever wrote them."""

import io
import json
import logging
import warnings
from collections.abc import Iterator

import pytest
import structlog

from server.logs import REDACTED, clean, configure_logs
from server.tokens import mint

TOKEN = mint(
    b"0123456789abcdef0123456789abcdef",
    subject="mia",
    role="user",
    client_id="c",
    scopes=frozenset(),
    issuer="flueman",
    audience="flueman",
    now=1_800_000_000,
    ttl_s=60,
)


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Where the lines go; logging is as before afterwards."""
    root = logging.getLogger()
    names = ["uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi"]
    before = (
        root.handlers[:],
        root.level,
        [(logging.getLogger(n).level, logging.getLogger(n).disabled) for n in names],
    )
    out = io.StringIO()
    configure_logs(level="debug", stream=out)
    yield out
    structlog.reset_defaults()
    logging.captureWarnings(False)
    root.handlers[:], root.level = before[0], before[1]
    for name, (level, disabled) in zip(names, before[2], strict=True):
        logging.getLogger(name).setLevel(level)
        logging.getLogger(name).disabled = disabled
        logging.getLogger(name).filters.clear()


def lines_of(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_has_its_event_its_fields_and_the_bound_ids(stream: io.StringIO) -> None:
    with structlog.contextvars.bound_contextvars(session_id="sess_1", response_id="resp_1"):
        structlog.get_logger("server.live").info("session.opened", num_items=3)
        logging.getLogger("library").warning("odd %s", "thing")

    ours, theirs = lines_of(stream)

    assert (ours["event"], ours["num_items"], ours["level"], ours["logger"]) == (
        "session.opened",
        3,
        "info",
        "server.live",
    )
    assert (ours["session_id"], ours["response_id"]) == ("sess_1", "resp_1")
    assert (theirs["event"], theirs["session_id"], theirs["level"]) == ("odd thing", "sess_1", "warning")
    assert str(ours["timestamp"]).endswith("Z")


HOSTILE = 'x\r\n{"event":"forged"}\n\x1b[31mred\x1b[0m\x00\x7f\x9b\u2028\u202e\ud800'


@pytest.mark.parametrize("format", ["json", "console"])
def test_no_field_can_break_a_line_or_drive_a_terminal(stream: io.StringIO, format: str) -> None:
    configure_logs(level="debug", format=format, stream=stream)  # type: ignore[arg-type]

    structlog.get_logger("a").info(HOSTILE, value=HOSTILE, deep={HOSTILE: [HOSTILE]}, **{HOSTILE: 1})
    logging.getLogger("b").error("%s", HOSTILE)
    if format == "json":  # on a console a trace is many lines
        try:
            raise ValueError(HOSTILE)
        except ValueError:
            structlog.get_logger("c").exception("failed")
            logging.getLogger("d").exception("failed")

    text = stream.getvalue()
    assert text.count("\n") == (4 if format == "json" else 2)
    assert not any(ord(c) < 0x20 and c != "\n" for c in text)
    assert not any(c in text for c in "\x7f\x9b\u2028\u202e\ud800")
    text.encode()


def test_a_traceback_is_one_field_of_one_line_for_structlog_and_for_libraries(stream: io.StringIO) -> None:
    try:
        raise ValueError("reason")
    except ValueError:
        structlog.get_logger("a").exception("failed")
        logging.getLogger("b").exception("failed")

    for line in lines_of(stream):
        assert "Traceback" in str(line["exception"])
        assert "ValueError: reason" in str(line["exception"])


@pytest.mark.parametrize(
    "text",
    [
        TOKEN,
        f"Bearer {TOKEN}",
        f"authorization: bearer {TOKEN[:40]}",
        f"ek_{TOKEN}",
        f"realtime, openai-insecure-api-key.{TOKEN}",
        "realtime, openai-insecure-api-key.opaque-canary-token",
        "Bearer opaque-canary-token",
        "sk-proj-0123456789canary0123456789",
        f"GET /v1/realtime?model=demo&token={TOKEN} HTTP/1.1",
        "https://host/path?access_token=canary&x=1",
        "/v1/realtime?q=canary",
        "mysql+aiomysql://user:canary@host/db",
        "redis://:canary@host:6379/0",
        f"(b'authorization', b'Bearer {TOKEN}')",
    ],
)
def test_what_looks_like_a_secret_is_struck_out_of_every_kind_of_line(stream: io.StringIO, text: str) -> None:
    structlog.get_logger("a").info("seen", value=text, nested={"list": [text]}, **{text: 1})
    logging.getLogger("b").warning("seen %s", text)
    try:
        raise ValueError(text)
    except ValueError:
        logging.getLogger("c").exception("failed")

    logged = stream.getvalue()
    for part in ("canary", *TOKEN.split(".")):
        assert part not in logged
    assert logged.count(REDACTED) >= 5


@pytest.mark.parametrize(
    "text",
    [
        "session.opened",
        "why? because",
        "a?b",
        "ekphrasis",
        "http://127.0.0.1:8000",
        "sk_short",
        "eyJ",
        "mia@example.com",
    ],
)
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert clean(text) == text


def test_uvicorns_lines_about_refused_clients_are_dropped_and_its_others_kept(stream: io.StringIO) -> None:
    error = logging.getLogger("uvicorn.error")

    error.error("ASGI callable returned without completing handshake.")
    error.info('%s - "WebSocket %s" %d', "1.2.3.4:5", "/v1/realtime?token=canary", 401)
    error.info("connection rejected (%d %s)", 401, "Unauthorized")
    error.error("parser failed")
    logging.getLogger("uvicorn.access").info(
        '%s - "%s %s HTTP/%s" %d', "1.2.3.4:5", "GET", "/?token=canary", "1.1", 200
    )
    error.info("Application startup complete.")

    assert [line["event"] for line in lines_of(stream)] == ["Application startup complete."]


def test_frames_and_headers_are_not_logged_even_at_debug(stream: io.StringIO) -> None:
    # websockets asks the logger it was given whether it may log every frame and header.
    assert not logging.getLogger("uvicorn.error").isEnabledFor(logging.DEBUG)
    assert not logging.getLogger("httpx").isEnabledFor(logging.INFO)


def test_bytes_are_counted_not_shown(stream: io.StringIO) -> None:
    structlog.get_logger("a").info("seen", value=b"canary")

    assert lines_of(stream)[0]["value"] == "<6 bytes>"


def test_warnings_become_lines(stream: io.StringIO) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.warn("careful", UserWarning, stacklevel=1)

    assert "careful" in str(lines_of(stream)[0]["event"])


def test_lines_below_the_level_are_not_written(stream: io.StringIO) -> None:
    configure_logs(level="warning", stream=stream)

    structlog.get_logger("a").info("quiet")
    logging.getLogger("uvicorn.error").info("quiet")

    assert stream.getvalue() == ""
