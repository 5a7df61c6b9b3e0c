"""Every engine keeps the promises of `engine.base.Engine`: one suite for all of them."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from sessions.generation import Chunk
from tests.engine.builders import answer, make_prompt, text_of, user
from tests.engine.subjects import Subject

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.filterwarnings("ignore"),  # vLLM's and torch's own
]

ENGINES = [
    "scripted",
    pytest.param("vllm", marks=pytest.mark.vllm),
    pytest.param("served", marks=pytest.mark.vllm),
]


@pytest.fixture(params=ENGINES)
def opened(request: pytest.FixtureRequest) -> Subject:
    subject: Subject = request.getfixturevalue(f"{request.param}_subject")
    return subject


@pytest_asyncio.fixture(loop_scope="session")
async def subject(opened: Subject) -> AsyncIterator[Subject]:
    subject = opened
    yield subject
    async with asyncio.timeout(60):
        while await subject.num_in_flight():  # noqa: ASYNC110  the other side of a socket hears of it a moment later
            await asyncio.sleep(0.05)
    assert subject.engine.capacity().running == 0


async def test_an_answer_ends_once_with_its_usage(subject: Subject) -> None:
    with subject.saying("Hello there, and welcome.") as prompt:
        chunks = await answer(subject.engine, prompt)

    assert text_of(chunks) == "Hello there, and welcome."
    assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == ["stop"]
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.input_tokens > 0
    assert usage.output_tokens == sum(chunk.num_tokens for chunk in chunks) > 0


@pytest.mark.parametrize("text", ["안녕하세요, 반갑습니다! 무엇을 도와드릴까요?", "👩‍💻 🇰🇷 🤷🏽‍♀️", "ﷺ 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 é"])
async def test_no_piece_holds_half_a_character(subject: Subject, text: str) -> None:
    with subject.saying(text) as prompt:
        chunks = await answer(subject.engine, prompt)

    assert text_of(chunks) == text
    assert not any("\ufffd" in chunk.text for chunk in chunks)
    for chunk in chunks:
        chunk.text.encode()  # no lone surrogate either


async def test_the_limit_ends_the_answer(subject: Subject) -> None:
    with subject.going_on() as prompt:
        chunks = await answer(subject.engine, prompt)

    assert chunks[-1].finish_reason == "length"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.output_tokens == 400


async def test_the_answer_streams(subject: Subject) -> None:
    with subject.going_on() as prompt:
        chunks = await answer(subject.engine, prompt)

    assert len(chunks) > 20


async def test_abort_ends_the_answer_and_frees_its_slot(subject: Subject) -> None:
    with subject.going_on() as prompt:
        chunks: list[Chunk] = []
        async for chunk in subject.engine.generate(prompt):
            chunks.append(chunk)
            if len(chunks) == 3:
                await subject.engine.abort(prompt.response_id)
                assert subject.engine.capacity().running == 0

    assert len(chunks) < 200
    assert all(chunk.finish_reason is None for chunk in chunks)


async def test_abort_from_another_task_wakes_the_answer(subject: Subject) -> None:
    with subject.going_on() as prompt:
        begun = asyncio.Event()

        async def read() -> None:
            async for _ in subject.engine.generate(prompt):
                begun.set()

        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            tasks.create_task(read())
            await begun.wait()
            await subject.engine.abort(prompt.response_id)


async def test_closing_the_generator_frees_the_slot(subject: Subject) -> None:
    with subject.going_on() as prompt:
        stream = subject.engine.generate(prompt)
        await anext(stream)

        await stream.aclose()

        assert subject.engine.capacity().running == 0


async def test_cancelling_the_task_frees_the_slot(subject: Subject) -> None:
    with subject.going_on() as prompt:
        begun = asyncio.Event()

        async def read() -> None:
            async for _ in subject.engine.generate(prompt):
                begun.set()

        task = asyncio.create_task(read())
        await begun.wait()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

        assert subject.engine.capacity().running == 0


async def test_cancelling_before_the_first_token_frees_the_slot(subject: Subject) -> None:
    with subject.going_on() as prompt:
        for num_steps in range(12):
            task = asyncio.create_task(answer(subject.engine, prompt))
            for _ in range(num_steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])

            assert subject.engine.capacity().running == 0


async def test_aborting_what_is_unknown_or_done_is_ignored(subject: Subject) -> None:
    with subject.saying("Hello") as prompt:
        await answer(subject.engine, prompt)

        await subject.engine.abort(prompt.response_id)
        await subject.engine.abort("resp_unknown")


async def test_a_response_may_be_asked_again(subject: Subject) -> None:
    """A resumed answer keeps its response's id, on the same node too."""
    with subject.going_on() as prompt:
        first = subject.engine.generate(prompt)
        await anext(first)
        second = subject.engine.generate(prompt)
        await anext(second)

        await first.aclose()
        rest = [chunk async for chunk in second]

    assert rest[-1].finish_reason == "length"


async def test_a_hundred_random_aborts_leave_nothing_in_flight(subject: Subject) -> None:
    rng = random.Random(11)

    with subject.going_on() as prompt:

        async def one(number: int) -> None:
            mine = type(prompt)(
                **{name: getattr(prompt, name) for name in prompt.__struct_fields__}
                | {"response_id": f"resp_r{number}"}
            )
            wanted, way = rng.randrange(12), rng.choice(["abort", "close", "cancel"])
            stream = subject.engine.generate(mine)
            async for _ in stream:
                wanted -= 1
                if wanted > 0:
                    continue
                if way == "abort":
                    await subject.engine.abort(mine.response_id)
                elif way == "close":
                    await stream.aclose()
                else:
                    task = asyncio.current_task()
                    assert task is not None
                    task.cancel()

        await asyncio.gather(*(one(number) for number in range(100)), return_exceptions=True)

    assert subject.engine.capacity().running == 0


async def test_the_second_turn_finds_the_first_in_the_cache(subject: Subject) -> None:
    history = [user("Tell me about the museum, please. " * 20)]
    session_id = f"sess_cache_{type(subject).__name__}"
    first = await answer(subject.engine, make_prompt(*history, max_output_tokens=4, session_id=session_id))
    assert first[-1].usage is not None

    second = await answer(
        subject.engine, make_prompt(*history, user("And more"), max_output_tokens=4, session_id=session_id)
    )

    usage = second[-1].usage
    assert usage is not None
    assert 0 < usage.cached_tokens < usage.input_tokens
