"""`make bench`: speed and memory on this machine, as ratios in one run; the figures are appended to RESULTS.md.

The contenders run side by side, started once, and take turns at each number of streams, so that a slow minute of a shared machine hits all
of them. Ratios are medians over the rounds of turns, each taken between neighbours in time.
"""

import argparse
import asyncio
import os
import platform
import statistics
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import psutil
import uvloop
from msgspec import Struct

from server.settings import DEMO_MODEL
from tests.benchmarks.bare import Run
from tests.benchmarks.contenders import Contender, Flueman, bare, flueman, leave_models_alone, served
from tests.benchmarks.figures import Figures, median_of
from tests.benchmarks.load import connect
from tests.services import redis_server

RESULTS = Path(__file__).with_name("RESULTS.md")
STREAMS = (1, 8, 64, 256)
ENGINE_ARGS = {"enforce_eager": True, "max_model_len": 2048, "max_num_seqs": 256}
MAX_TOKENS = 128
NUM_IDLE = 2000


HEADINGS = (
    "| streams | who | tokens/s | of (a) | of (b) | first token p50 / p99 ms | gap p50 / p99 ms | CPU µs a token | messages a token |",
    "|---|---|---|---|---|---|---|---|---|",
)


class Comparison(Struct, frozen=True):
    """All runs of one contender at one number of streams."""

    name: str
    runs: list[Figures]


async def compare_engines(model: str, turns: int, streams: tuple[int, ...], *, core_with_model: bool) -> list[str]:
    """(a), (b) and (c) on the same model: a table of medians and of ratios to (a)."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        redis = stack.enter_context(redis_server(folder, unix_socket=True))
        environment = {
            "FLUEMAN_ENGINE": "vllm",
            "FLUEMAN_MODEL": model,
            "FLUEMAN_MODEL_NAME": "demo",
            "FLUEMAN_MAX_MODEL_LEN": str(ENGINE_ARGS["max_model_len"]),
            "FLUEMAN_VLLM_ARGS": msgspec.json.encode({"max_num_seqs": ENGINE_ARGS["max_num_seqs"]}).decode(),
            "FLUEMAN_REDIS_URL": redis.unix_url,
            "FLUEMAN_DATA_DIR": str(folder / "data"),
        }
        contenders: list[Contender] = [
            await stack.enter_async_context(bare(model, ENGINE_ARGS)),
            await stack.enter_async_context(served(model, ENGINE_ARGS)),
            await stack.enter_async_context(flueman(environment)),
        ]
        leave_models_alone(core_with_model=core_with_model)
        lines = list(HEADINGS)
        for num_streams in streams:
            lines += rows(await take_turns(contenders, num_streams, turns, max_tokens=MAX_TOKENS))
        return lines


async def take_turns(contenders: list[Contender], streams: int, turns: int, *, max_tokens: int) -> list[Comparison]:
    """Each contender in turn, `turns` times, after one turn that warms up."""
    found = [Comparison(contender.name, []) for contender in contenders]
    rounds = max(1, min(6, 192 // streams))  # a run takes some seconds at any number of streams
    for turn in range(turns + 1):
        for contender, entry in zip(contenders, found, strict=True):
            run = await contender.run(Run(streams, rounds, max_tokens))
            if turn:  # the first turn warms up
                entry.runs.append(run)
                print(f"{streams:4} {contender.name:22} {run.tokens_per_s:8.0f} tokens/s", flush=True)
    return found


def rows(found: list[Comparison]) -> list[str]:
    """A table's rows at one number of streams, with ratios to the first and to the second contender."""
    return [_row(entry, found) for entry in found]


def _row(entry: Comparison, found: list[Comparison]) -> str:
    middle = median_of(entry.runs)
    ratios = " | ".join(_ratio(entry, other) for other in found[:2])
    return (
        f"| {middle.streams:.0f} | {entry.name} | {middle.tokens_per_s:,.0f} | {ratios} "
        f"| {middle.first_p50_ms:.0f} / {middle.first_p99_ms:.0f} | {middle.gap_p50_ms:.1f} / {middle.gap_p99_ms:.1f} "
        f"| {middle.cpu_us:.0f} | {middle.deltas:.2f} |"
    )


def _ratio(entry: Comparison, base: Comparison) -> str:
    """The median of the ratios of runs that were neighbours in time, and how far their mean may be off: its standard error."""
    ratios = [run.tokens_per_s / other.tokens_per_s for run, other in zip(entry.runs, base.runs, strict=True)]
    error = f" ± {statistics.stdev(ratios) / len(ratios) ** 0.5:.3f}" if entry is not base and len(ratios) > 1 else ""
    return f"{statistics.median(ratios):.3f}{error}"


async def measure_server(turns: int) -> list[str]:
    """The server alone: the scripted engine as fast as it can on one processor, and the memory of idle sessions."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        redis = stack.enter_context(redis_server(folder, unix_socket=True))
        environment = {
            "FLUEMAN_ENGINE": "scripted",
            "FLUEMAN_SCRIPTED_TOKENS_PER_S": "0",
            "FLUEMAN_REDIS_URL": redis.unix_url,
            "FLUEMAN_DATA_DIR": str(folder / "data"),
        }
        server = await stack.enter_async_context(flueman(environment, cpu=0))
        os.sched_setaffinity(0, {1})  # the client and Redis leave the server its processor
        psutil.Process(redis.pid).cpu_affinity([1])
        # First, while nothing that a load leaves behind could serve as their memory.
        idle = f"Idle session: {await _idle_kib(server):.1f} KiB of the server's resident memory, over {NUM_IDLE} sessions."
        lines = ["| streams | tokens/s on one processor | CPU µs a token |", "|---|---|---|"]
        for streams in (8, 64, 256):
            run = Run(streams, max(2, 1600 // streams), 256)
            await server.run(run, ("[tokens 256]",))
            middle = median_of([await server.run(run, ("[tokens 256]",)) for _ in range(turns)])
            lines.append(f"| {streams} | {middle.tokens_per_s:,.0f} | {middle.cpu_us:.1f} |")
        lines += ["", idle]
        return lines


async def _idle_kib(server: Flueman) -> float:
    process = psutil.Process(server.pid)
    warm = [await connect(server.port, server.token, "demo") for _ in range(500)]
    await asyncio.sleep(1)  # the writer stores the sessions' records; then memory stands still
    before = process.memory_info().rss
    idle = [await connect(server.port, server.token, "demo") for _ in range(NUM_IDLE)]
    await asyncio.sleep(2)
    grown = process.memory_info().rss - before
    for talker in warm + idle:
        talker.close()
    return grown / NUM_IDLE / 1024


def _file_system(folder: str) -> str:
    """What kind of file system the folder is on, such as ext4; tmpfs is memory, where an fsync costs nothing."""
    mounts = {mount.mountpoint: mount.fstype for mount in psutil.disk_partitions(all=True)}
    path = Path(folder).resolve()
    return next(mounts[str(parent)] for parent in (path, *path.parents) if str(parent) in mounts)


async def main() -> None:
    """Run what was asked and append it to the results."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--model", default=DEMO_MODEL)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--streams", type=int, nargs="+", default=STREAMS)
    parser.add_argument("--only", choices=("engines", "server"))
    parser.add_argument(
        "--core-with-model", action="store_true", help="vLLM's core runs beside its model, not beside the servers"
    )
    parser.add_argument("--dry", action="store_true", help="print, keep nothing")
    options = parser.parse_args()
    lines = [
        f"## {time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC: `make bench`"
        + (f" `{' '.join(sys.argv[1:])}`" if sys.argv[1:] else ""),
        "",
        f"{os.cpu_count()} processors, Python {platform.python_version()}, {options.turns} turns; Redis with appendfsync always, "
        f"its file on {_file_system(tempfile.gettempdir())}.",
        "",
    ]
    if options.only != "engines":
        lines += [*await measure_server(options.turns), ""]
    if options.only != "server":
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
        streams = tuple(options.streams)
        lines += [
            *await compare_engines(options.model, options.turns, streams, core_with_model=options.core_with_model),
            "",
        ]
    print("\n".join(lines))
    if not options.dry:
        with RESULTS.open("a") as file:
            file.write("\n" + "\n".join(lines))


if __name__ == "__main__":
    uvloop.run(main())
