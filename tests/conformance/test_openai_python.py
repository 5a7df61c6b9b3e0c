"""The official Python SDK, unmodified: base URL, key and model are all that is ours (P1)."""

import asyncio
import json
import time

import pytest
from openai import AsyncOpenAI, OpenAI
from openai.resources.realtime.realtime import AsyncRealtimeConnection
from openai.types.realtime import RealtimeErrorEvent, ResponseDoneEvent, SessionCreatedEvent

from tests.conformance.conftest import Served
from tests.conformance.report import Call, Report, Scene, check

pytestmark = pytest.mark.conformance


async def test_the_official_python_sdk_streams_calls_a_tool_and_cancels(served: Served) -> None:
    """P1. Reconnection is left at its default, which is off."""
    script = served.script
    client = AsyncOpenAI(base_url=script.base_url, api_key=served.token)

    async with client, client.realtime.connect(model=script.model) as connection:
        await _set_up(connection)
        await _say(connection, script.turn)
        turn, _ = await _answer(connection)
        await _say(connection, script.tool)
        called, call_id = await _answer(connection)
        assert call_id is not None
        await connection.conversation.item.create(
            item={"type": "function_call_output", "call_id": call_id, "output": script.tool_result}
        )
        tool, _ = await _answer(connection)
        await _say(connection, script.cancel)
        cancel, _ = await _answer(connection, cancel_after=script.cancel_after)

    tool = Scene(tool.text, tool.num_deltas, tool.status, tool.output_tokens, called.calls)
    check(Report(turn, tool, cancel, errors=()), script)


@pytest.mark.filterwarnings(
    "ignore:connect.. must be used as a context manager:DeprecationWarning"
)  # the SDK's own use
async def test_the_synchronous_python_sdk_streams_a_turn(served: Served) -> None:
    """P1."""

    def play() -> str:
        with (
            OpenAI(base_url=served.base_url, api_key=served.token) as client,
            client.realtime.connect(model=served.script.model) as connection,
        ):
            connection.conversation.item.create(
                item={"type": "message", "role": "user", "content": [{"type": "input_text", "text": "[echo so it is]"}]}
            )
            connection.response.create(response={"metadata": {"topic": "weather"}})
            text = ""
            for event in connection:
                if event.type == "response.output_text.delta":
                    text += event.delta
                elif event.type == "response.done":
                    assert event.response.metadata == {"topic": "weather"}
                    break
            return text

    text = await asyncio.to_thread(play)

    assert text == "so it is"


async def test_a_client_secret_from_the_official_sdk_opens_the_session_that_it_describes(served: Served) -> None:
    """P1. A backend mints it with its own token and hands it to a browser."""
    async with AsyncOpenAI(base_url=served.base_url, api_key=served.token) as backend:
        secret = await backend.realtime.client_secrets.create(
            session={"type": "realtime", "model": served.script.model, "instructions": "Sing."},
            expires_after={"anchor": "created_at", "seconds": 60},
        )
    async with (
        AsyncOpenAI(base_url=served.base_url, api_key=secret.value) as client,
        client.realtime.connect(model=served.script.model) as connection,
    ):
        created = await connection.recv()

    assert secret.value.startswith("ek_")
    assert secret.expires_at > time.time()
    assert isinstance(created, SessionCreatedEvent)
    assert created.session.type == "realtime"
    assert created.session.instructions == "Sing."


async def _set_up(connection: AsyncRealtimeConnection) -> None:
    await connection.session.update(
        session={
            "type": "realtime",
            "output_modalities": ["text"],
            "instructions": "Be brief.",
            "tools": [
                {
                    "type": "function",
                    "name": "get_weather",
                    "description": "The weather in a city",
                    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
                }
            ],
        }
    )
    async for event in connection:
        if event.type == "session.updated":
            return


async def _say(connection: AsyncRealtimeConnection, text: str) -> None:
    await connection.conversation.item.create(
        item={"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}
    )


async def _answer(connection: AsyncRealtimeConnection, *, cancel_after: int = 0) -> tuple[Scene, str | None]:
    """One answer, and the id of the tool call in it."""
    await connection.response.create()
    text, num_deltas, calls, call_id = "", 0, [], None
    while True:
        event = await connection.recv()
        assert not isinstance(event, RealtimeErrorEvent), event
        if event.type == "response.output_text.delta":
            text += event.delta
            num_deltas += 1
            if num_deltas == cancel_after:
                await connection.response.cancel()
        elif event.type == "response.function_call_arguments.done":
            calls.append(Call(event.name, json.loads(event.arguments)))
            call_id = event.call_id
        elif isinstance(event, ResponseDoneEvent):
            usage = event.response.usage
            assert usage is not None
            assert usage.output_tokens is not None
            return Scene(text, num_deltas, str(event.response.status), usage.output_tokens, tuple(calls)), call_id
