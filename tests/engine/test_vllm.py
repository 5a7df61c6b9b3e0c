"""What only vLLM in process does: its tool parsers, its prefix cache, its core's death and return."""

import asyncio
import gc
import json
import os
from pathlib import Path

import psutil
import pytest
from msgspec import Raw
from msgspec.structs import replace

from engine.base import EngineError, EngineUnavailable, ModelNotLoadable
from engine.prompt import PromptEncoder
from engine.tool_calls import HermesParser
from engine.vllm import VllmEngine, _VllmParser
from sessions.generation import Chunk, FunctionChoice, FunctionTool, ToolChoice
from tests.engine.builders import HALVES, WEATHER, answer, assistant, make_prompt, text_of, user
from tests.engine.subjects import Vllm

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.filterwarnings("ignore"),  # vLLM's and torch's own
]
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "서울"}}\n</tool_call>'
CITY = FunctionTool(
    name="get_weather",
    parameters=Raw(b'{"type":"object","properties":{"city":{"enum":["Seoul","Busan"]}},"required":["city"]}'),
)
OTHER = FunctionTool(name="wave", parameters=Raw(b'{"type":"object","properties":{},"additionalProperties":false}'))


def calls_of(chunks: list[Chunk]) -> list[tuple[str | None, str]]:
    """Name and arguments of each call, put together."""
    names: dict[int, str | None] = {}
    arguments: dict[int, str] = {}
    for chunk in chunks:
        for delta in chunk.tool_calls:
            names.setdefault(delta.index, delta.name)
            arguments[delta.index] = arguments.get(delta.index, "") + delta.arguments
    return [(names[index], arguments[index]) for index in sorted(names)]


async def test_a_call_in_the_answer_is_no_text(vllm_subject: Vllm) -> None:
    with vllm_subject.saying(f"Let me see.\n{CALL}"):
        chunks = await answer(vllm_subject.engine, make_prompt(tools=(WEATHER,)))

    assert text_of(chunks) == "Let me see."
    assert [(name, json.loads(arguments)) for name, arguments in calls_of(chunks)] == [
        ("get_weather", {"city": "서울"})
    ]
    assert chunks[-1].finish_reason == "tool_calls"


async def test_an_answer_without_a_call_is_whole(vllm_subject: Vllm) -> None:
    with vllm_subject.saying("1 < 2, I think.\n"):
        chunks = await answer(vllm_subject.engine, make_prompt(tools=(WEATHER,)))

    assert text_of(chunks) == "1 < 2, I think.\n"
    assert chunks[-1].finish_reason == "stop"


@pytest.mark.parametrize(("spoken", "rest"), HALVES)
async def test_the_rest_begins_where_the_spoken_text_ends(vllm_subject: Vllm, spoken: str, rest: str) -> None:
    with vllm_subject.saying(rest) as prompt:
        chunks = await answer(vllm_subject.engine, replace(prompt, spoken=spoken))

    assert text_of(chunks) == rest


async def test_a_call_after_spoken_text_is_no_text(vllm_subject: Vllm) -> None:
    with vllm_subject.saying(f"\n{CALL}"):
        chunks = await answer(vllm_subject.engine, make_prompt(tools=(WEATHER,), spoken="Let me see."))

    assert text_of(chunks) == ""
    assert [name for name, _ in calls_of(chunks)] == ["get_weather"]
    assert chunks[-1].finish_reason == "tool_calls"


@pytest.mark.parametrize(
    ("choice", "names"), [("required", {"get_weather", "wave"}), (FunctionChoice(name="wave"), {"wave"})]
)
async def test_a_demanded_call_is_made(vllm_subject: Vllm, choice: ToolChoice, names: set[str]) -> None:
    prompt = make_prompt(tools=(CITY, OTHER), tool_choice=choice)

    chunks = await answer(vllm_subject.engine, prompt)

    ((name, arguments),) = calls_of(chunks)
    assert name in names
    assert isinstance(json.loads(arguments), dict)
    assert text_of(chunks) == ""
    assert chunks[-1].finish_reason == "tool_calls"


@pytest.mark.parametrize("text", [CALL, f"Hm. {CALL}\n{CALL}", "No call at all."])
def test_vllms_own_parser_reads_the_same(encoder: PromptEncoder, text: str) -> None:
    def read(parser: HermesParser | _VllmParser) -> tuple[str, list[tuple[str | None, object]]]:
        chunks = []
        for letter in text:
            spoken, deltas = parser.feed(letter, encoder.tokenizer.encode(letter))
            chunks.append(Chunk(spoken, 1, deltas))
        spoken, deltas = parser.finish()
        chunks.append(Chunk(spoken, 0, deltas))
        return text_of(chunks).strip(), [(name, json.loads(arguments)) for name, arguments in calls_of(chunks)]

    theirs = _VllmParser("hermes", encoder.tokenizer, make_prompt(tools=(WEATHER,)))

    assert read(theirs) == read(HermesParser({"get_weather"}))


def test_of_the_calls_that_vllms_own_parser_finds_the_offered_ones_are_passed_on(encoder: PromptEncoder) -> None:
    strange = '<tool_call>\n{"name": "delete_account", "arguments": {"now": true}}\n</tool_call>'

    def read(text: str) -> tuple[_VllmParser, list[Chunk]]:
        parser = _VllmParser("hermes", encoder.tokenizer, make_prompt(tools=(WEATHER,)))
        fed = (parser.feed(letter, encoder.tokenizer.encode(letter)) for letter in text)
        return parser, [Chunk(spoken, 1, deltas) for spoken, deltas in fed]

    parser, fed = read(f"Hm. {strange}\n{CALL}\n{strange}")
    ended = [Chunk(tool_calls=parser.finish()[1])]
    silent, _ = read(strange)

    assert [(name, json.loads(arguments)) for name, arguments in calls_of([*fed, *ended])] == [
        ("get_weather", {"city": "서울"})
    ]
    assert parser.num_calls == 1
    with pytest.raises(EngineError, match="not offered"):
        silent.finish()


async def test_a_call_of_a_tool_that_was_not_offered_is_text(vllm_subject: Vllm) -> None:
    strange = 'Let me see.\n<tool_call>\n{"name": "delete_account", "arguments": {}}\n</tool_call>'
    with vllm_subject.saying(strange):
        chunks = await answer(vllm_subject.engine, make_prompt(tools=(WEATHER,)))

    assert text_of(chunks) == strange
    assert calls_of(chunks) == []
    assert chunks[-1].finish_reason == "stop"


async def test_the_next_turn_finds_the_answer_in_the_prefix_cache(vllm_subject: Vllm) -> None:
    """The answer's own ids stand in the next prompt: spelled anew they could differ, and the cache would end there."""
    running = vllm_subject.engine._running
    assert running is not None
    said = "The museum opens at nine and closes at six. " * 30
    question = user("When does it open?")
    with vllm_subject.saying(said):
        first = await answer(vllm_subject.engine, make_prompt(question, session_id="sess_prefix"))
    usage = first[-1].usage
    assert usage is not None

    with vllm_subject.saying("Good."):
        second = await answer(vllm_subject.engine, make_prompt(question, assistant(said), user("And now?")))

    block = running.llm.vllm_config.cache_config.block_size
    num_known = usage.input_tokens + usage.output_tokens - 2  # the end of the answer is not kept, nor is its last token
    assert second[-1].usage is not None
    assert second[-1].usage.cached_tokens >= num_known // block * block > usage.input_tokens


async def test_the_models_own_sampling_is_used(vllm_subject: Vllm, model_folder: Path) -> None:
    running = vllm_subject.engine._running
    assert running is not None
    wanted = json.loads((model_folder / "generation_config.json").read_text())

    for name in ("temperature", "top_p", "top_k"):
        if name in wanted:
            assert running.defaults[name] == wanted[name]


async def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotLoadable, match="nowhere"):
        async with VllmEngine(str(tmp_path / "nowhere")):
            pass


@pytest.fixture
def damaged(model_folder: Path, tmp_path: Path) -> Path:
    for file in model_folder.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(b"" if file.suffix == ".safetensors" else file.read_bytes())
    return tmp_path


async def test_a_model_with_damaged_weights_is_named(damaged: Path) -> None:
    with pytest.raises(ModelNotLoadable, match=str(damaged)):
        async with VllmEngine(str(damaged)):
            pass

    gc.collect()  # what vLLM left unclosed warns now, where warnings are ignored


@pytest.mark.timeout(400)
async def test_a_dead_core_turns_red_at_once_and_comes_back(vllm_subject: Vllm) -> None:
    engine = vllm_subject.engine
    with vllm_subject.going_on() as prompt:
        stream = engine.generate(prompt)
        await anext(stream)

        for child in psutil.Process().children(recursive=True):
            if "EngineCore" in child.name() or any("EngineCore" in part for part in child.cmdline()):
                os.kill(child.pid, 9)
        with pytest.raises(EngineUnavailable, match="died"):
            async for _ in stream:
                pass

        assert engine.failure() is not None
        assert engine.capacity().running == 0
        with pytest.raises(EngineUnavailable):
            await answer(engine, make_prompt())
    async with asyncio.timeout(300):
        while engine.failure() is not None:  # noqa: ASYNC110  half a minute, with nothing else to wait on
            await asyncio.sleep(0.1)
    with vllm_subject.saying("I am back."):
        assert text_of(await answer(engine, make_prompt())) == "I am back."
