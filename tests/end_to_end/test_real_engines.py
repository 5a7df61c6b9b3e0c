"""A real model's answer, from the engine to row and archive: vLLM in process, `vllm serve` behind HTTP, and the laptop's engine."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from server.settings import DEMO_MODEL
from tests.end_to_end.client import WEATHER, Client, open_client
from tests.end_to_end.conftest import Backends
from tests.end_to_end.processes import FluemanProcess, running, token_of
from tests.end_to_end.stored import Records, text_of
from tests.engine.subjects import SERVED, vllm_serve

MODEL_START_S = 400.0


@asynccontextmanager
async def settings_of(engine: str, folder: Path) -> AsyncIterator[dict[str, str]]:
    """The settings of that engine, with what it needs running."""
    common = {"FLUEMAN_ENGINE": engine, "FLUEMAN_MODEL_NAME": "demo", "FLUEMAN_MAX_MODEL_LEN": "2048"}
    if engine != "openai":
        yield common | {"FLUEMAN_MODEL": DEMO_MODEL}
        return
    async with vllm_serve(Path(DEMO_MODEL), folder / "vllm.log") as url:
        yield common | {"FLUEMAN_MODEL": SERVED, "FLUEMAN_OPENAI_BASE_URL": f"{url}/v1"}


async def talk(port: int) -> Client:
    """A turn that streams, one that is cut short, and one that the dialogue before it made possible."""
    async with open_client(port, token_of("visitor")) as client:
        greeting = await client.ask("Hello!")
        assert greeting["status"] == "completed"
        assert greeting["usage"]["output_tokens"] > 1
        assert len(text_of(greeting)) > 5

        cut = await client.ask_and_cut("Tell me a long story.", num_deltas=5)
        assert cut["status"] == "cancelled"
        assert text_of(cut)

        await client.send("session.update", session={"type": "realtime", "tools": [WEATHER]})
        korean = await client.ask("안녕하세요!")
        assert korean["status"] == "completed"
    return client


@pytest.mark.vllm
@pytest.mark.timeout(900)
@pytest.mark.parametrize("engine", ["vllm", "openai", "local"])
async def test_a_real_models_answers_are_streamed_cut_and_stored(
    engine: str, backends: Backends, records: Records, tmp_path: Path
) -> None:
    """P1, P2, P3, P5: real parts from end to end."""
    async with settings_of(engine, tmp_path) as settings:
        process = FluemanProcess(tmp_path / "node", {**backends.settings, **settings}, "serve")
        process.start_s = MODEL_START_S
        with running(process):
            client = await talk(process.port)
            await records.until_ended(1)

            counts = await records.counts()

            assert (counts.num_turns, counts.num_predictions) == (3, 3)
            await records.check_rows(client)
            await records.check_archive(client)
