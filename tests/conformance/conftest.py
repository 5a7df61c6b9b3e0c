"""A really running Flueman for clients of others to talk to: the `flueman` command, the scripted engine, and a token."""

import asyncio
import contextlib
import ipaddress
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic, sleep

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from msgspec import Struct

from tests.conformance.report import Script

FLUEMAN = Path(sys.executable).with_name("flueman")
START_TIMEOUT_S = 90


class Served(Struct, frozen=True):
    """A running server, and a token that it accepts."""

    port: int
    token: str

    @property
    def base_url(self) -> str:
        """What a client is configured with in place of https://api.openai.com/v1."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def ws_url(self) -> str:
        """The realtime endpoint itself."""
        return f"ws://127.0.0.1:{self.port}/v1/realtime"

    @property
    def script(self) -> Script:
        """What the clients play against this server."""
        return Script(base_url=self.base_url, ws_url=self.ws_url)


class TlsFront(Struct, frozen=True):
    """An https address in front of the server and the certificate to trust for it."""

    base_url: str
    ca_file: Path


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One Flueman for all conformance tests; each test has sessions of its own. It must log no error and end in good order."""
    folder = tmp_path_factory.mktemp("flueman")
    port = _free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FLUEMAN_")} | {
        "FLUEMAN_ENGINE": "scripted",
        "FLUEMAN_SCRIPTED_TOKENS_PER_S": "100",
        "FLUEMAN_DATA_DIR": str(folder / "data"),
        "FLUEMAN_MODEL_ALIASES": "gpt-realtime=demo",
        "FLUEMAN_MAX_CONNECTIONS_PER_USER": "100",
    }
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [FLUEMAN, "serve", "--port", str(port)], env=environment, cwd=folder, stdout=output, stderr=output
        )
    try:
        _wait_until_ready(process, port, log)
        token = subprocess.run(
            [FLUEMAN, "token", "--sub", "tester"],
            env=environment,
            cwd=folder,
            check=True,
            capture_output=True,
            text=True,
        )
        yield Served(port, token.stdout.strip())
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    # uvicorn raises the signal again once it has shut down in good order.
    assert process.returncode in (0, -signal.SIGTERM), log.read_text()[-4000:]
    lines = log.read_text().splitlines()
    assert not [line for line in lines if '"level": "error"' in line or "Traceback" in line]


@pytest.fixture
async def tls_front(served: Served, tmp_path: Path) -> AsyncIterator[TlsFront]:
    """The server behind TLS, as behind a load balancer: the Node SDK speaks wss only."""
    ca_file = _write_certificate(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(ca_file, tmp_path / "key.pem")

    async def forward(client_in: asyncio.StreamReader, client_out: asyncio.StreamWriter) -> None:
        server_in, server_out = await asyncio.open_connection("127.0.0.1", served.port)
        async with asyncio.TaskGroup() as pumps:
            pumps.create_task(_pump(client_in, server_out))
            pumps.create_task(_pump(server_in, client_out))

    server = await asyncio.start_server(forward, "127.0.0.1", 0, ssl=context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        yield TlsFront(f"https://127.0.0.1:{port}/v1", ca_file)


@pytest.fixture(scope="session")
def installed() -> None:
    """The clients that `setup.sh` installs; quick when they are there."""
    setup = Path(__file__).with_name("setup.sh")
    subprocess.run(["bash", setup], check=True, env={**os.environ, "PYTHON": sys.executable})
    assert shutil.which("node"), "the Node clients need node 20 or newer"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = monotonic() + START_TIMEOUT_S
    while monotonic() < deadline and process.poll() is None:
        with (
            contextlib.suppress(OSError),  # HTTPError, such as 503, is one
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=10) as answer,
        ):
            if answer.status == 200:
                return
        sleep(0.1)
    pytest.fail(f"flueman serve is not ready (exit status {process.poll()}):\n{log.read_text()[-4000:]}")


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(65_536):
            sink.write(data)
            await sink.drain()
    sink.close()


def _write_certificate(folder: Path) -> Path:
    """A certificate for 127.0.0.1 that signs itself, and `key.pem` beside it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Flueman conformance")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "key.pem").write_bytes(private)
    ca_file = folder / "ca.pem"
    ca_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return ca_file
