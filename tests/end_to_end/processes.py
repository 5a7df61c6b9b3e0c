"""Flueman's own processes, `serve` and `write`, to be stopped, killed and started again; none outlives the test run."""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from server.settings import ROOT
from server.tokens import mint
from tests.services import Service

SECRET = "end-to-end-0123456789abcdefghijk"
STOP_S = 40.0


class FluemanProcess(Service):
    """One `python -m server` command with its settings."""

    def __init__(self, directory: Path, settings: Mapping[str, str], *arguments: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.settings = dict(settings)
        self._arguments = arguments
        name = arguments[0]
        super().__init__(name, directory, self._command_line, _is_ready if name == "serve" else lambda _: True)

    def signal(self, how: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(how)

    def wait(self) -> int:
        """The exit status, once it has ended."""
        assert self._process is not None
        status = self._process.wait(STOP_S)
        self._process = None
        return status

    @property
    def is_running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    def children(self) -> list[psutil.Process]:
        """The processes that it started."""
        return psutil.Process(self.pid).children(recursive=True)

    def kill(self) -> None:
        # A supervisor that is killed cannot end its workers.
        children = self.children() if self._process is not None and self._process.poll() is None else []
        super().kill()
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(children, timeout=STOP_S)

    def readiness(self) -> tuple[int, dict[str, str]]:
        """What `/readyz` answers: the status, and what each part says."""
        status, body = get(self.port, "/readyz")
        return status, json.loads(body)["checks"]

    def errors(self) -> list[str]:
        """Lines of its log that somebody must act on."""
        lines = self.log_path.read_text().splitlines()
        return [line for line in lines if '"level": "error"' in line or "Traceback" in line]

    def _command_line(self, port: int) -> Sequence[str]:
        environment = {"PYTHONPATH": str(ROOT), "FLUEMAN_PORT": str(port), **self.settings}
        return [*_env(environment), sys.executable, "-m", "server", *self._arguments]


def _env(environment: Mapping[str, str]) -> list[str]:
    """The command that runs another with these variables, and with no setting but these."""
    removed = [option for name in os.environ if name.startswith("FLUEMAN_") for option in ("-u", name)]
    return ["env", *removed, *(f"{name}={value}" for name, value in environment.items())]


@contextmanager
def running(*processes: FluemanProcess) -> Iterator[None]:
    """Start them one after the other; whatever still runs at the end is stopped."""
    try:
        for process in processes:
            process.start()
        yield
    finally:
        for process in reversed(processes):
            process.stop()


def run_command(folder: Path, settings: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """The result of a command that ends by itself."""
    return run_python(folder, settings, "-m", "server", *arguments)


def run_python(folder: Path, settings: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """The result of Python with these arguments, and with no setting but these."""
    command = [*_env({"PYTHONPATH": str(ROOT), **settings}), sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=150)


def token_of(
    subject: str,
    *,
    role: str = "user",
    client_id: str = "kiosk",
    scopes: frozenset[str] = frozenset(),
    age_s: float = 0,
    ttl_s: int = 3600,
) -> str:
    """An access token that every server with `SECRET` accepts."""
    return mint(
        SECRET.encode(),
        subject=subject,
        role=role,
        client_id=client_id,
        scopes=scopes,
        issuer="flueman",
        audience="flueman",
        now=time.time() - age_s,
        ttl_s=ttl_s,
    )


def get(port: int, path: str) -> tuple[int, bytes]:
    """Status and body of a GET."""
    return request(port, "GET", path)


def request(
    port: int, method: str, path: str, *, body: Any = None, headers: Mapping[str, str] | None = None
) -> tuple[int, bytes]:
    """Status and body of a request with a JSON body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        content = None if body is None else json.dumps(body)
        connection.request(method, path, content, {"content-type": "application/json", **(headers or {})})
        answer = connection.getresponse()
        return answer.status, answer.read()


def _is_ready(port: int) -> bool:
    with contextlib.suppress(OSError, http.client.HTTPException):
        return get(port, "/readyz")[0] == 200
    return False
