"""The CPU engine: the promises of all engines, and its own: joint steps, tool calls, and the ways a model's files can be wrong."""

import asyncio
import itertools
import json
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio
from msgspec import Raw
from msgspec.structs import replace

from engine import local_batch
from engine.base import EngineOverloaded, EngineUnavailable, ModelNotLoadable
from engine.local import LocalEngine, _Answer, _Reader
from engine.prompt import EncodedPrompt
from sessions.generation import FunctionChoice, FunctionTool, Prompt, ToolCallDelta
from tests.engine.builders import HALVES, WEATHER, answer, make_prompt, text_of, user
from tests.engine.conftest import DEMO_MODEL
from tests.engine.test_protocol import (  # noqa: F401  collected here, with this module's `subject`
    test_a_hundred_random_aborts_leave_nothing_in_flight,
    test_a_response_may_be_asked_again,
    test_abort_ends_the_answer_and_frees_its_slot,
    test_abort_from_another_task_wakes_the_answer,
    test_aborting_what_is_unknown_or_done_is_ignored,
    test_an_answer_ends_once_with_its_usage,
    test_cancelling_before_the_first_token_frees_the_slot,
    test_cancelling_the_task_frees_the_slot,
    test_closing_the_generator_frees_the_slot,
    test_no_piece_holds_half_a_character,
    test_the_answer_streams,
    test_the_limit_ends_the_answer,
    test_the_second_turn_finds_the_first_in_the_cache,
)

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.filterwarnings("ignore"),  # torch's and transformers' own
]


class Local:
    """The engine with its model's choices replaced where a test must know the answer."""

    def __init__(self, engine: LocalEngine, patch: pytest.MonkeyPatch) -> None:
        self.engine = engine
        self._patch = patch

    @contextmanager
    def saying(self, text: str) -> Iterator[Prompt]:
        encoder = self.engine._encoder
        assert encoder is not None
        ids = [*encoder.tokenizer.encode(text, add_special_tokens=False), encoder.tokenizer.eos_token_id]
        with self._choosing(itertools.chain(ids, itertools.repeat(ids[-1]))):
            yield make_prompt()

    @contextmanager
    def going_on(self) -> Iterator[Prompt]:
        encoder = self.engine._encoder
        assert encoder is not None
        with self._choosing(itertools.cycle(encoder.tokenizer.encode(" and on", add_special_tokens=False))):
            yield make_prompt(max_output_tokens=400)

    async def num_in_flight(self) -> int:
        worker = self.engine._worker
        assert worker is not None
        dead = _Answer("")
        dead.is_aborted = True
        worker.inbox.put(dead)  # an idle thread looks for aborted answers only when something comes
        return worker._batch.num_rows

    @contextmanager
    def _choosing(self, tokens: Iterator[int]) -> Iterator[None]:
        with self._patch.context() as patch:
            patch.setattr("engine.local_batch.choose", lambda logits, sampling: [next(tokens) for _ in logits])
            yield


@pytest.fixture
def engine(local_engine: LocalEngine) -> LocalEngine:
    return local_engine


@pytest_asyncio.fixture(loop_scope="session")
async def subject(engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Local]:
    subject = Local(engine, monkeypatch)
    yield subject
    async with asyncio.timeout(60):
        while await subject.num_in_flight():  # noqa: ASYNC110  the thread frees a row before its next step
            await asyncio.sleep(0.01)
    assert engine.capacity().running == 0


async def test_the_demo_model_answers(engine: LocalEngine) -> None:
    chunks = await answer(engine, make_prompt(user("안녕하세요!"), instructions=""))

    assert "안녕하세요!" in text_of(chunks)
    assert chunks[-1].finish_reason == "stop"
    assert chunks[0].usage is not None


async def test_answers_that_run_together_are_those_that_run_alone(engine: LocalEngine) -> None:
    texts = [
        "Tell me a longer story",
        "hello",
        "긴 이야기를 들려줘",
        "who are you",
        "What is 3 plus 4?",
        "농담 하나 해 줘",
    ]
    alone = [text_of(await answer(engine, make_prompt(user(text), instructions=""))) for text in texts]

    together = await asyncio.gather(*(answer(engine, make_prompt(user(text), instructions="")) for text in texts))

    assert [text_of(chunks) for chunks in together] == alone


@pytest.mark.parametrize(("spoken", "rest"), HALVES)
async def test_the_rest_begins_where_the_spoken_text_ends(subject: Local, spoken: str, rest: str) -> None:
    with subject.saying(rest) as prompt:
        chunks = await answer(subject.engine, replace(prompt, spoken=spoken))

    assert text_of(chunks) == rest


async def test_the_rest_keeps_the_space_that_a_tokenizer_takes_from_beginnings() -> None:
    from tokenizers import Tokenizer, decoders, models

    tokenizer = Tokenizer(models.WordLevel({"▁Hello": 0, "▁there": 1}, unk_token="▁Hello"))
    tokenizer.decoder = decoders.Metaspace()
    encoder: Any = SimpleNamespace(tokenizer=SimpleNamespace(backend_tokenizer=tokenizer))
    encoded = EncodedPrompt(text="", token_ids=[], spoken_ids=[0], num_dropped_items=0, max_output_tokens=9, tail="")

    chunk = _Reader(encoder, encoded, make_prompt(spoken="Hello")).read([1], None)

    assert chunk.text == " there"


async def test_a_call_after_spoken_text_is_no_text(subject: Local) -> None:
    with subject.saying('\n<tool_call>\n{"name": "get_weather", "arguments": {}}\n</tool_call>'):
        chunks = await answer(subject.engine, make_prompt(tools=(WEATHER,), spoken="Let me see."))

    assert text_of(chunks) == ""
    assert called(delta for chunk in chunks for delta in chunk.tool_calls) == ("get_weather", {})
    assert chunks[-1].finish_reason == "tool_calls"


STRANGE = 'Let me see.\n<tool_call>\n{"name": "delete_account", "arguments": {"now": true}}\n</tool_call>\nDone.'


async def test_a_call_of_a_tool_that_was_not_offered_is_text_wherever_it_is_cut(subject: Local) -> None:
    """P4."""
    with subject.saying(STRANGE):
        whole = await answer(subject.engine, make_prompt(tools=(WEATHER,)))
    cuts = [""]
    for chunk in whole:
        cuts.append(cuts[-1] + chunk.text)

    for cut in cuts:
        with subject.saying(STRANGE.removeprefix(cut)):
            rest = await answer(subject.engine, make_prompt(tools=(WEATHER,), spoken=cut))
        assert cut + text_of(rest) == STRANGE
        assert not any(chunk.tool_calls for chunk in rest)
        assert rest[-1].finish_reason == "stop"


async def test_a_demanded_call_of_another_tool_is_text_wherever_it_is_cut(subject: Local) -> None:
    demanded, said = '<tool_call>\n{"name": "', 'delete_account", "arguments": {}}\n</tool_call>'
    with subject.saying(said):
        whole = await answer(subject.engine, make_prompt(tools=(WEATHER,), tool_choice="required"))
    assert text_of(whole) == demanded + said
    cut = whole[0].text

    with subject.saying((demanded + said).removeprefix(cut)):
        rest = await answer(subject.engine, make_prompt(tools=(WEATHER,), tool_choice="required", spoken=cut))

    assert cut + text_of(rest) == demanded + said
    assert not any(chunk.tool_calls for chunk in [*whole, *rest])


async def test_a_tool_call_is_no_text(engine: LocalEngine) -> None:
    prompt = make_prompt(user("What's the weather in Oslo?"), tools=(WEATHER,), instructions="")

    chunks = await answer(engine, prompt)

    assert text_of(chunks) == ""
    assert chunks[-1].finish_reason == "tool_calls"
    assert called(delta for chunk in chunks for delta in chunk.tool_calls) == ("get_weather", {"city": "Oslo"})


@pytest.mark.parametrize("choice", ["required", FunctionChoice(name="get_weather")])
async def test_a_demanded_tool_is_called(engine: LocalEngine, choice: Any) -> None:
    prompt = make_prompt(user("Is it warm in Oslo today?"), tools=(WEATHER,), tool_choice=choice, instructions="")

    chunks = await answer(engine, prompt)

    assert chunks[-1].finish_reason == "tool_calls"
    assert called(delta for chunk in chunks for delta in chunk.tool_calls)[0] == "get_weather"


async def test_a_tool_choice_of_none_calls_none(engine: LocalEngine) -> None:
    tool = FunctionTool(name="get_weather", parameters=Raw(b'{"type":"object"}'))
    prompt = make_prompt(user("What's the weather in Oslo?"), tools=(tool,), tool_choice="none", instructions="")

    chunks = await answer(engine, prompt)

    assert text_of(chunks)
    assert not any(chunk.tool_calls for chunk in chunks)


def called(deltas: Iterator[ToolCallDelta]) -> tuple[str, object]:
    found = list(deltas)
    return found[0].name or "", json.loads("".join(delta.arguments for delta in found))


async def test_who_comes_when_all_places_are_taken_waits_then_is_refused() -> None:
    async with LocalEngine(str(DEMO_MODEL), max_requests=1, max_waiting=1) as engine:
        first = asyncio.create_task(answer(engine, make_prompt(user("Tell me a longer story"))))
        second = asyncio.create_task(answer(engine, make_prompt(user("hello"))))
        await asyncio.sleep(0)

        assert (engine.capacity().running, engine.capacity().waiting) == (1, 1)
        with pytest.raises(EngineOverloaded):
            await answer(engine, make_prompt())

        assert text_of(await first)
        assert text_of(await second)


async def test_a_thread_that_dies_fails_what_runs_and_what_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    async with LocalEngine(str(DEMO_MODEL)) as engine:
        assert engine.failure() is None
        assert engine._worker is not None

        def fail() -> None:
            raise RuntimeError("no memory")

        monkeypatch.setattr(engine._worker._batch, "step", fail)

        with pytest.raises(EngineUnavailable, match="no memory"):
            await answer(engine, make_prompt())
        with pytest.raises(EngineUnavailable):
            await answer(engine, make_prompt())
        assert "no memory" in (engine.failure() or "")


async def test_closing_the_engine_ends_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    choose = local_batch.choose

    def choose_slowly(logits: Any, sampling: local_batch.Sampling) -> list[int]:
        time.sleep(0.05)  # a story takes six seconds, and is not over before the engine is
        return choose(logits, sampling)

    monkeypatch.setattr(local_batch, "choose", choose_slowly)
    async with LocalEngine(str(DEMO_MODEL)) as engine:
        stream = engine.generate(make_prompt(user("Tell me a longer story")))
        await anext(stream)

    with pytest.raises(EngineUnavailable):
        async for _ in stream:
            pass
    assert engine.failure() is not None


async def test_a_missing_folder_is_named() -> None:
    with pytest.raises(ModelNotLoadable, match="/no/such/folder"):
        async with LocalEngine("/no/such/folder"):
            pass


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["missing", "cut off"])
async def test_damaged_files_stop_the_start(tmp_path: Path, name: str, damage: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(DEMO_MODEL, folder, ignore=shutil.ignore_patterns("build"))
    if damage == "missing":
        (folder / name).unlink()
    else:
        (folder / name).write_bytes((folder / name).read_bytes()[:100])

    with pytest.raises(ModelNotLoadable, match=str(folder)):
        async with LocalEngine(str(folder)):
            pass


async def test_weights_without_a_layer_are_not_filled_with_random_numbers(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(DEMO_MODEL, folder, ignore=shutil.ignore_patterns("build"))
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(ModelNotLoadable, match="up_proj"):
        async with LocalEngine(str(folder)):
            pass


async def test_top_p_leaves_out_the_unlikely_and_temperature_0_takes_the_likeliest() -> None:
    import torch

    from engine.local_batch import Sampling, choose

    logits = torch.tensor([[2.0, 1.9, -1.0, -9.0]]).repeat(400, 1)

    drawn = set(choose(logits, Sampling(temperature=1.0, top_p=0.9)))
    free = set(choose(logits, Sampling(temperature=1.0)))
    few = set(choose(logits, Sampling(temperature=1.0, top_k=1)))
    likeliest = set(choose(logits, Sampling()))

    assert drawn == {0, 1}
    assert {0, 1, 2} <= free
    assert few == likeliest == {0}
