"""The OpenAI engine before an endpoint that does every wrong thing."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from msgspec.structs import replace
from structlog.testing import capture_logs

from engine.base import EngineError, EngineOverloaded, EngineUnavailable, PromptTooLong, epoch_ms
from engine.openai import OpenAIEngine
from sessions.generation import Chunk, FunctionChoice, FunctionTool, Origin, RetentionRatio, ToolCallDelta, Usage
from tests.engine.builders import WEATHER, answer, assistant, call, make_prompt, output, system, text_of, user
from tests.engine.upstream import Request, Upstream, upstream

# An endpoint that answers is never given up here, however long a busy machine lets it wait.
TIMEOUTS: dict[str, Any] = {
    "connect_timeout_s": 60,
    "first_token_timeout_s": 60,
    "idle_timeout_s": 60,
    "probe_interval_s": 60,
}


@pytest_asyncio.fixture
async def endpoint() -> AsyncIterator[Upstream]:
    async with upstream() as it:
        yield it


@pytest_asyncio.fixture
async def engine(endpoint: Upstream) -> AsyncIterator[OpenAIEngine]:
    async with OpenAIEngine(endpoint.url, "key", "m", **TIMEOUTS) as it:
        yield it


async def say_hello(request: Request) -> None:
    await request.begin()
    await request.delta(role="assistant", content="")
    await request.delta(content="Hello")
    await request.delta(content=" 세계")
    await request.delta(finish_reason="stop")
    usage = {"prompt_tokens": 9, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 4}}
    await request.event(choices=[], usage=usage)
    await request.end()


def refusing(status: int, message: str = "no", code: str = "x", **headers: str) -> Any:
    return lambda request: request.refuse(status, message, code, **headers)


def too_long_for(max_chars: int) -> Any:
    """Refuses as vLLM does while the messages have more characters."""

    async def answer(request: Request) -> None:
        num_chars = sum(len(message["content"]) for message in request.body["messages"])
        if num_chars <= max_chars:
            await say_hello(request)
        else:
            message = "This model's maximum context length is 1000 tokens. However, your prompt contains at least 1001 input tokens"
            await request.refuse(400, message, "400")

    return answer


async def test_an_answer_comes_with_its_usage(engine: OpenAIEngine, endpoint: Upstream) -> None:
    endpoint.answers = [say_hello]

    chunks = await answer(engine, make_prompt())

    assert text_of(chunks) == "Hello 세계"
    assert chunks[-1].usage == Usage(9, 5, 4)
    assert sum(chunk.num_tokens for chunk in chunks) == 5
    assert engine.failure() is None
    assert engine.capacity().max_context_tokens == 1000


async def test_connections_are_used_again(engine: OpenAIEngine, endpoint: Upstream) -> None:
    endpoint.answers = [say_hello] * 5

    for _ in range(5):
        await answer(engine, make_prompt())

    assert endpoint.num_connections == 1


async def test_events_cut_anywhere_are_read_whole(engine: OpenAIEngine, endpoint: Upstream) -> None:
    async def in_bytes(request: Request) -> None:
        await request.begin()
        data = 'data: {"choices":[{"delta":{"content":"안녕 👋"}}]}\r\n\r\n: comment\n\n'
        data += 'data:{"choices":[{"delta":{},"finish_reason":"length"}]}\n\n'
        for byte in data.encode():
            await request.send(bytes([byte]))
            await asyncio.sleep(0)
        await request.end()

    endpoint.answers = [in_bytes]

    chunks = await answer(engine, make_prompt())

    assert text_of(chunks) == "안녕 👋"
    assert chunks[-1].finish_reason == "length"


async def test_the_request_says_it_all(engine: OpenAIEngine, endpoint: Upstream) -> None:
    endpoint.answers = [say_hello]
    items = (
        user("Weather?"),
        assistant("Hm."),
        call("get_weather", '{"city":"Seoul"}'),
        output("sunny"),
    )
    choice = FunctionChoice(name="get_weather")

    await answer(
        engine, make_prompt(*items, tools=(WEATHER,), tool_choice=choice, max_output_tokens=20, session_id="sess_x")
    )

    (request,) = endpoint.requests
    assert request.headers["authorization"] == "Bearer key"
    assert request.headers["x-session-id"] == "sess_x"
    body = request.body
    assert [message["role"] for message in body["messages"]] == ["system", "user", "assistant", "tool"]
    assert body["messages"][2]["tool_calls"][0]["function"] == {"name": "get_weather", "arguments": '{"city":"Seoul"}'}
    assert body["tool_choice"] == {"type": "function", "function": {"name": "get_weather"}}
    assert body["tools"][0]["function"]["parameters"]["required"] == ["city"]
    assert body["max_completion_tokens"] == 20
    assert "continue_final_message" not in body


async def test_what_only_vllm_knows_goes_only_to_vllm(endpoint: Upstream) -> None:
    endpoint.model = {"id": "m", "owned_by": "openai"}
    endpoint.answers = [say_hello]

    async with OpenAIEngine(endpoint.url, None, "m", session_header=None, extra_body={"seed": 1}, **TIMEOUTS) as engine:
        await answer(engine, make_prompt(user("Hi")))

    (request,) = endpoint.requests
    assert set(request.body) == {"model", "messages", "stream", "stream_options", "seed"}
    assert "x-session-id" not in request.headers
    assert "authorization" not in request.headers


async def test_tool_calls_come_in_pieces(engine: OpenAIEngine, endpoint: Upstream) -> None:
    async def calling(request: Request) -> None:
        await request.begin()
        await request.delta(tool_calls=[{"index": 0, "id": "c", "function": {"name": "get_weather", "arguments": ""}}])
        await request.delta(tool_calls=[{"index": 0, "function": {"arguments": '{"city":'}}])
        await request.delta(tool_calls=[{"index": 0, "function": {"arguments": '"Seoul"}'}}])
        await request.delta(finish_reason="tool_calls")
        await request.end()

    endpoint.answers = [calling]

    chunks = await answer(engine, make_prompt(tools=(WEATHER,)))

    deltas = [delta for chunk in chunks for delta in chunk.tool_calls]
    assert deltas[0] == ToolCallDelta(0, "get_weather", "")
    assert "".join(delta.arguments for delta in deltas) == '{"city":"Seoul"}'
    assert chunks[-1].finish_reason == "tool_calls"


STRANGE: list[dict[str, Any]] = [
    {"index": 1, "id": "d", "function": {"name": "delete_account", "arguments": ""}},
    {"index": 1, "function": {"arguments": "{}"}},
]
OTHER = FunctionTool(name="other")


def calling(*pieces: dict[str, Any], text: str = "") -> Any:
    """Says the text, then sends these pieces of calls, each in an event of its own."""

    async def answer(request: Request) -> None:
        await request.begin()
        if text:
            await request.delta(content=text)
        for piece in pieces:
            await request.delta(tool_calls=[piece])
        await request.delta(finish_reason="tool_calls")
        await request.event(choices=[], usage={"prompt_tokens": 9, "completion_tokens": 7})
        await request.end()

    return answer


@pytest.mark.parametrize("demanded", ["auto", FunctionChoice(name="get_weather")])
async def test_a_call_of_a_tool_that_was_not_offered_is_left_out(
    engine: OpenAIEngine, endpoint: Upstream, demanded: Any
) -> None:
    offered = {"index": 0, "id": "c", "function": {"name": "get_weather", "arguments": "{}"}}
    strange = STRANGE
    tools: tuple[FunctionTool, ...] = (WEATHER,)
    if demanded != "auto":  # then another than the demanded one is strange too
        strange = [*STRANGE, {"index": 2, "function": {"name": "other", "arguments": "{}"}}]
        tools = (WEATHER, OTHER)
    endpoint.answers = [calling(strange[0], offered, *strange[1:], text="Let me see.")]

    with capture_logs() as logs:
        chunks = await answer(engine, make_prompt(tools=tools, tool_choice=demanded))

    assert text_of(chunks) == "Let me see."
    assert [delta for chunk in chunks for delta in chunk.tool_calls] == [ToolCallDelta(0, "get_weather", "{}")]
    assert chunks[-1].usage == Usage(9, 7)
    assert sum(chunk.num_tokens for chunk in chunks) == 7
    assert [line["event"] for line in logs].count("tool_not_offered") == len(tools)


@pytest.mark.parametrize("changes", [{}, {"tools": (WEATHER,)}, {"tools": (WEATHER,), "tool_choice": "none"}])
async def test_an_answer_ends_with_what_was_said_before_a_strange_call(
    engine: OpenAIEngine, endpoint: Upstream, changes: dict[str, Any]
) -> None:
    endpoint.answers = [calling(*STRANGE, text="Let me see.")]

    chunks = await answer(engine, make_prompt(**changes))

    assert text_of(chunks) == "Let me see."
    assert not any(chunk.tool_calls for chunk in chunks)
    assert chunks[-1].finish_reason == "tool_calls"


async def test_an_answer_of_nothing_but_strange_calls_is_a_failure(engine: OpenAIEngine, endpoint: Upstream) -> None:
    """P9: never silence."""
    endpoint.answers = [calling(*STRANGE)]

    with pytest.raises(EngineError, match="not offered") as raised:
        await answer(engine, make_prompt(tools=(WEATHER,)))

    assert not raised.value.retryable
    assert engine.failure() is None


async def test_a_strange_call_after_what_was_spoken_is_left_out_too(engine: OpenAIEngine, endpoint: Upstream) -> None:
    """P4: the answer ends as it would have without the cut."""
    endpoint.answers = [counting(6), counting(9), calling(*STRANGE)]

    chunks = await answer(engine, make_prompt(user("Hi"), tools=(WEATHER,), spoken="Let me see."))

    assert text_of(chunks) == ""
    assert not any(chunk.tool_calls for chunk in chunks)
    assert chunks[-1].usage == Usage(6, 10)


@pytest.mark.parametrize("way", ["abort", "close", "cancel", "abort before the first token"])
async def test_the_other_side_learns_that_nobody_listens(engine: OpenAIEngine, endpoint: Upstream, way: str) -> None:
    begun = asyncio.Event()

    async def hang(request: Request) -> None:
        if way != "abort before the first token":
            await request.begin()
            await request.delta(content="Hel")
        begun.set()
        await asyncio.Event().wait()

    endpoint.answers = [hang]
    prompt = make_prompt()
    stream = engine.generate(prompt)

    if way == "abort before the first token":
        task = asyncio.ensure_future(anext(stream, None))
        await begun.wait()
        await engine.abort(prompt.response_id)
        assert await task is None
    else:
        await anext(stream)
        if way == "close":
            await stream.aclose()
        else:
            task = asyncio.ensure_future(anext(stream, None))
            await asyncio.sleep(0)
            if way == "cancel":
                task.cancel()
            else:
                await engine.abort(prompt.response_id)
            await asyncio.wait([task])

    async with asyncio.timeout(60):
        await endpoint.gone.wait()
    assert endpoint.num_gone == 1
    assert engine.capacity().running == 0


@pytest.mark.parametrize("status", [429, 502, 503])
async def test_a_passing_refusal_is_tried_again(engine: OpenAIEngine, endpoint: Upstream, status: int) -> None:
    endpoint.answers = [refusing(status, **{"retry-after": "0.01"}), say_hello]

    assert text_of(await answer(engine, make_prompt())) == "Hello 세계"


@pytest.mark.parametrize(
    ("status", "error", "num_requests"),
    [
        (429, EngineOverloaded, 3),
        (500, EngineUnavailable, 3),
        (401, EngineError, 1),
        (404, EngineError, 1),
        (400, EngineError, 1),
    ],
)
async def test_refusals_are_typed(
    engine: OpenAIEngine, endpoint: Upstream, status: int, error: type[EngineError], num_requests: int
) -> None:
    endpoint.answers = [refusing(status, "because")] * 3

    with pytest.raises(error, match="because") as raised:
        await answer(engine, make_prompt())

    assert type(raised.value) is error
    assert len(endpoint.requests) == num_requests
    assert engine.capacity().running == 0


async def test_history_is_dropped_until_it_fits_and_stays_dropped(engine: OpenAIEngine, endpoint: Upstream) -> None:
    endpoint.answers = [too_long_for(3000)] * 20
    history = [item for n in range(40) for item in (user(f"Q{n} " + "a" * 120), assistant("b" * 120))]

    first = make_prompt(*history, user("last"))
    assert text_of(await answer(engine, first)) == "Hello 세계"
    num_first = len(endpoint.requests)
    await answer(engine, make_prompt(*history, user("last"), assistant("Hello"), user("more")))

    messages = endpoint.requests[num_first - 1].body["messages"]
    assert messages[0]["role"] == "system"
    assert messages[1]["content"].startswith("Q")
    assert messages[-1]["content"] == "last"
    assert len(messages) > 5
    assert len(endpoint.requests) == num_first + 1  # learned


async def test_where_no_limit_is_told_history_is_dropped_a_part_at_a_time(endpoint: Upstream) -> None:
    async def refuse(request: Request) -> None:
        await request.refuse(400, "the prompt is too long", "context_length_exceeded")

    del endpoint.model["max_model_len"]
    endpoint.answers = [refuse, say_hello]
    history = [item for n in range(20) for item in (user(f"Q{n} " + "a" * 120), assistant("b" * 120))]
    async with OpenAIEngine(endpoint.url, "key", "m", **TIMEOUTS) as engine:
        await answer(engine, make_prompt(*history, user("last")))

    asked = [message for message in endpoint.requests[-1].body["messages"] if message["role"] == "user"]
    assert 8 < len(asked) < 16


async def test_system_messages_outlive_their_turn(engine: OpenAIEngine, endpoint: Upstream) -> None:
    endpoint.answers = [too_long_for(1000)] * 20

    await answer(engine, make_prompt(user("a" * 900), system("No prices."), user("b" * 900), user("last")))

    assert "No prices." in [message["content"] for message in endpoint.requests[-1].body["messages"]]


@pytest.mark.parametrize("truncation", ["disabled", "auto", RetentionRatio(0.5)])
async def test_what_cannot_fit_is_refused(engine: OpenAIEngine, endpoint: Upstream, truncation: Any) -> None:
    endpoint.answers = [too_long_for(10)] * 20

    with pytest.raises(PromptTooLong) as raised:
        await answer(engine, make_prompt(user("a"), user("b" * 4000), truncation=truncation))

    assert raised.value.max_tokens == 1000
    assert len(endpoint.requests) == (1 if truncation == "disabled" else 2)


async def test_silence_before_the_first_token_ends(endpoint: Upstream) -> None:
    async def say_nothing(request: Request) -> None:
        await asyncio.Event().wait()

    endpoint.answers = [say_nothing]

    async with OpenAIEngine(endpoint.url, "key", "m", **TIMEOUTS | {"first_token_timeout_s": 0.3}) as engine:
        with pytest.raises(EngineUnavailable, match="nothing came"):
            await answer(engine, make_prompt())


async def test_silence_between_tokens_ends(endpoint: Upstream) -> None:
    async def stall(request: Request) -> None:
        await request.begin()
        await request.delta(content="Hel")
        await asyncio.Event().wait()

    endpoint.answers = [stall]

    async with OpenAIEngine(endpoint.url, "key", "m", **TIMEOUTS | {"idle_timeout_s": 0.2}) as engine:
        with pytest.raises(EngineUnavailable, match=r"for 0\.2 s"):
            await answer(engine, make_prompt())


@pytest.mark.parametrize("end", ["early", "garbage", "error event"])
async def test_a_broken_stream_is_never_a_finished_answer(engine: OpenAIEngine, endpoint: Upstream, end: str) -> None:
    async def broken(request: Request) -> None:
        await request.begin()
        await request.delta(content="Hel")
        if end == "garbage":
            await request.send(b"data: {nonsense\n\n")
        if end == "error event":
            await request.event(error={"message": "out of memory", "code": 500})
        await request.end(is_done=end == "garbage")

    endpoint.answers = [broken]

    with pytest.raises(EngineUnavailable):
        await answer(engine, make_prompt())


async def test_an_endpoint_that_is_away_turns_red_and_green_again(endpoint: Upstream) -> None:
    async with upstream() as gone:
        url = gone.url
    timeouts = TIMEOUTS | {"probe_interval_s": 0.02}

    async with OpenAIEngine(url, None, "m", max_retries=0, **timeouts) as engine:
        assert "cannot reach" in str(engine.failure())
        with pytest.raises(EngineUnavailable):
            await answer(engine, make_prompt())
        port = int(url.split(":")[2].split("/")[0])
        server = await asyncio.start_server(endpoint.serve, "127.0.0.1", port)
        async with server, asyncio.timeout(60):
            while engine.failure() is not None:  # noqa: ASYNC110  the probe's own pace
                await asyncio.sleep(0.01)


async def test_a_model_that_is_not_there_is_named(endpoint: Upstream) -> None:
    async with OpenAIEngine(endpoint.url, None, "other", **TIMEOUTS) as engine:
        assert "has no model 'other'" in str(engine.failure())


def counting(num_tokens: int) -> Any:
    """Answers a request that is not streamed, as vLLM does, with what it read."""

    async def answer(request: Request) -> None:
        await request.begin()
        choice = {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "length"}
        usage = {"prompt_tokens": num_tokens, "completion_tokens": 1}
        await request.send(json.dumps({"choices": [choice], "usage": usage}).encode())
        await request.end(is_done=False)

    return answer


async def test_what_was_spoken_is_gone_on_with_and_counted(engine: OpenAIEngine, endpoint: Upstream) -> None:
    endpoint.answers = [counting(6), counting(9), say_hello]

    chunks = await answer(engine, make_prompt(user("Hi"), max_output_tokens=20, spoken="Well,"))

    *counts, body = [request.body for request in endpoint.requests]
    assert [message["content"] for message in body["messages"][1:]] == ["Hi", "Well,"]
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)
    assert body["max_completion_tokens"] == 17
    assert [count["messages"][-1]["content"] for count in counts] == ["", "Well,"]
    assert {count["max_completion_tokens"] for count in counts} == {1}
    assert text_of(chunks) == "Hello 세계"
    assert chunks[-1].usage == Usage(6, 8, 4)
    assert sum(chunk.num_tokens for chunk in chunks) == 5


async def test_an_answer_at_its_limit_only_ends(engine: OpenAIEngine, endpoint: Upstream) -> None:
    endpoint.answers = [counting(6), counting(9), say_hello]

    chunks = await answer(engine, make_prompt(user("Hi"), max_output_tokens=3, spoken="Well,"))

    assert endpoint.requests[-1].body["max_completion_tokens"] == 1
    assert [replace(chunk, origin=None) for chunk in chunks] == [Chunk(usage=Usage(6, 3, 4), finish_reason="length")]


@pytest.mark.parametrize("num_counted", [0, 2])
async def test_an_endpoint_that_cannot_go_on_says_so(
    engine: OpenAIEngine, endpoint: Upstream, num_counted: int
) -> None:
    endpoint.answers = [counting(6)] * num_counted + [refusing(400, "Inkling does not support it")]

    with pytest.raises(EngineError, match=r"cannot be continued.*Inkling") as raised:
        await answer(engine, make_prompt(user("Hi"), spoken="Well,"))

    assert not raised.value.retryable
    assert engine.failure() is None


async def test_an_endpoint_that_would_begin_anew_is_not_asked(endpoint: Upstream) -> None:
    endpoint.model = {"id": "m", "owned_by": "openai"}

    async with OpenAIEngine(endpoint.url, None, "m", **TIMEOUTS) as engine:
        with pytest.raises(EngineError, match="cannot be continued"):
            await answer(engine, make_prompt(user("Hi"), spoken="Well,"))

    assert endpoint.requests == []


def origins_of(chunks: list[Chunk]) -> list[Origin]:
    return [chunk.origin for chunk in chunks if chunk.origin is not None]


async def test_what_was_posted_is_told_as_it_was_posted(engine: OpenAIEngine, endpoint: Upstream) -> None:
    endpoint.answers = [say_hello]
    prompt = make_prompt(user('안녕 "\\ </s>'), assistant("Hi"), user("?"), tools=(WEATHER,), max_output_tokens=9)

    first, last = origins_of(await answer(engine, prompt))

    [request] = endpoint.requests
    assert first.prompt is not None
    messages, tools = (request.content.partition(b'"%b":' % name)[2] for name in (b"messages", b"tools"))
    told = json.loads(first.prompt)
    assert told == {name: request.body[name] for name in ("messages", "tools")}
    told_messages, _, told_tools = first.prompt.removeprefix('{"messages":').partition(',"tools":')
    assert messages.startswith(told_messages.encode())
    assert tools.startswith(told_tools.removesuffix("}").encode())
    assert (first.prompt_format, last.prompt) == ("messages", first.prompt)
    del request.body["messages"], request.body["tools"]
    known = {"model": "m", "stream": True, "stream_options": {"include_usage": True}}
    assert json.loads(bytes(first.sampling)) | known == request.body


async def test_the_prompt_that_was_accepted_is_told(engine: OpenAIEngine, endpoint: Upstream) -> None:
    endpoint.answers = [too_long_for(300)] * 4
    items = [user("what " * 20), assistant("this " * 20)] * 5

    chunks = await answer(engine, make_prompt(*items, user("last")))

    posted = endpoint.requests[-1].body["messages"]
    assert len(endpoint.requests) > 1
    assert len(posted) < len(items)
    assert [json.loads(origin.prompt or "")["messages"] for origin in origins_of(chunks)] == [posted, posted]


async def test_only_arrivals_are_known_of_an_endpoint_that_tells_no_times(
    engine: OpenAIEngine, endpoint: Upstream
) -> None:
    endpoint.answers = [say_hello]
    before_ms = epoch_ms()

    first, last = origins_of(await answer(engine, make_prompt()))

    assert (first.taken_ms, last.taken_ms) == (None, None)
    assert first.last_token_ms is None
    assert first.first_token_ms is not None
    assert last.last_token_ms is not None
    assert before_ms <= first.first_token_ms <= last.last_token_ms <= epoch_ms()


@pytest.mark.parametrize(("told_ms", "prefill_ms"), [(0.0, 0), (3.2, 3), (1e9, None)])
async def test_vllms_own_time_to_the_first_token_tells_when_it_began(
    engine: OpenAIEngine, endpoint: Upstream, told_ms: float, prefill_ms: int | None
) -> None:
    async def say(request: Request) -> None:
        await asyncio.sleep(0.01)
        await request.begin()
        await request.delta(content="Hello")
        await request.delta(finish_reason="stop")
        usage = {"prompt_tokens": 9, "completion_tokens": 1}
        await request.event(choices=[], usage=usage, metrics={"time_to_first_token_ms": told_ms, "queue_time_ms": 1.0})
        await request.end()

    endpoint.answers = [say]
    before_ms = epoch_ms()

    last = origins_of(await answer(engine, make_prompt()))[-1]

    assert last.taken_ms is not None
    assert last.first_token_ms is not None
    assert last.taken_ms >= before_ms  # never before it was asked, whatever is told
    if prefill_ms is not None:
        assert last.first_token_ms - last.taken_ms == prefill_ms


async def test_text_that_is_gone_on_with_comes_after_its_origin(engine: OpenAIEngine, endpoint: Upstream) -> None:
    endpoint.answers = [counting(6), counting(9), say_hello]

    chunks = await answer(engine, make_prompt(user("Hi"), spoken="Well,"))

    assert (chunks[0].text, chunks[1].origin) == ("", None)
    assert len(origins_of(chunks)) == 2
    assert chunks[0].origin is not None
    assert json.loads(chunks[0].origin.prompt or "")["messages"][-1] == {"role": "assistant", "content": "Well,"}
