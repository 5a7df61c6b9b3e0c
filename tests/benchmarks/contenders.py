"""The three that are compared: bare AsyncLLM, `vllm serve` over SSE, and this server over WebSocket with journaling on."""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

import httpx
import msgspec
import psutil

from tests.benchmarks.bare import Run
from tests.benchmarks.figures import QUESTIONS, Answer, Figures, cpu_s, figures
from tests.benchmarks.load import Talker, connect
from tests.benchmarks.sse import Asker
from tests.services import free_port

ROOT = Path(__file__).parents[2]
START_TIMEOUT_S = 300


class Contender(Protocol):
    """Something that answers questions."""

    name: str

    async def run(self, command: Run) -> Figures:
        """Ask as the command says, and measure."""


class Bare:
    """(a) AsyncLLM in a process of its own."""

    name = "bare AsyncLLM"

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def run(self, command: Run) -> Figures:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(command) + b"\n")
        await self._process.stdin.drain()
        return msgspec.json.decode(await self._process.stdout.readline(), type=Figures)


class Served:
    """(b) `vllm serve`, chat completions over SSE."""

    name = "vllm serve (SSE)"

    def __init__(self, pid: int, port: int, model: str) -> None:
        self._pid, self._port, self._model = pid, port, model

    async def run(self, command: Run) -> Figures:
        askers = [Asker(self._port, self._model) for _ in range(command.streams)]
        await asyncio.gather(*(asker.connect() for asker in askers))

        async def stream(number: int, asker: Asker) -> list[Answer]:
            question = QUESTIONS[number % len(QUESTIONS)]
            return [await asker.ask(question, command.max_tokens) for _ in range(command.rounds)]

        started_s, started_cpu_s = time.perf_counter(), cpu_s(self._pid)
        found = await asyncio.gather(*(stream(number, asker) for number, asker in enumerate(askers)))
        wall_s, spent_s = time.perf_counter() - started_s, cpu_s(self._pid) - started_cpu_s
        for asker in askers:
            asker.close()
        return figures(
            [answer for answers in found for answer in answers],
            streams=command.streams,
            wall_s=wall_s,
            cpu_s=spent_s,
        )


class Flueman:
    """(c) this server, every event journaled in Redis before it is sent."""

    name = "flueman (WebSocket)"

    def __init__(self, pid: int, port: int, token: str) -> None:
        self.pid, self.port, self.token = pid, port, token
        self._talkers: list[Talker] = []

    async def run(self, command: Run, questions: tuple[str, ...] = QUESTIONS) -> Figures:
        # Sessions stay open from run to run, as conversations do: ending one costs the archive, not the live path.
        while len(self._talkers) < command.streams:
            self._talkers.append(await connect(self.port, self.token, "demo", keep_arrivals=True))
        talkers = self._talkers[: command.streams]

        async def stream(number: int, talker: Talker) -> list[Answer]:
            question = questions[number % len(questions)]
            return [
                await talker.ask_alone(question, max_output_tokens=command.max_tokens) for _ in range(command.rounds)
            ]

        started_s, started_cpu_s = time.perf_counter(), cpu_s(self.pid)
        found = await asyncio.gather(*(stream(number, talker) for number, talker in enumerate(talkers)))
        wall_s, spent_s = time.perf_counter() - started_s, cpu_s(self.pid) - started_cpu_s
        return figures(
            [answer for answers in found for answer in answers],
            streams=command.streams,
            wall_s=wall_s,
            cpu_s=spent_s,
        )


@asynccontextmanager
async def bare(model: str, engine_args: Mapping[str, object]) -> AsyncIterator[Bare]:
    """(a), started."""
    command = [sys.executable, "-m", "tests.benchmarks.bare", model, msgspec.json.encode(dict(engine_args)).decode()]
    async with _process(command, {}, pipes=True) as process:
        assert process.stdout is not None
        async with asyncio.timeout(START_TIMEOUT_S):
            while (line := await process.stdout.readline()) != b"ready\n":
                if not line:
                    raise RuntimeError("bare vLLM did not start")
        yield_to_servers(process.pid)
        yield Bare(process)


@asynccontextmanager
async def served(model: str, engine_args: Mapping[str, object]) -> AsyncIterator[Served]:
    """(b), started as it comes: its core keeps statistics, as this server's does for the times of an answer. It writes no access log."""
    port = free_port()
    flags = [flag for name, value in engine_args.items() for flag in _flag(name, value)]
    # What `vllm serve` runs; its command looks for a distribution called vllm, which the CPU build is not.
    entry = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command = [*entry, "--model", model, "--host", "127.0.0.1", "--port", str(port), *flags]
    async with _process([*command, "--disable-uvicorn-access-log"], {}) as process:
        await _until_ready(f"http://127.0.0.1:{port}/health", process)
        yield_to_servers(process.pid)
        yield Served(process.pid, port, model)


@asynccontextmanager
async def flueman(environment: Mapping[str, str], *, cpu: int | None = None) -> AsyncIterator[Flueman]:
    """(c), started with these settings; `cpu` pins the serving process to one processor."""
    port = free_port()
    defaults = {
        "FLUEMAN_MAX_CONNECTIONS_PER_USER": "10000",
        "FLUEMAN_MAX_SESSIONS": "10000",
        "FLUEMAN_LOG_LEVEL": "warning",
        "FLUEMAN_WRITER": "none",  # in production it is a process of its own, `flueman write`
        **environment,
    }
    pin = ["taskset", "-c", str(cpu)] if cpu is not None else []
    token = await _output([sys.executable, "-m", "server", "token", "--sub", "bench"], defaults)
    async with _process([*pin, sys.executable, "-m", "server", "serve", "--port", str(port)], defaults) as process:
        await _until_ready(f"http://127.0.0.1:{port}/readyz", process)
        yield_to_servers(process.pid)
        yield Flueman(process.pid, port, token)


def yield_to_servers(pid: int) -> None:
    """Let the model's processes below `pid` have a processor only while nothing else wants it, as if the model ran on a GPU.

    Otherwise a busy model keeps kernel threads from finishing writes here: any process's fsync, Redis's too, then took up to 0.5 s.
    """
    for child in psutil.Process(pid).children(recursive=True):
        if child.name().startswith("VLLM"):
            for thread in child.threads():
                os.sched_setscheduler(thread.id, os.SCHED_IDLE, os.sched_param(0))


def leave_models_alone(*, core_with_model: bool) -> None:
    """This process and all below it, but for the models themselves, run where no model does: vLLM binds each to some processors.

    What a model computes with is its own then, as a GPU would be. Otherwise it is chance how often one of the others runs there, and the
    model waits for it: more often for two that talk to each other than for one that spends twice as much.

    `core_with_model` leaves vLLM's core beside its model too. On a CPU the core plans a step only once the last one's tokens are out; on a
    processor shared with the servers, whoever those tokens wake comes first, and every microsecond of a server, its store and its client
    delays the engine. With processors for all it would not. But the core then takes from the model as it waits for it.
    """
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    models = [process for process in family if process.name().startswith("VLLM::Worker")]
    bound = set().union(*(os.sched_getaffinity(model.pid) for model in models))
    free = set(range(os.cpu_count() or 1)) - bound
    for process in family:
        stays = process.name().startswith("VLLM" if core_with_model else "VLLM::Worker")
        if processors := bound if stays else free:
            for thread in process.threads():
                os.sched_setaffinity(thread.id, processors)


def _flag(name: str, value: object) -> list[str]:
    option = "--" + name.replace("_", "-")
    return [option] if value is True else [option, str(value)]


async def _until_ready(url: str, process: asyncio.subprocess.Process) -> None:
    async with asyncio.timeout(START_TIMEOUT_S), httpx.AsyncClient() as client:
        while True:
            if process.returncode is not None:
                raise RuntimeError(f"a server ended with status {process.returncode} before it was ready")
            try:
                if (await client.get(url)).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.2)


async def _output(command: list[str], environment: Mapping[str, str]) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, env={**os.environ, **environment}, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"{command[-1]} ended with status {process.returncode}")
    return out.decode().strip()


@asynccontextmanager
async def _process(
    command: list[str], environment: Mapping[str, str], *, pipes: bool = False
) -> AsyncIterator[asyncio.subprocess.Process]:
    pipe = asyncio.subprocess.PIPE if pipes else None
    quiet = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, env={**os.environ, **quiet, **environment}, stdin=pipe, stdout=pipe, limit=1 << 20
    )
    try:
        yield process
    finally:
        try:
            async with asyncio.timeout(30):
                if process.stdin is not None:
                    process.stdin.close()  # how bare vLLM is told to end; a signal would leave its engine core behind
                elif process.returncode is None:
                    process.terminate()
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
