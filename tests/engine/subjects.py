"""The engines that one suite tests, each with its own way to be made to say a text, to go on for long, and to be looked into."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Protocol

import httpx

from engine.base import Engine
from engine.openai import OpenAIEngine
from engine.scripted import ScriptedEngine
from engine.vllm import VllmEngine
from sessions.generation import Prompt
from tests.engine.builders import make_prompt, user

SERVED = "served"


class Subject(Protocol):
    """An opened engine."""

    @property
    def engine(self) -> Engine: ...

    @contextmanager
    def saying(self, text: str) -> Iterator[Prompt]:
        """A prompt that is answered with this text."""

    @contextmanager
    def going_on(self) -> Iterator[Prompt]:
        """A prompt whose answer has 400 tokens."""

    async def num_in_flight(self) -> int:
        """Requests that run, counted where they run."""


class Scripted:
    def __init__(self, engine: ScriptedEngine) -> None:
        self.engine = engine

    @contextmanager
    def saying(self, text: str) -> Iterator[Prompt]:
        yield make_prompt(user(f"[echo {text}]"))

    @contextmanager
    def going_on(self) -> Iterator[Prompt]:
        yield make_prompt(user("[tokens 1000]"), max_output_tokens=400)

    async def num_in_flight(self) -> int:
        return len(self.engine._streams)


class Vllm:
    def __init__(self, engine: VllmEngine) -> None:
        self.engine = engine

    @contextmanager
    def saying(self, text: str) -> Iterator[Prompt]:
        from vllm.sampling_params import StructuredOutputsParams

        with self._setting("structured_outputs", StructuredOutputsParams(choice=[text])):
            yield make_prompt()

    @contextmanager
    def going_on(self) -> Iterator[Prompt]:
        with self._setting("ignore_eos", True):
            yield make_prompt(max_output_tokens=400)

    async def num_in_flight(self) -> int:
        running = self.engine._running
        assert running is not None
        num: int = (
            running.llm.get_num_unfinished_requests() if hasattr(running.llm, "get_num_unfinished_requests") else 0
        )
        return num + len(running.llm.output_processor.request_states)

    @contextmanager
    def _setting(self, name: str, value: object) -> Iterator[None]:
        running = self.engine._running
        assert running is not None
        running.defaults[name] = value
        try:
            yield
        finally:
            del running.defaults[name]


class Served:
    """The OpenAI engine before a `vllm serve`."""

    def __init__(self, engine: OpenAIEngine, url: str) -> None:
        self.engine = engine
        self._url = url

    @contextmanager
    def saying(self, text: str) -> Iterator[Prompt]:
        with self._setting("structured_outputs", {"choice": [text]}):
            yield make_prompt()

    @contextmanager
    def going_on(self) -> Iterator[Prompt]:
        with self._setting("ignore_eos", True):
            yield make_prompt(max_output_tokens=400)

    async def num_in_flight(self) -> int:
        async with httpx.AsyncClient() as http:
            metrics = (await http.get(f"{self._url}/metrics")).text
        lines = [
            line
            for line in metrics.splitlines()
            if line.startswith(("vllm:num_requests_running", "vllm:num_requests_waiting{"))
        ]
        assert lines
        return int(sum(float(line.rsplit(" ", 1)[1]) for line in lines))

    @contextmanager
    def _setting(self, name: str, value: object) -> Iterator[None]:
        self.engine._extra_body[name] = value
        try:
            yield
        finally:
            del self.engine._extra_body[name]


@asynccontextmanager
async def vllm_serve(model: Path, log: Path) -> AsyncIterator[str]:
    """The URL of a `vllm serve` of its own, on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", SERVED, "--max-model-len", "2048"]
    arguments += [
        "--enforce-eager",
        "--enable-auto-tool-choice",
        "--tool-call-parser",
        "hermes",
        "--enable-prompt-tokens-details",
        "--enable-per-request-metrics",
    ]
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    # The command `vllm` itself does not start from the CPU build, whose distribution has another name.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), *arguments]
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)  # noqa: ASYNC220
        try:
            async with asyncio.timeout(400), httpx.AsyncClient() as http:
                while True:
                    assert process.poll() is None, f"see {log}"
                    try:
                        if (await http.get(f"http://127.0.0.1:{port}/health")).status_code == 200:
                            break
                    except httpx.TransportError:
                        pass
                    await asyncio.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(30)
