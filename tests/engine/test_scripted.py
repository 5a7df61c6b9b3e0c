"""The scripted engine does what the user's text asks, at its pace, and says the same again."""

import asyncio
import json
from typing import Any

import pytest
from msgspec.structs import replace

from engine.base import EngineError, EngineOverloaded, EngineUnavailable, PromptTooLong
from engine.scripted import ScriptedEngine
from sessions.generation import Chunk, FunctionChoice, FunctionTool
from tests.engine.builders import WEATHER, answer, make_prompt, output, text_of, user
from tests.virtual_time import run


def arguments_of(chunks: list[Chunk]) -> tuple[list[str | None], list[str]]:
    deltas = [delta for chunk in chunks for delta in chunk.tool_calls]
    last = max((delta.index for delta in deltas), default=-1)
    texts = ["".join(delta.arguments for delta in deltas if delta.index == index) for index in range(last + 1)]
    return [delta.name for delta in deltas if delta.name], texts


async def test_the_same_question_gets_the_same_answer() -> None:
    engine = ScriptedEngine(num_tokens=20)

    first, again, other = [text_of(await answer(engine, make_prompt(user(text)))) for text in ("Hi", "Hi", "Ho")]

    assert first == again != other
    assert len(first.split()) == 20


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[echo Hello [smile] 세계 👩‍💻]", "Hello [smile] 세계 👩‍💻"),
        ("[empty]", ""),
        ("[echo [fail]]", "[fail]"),
        ("[echo a\n\n b]", "a\n\n b"),
    ],
)
async def test_echo_says_the_text(text: str, said: str) -> None:
    assert text_of(await answer(ScriptedEngine(), make_prompt(user(text)))) == said


@pytest.mark.parametrize("text", ["[tokens 7]", "please [TOKENS 7] now"])
async def test_tokens_sets_the_length(text: str) -> None:
    chunks = await answer(ScriptedEngine(), make_prompt(user(text)))

    assert sum(chunk.num_tokens for chunk in chunks) == len(text_of(chunks).split()) == 7
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.output_tokens == 7


async def test_the_limit_ends_the_answer() -> None:
    chunks = await answer(ScriptedEngine(), make_prompt(user("[tokens 7]"), max_output_tokens=3))

    assert (len(chunks), chunks[-1].finish_reason) == (3, "length")


async def test_calls_are_made_when_there_are_tools() -> None:
    text = '[echo One moment.] [call get_weather {"city": "Seoul", "days": [1, 2]}] [call other]'

    chunks = await answer(ScriptedEngine(), make_prompt(user(text), tools=(WEATHER, FunctionTool(name="other"))))

    assert arguments_of(chunks) == (["get_weather", "other"], ['{"city": "Seoul", "days": [1, 2]}', "{}"])
    assert text_of(chunks) == "One moment."
    assert chunks[-1].finish_reason == "tool_calls"


@pytest.mark.parametrize("choice", ["auto", "required", FunctionChoice(name="get_weather")])
async def test_a_call_of_a_tool_that_was_not_offered_is_said(choice: Any) -> None:
    question = user("[echo One moment.] [call delete_account {}]")
    prompt = make_prompt(question, tools=(WEATHER, FunctionTool(name="other")), tool_choice=choice)

    chunks = await answer(ScriptedEngine(), prompt)

    said = text_of(chunks)
    assert said == 'One moment.<tool_call>{"name": "delete_account", "arguments": {}}</tool_call>'
    assert arguments_of(chunks) == ([], [])
    assert chunks[-1].finish_reason == "stop"
    for num_chars in range(len(said) + 1):
        rest = await answer(ScriptedEngine(), replace(prompt, spoken=said[:num_chars]))
        assert (said[:num_chars] + text_of(rest), arguments_of(rest)) == (said, ([], []))


async def test_of_two_tools_only_the_demanded_one_is_called() -> None:
    prompt = make_prompt(
        user("[call other] [call get_weather]"),
        tools=(WEATHER, FunctionTool(name="other")),
        tool_choice=FunctionChoice(name="get_weather"),
    )

    assert arguments_of(await answer(ScriptedEngine(), prompt))[0] == ["get_weather"]


@pytest.mark.parametrize("changes", [{}, {"tools": (WEATHER,), "tool_choice": "none"}])
async def test_no_calls_without_tools(changes: dict[str, Any]) -> None:
    chunks = await answer(ScriptedEngine(), make_prompt(user("[call get_weather {}]"), **changes))

    assert arguments_of(chunks) == ([], [])
    assert chunks[-1].finish_reason == "stop"


@pytest.mark.parametrize("choice", ["required", FunctionChoice(name="f")])
async def test_a_demanded_call_has_what_its_schema_requires(choice: Any) -> None:
    schema = {"properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}, "c": {}}, "required": ["a", "b"]}
    tool = FunctionTool(name="f", parameters=type(WEATHER.parameters)(json.dumps(schema).encode()))

    chunks = await answer(ScriptedEngine(), make_prompt(tools=(tool,), tool_choice=choice))

    assert arguments_of(chunks) == (["f"], ['{"a": 1, "b": "x"}'])


async def test_a_tools_output_is_quoted() -> None:
    prompt = make_prompt(user("[call get_weather {}]"), output('{"sky": "clear"}'), tools=(WEATHER,))

    assert text_of(await answer(ScriptedEngine(), prompt)) == 'The tool answered: {"sky": "clear"}'


@pytest.mark.parametrize(("text", "num_said"), [("[fail]", 0), ("[fail after 3]", 3)])
async def test_fail_loses_the_engine(text: str, num_said: int) -> None:
    stream = ScriptedEngine().generate(make_prompt(user(text)))

    chunks = [await anext(stream) for _ in range(num_said)]

    assert all(chunk.finish_reason is None for chunk in chunks)
    with pytest.raises(EngineUnavailable):
        await anext(stream)


@pytest.mark.parametrize(("text", "error"), [("[overloaded]", EngineOverloaded), ("[too long]", PromptTooLong)])
async def test_refusals_can_be_asked_for(text: str, error: type[EngineError]) -> None:
    with pytest.raises(error):
        await answer(ScriptedEngine(), make_prompt(user(text)))


@pytest.mark.parametrize("num_chars", [0, 1, 7, 30, 90])
async def test_an_answer_is_gone_on_with_from_within_a_token(num_chars: int) -> None:
    engine = ScriptedEngine(num_tokens=20)
    question = user("Hi")
    whole = text_of(await answer(engine, make_prompt(question)))

    rest = await answer(engine, make_prompt(question, spoken=whole[:num_chars]))

    assert whole[:num_chars] + text_of(rest) == whole
    assert rest[-1].usage is not None
    assert rest[-1].usage.output_tokens == 20


async def test_a_failure_after_so_many_tokens_counts_those_that_were_spoken() -> None:
    question = user("[fail after 5]")
    first = ScriptedEngine().generate(make_prompt(question))
    spoken = "".join([(await anext(first)).text for _ in range(3)])

    stream = ScriptedEngine().generate(make_prompt(question, spoken=spoken))

    assert [(await anext(stream)).finish_reason for _ in range(2)] == [None, None]
    with pytest.raises(EngineUnavailable):
        await anext(stream)
    await first.aclose()


async def test_calls_after_spoken_text_are_made_from_their_start() -> None:
    text = '[echo One moment.] [call get_weather {"city": "Seoul"}]'

    chunks = await answer(ScriptedEngine(), make_prompt(user(text), tools=(WEATHER,), spoken="One moment."))

    assert arguments_of(chunks) == (["get_weather"], ['{"city": "Seoul"}'])
    assert text_of(chunks) == ""
    assert chunks[-1].finish_reason == "tool_calls"


async def test_the_first_token_is_waited_for_once() -> None:
    async with asyncio.timeout(5):
        chunks = await answer(ScriptedEngine(), make_prompt(user("[wait 60] [echo One two]"), spoken="One"))

    assert text_of(chunks) == " two"


def test_the_pace_is_kept_without_drift() -> None:
    """Whoever reads each token takes most of the pace for himself, and the tokens still come at theirs."""

    async def read_slowly() -> float:
        stream = ScriptedEngine(tokens_per_s=500).generate(make_prompt(user("[tokens 151]")))
        async for _ in stream:
            read_s = asyncio.get_running_loop().time()
            await asyncio.sleep(0.0015)
        return read_s

    async def all_s() -> list[float]:
        begin_s = asyncio.get_running_loop().time()
        return [end_s - begin_s for end_s in await asyncio.gather(*(read_slowly() for _ in range(20)))]

    assert run(all_s()) == pytest.approx([0.3] * 20, abs=0.002)


async def test_a_broken_engine_is_red_until_it_recovers() -> None:
    engine = ScriptedEngine()
    stream = engine.generate(make_prompt())
    await anext(stream)

    engine.break_down("pulled the plug")

    assert engine.failure() == "pulled the plug"
    with pytest.raises(EngineUnavailable):
        await anext(stream)
    engine.recover()
    assert engine.failure() is None
    assert await answer(engine, make_prompt())


async def test_a_bound_is_kept() -> None:
    engine = ScriptedEngine(max_requests=1)
    stream = engine.generate(make_prompt())
    await anext(stream)

    with pytest.raises(EngineOverloaded):
        await answer(engine, make_prompt())

    await stream.aclose()
    assert await answer(engine, make_prompt())


async def test_a_hanging_answer_can_be_aborted() -> None:
    engine = ScriptedEngine()
    prompt = make_prompt(user("[hang]"))
    task = asyncio.create_task(answer(engine, prompt))
    await asyncio.sleep(0)

    await engine.abort(prompt.response_id)

    assert await task == []
