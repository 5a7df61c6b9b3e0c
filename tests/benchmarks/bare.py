"""Bare vLLM in a process of its own: what the server is measured against. Commands and figures are JSON lines on stdin and stdout.

`{"streams": 64, "rounds": 3, "max_tokens": 128}` runs that many streams side by side, each asking so often, and answers with `Figures`.
"""

import asyncio
import itertools
import os
import sys
import time
from typing import Any

import msgspec
import uvloop
from msgspec import Struct

from engine.prompt import PromptEncoder
from sessions.generation import Prompt
from sessions.items import InputText, MessageItem
from tests.benchmarks.figures import QUESTIONS, Answer, cpu_s, figures


class Run(Struct):
    """One command."""

    streams: int
    rounds: int
    max_tokens: int


class BareVllm:
    """AsyncLLM and the prompts that the server would make of the questions."""

    def __init__(self, llm: Any, prompts: list[list[int]]) -> None:
        self._llm = llm
        self._prompts = prompts
        self._ids = itertools.count()

    async def run(self, command: Run) -> bytes:
        """Run the command; its figures as JSON."""
        started_s, started_cpu_s = time.perf_counter(), cpu_s(os.getpid())
        found = await asyncio.gather(*(self._stream(number, command) for number in range(command.streams)))
        wall_s, spent_s = time.perf_counter() - started_s, cpu_s(os.getpid()) - started_cpu_s
        answers = [answer for answers in found for answer in answers]
        return msgspec.json.encode(figures(answers, streams=command.streams, wall_s=wall_s, cpu_s=spent_s))

    async def _stream(self, number: int, command: Run) -> list[Answer]:
        return [await self._ask(number, command.max_tokens) for _ in range(command.rounds)]

    async def _ask(self, number: int, max_tokens: int) -> Answer:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(max_tokens=max_tokens, temperature=0, output_kind=RequestOutputKind.DELTA)
        prompt = {"prompt_token_ids": self._prompts[number % len(self._prompts)]}
        asked_s = time.perf_counter()
        arrivals_s: list[float] = []
        num_tokens = 0
        async for out in self._llm.generate(prompt, params, request_id=f"bare-{next(self._ids)}"):
            arrivals_s.append(time.perf_counter())
            num_tokens += len(out.outputs[0].token_ids)
        return Answer(asked_s, arrivals_s[0], arrivals_s[-1], num_tokens, len(arrivals_s), arrivals_s)


def make_prompts(model: str) -> list[list[int]]:
    """The token ids of the questions as the server asks them."""
    encoder = PromptEncoder.load(model, max_context_tokens=4096)
    return [
        list(
            encoder.encode(
                Prompt("resp_bench", "sess_bench", "", (MessageItem("item_bench", "user", (InputText(question),)),))
            ).token_ids
        )
        for question in QUESTIONS
    ]


async def main(model: str, arguments: dict[str, object]) -> None:
    """Start the engine, say that it is up, then obey until stdin ends."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    llm = AsyncLLM.from_engine_args(AsyncEngineArgs(model=model, disable_log_stats=True, **arguments))
    bare = BareVllm(llm, make_prompts(model))
    print("ready", flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        print((await bare.run(msgspec.json.decode(line, type=Run))).decode(), flush=True)
    llm.shutdown()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], msgspec.json.decode(sys.argv[2])))
