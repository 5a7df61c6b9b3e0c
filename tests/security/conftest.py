"""A really running Flueman to attack, with limits small enough to reach, and its logs and files to search afterwards."""

import asyncio
import contextlib
import http.client
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import zstandard
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from server.auth import Principal
from server.client_secrets import ClientSecrets
from server.settings import ROOT
from tests.server.test_auth import SECRET, claims, signed
from tests.services import Service

ORIGIN = "https://avatar.example"
CANARY = "canary0f4b"  # is in what must never be written down; searched for at the end
MAX_CONNECTIONS = 12
MAX_FRAME_BYTES = 64 * 1024
EVENTS_PER_S = 200
EVENTS_BURST = 400
# A client's head is late when a busy machine lets it wait between its connection and its first byte.
HEAD_TIMEOUT_S = 3.0
PATIENCE_S = 60.0
Event = dict[str, Any]


class Target:
    """The server under attack."""

    def __init__(self, service: Service) -> None:
        self.service = service
        # The last characters of every token: a canary among its claims is not to be read in its text.
        self.tails: set[str] = set()

    @property
    def port(self) -> int:
        return self.service.port

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/v1/realtime?model=demo"

    def token(self, subject: str = "mia", **changes: object) -> str:
        """A good token, but for the changes."""
        now = int(time.time())
        return self.remember(
            signed(
                claims(
                    **{"sub": subject, "iat": now, "exp": now + 600, "jti": f"{CANARY}-jti", "note": CANARY} | changes
                )
            )
        )

    def client_secret(self, principal: Principal, *, ttl_s: int, ago_s: float = 0.0) -> str:
        """A client secret as the server would have minted it `ago_s` seconds ago."""
        minting = ClientSecrets(SECRET, issuer="flueman", audience="flueman", clock=lambda: time.time() - ago_s)
        return self.remember(minting.mint(principal, b'{"type":"realtime"}', ttl_s=ttl_s).value)

    def remember(self, token: str) -> str:
        """The token, which must never be written down; searched for at the end."""
        self.tails.add(token[-20:])
        return token

    @asynccontextmanager
    async def session(self, subject: str = "mia", **changes: Any) -> AsyncIterator["Client"]:
        """A session that has begun."""
        async with self.connect(self.token(subject), **changes) as client:
            assert (await client.next())["type"] == "session.created"
            yield client

    @asynccontextmanager
    async def connect(
        self,
        token: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        subprotocols: list[str] | None = None,
        url: str | None = None,
        **options: Any,
    ) -> AsyncIterator["Client"]:
        """A connection; what refuses the handshake raises `InvalidStatus`."""
        all_headers = dict(headers or {}) | ({"authorization": f"Bearer {token}"} if token is not None else {})
        async with connect(
            url or self.url,
            additional_headers=all_headers,
            subprotocols=[Subprotocol(name) for name in subprotocols] if subprotocols else None,
            **{"compression": None, "max_size": None, "ping_interval": None, "proxy": None, "close_timeout": 3}
            | {"open_timeout": PATIENCE_S}
            | options,
        ) as socket:
            yield Client(socket)

    def memory_bytes(self) -> int:
        """What the server's process holds in memory."""
        resident_pages = int(Path(f"/proc/{self.service.pid}/statm").read_text().split()[1])
        return resident_pages * os.sysconf("SC_PAGE_SIZE")

    def log(self) -> str:
        """All that the server has logged."""
        return self.service.log_path.read_text()


class Client:
    """A client that speaks events."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    async def send(self, event: Event | str | bytes) -> None:
        await self.socket.send(json.dumps(event) if isinstance(event, dict) else event)

    async def next(self) -> Event:
        """The next event; a server that says nothing for `PATIENCE_S` fails the test."""
        event: Event = json.loads(await _within(PATIENCE_S, self.socket.recv()))
        return event

    async def until(self, kind: str) -> Event:
        """The next event of that type; others before it are dropped."""
        while (event := await self.next())["type"] != kind:
            pass
        return event

    async def error(self) -> Event:
        """The `error` of the next error event."""
        error: Event = (await self.until("error"))["error"]
        return error

    async def closed(self) -> int:
        """The close code, once the server has closed."""
        await _within(PATIENCE_S, self.socket.wait_closed())
        assert self.socket.close_code is not None
        return self.socket.close_code

    async def is_answered(self) -> None:
        """Return once the session has answered; one that hangs fails the test. How soon it answers, the benchmarks show."""
        probe = f"probe_{time.monotonic()}"
        await self.send({"type": "conversation.item.retrieve", "event_id": probe, "item_id": "item_none"})
        while (await self.error())["event_id"] != probe:
            pass


async def _within(limit_s: float, awaitable: Any) -> Any:
    async with asyncio.timeout(limit_s):
        return await awaitable


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """One server for all attacks. Afterwards it must still be ready, have logged no error, and have written down no canary and no token."""
    folder = tmp_path_factory.mktemp("target")
    environment = {
        "FLUEMAN_ENGINE": "scripted",
        "FLUEMAN_SCRIPTED_TOKENS_PER_S": "0",
        "FLUEMAN_DATA_DIR": str(folder / "var"),
        "FLUEMAN_JWT_SECRET": SECRET.decode(),
        "FLUEMAN_ALLOWED_ORIGINS": ORIGIN,
        "FLUEMAN_MAX_CONNECTIONS_PER_USER": str(MAX_CONNECTIONS),
        "FLUEMAN_MAX_FRAME_BYTES": str(MAX_FRAME_BYTES),
        "FLUEMAN_MAX_OUTPUT_BYTES": "65536",
        "FLUEMAN_HANDSHAKE_TIMEOUT_S": str(HEAD_TIMEOUT_S),
        "FLUEMAN_PING_INTERVAL_S": "1",
        "FLUEMAN_PING_TIMEOUT_S": "5",
        "FLUEMAN_EVENTS_PER_S": str(EVENTS_PER_S),
        "FLUEMAN_EVENTS_BURST": str(EVENTS_BURST),
        "FLUEMAN_LOG_LEVEL": "debug",
        "PYTHONPATH": str(ROOT),
    }
    removed = [option for name in os.environ if name.startswith("FLUEMAN_") for option in ("-u", name)]
    settings = [f"{name}={value}" for name, value in environment.items()]
    service = Service(
        "flueman",
        folder,
        lambda port: ["env", *removed, *settings, sys.executable, "-m", "server", "serve", "--port", str(port)],
        _is_ready,
    )
    target = Target(service)
    service.start()
    try:
        yield target
        assert_survived(service)
    finally:
        service.stop()
    log = service.log_path.read_text()
    lines = [json.loads(line) for line in log.splitlines()]  # each line is one JSON object
    assert [line for line in lines if line["level"] in ("error", "critical")] == []
    assert "Traceback" not in log
    for path in (service.log_path, *(folder / "var").rglob("*")):
        content = _content(path)
        assert [text for text in (CANARY, *target.tails) if text.encode() in content] == [], f"{path} holds a secret"


def _content(path: Path) -> bytes:
    """What a file holds, unpacked."""
    data = b"" if path.is_dir() else path.read_bytes()
    return zstandard.ZstdDecompressor().decompress(data) if path.suffix == ".zst" else data


def assert_survived(service: Service) -> None:
    """The server still serves, once it has caught up with what it was made to do."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not _is_ready(service.port):
        assert not service.has_ended(), "the server did not survive"
        assert time.monotonic() < deadline_s, "the server did not recover"
        time.sleep(0.05)


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    return False
