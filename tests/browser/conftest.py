"""A really running Flueman with the scripted engine, a Chromium, and a page that fails its test if the console complains."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, ConsoleMessage, Page, ViewportSize, async_playwright, expect

FLUEMAN = Path(sys.executable).with_name("flueman")
ARTIFACTS = Path(__file__).parents[1] / "artifacts" / "browser"
CHROMIUM = "/usr/bin/chromium"
CHROMIUM_ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # The last such list is the only one in force, so that it begins with Playwright's own: what would ask other machines, and https.
    "--disable-features=AvoidUnnecessaryBeforeUnloadCheckSync,DestroyProfileOnBrowserClose,HttpsUpgrades,HttpsFirstBalancedModeAutoEnable,"
    "LensOverlay,MediaRouter,PaintHolding,ThirdPartyStoragePartitioning,AvoidCorsURLLoaderRestartOnRedirect,OptimizationHints,"
    "NetworkTimeServiceQuerying,AimEnabled,PreconnectToSearch,"
    # Two pages behind each window's address bar, which nobody sees: they took half of the processor's time.
    "WebUIOmniboxPopup,WebUIOmniboxAimPopup",
)
START_TIMEOUT_S = 60
PATIENCE_MS = 20_000
TOKENS_PER_S = 50
NUM_TOKENS = 60

# What Chromium itself logs for a server that is away; not of the page's making.
AWAY = ("ERR_CONNECTION_REFUSED", "ERR_CONNECTION_RESET", "ERR_EMPTY_RESPONSE", "WebSocket connection to")

expect.set_options(timeout=PATIENCE_MS)


class Server:
    """`flueman serve` on one port, that can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}/"
        self.data = folder / "data"
        self._folder = folder
        self._log = folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("FLUEMAN_")} | {
            "FLUEMAN_ENGINE": "scripted",
            "FLUEMAN_SCRIPTED_TOKENS_PER_S": str(TOKENS_PER_S),
            "FLUEMAN_SCRIPTED_TOKENS": str(NUM_TOKENS),
            "FLUEMAN_DATA_DIR": str(self.data),
            "FLUEMAN_MAX_CONNECTIONS_PER_USER": "100",
            # Some of the usual ones, and one that only this server has.
            "FLUEMAN_FEEDBACK_REASONS": "inaccurate,unsafe,off-topic,too-long,too-slow,wrong-face",
        }

    def start(self) -> None:
        """Start it, and return once it says that it is ready."""
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                [FLUEMAN, "serve", "--port", str(self.port)],
                env=self._environment,
                cwd=self._folder,
                stdout=output,
                stderr=output,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and self._process.poll() is None:
            if self._is_ready():
                return
            time.sleep(0.1)
        pytest.fail(f"flueman serve is not ready:\n{self._log.read_text()[-4000:]}")

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it; by SIGKILL if it does not end by itself in time."""
        if self._process is None:
            return
        self._process.send_signal(how)
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def token(self) -> str:
        """A token that this server accepts."""
        answer = subprocess.run(
            [FLUEMAN, "token", "--sub", "visitor"],
            env=self._environment,
            cwd=self._folder,
            check=True,
            capture_output=True,
            text=True,
        )
        return answer.stdout.strip()

    def _is_ready(self) -> bool:
        with (
            contextlib.suppress(OSError),  # HTTPError, such as 503, is one
            urllib.request.urlopen(f"{self.url}readyz", timeout=2) as answer,
        ):
            return bool(answer.status == 200)
        return False


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests that leave it alive."""
    server = Server(tmp_path_factory.mktemp("flueman"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def mortal_server(tmp_path: Path) -> Iterator[Server]:
    """A server that its test may kill and start again."""
    server = Server(tmp_path)
    try:
        server.start()
        yield server
    finally:
        server.stop(signal.SIGKILL)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    """One Chromium with a fresh profile; each visit has a context of its own."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=list(CHROMIUM_ARGUMENTS))
        yield browser
        await browser.close()


@asynccontextmanager
async def visit(
    browser: Browser,
    url: str,
    *,
    width: int = 1280,
    height: int = 800,
    is_dark: bool = False,
    is_still: bool = False,
    bypass_csp: bool = False,
    ignoring: tuple[str, ...] = (),
) -> AsyncIterator[Page]:
    """The page at `url`; afterwards an AssertionError for each console error, exception or refused resource not in `ignoring`."""
    problems: list[str] = []

    def note(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            problems.append(f"{message.text} {message.location.get('url', '')}")

    context = await browser.new_context(
        viewport=ViewportSize(width=width, height=height),
        color_scheme="dark" if is_dark else "light",
        reduced_motion="reduce" if is_still else "no-preference",
        bypass_csp=bypass_csp,
    )
    context.set_default_timeout(PATIENCE_MS)
    page = await context.new_page()
    page.on("console", note)
    page.on("pageerror", lambda error: problems.append(str(error)))
    try:
        await page.goto(url)
        yield page
    finally:
        await context.close()
    assert [problem for problem in problems if not any(known in problem for known in ignoring)] == []


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
