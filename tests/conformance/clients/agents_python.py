"""The official agents SDK for Python against a running server: one streamed turn, one tool call that the SDK runs itself, one interruption.

Runs in `.venv-agents`. Only the URL, the key and the model are ours; the rest are the SDK's defaults (audio out, semantic VAD).
"""

import asyncio
import json
import os
from typing import Any

from agents import function_tool  # type: ignore[import-not-found]
from agents.realtime import RealtimeAgent, RealtimeRunner, RealtimeSession  # type: ignore[import-not-found]
from agents.realtime.model_inputs import RealtimeModelSendInterrupt  # type: ignore[import-not-found]

SCRIPT = json.loads(os.environ["CONFORMANCE_SCRIPT"])
Json = dict[str, Any]


async def answer(session: RealtimeSession, text: str, *, num_responses: int = 1, cancel_after: int = 0) -> Json:
    """What follows a message, until so many responses are done: the SDK asks for the second by itself after a tool call."""
    seen: Json = {"text": "", "num_deltas": 0, "errors": []}
    await session.send_message(text)
    async for event in session:
        if event.type == "error":
            seen["errors"].append(str(event.error))
        if event.type != "raw_model_event" or event.data.type != "raw_server_event":
            continue
        raw = event.data.data
        if raw["type"] == "response.output_text.delta":
            seen["text"] += raw["delta"]
            seen["num_deltas"] += 1
            if seen["num_deltas"] == cancel_after:
                # session.interrupt() is this without the force: with its default, semantic VAD, it trusts the server to have cancelled.
                await session.model.send_event(RealtimeModelSendInterrupt(force_response_cancel=True))
        elif raw["type"] == "response.done":
            num_responses -= 1
            if num_responses == 0:
                response = raw["response"]
                return seen | {"status": response["status"], "output_tokens": response["usage"]["output_tokens"]}
    raise AssertionError("the session ended in the middle of an answer")


async def main() -> None:
    calls: list[Json] = []

    async def get_weather(city: str) -> str:
        """The weather in a city."""
        calls.append({"name": "get_weather", "arguments": {"city": city}})
        result: str = SCRIPT["tool_result"]
        return result

    agent = RealtimeAgent(name="Guide", instructions="Be brief.", tools=[function_tool(get_weather)])
    config = {
        "url": f"{SCRIPT['ws_url']}?model={SCRIPT['model']}",
        "api_key": os.environ["OPENAI_API_KEY"],
        "initial_model_settings": {"model_name": SCRIPT["model"]},
    }
    async with await RealtimeRunner(agent).run(model_config=config) as session:
        turn = await answer(session, SCRIPT["turn"])
        tool = await answer(session, SCRIPT["tool"], num_responses=2)
        cancel = await answer(session, SCRIPT["cancel"], cancel_after=SCRIPT["cancel_after"])
    errors = [error for scene in (turn, tool, cancel) for error in scene.pop("errors")]
    print(json.dumps({"turn": turn, "tool": tool | {"calls": calls}, "cancel": cancel, "errors": errors}))


asyncio.run(main())
