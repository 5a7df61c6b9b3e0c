"""`make bench-hostile`: what four hostile clients at once (`tests.benchmarks.attack`) do to the answers of 500 good sessions.

Windows with and without them alternate in one run, on one server with its default limits; ratios are medians over neighbours in time. The
hostile clients are a process of their own that gives way to all others (SCHED_IDLE): what they cost the machine themselves is not the
server's doing, what they make the server do is. The answers are paced, so the floor under a gap is the pace; the time to the first token
has no such floor.
"""

import argparse
import asyncio
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import msgspec
import psutil
import redis
import uvloop
from msgspec import Struct

from server.settings import ROOT
from tests.benchmarks.attack import ATTACKS, Tally
from tests.benchmarks.figures import Answer, cpu_s, percentile
from tests.benchmarks.load import Talker, connect
from tests.benchmarks.results import keep
from tests.end_to_end.processes import SECRET, FluemanProcess, running, token_of
from tests.services import redis_server

TO_REACH = 1.2
NUM_TOKENS = 30
SETTLE_S = 1.0
WARM_UP_S = 5.0
MIB = 1 << 20


class Window(Struct):
    """One stretch of time. `cpu` is the share of a processor that the server took; `most_rss` its greatest resident memory, in bytes."""

    is_attacked: bool
    begin_s: float
    end_s: float
    cpu: float
    most_rss: int
    gaps_ms: list[float] = []
    firsts_ms: list[float] = []


class Run(Struct, frozen=True):
    """All windows in order, what the attackers did in all, and the server's resident memory before and after, in bytes.

    `num_broken` answers of good sessions were not whole.
    """

    windows: list[Window]
    num_answers: int
    num_broken: int
    tallies: dict[str, Tally]
    rss_before: int
    rss_after: int


class Attackers:
    """The hostile process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.tallies: dict[str, Tally] = {}

    async def begin(self) -> None:
        """Let them loose."""
        await self._command(b"on\n")

    async def end(self) -> None:
        """Call them back, and count what they did."""
        await self._command(b"off\n")
        assert self._process.stdout is not None
        done = msgspec.json.decode(await self._process.stdout.readline(), type=dict[str, Tally])
        self.tallies = {name: self.tallies.get(name, Tally()) + tally for name, tally in done.items()}

    async def _command(self, line: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line)
        await self._process.stdin.drain()


@asynccontextmanager
async def attackers(port: int, names: Sequence[str]) -> AsyncIterator[Attackers]:
    """The hostile process, started; it ends with its input."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.benchmarks.attack", str(port), *names, cwd=ROOT, stdin=pipe, stdout=pipe
    )
    try:
        yield Attackers(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(10):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


async def talk(talker: Talker, question: str, delay_s: float, answers: list[Answer]) -> None:
    """Question upon question, for ever. Sessions begin at different times, so that they do not speak in step."""
    await asyncio.sleep(delay_s)
    while True:
        answers.append(await talker.ask_alone(question))


async def watch(server: FluemanProcess, *, seconds: float, is_attacked: bool) -> Window:
    """One window, whose answers are filled in later."""
    process = psutil.Process(server.pid)
    begin_s, begin_cpu_s = time.perf_counter(), cpu_s(server.pid)
    most_rss = 0
    while (left_s := begin_s + seconds - time.perf_counter()) > 0:
        most_rss = max(most_rss, process.memory_info().rss)
        await asyncio.sleep(min(0.5, left_s))
    end_s = time.perf_counter()
    return Window(is_attacked, begin_s, end_s, (cpu_s(server.pid) - begin_cpu_s) / (end_s - begin_s), most_rss)


async def alternate(
    server: FluemanProcess, names: Sequence[str], *, num_sessions: int, pace: float, turns: int, window_s: float
) -> Run:
    """The good sessions talk throughout; the hostile clients come and go."""
    question = f"[pace {pace:g}] [tokens {NUM_TOKENS}] go on"
    process = psutil.Process(server.pid)
    answers: list[Answer] = []
    windows: list[Window] = []
    talkers = [
        await connect(server.port, token_of(f"user-{number}"), "demo", keep_arrivals=True)
        for number in range(num_sessions)
    ]
    async with attackers(server.port, names) as hostile, asyncio.TaskGroup() as tasks:
        answer_s = NUM_TOKENS / pace
        talks = [
            tasks.create_task(talk(talker, question, answer_s * number / num_sessions, answers))
            for number, talker in enumerate(talkers)
        ]
        await asyncio.sleep(WARM_UP_S + answer_s)
        gc.collect()
        gc.freeze()
        rss_before = process.memory_info().rss
        for _ in range(turns):
            windows.append(await watch(server, seconds=window_s, is_attacked=False))
            await hostile.begin()
            await asyncio.sleep(SETTLE_S)
            windows.append(await watch(server, seconds=window_s, is_attacked=True))
            await hostile.end()
            await asyncio.sleep(SETTLE_S)
            for window in windows[-2:]:
                kind = "with" if window.is_attacked else "without"
                print(f"{kind:8} {window.cpu:.2f} CPU {window.most_rss / MIB:.0f} MiB", flush=True)
        await asyncio.sleep(answer_s)  # answers that had begun in the last window
        rss_after = process.memory_info().rss
        for talking in talks:
            talking.cancel()
    for talker in talkers:
        talker.close()
    fill(windows, answers)
    return Run(
        windows=windows,
        num_answers=len(answers),
        num_broken=sum(answer.num_tokens != NUM_TOKENS for answer in answers),
        tallies=hostile.tallies,
        rss_before=rss_before,
        rss_after=rss_after,
    )


def fill(windows: Sequence[Window], answers: Iterable[Answer]) -> None:
    """Give each window the gaps that lie in it and the first tokens that were asked for in it."""
    for answer in answers:
        for window in windows:
            if window.begin_s <= answer.asked_s < window.end_s:
                window.firsts_ms.append(1000 * (answer.first_s - answer.asked_s))
            if answer.done_s < window.begin_s or answer.asked_s >= window.end_s:
                continue
            window.gaps_ms += [
                1000 * (after - before)
                for before, after in zip(answer.arrivals_s, answer.arrivals_s[1:], strict=False)
                if before >= window.begin_s and after < window.end_s
            ]


def measure(names: Sequence[str], *, num_sessions: int, pace: float, turns: int, window_s: float) -> Run:
    """One server on a Redis of its own, and all windows."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        service = stack.enter_context(redis_server(folder, unix_socket=True))
        with redis.Redis.from_url(service.unix_url) as connection:
            # A rewrite that falls into one window and not into its neighbour would be taken for the attack's.
            connection.config_set("auto-aof-rewrite-percentage", "0")
        settings = {
            "FLUEMAN_ENGINE": "scripted",
            "FLUEMAN_JWT_SECRET": SECRET,
            "FLUEMAN_REDIS_URL": service.unix_url,
            "FLUEMAN_DATA_DIR": str(folder / "var"),
            "FLUEMAN_WRITER": "none",
            "FLUEMAN_LOG_LEVEL": "error",
        }
        server = FluemanProcess(folder / "node", settings, "serve")
        stack.enter_context(running(server))
        run: Run = uvloop.run(
            alternate(server, names, num_sessions=num_sessions, pace=pace, turns=turns, window_s=window_s)
        )
        return run


def report(run: Run, *, num_sessions: int, pace: float) -> list[str]:
    """Lines of Markdown."""
    without = [window for window in run.windows if not window.is_attacked]
    attacked = [window for window in run.windows if window.is_attacked]
    gap_ratio = _ratio([window.gaps_ms for window in attacked], [window.gaps_ms for window in without])
    floor_ms = 1000 / pace
    late_ratio = _ratio(
        [[gap - floor_ms for gap in window.gaps_ms] for window in attacked],
        [[gap - floor_ms for gap in window.gaps_ms] for window in without],
    )
    first_ratio = _ratio([window.firsts_ms for window in attacked], [window.firsts_ms for window in without])
    lines = [
        f"{num_sessions} good sessions, {pace:g} tokens/s each; {len(attacked)} windows of "
        f"{attacked[0].end_s - attacked[0].begin_s:.0f} s with the hostile clients and as many without, in turn. "
        f"Ratios of p99, medians over neighbours: gap {gap_ratio:.2f}, first token {first_ratio:.2f} (to reach: at most {TO_REACH}); "
        f"of what a gap has over the pace {late_ratio:.2f}.",
        "",
        "| | gap p50 / p99 ms | first token p50 / p99 ms | server CPU | greatest RSS MiB |",
        "|---|---|---|---|---|",
        _row("without", without),
        _row("with", attacked),
        "",
        f"Server's resident memory: {run.rss_before / MIB:.1f} MiB before the first attack, {run.rss_after / MIB:.1f} MiB after the last. "
        f"Answers that were not whole: {run.num_broken} of {run.num_answers:,}.",
        "",
    ]
    for name, tally in run.tallies.items():
        sent = f"{tally.num_sent / MIB:,.0f} MiB" if "GiB" in name else f"{tally.num_sent:,}"
        lines.append(f"- {name}: {tally.num_connections} connections, {tally.num_ended} of them ended; {sent} sent")
    return lines


def _row(name: str, windows: Sequence[Window]) -> str:
    gaps_ms = [gap for window in windows for gap in window.gaps_ms]
    firsts_ms = [first for window in windows for first in window.firsts_ms]
    return (
        f"| {name} | {percentile(gaps_ms, 50):.1f} / {percentile(gaps_ms, 99):.1f} "
        f"| {percentile(firsts_ms, 50):.1f} / {percentile(firsts_ms, 99):.1f} "
        f"| {100 * statistics.mean(window.cpu for window in windows):.0f} % "
        f"| {max(window.most_rss for window in windows) / MIB:.1f} |"
    )


def _ratio(attacked: Sequence[Sequence[float]], without: Sequence[Sequence[float]]) -> float:
    """The median of the ratios of the 99th percentiles of windows that are neighbours in time."""
    return statistics.median(
        percentile(found, 99) / percentile(base, 99) for found, base in zip(attacked, without, strict=True)
    )


def main() -> int:
    """Run what was asked and append it to the results; 1 when a good session did not get its answers whole."""
    names = [name for name, _ in ATTACKS]
    parser = argparse.ArgumentParser(prog="make bench-hostile", description=__doc__)
    parser.add_argument("--sessions", type=int, default=500)
    parser.add_argument("--pace", type=float, default=10.0, help="tokens a second of each good session")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--window", type=float, default=15.0, help="seconds")
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="some of the hostile clients")
    parser.add_argument("--dry", action="store_true", help="print, keep nothing")
    options = parser.parse_args()
    run = measure(
        options.only,
        num_sessions=options.sessions,
        pace=options.pace,
        turns=options.turns,
        window_s=options.window,
    )
    keep("make bench-hostile", report(run, num_sessions=options.sessions, pace=options.pace), dry=options.dry)
    return 1 if run.num_broken else 0


if __name__ == "__main__":
    sys.exit(main())
