"""`make bench-cancel`: how long `response.cancel` takes among sessions that all stream, and whether anything goes on after it.

The time is the client's, from its write to the `response.done` that says cancelled, so the commit to Redis (fsync) and the client's own
share of the machine are in it. The writer is off, as it is a process of its own elsewhere.
"""

import argparse
import asyncio
import gc
import random
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import msgspec
import uvloop
from msgspec import Struct

from tests.benchmarks.figures import percentile
from tests.benchmarks.load import Talker
from tests.benchmarks.probed import Probe, ProbedProcess
from tests.benchmarks.results import keep
from tests.end_to_end.processes import SECRET, running, token_of
from tests.services import redis_server

# Longer than any session is left alone, so that what ends is cancelled.
QUESTION = "[tokens 3000] [pace 30] go on"
TO_REACH_MS = 20.0
PATIENCE_S = 60.0

_PING, _PONG = 0x89, 0x8A
_DELTA = b'{"type":"response.output_text.delta"'
_CREATED = b'{"type":"response.created"'
_DONE = b'{"type":"response.done"'
_ERROR = b'{"type":"error"'


class _Response(Struct):
    id: str
    status: Literal["in_progress", "completed", "cancelled", "failed", "incomplete"]


class _ResponseEvent(Struct):
    response: _Response


_decode = msgspec.json.Decoder(_ResponseEvent).decode


class Cutter(Talker):
    """One session that is always being answered: whenever its answer has been cut it asks again, until `stop`."""

    def __init__(self) -> None:
        super().__init__(keep_arrivals=False)
        self.cuts_ms: list[float] = []
        self.num_late = 0
        self.num_uncut = 0
        self.is_streaming = False
        self.streaming: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._fenced: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._open_id = b""
        self._cut: asyncio.Future[None] | None = None
        self._cut_s = 0.0
        self._is_stopping = False

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for waiting in (self.streaming, self._fenced, self._cut):
            if waiting is not None and not waiting.done():
                waiting.set_exception(ConnectionError("the server closed the connection"))

    def say(self) -> None:
        """Ask for a long answer."""
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": QUESTION}]}
        self._send({"type": "conversation.item.create", "item": item})
        self._send({"type": "response.create"})

    @property
    def is_cut(self) -> bool:
        """Whether a cancel is on its way."""
        return self._cut is not None

    def cut(self) -> asyncio.Future[None]:
        """Cancel what is being answered; done once it has ended."""
        self._cut_s = time.perf_counter()
        self._cut = asyncio.get_running_loop().create_future()
        self._send({"type": "response.cancel"})
        return self._cut

    async def stop(self) -> None:
        """Cancel, and ask no more; returns when the server has answered something that was sent after the end."""
        self._is_stopping = True
        await self.cut()
        self._send({"type": "conversation.item.retrieve", "item_id": "none"})
        await self._fenced

    def data_received(self, data: bytes) -> None:
        if not self._created.done():
            super().data_received(data)
            return
        now_s = time.perf_counter()
        data = self._buffer + data
        position = 0
        while (found := _frame(data, position)) is not None:
            start, end = found
            if data[position] == _PING:
                self._write(_PONG, data[start:end])
            else:
                self._take(data[start:end], now_s)
            position = end
        self._buffer = data[position:]

    def _take(self, event: bytes, now_s: float) -> None:
        if event.startswith(_DELTA):
            self.num_late += not self._open_id or self._open_id not in event
            self.is_streaming = True
            if not self.streaming.done():
                self.streaming.set_result(None)
        elif event.startswith(_CREATED):
            self._open_id = _decode(event).response.id.encode()
        elif event.startswith(_DONE):
            self._end(event, now_s)
        elif event.startswith(_ERROR) and self._is_stopping and not self._fenced.done():
            self._fenced.set_result(None)

    def _end(self, payload: bytes, now_s: float) -> None:
        cut, self._cut = self._cut, None
        self._open_id, self.is_streaming = b"", False
        if cut is not None and _decode(payload).response.status == "cancelled":
            self.cuts_ms.append(1000 * (now_s - self._cut_s))
        else:
            self.num_uncut += 1
        if cut is not None:
            cut.set_result(None)
        if not self._is_stopping:
            self.say()


def _frame(data: bytes, position: int) -> tuple[int, int] | None:
    """Where the payload of the frame at `position` begins and ends; None while it is not all there."""
    size, start = len(data), position + 2
    if size < start:
        return None
    length = data[position + 1]
    if length >= 126:
        start += 2 if length == 126 else 8
        if size < start:
            return None
        length = int.from_bytes(data[position + 2 : start])
    return (start, start + length) if size >= start + length else None


async def _open(port: int, number: int) -> Cutter:
    _, cutter = await asyncio.get_running_loop().create_connection(Cutter, "127.0.0.1", port)
    await cutter.upgrade(f"127.0.0.1:{port}", token_of(f"user-{number}"), "demo")
    return cutter


class Run(Struct, frozen=True):
    """What was measured: `cuts_ms` one at a time, `last_ms` all at once; `least_streaming` sessions had a token under way at any cut."""

    cuts_ms: list[float]
    last_ms: list[float]
    least_streaming: int
    num_late: int
    num_uncut: int
    before: Probe
    after: Probe

    @property
    def is_clean(self) -> bool:
        """Whether nothing went on: no delta after an end, no answer that runs, no task that was not there before."""
        return not (self.num_late or self.num_uncut or self.after.num_answers) and self.after == self.before


async def cut_at_random(server: ProbedProcess, num_sessions: int, num_cancels: int, rate: float, seed: int) -> Run:
    """Open the sessions, cancel at random moments in random ones, then cancel all at once."""
    chance = random.Random(seed)
    cutters = [await _open(server.port, number) for number in range(num_sessions)]
    before = await asyncio.to_thread(server.probe)
    for cutter in cutters:
        cutter.say()
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.gather(*(cutter.streaming for cutter in cutters))
    gc.collect()
    gc.freeze()
    least_streaming = num_sessions
    cuts: list[asyncio.Future[None]] = []
    for _ in range(num_cancels):
        await asyncio.sleep(chance.expovariate(rate))
        least_streaming = min(least_streaming, sum(cutter.is_streaming for cutter in cutters))
        cuts.append(chance.choice([cutter for cutter in cutters if not cutter.is_cut]).cut())
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.gather(*cuts)
        cuts_ms = [cut for cutter in cutters for cut in cutter.cuts_ms]
        for cutter in cutters:
            cutter.cuts_ms.clear()
        await asyncio.gather(*(cutter.stop() for cutter in cutters))
    after = await asyncio.to_thread(server.probe)
    for cutter in cutters:
        cutter.close()
    return Run(
        cuts_ms=cuts_ms,
        last_ms=[cut for cutter in cutters for cut in cutter.cuts_ms],
        least_streaming=least_streaming,
        num_late=sum(cutter.num_late for cutter in cutters),
        num_uncut=sum(cutter.num_uncut for cutter in cutters),
        before=before,
        after=after,
    )


def measure(num_sessions: int, num_cancels: int, rate: float, seed: int) -> Run:
    """One server on a Redis of its own, and all the cancels."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        redis = stack.enter_context(redis_server(folder, unix_socket=True))
        settings = {
            "FLUEMAN_ENGINE": "scripted",
            "FLUEMAN_JWT_SECRET": SECRET,
            "FLUEMAN_REDIS_URL": redis.unix_url,
            "FLUEMAN_DATA_DIR": str(folder / "var"),
            "FLUEMAN_WRITER": "none",
            "FLUEMAN_LOG_LEVEL": "warning",
        }
        server = ProbedProcess(folder / "node", settings, "serve")
        stack.enter_context(running(server))
        run: Run = uvloop.run(cut_at_random(server, num_sessions, num_cancels, rate, seed))
        return run


def report(run: Run, num_sessions: int, rate: float) -> list[str]:
    """Lines of Markdown."""
    cuts, last = run.cuts_ms, run.last_ms
    return [
        f"{num_sessions} sessions streaming 30 tokens/s each, never fewer than {run.least_streaming} with a token out; {len(cuts)} "
        f"cancels at random moments, {rate:g} a second. From `response.cancel` to `response.done` p50 {percentile(cuts, 50):.1f} ms, "
        f"p99 {percentile(cuts, 99):.1f} ms (to reach: under {TO_REACH_MS:.0f}), longest {max(cuts):.1f} ms. "
        f"All {len(last)} at once: p50 {percentile(last, 50):.1f} ms, longest {max(last):.1f} ms.",
        "",
        f"Deltas after the end: {run.num_late}. Answers that ended otherwise: {run.num_uncut}. Answers in the engine afterwards: "
        f"{run.after.num_answers}; tasks in the server: {run.before.num_tasks} before, {run.after.num_tasks} after.",
    ]


def main() -> int:
    """Run what was asked and append it to the results; 1 when something went on after its end."""
    parser = argparse.ArgumentParser(prog="make bench-cancel", description=__doc__)
    parser.add_argument("--sessions", type=int, default=200)
    parser.add_argument("--cancels", type=int, default=2000)
    parser.add_argument("--rate", type=float, default=40.0, help="cancels a second")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dry", action="store_true", help="print, keep nothing")
    options = parser.parse_args()
    run = measure(options.sessions, options.cancels, options.rate, options.seed)
    keep("make bench-cancel", report(run, options.sessions, options.rate), dry=options.dry)
    return 0 if run.is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
