"""`make bench-takeover`: nodes are killed with `kill -9` in the middle of answers, and their clients go on at another node.

Each wave talks to a node of its own until every answer is under way, kills that node, and resumes all of the wave's sessions at the node
that stays. What counts: answers that end with the undisturbed text under the same id, sequence numbers without gap or overlap, and the
time from the first byte of the reconnect to the next new token.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import uvloop
from msgspec import Struct
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.benchmarks.figures import percentile
from tests.end_to_end.processes import SECRET, FluemanProcess, running, token_of
from tests.services import redis_server
from tests.sessions.builders import Json

RESULTS = Path(__file__).with_name("RESULTS.md")
NUM_TOKENS = 60
QUESTION = f"[pace 20] [tokens {NUM_TOKENS}] go on"
MIN_DELTAS = 10
DELTA = "response.output_text.delta"


class Outcome(Struct, frozen=True):
    """One session: its whole stream over both connections, and how long the next token took. `gap_s` is from its last token before."""

    events: list[Json]
    resumed_s: float
    gap_s: float

    @property
    def text(self) -> str:
        """What was streamed."""
        return "".join(event["delta"] for event in self.events if event["type"] == DELTA)

    @property
    def is_whole(self) -> bool:
        """Whether no event is missing, doubled or out of order, and the answer completed."""
        numbers = [event["sequence_number"] for event in self.events]
        done = self.events[-1]["response"]
        started = [event["response"]["id"] for event in self.events if event["type"] == "response.created"]
        return numbers == list(range(1, len(numbers) + 1)) and done["status"] == "completed" and started == [done["id"]]


class Talker:
    """One session's client."""

    def __init__(self, token: str) -> None:
        self._headers = {"authorization": f"Bearer {token}"}
        self._events: list[Json] = []
        self.is_under_way = asyncio.Event()
        self._last_delta_s = 0.0

    async def talk(self, port: int) -> None:
        """Ask, and listen until the connection is gone."""
        async with self._connect(port, "model=demo") as socket:
            resumption = {"type": "realtime", "resumption": {"enabled": True}}
            item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": QUESTION}]}
            await self._take(socket, numbered=False)
            for event in (
                {"type": "session.update", "session": resumption},
                {"type": "conversation.item.create", "item": item},
                {"type": "response.create"},
            ):
                await socket.send(json.dumps(event))
            num_deltas = 0
            try:
                while True:
                    event = await self._take(socket)
                    num_deltas += event["type"] == DELTA
                    if num_deltas >= MIN_DELTAS:
                        self.is_under_way.set()
            except ConnectionClosed:
                return

    async def resume(self, port: int) -> Outcome:
        """Go on elsewhere, to the end of the answer."""
        conversation_id = self._events[0]["session"]["id"].replace("sess_", "conv_")
        seen = self._events[-1]["sequence_number"]
        before_s, started_s = self._last_delta_s, time.perf_counter()
        resumed_s = 0.0
        async with self._connect(port, f"conversation_id={conversation_id}&starting_after={seen}") as socket:
            created = json.loads(await socket.recv())
            assert created["session"]["resumption"] == {"enabled": True, "resumed": True, "gap": False}, created
            while (await self._take(socket))["type"] != "response.done":
                if not resumed_s and self._events[-1]["type"] == DELTA:
                    resumed_s = time.perf_counter()
            await socket.close()
        return Outcome(self._events, resumed_s - started_s, resumed_s - before_s)

    def _connect(self, port: int, query: str) -> connect:
        url = f"ws://127.0.0.1:{port}/v1/realtime?{query}"
        return connect(url, additional_headers=self._headers, compression=None, proxy=None, ping_interval=None)

    async def _take(self, socket: ClientConnection, *, numbered: bool = True) -> Json:
        event: Json = json.loads(await socket.recv())
        if event["type"] == DELTA:
            self._last_delta_s = time.perf_counter()
        if not numbered:
            event["sequence_number"] = 1
        self._events.append(event)
        return event


async def wave(doomed: FluemanProcess, heir: FluemanProcess, size: int) -> list[Outcome]:
    """That many sessions through the death of their node."""
    talkers = [Talker(token_of(f"user-{number}")) for number in range(size)]
    listening = [asyncio.create_task(talker.talk(doomed.port)) for talker in talkers]
    await asyncio.gather(*(talker.is_under_way.wait() for talker in talkers))
    await asyncio.to_thread(doomed.kill)
    await asyncio.gather(*listening)
    return await asyncio.gather(*(talker.resume(heir.port) for talker in talkers))


def undisturbed_text() -> str:
    """What the scripted engine says to the question."""
    from engine.scripted import ScriptedEngine
    from sessions.generation import Prompt
    from sessions.items import InputText, MessageItem

    async def say() -> str:
        question = MessageItem("item_1", "user", (InputText(QUESTION),))
        async with ScriptedEngine("demo", tokens_per_s=0, num_tokens=1) as engine:
            chunks = [chunk.text async for chunk in engine.generate(Prompt("resp_1", "sess_1", "", (question,)))]
        return "".join(chunks)

    return asyncio.run(say())


def measure(num_sessions: int, wave_size: int) -> list[str]:
    """All waves; lines of Markdown."""
    text = undisturbed_text()
    outcomes: list[Outcome] = []
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
        heir = FluemanProcess(folder / "heir", settings, "serve")
        doomed = FluemanProcess(folder / "doomed", settings, "serve")
        stack.enter_context(running(heir))
        while len(outcomes) < num_sessions:
            doomed.start()
            outcomes += uvloop.run(wave(doomed, heir, min(wave_size, num_sessions - len(outcomes))))
    num_whole = sum(outcome.is_whole and outcome.text == text for outcome in outcomes)
    resumed_ms = [1000 * outcome.resumed_s for outcome in outcomes]
    gaps_ms = [1000 * outcome.gap_s for outcome in outcomes]
    return [
        f"{num_sessions} sessions in waves of {wave_size}: {100 * num_whole / num_sessions:.1f} % ended on the other node with the "
        f"undisturbed text. From the reconnect to the next new token p50 {percentile(resumed_ms, 50):.0f} ms, "
        f"p99 {percentile(resumed_ms, 99):.0f} ms; from the last token before the kill p50 {percentile(gaps_ms, 50):.0f} ms, "
        f"p99 {percentile(gaps_ms, 99):.0f} ms.",
    ]


def main() -> None:
    """Run what was asked and append it to the results."""
    parser = argparse.ArgumentParser(prog="make bench-takeover", description=__doc__)
    parser.add_argument("--sessions", type=int, default=500)
    parser.add_argument("--wave", type=int, default=50)
    parser.add_argument("--dry", action="store_true", help="print, keep nothing")
    options = parser.parse_args()
    lines = measure(options.sessions, options.wave)
    print("\n".join(lines))
    if not options.dry:
        with RESULTS.open("a") as file:
            title = f"## {time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC: `make bench-takeover` {' '.join(sys.argv[1:])}"
            file.write("\n".join(["", title.rstrip(), "", *lines, ""]))


if __name__ == "__main__":
    main()
