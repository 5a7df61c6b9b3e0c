"""Every engine goes on with an answer, cut after any token, as if nothing had happened: same text, same end, same usage."""

import asyncio

import pytest
from msgspec.structs import replace

from engine.base import Engine
from engine.local import LocalEngine
from engine.scripted import ScriptedEngine
from sessions.generation import Chunk, FunctionTool, Prompt, Usage
from tests.engine.builders import WEATHER, answer, make_prompt, text_of, user

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.filterwarnings("ignore"),  # vLLM's and torch's own
]

ENGINES = [
    "scripted",
    "local",
    pytest.param("vllm", marks=pytest.mark.vllm),
    pytest.param("served", marks=pytest.mark.vllm),
]
# Answers of several sentences, with words of several tokens and characters of two.
QUESTIONS = ["What can you do?", "How do I rate an answer?", "뭐 할 수 있어?", "1부터 10까지 세어 봐"]
MAX_AT_ONCE = 24


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Engine:
    if request.param == "scripted":
        return ScriptedEngine(num_tokens=20)
    if request.param == "local":
        local: LocalEngine = request.getfixturevalue("local_engine")
        return local
    subject: Engine = request.getfixturevalue(f"{request.param}_subject").engine
    return subject


def cuts_of(chunks: list[Chunk]) -> dict[str, int]:
    """Every text that clients may have had, and how many tokens had been told by then."""
    cuts, text, num_tokens = {"": 0}, "", 0
    for chunk in chunks:
        text, num_tokens = text + chunk.text, num_tokens + chunk.num_tokens
        cuts.setdefault(text, num_tokens)
    return cuts


def usage_of(chunk: Chunk) -> Usage:
    """Without what depends on who asked before."""
    assert chunk.usage is not None
    assert chunk.usage.cached_tokens <= chunk.usage.input_tokens
    return replace(chunk.usage, cached_tokens=0)


async def continuations(engine: Engine, prompt: Prompt, cuts: list[str]) -> dict[str, list[Chunk]]:
    places = asyncio.Semaphore(MAX_AT_ONCE)

    async def go_on(number: int, cut: str) -> list[Chunk]:
        async with places:
            return await answer(engine, replace(prompt, response_id=f"{prompt.response_id}.{number}", spoken=cut))

    answers = await asyncio.gather(*(go_on(number, cut) for number, cut in enumerate(cuts)))
    return dict(zip(cuts, answers, strict=True))


@pytest.mark.parametrize("tools", [(), (WEATHER,)], ids=["plain", "tools"])
async def test_a_cut_anywhere_leaves_no_trace(engine: Engine, tools: tuple[FunctionTool, ...]) -> None:
    """P4: the new owner finishes the same answer, with no token lost or repeated."""
    for question in QUESTIONS if not tools else QUESTIONS[2:3]:
        prompt = make_prompt(user(question), instructions="", tools=tools)
        whole = await answer(engine, prompt)
        cuts = cuts_of(whole)
        assert usage_of(whole[-1]).output_tokens > 15
        assert len(cuts) > 5  # an engine that is ahead of its reader tells several tokens at once

        rests = await continuations(engine, prompt, list(cuts))

        assert {cut: cut + text_of(rest) for cut, rest in rests.items()} == dict.fromkeys(cuts, text_of(whole))
        for cut, rest in rests.items():
            assert [chunk.finish_reason for chunk in rest if chunk.finish_reason] == [whole[-1].finish_reason]
            assert usage_of(rest[-1]) == usage_of(whole[-1]), cut
            if (first := rest[0].usage) is not None:
                assert first.input_tokens == usage_of(whole[-1]).input_tokens
                assert cuts[cut] <= first.output_tokens <= usage_of(whole[-1]).output_tokens


@pytest.mark.parametrize("engine", ENGINES[:3], indirect=True)  # an endpoint tells its tokens at the end
async def test_only_new_tokens_are_counted_as_decoded(engine: Engine) -> None:
    prompt = make_prompt(user(QUESTIONS[2]), instructions="")
    cuts = cuts_of(await answer(engine, prompt))

    rests = await continuations(engine, prompt, list(cuts)[:-1:4])  # the last may have come with the end

    for cut, rest in rests.items():
        assert usage_of(rest[-1]).output_tokens - sum(chunk.num_tokens for chunk in rest) == cuts[cut]


@pytest.mark.parametrize("question", QUESTIONS[::2])
async def test_the_limit_is_the_whole_answers(engine: Engine, question: str) -> None:
    prompt = make_prompt(user(question), instructions="", max_output_tokens=9)
    whole = await answer(engine, prompt)
    cuts = list(cuts_of(whole))
    assert (whole[-1].finish_reason, usage_of(whole[-1]).output_tokens) == ("length", 9)

    rests = await continuations(engine, prompt, cuts)

    assert [cut + text_of(rest) for cut, rest in rests.items()] == [text_of(whole)] * len(cuts)
    assert {rest[-1].finish_reason for rest in rests.values()} == {"length"}
    assert {usage_of(rest[-1]) for rest in rests.values()} == {usage_of(whole[-1])}
    assert [replace(chunk, usage=None, origin=None) for chunk in rests[text_of(whole)]] == [
        Chunk(finish_reason="length")
    ]
