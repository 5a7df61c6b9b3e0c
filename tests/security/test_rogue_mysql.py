"""Attacks by a server that passes for MySQL, or by whoever stands between: no TLS after all, the password in clear, a file of ours."""

import asyncio
import contextlib
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
import uvloop
from pymysql.constants import CLIENT  # type: ignore[import-untyped]
from sqlalchemy import text

from persistence.database import driver_arguments, open_database
from persistence.errors import DatabaseUnavailable
from tests.certificates import write_certificate
from tests.services import MariadbServer, mariadb_server

CANARY = b"canary3c71"  # the content of a file that no server may have
PASSWORD = "canary9d20"
OK = b"\x00\x00\x00\x02\x00\x00\x00"  # nothing changed, autocommit
# https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_connection_phase_packets_protocol_auth_switch_request.html
SWITCH_TO_CLEAR = b"\xfemysql_clear_password\x00"
PLAIN: int = (CLIENT.CAPABILITIES | CLIENT.CONNECT_WITH_DB | CLIENT.LOCAL_FILES) & ~CLIENT.SSL


class Rogue:
    """What the server heard on each connection, from its greeting to its end."""

    def __init__(self, greeting: bytes, answer: Callable[[bytes], bytes]) -> None:
        self.heard: asyncio.Queue[bytes] = asyncio.Queue()
        self.port = 0
        self._greeting = greeting
        self._answer = answer

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Greet, then give each packet its answer until the client has gone."""
        heard = b""
        writer.write(_packet(0, self._greeting))
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readexactly(4)
                payload = await reader.readexactly(int.from_bytes(head[:3], "little"))
                heard += head + payload
                writer.write(_packet(head[3] + 1, self._answer(payload)))
        writer.close()
        self.heard.put_nowait(heard)

    def url(self, query: str = "") -> str:
        """As the settings have it."""
        return f"mysql+aiomysql://flueman:{PASSWORD}@127.0.0.1:{self.port}/flueman{query}"


@asynccontextmanager
async def rogue(greeting: bytes, answer: Callable[[bytes], bytes] = lambda payload: OK) -> AsyncIterator[Rogue]:
    """A server that is none."""
    server = Rogue(greeting, answer)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        await listener.wait_closed()


def greeting(plugin: str = "mysql_native_password") -> bytes:
    """The first packet of a server without TLS."""
    # https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_connection_phase_packets_protocol_handshake_v10.html
    numbers = struct.pack("<HBHHB", PLAIN & 0xFFFF, 45, 2, PLAIN >> 16, 21)
    return (
        b"\x0a8.0.40\0" + bytes(4) + b"saltsalt\0" + numbers + bytes(10) + b"saltsaltsalt\0" + plugin.encode() + b"\0"
    )


def _packet(number: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "little") + bytes((number % 256,)) + payload


async def heard_by(server: Rogue, query: str = "") -> bytes:
    """All that a client of ours tells that server before it gives up."""
    async with open_database(server.url(query)) as database:
        with pytest.raises(DatabaseUnavailable):
            await database.check()
    async with asyncio.timeout(30):
        return await server.heard.get()


@pytest.mark.parametrize("plugin", ["mysql_native_password", "mysql_clear_password", "sha256_password"])
async def test_a_server_that_offers_no_tls_learns_nothing_where_tls_is_demanded(tmp_path: Path, plugin: str) -> None:
    authority = write_certificate(tmp_path, "authority")

    async with rogue(greeting(plugin)) as server:
        assert await heard_by(server, f"?ssl_ca={authority}") == b""


@pytest.mark.parametrize("word", ["true", "True", "1", "required"])
def test_tls_is_left_out_only_by_its_own_word(word: str) -> None:
    for url, wants_tls in ((f"mysql+aiomysql://u@h/d?ssl={word}", True), ("mysql+aiomysql://u@h/d?ssl=false", False)):
        parsed, arguments = driver_arguments(url)

        assert isinstance(arguments.get("ssl"), ssl.SSLContext) is wants_tls
        assert "ssl" not in parsed.query


async def test_a_password_is_not_sent_in_clear_to_a_server_that_begins_so() -> None:
    async with rogue(greeting("mysql_clear_password")) as server:
        assert await heard_by(server) == b""


async def test_a_password_is_not_sent_in_clear_to_a_server_that_changes_its_mind() -> None:
    def answer(payload: bytes) -> bytes:
        return SWITCH_TO_CLEAR

    async with rogue(greeting(), answer) as server:
        heard = await heard_by(server)

    assert b"flueman\0" in heard
    assert PASSWORD.encode() not in heard


async def test_what_is_said_before_tls_buries_no_record(tmp_path: Path) -> None:
    """P3: error 1048 is a record's own fault, where it is true."""
    authority = write_certificate(tmp_path, "authority")

    async with rogue(b"\xff" + struct.pack("<H", 1048) + b"#23000a column cannot be null") as server:
        assert await heard_by(server, f"?ssl_ca={authority}") == b""


@pytest.mark.parametrize("statement", [b"SET sql_mode", b"SET SESSION TRANSACTION", b"SELECT"])
async def test_a_server_that_asks_for_a_file_gets_none(tmp_path: Path, statement: bytes) -> None:
    canary = tmp_path / "file"
    canary.write_bytes(CANARY)

    def answer(payload: bytes) -> bytes:
        # https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_com_query_response_local_infile_request.html
        return b"\xfb" + bytes(canary) if statement in payload else OK

    async with rogue(greeting(), answer) as server:
        heard = await heard_by(server, "?local_infile=1")

    assert statement in heard
    assert CANARY not in heard


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The certificate of `mariadb_tls`, which is its own authority."""
    return write_certificate(tmp_path_factory.mktemp("tls"), "mariadb")


@pytest.fixture(scope="module")
def mariadb_tls(tmp_path_factory: pytest.TempPathFactory, certificate: Path) -> Iterator[MariadbServer]:
    """A MariaDB that offers TLS."""
    options = (f"--ssl-cert={certificate}", f"--ssl-key={certificate}")
    with mariadb_server(tmp_path_factory.mktemp("mariadb_tls"), options=options) as service:
        yield service


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_the_right_authority_opens_connections_by_tls(
    mariadb_tls: MariadbServer, certificate: Path, run: Callable[[Awaitable[None]], None]
) -> None:
    async def check() -> None:
        async with open_database(f"{mariadb_tls.url}?ssl_ca={certificate}") as database:
            for _ in range(2):
                async with database.transaction() as connection:
                    cipher = (await connection.execute(text("SHOW STATUS LIKE 'Ssl_cipher'"))).one()[1]
                    assert cipher.startswith("TLS_")
        await until_closed(mariadb_tls.port)

    run(check())


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
@pytest.mark.parametrize("wrong", ["authority", "name", "no tls"])
def test_a_server_that_cannot_prove_its_name_is_refused(
    mariadb_tls: MariadbServer,
    mariadb_service: MariadbServer,
    certificate: Path,
    tmp_path: Path,
    wrong: str,
    run: Callable[[Awaitable[None]], None],
) -> None:
    authority = write_certificate(tmp_path, "mariadb") if wrong == "authority" else certificate
    url = (mariadb_service if wrong == "no tls" else mariadb_tls).url
    if wrong == "name":
        url = url.replace("127.0.0.1", "localhost")

    async def check() -> None:
        async with open_database(f"{url}?ssl_ca={authority}") as database:
            with pytest.raises(DatabaseUnavailable) as caught:
                await database.check()

        assert str(caught.value) == f"OperationalError {2026 if wrong == 'no tls' else 2003}"
        await until_closed(mariadb_tls.port)

    run(check())


async def until_closed(port: int) -> None:
    """Return when this process has no connection there: TLS says goodbye first, for which uvloop's loop does not wait when it closes."""
    process = psutil.Process()
    while any(each.raddr and each.raddr.port == port for each in process.net_connections("tcp")):  # noqa: ASYNC110
        await asyncio.sleep(0.01)
