"""What a client of others reports of its three scenes, how its program is run, and what must hold in each report."""

import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

HERE = Path(__file__).parent
RUN_TIMEOUT_S = 150
NUM_TOKENS_IF_NOT_CANCELLED = 4_000  # forty seconds' worth: no client is so late with its cancel


class Script(Struct, frozen=True):
    """What every client plays: a streamed turn, a tool call round trip, a cancel. The bracketed words direct the scripted engine."""

    base_url: str
    ws_url: str
    model: str = "gpt-realtime"
    turn: str = "Good morning! [tokens 20]"
    tool: str = 'How is the weather? [call get_weather {"city": "Seoul"}]'
    tool_result: str = "31 degrees and a sea breeze"
    cancel: str = "Tell me all you know. [tokens 4000]"
    cancel_after: int = 5


class Call(Struct, frozen=True):
    """A tool call as the client understood it."""

    name: str
    arguments: dict[str, str]


class Scene(Struct, frozen=True):
    """One answer as the client saw it."""

    text: str
    num_deltas: int
    status: str
    output_tokens: int
    calls: tuple[Call, ...] = ()


class HistoryItem(Struct, frozen=True):
    """An entry of the dialogue as the client's own mirror of it holds."""

    type: str
    role: str | None
    text: str | None


class Report(Struct, frozen=True):
    """The three scenes, and what else the client had to say."""

    turn: Scene
    tool: Scene
    cancel: Scene
    errors: tuple[str, ...]
    history: tuple[HistoryItem, ...] = ()
    truncated: dict[str, str | None] | None = None


async def run_client(argv: Sequence[Path | str], script: Script, environment: Mapping[str, str]) -> Report:
    """The report that the program prints. It gets the script and `environment`, and no Flueman setting of the tests' own."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FLUEMAN_")}
    process = await asyncio.create_subprocess_exec(
        *argv,
        cwd=HERE,
        env={**inherited, **environment, "CONFORMANCE_SCRIPT": msgspec.json.encode(script).decode()},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(RUN_TIMEOUT_S):
            out, err = await process.communicate()
    except TimeoutError:
        process.kill()
        out, err = await process.communicate()
        raise AssertionError(f"{argv[-1]} did not end in {RUN_TIMEOUT_S} s:\n{err.decode()}") from None
    assert process.returncode == 0, f"{argv[-1]} exited {process.returncode}:\n{err.decode()}"
    return msgspec.json.decode(out.splitlines()[-1], type=Report)


def check(report: Report, script: Script, *, cancelled_as: str = "cancelled") -> None:
    """Assert a streamed turn, a tool call round trip and a cancel. `cancelled_as`: the word by which the client learns of the cancel."""
    assert report.errors == ()

    assert report.turn.status == "completed"
    assert report.turn.text
    assert report.turn.num_deltas >= 3

    assert report.tool.calls == (Call("get_weather", {"city": "Seoul"}),)
    assert report.tool.status == "completed"
    assert script.tool_result in report.tool.text

    assert report.cancel.status == cancelled_as
    # That it was heard while it was being said is seen here: what it caused cut the answer short.
    assert script.cancel_after <= report.cancel.num_deltas < NUM_TOKENS_IF_NOT_CANCELLED
    assert script.cancel_after <= report.cancel.output_tokens < NUM_TOKENS_IF_NOT_CANCELLED
