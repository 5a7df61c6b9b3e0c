"""What a node stores of how its answers came to be, and what a setting keeps from being stored."""

from pathlib import Path

import msgspec
import pytest

from server.settings import Settings
from sessions.config import SessionConfig
from sessions.records import PredictionRecord, Trace
from tests.server.house import House, Limits, ask, open_house

CONFIG = SessionConfig(model="demo", instructions="You are a guide with a secret word.")


async def trace_of_an_answer(house: House) -> Trace:
    session, screen = await house.open(CONFIG)
    ask(session, "[tokens 5]")
    await screen.until("response.done")
    [prediction] = [record for record in await house.records() if isinstance(record, PredictionRecord)]
    assert prediction.trace is not None
    return prediction.trace


async def test_the_exact_prompt_is_stored_with_its_answer(house: House) -> None:
    trace = await trace_of_an_answer(house)

    assert trace.prompt == "system: You are a guide with a secret word.\nuser: [tokens 5]\nassistant: "
    assert msgspec.json.decode(trace.sampling) == {"temperature": 0.0, "max_tokens": None, "tokens_per_s": 0.0}
    assert trace.persona == "kiosk"


async def test_a_node_that_keeps_no_prompts_stores_none(tmp_path: Path) -> None:
    async with open_house(tmp_path / "sessions.db", Limits(keep_prompts=False)) as house:
        trace = await trace_of_an_answer(house)

        assert (trace.prompt, trace.persona) == (None, "kiosk")
        assert trace.queued_ms is not None


@pytest.mark.parametrize(("given", "keeps"), [("false", False), ("true", True), (None, True)])
def test_the_environment_says_whether_prompts_are_kept(
    monkeypatch: pytest.MonkeyPatch, given: str | None, keeps: bool
) -> None:
    if given is not None:
        monkeypatch.setenv("FLUEMAN_KEEP_PROMPTS", given)

    assert Settings(_env_file=None).keep_prompts is keeps  # type: ignore[call-arg]
