"""LiveKit's OpenAI realtime plugin against a running server: one streamed turn, one tool call round trip, one cancel.

Runs in `.venv-livekit`, not in the project's own environment. Only the base URL, the key and the model are ours.
"""

import asyncio
import json
import os
from collections.abc import Callable
from typing import Any

from livekit.agents import llm
from livekit.plugins.openai.realtime import RealtimeModel, RealtimeSession

SCRIPT = json.loads(os.environ["CONFORMANCE_SCRIPT"])
Json = dict[str, Any]


async def get_weather(city: str) -> str:
    """The weather in a city."""
    raise AssertionError(f"the agent framework above the plugin would run this, for {city}")


async def say(session: RealtimeSession, *items: llm.ChatItem) -> None:
    """Put items into the server's conversation, as AgentSession does before it asks for a reply."""
    chat = session.chat_ctx.copy()
    chat.items.extend(items)
    await session.update_chat_ctx(chat)


def user(text: str) -> llm.ChatMessage:
    return llm.ChatMessage(role="user", content=[text])


async def answer(
    session: RealtimeSession, statuses: asyncio.Queue[Json], on_delta: Callable[[int], None] = lambda num: None
) -> Json:
    """One reply: its deltas as they came, the calls it made, and how it ended."""
    generation = await session.generate_reply()
    seen: Json = {"text": "", "num_deltas": 0, "calls": []}
    async for message in generation.message_stream:
        async for delta in message.text_stream:
            seen["text"] += delta
            seen["num_deltas"] += 1
            on_delta(seen["num_deltas"])
    async for call in generation.function_stream:
        seen["calls"].append({"name": call.name, "arguments": json.loads(call.arguments), "call_id": call.call_id})
    return seen | await statuses.get()


async def main() -> None:
    model = RealtimeModel(
        model=SCRIPT["model"],
        base_url=SCRIPT["base_url"],
        api_key=os.environ["OPENAI_API_KEY"],
        modalities=["text"],
    )
    session = model.session()
    statuses: asyncio.Queue[Json] = asyncio.Queue()
    errors: list[str] = []

    def on_event(event: Json) -> None:
        if event["type"] == "response.done":
            response = event["response"]
            statuses.put_nowait({"status": response["status"], "output_tokens": response["usage"]["output_tokens"]})

    session.on("openai_server_event_received", on_event)
    session.on("error", lambda event: errors.append(str(event.error)))
    await session.update_instructions("Be brief.")
    await session.update_tools([llm.function_tool(get_weather)])

    await say(session, user(SCRIPT["turn"]))
    turn = await answer(session, statuses)

    await say(session, user(SCRIPT["tool"]))
    called = await answer(session, statuses)
    call = called["calls"][0]
    output = llm.FunctionCallOutput(
        call_id=call["call_id"], name=call["name"], output=SCRIPT["tool_result"], is_error=False
    )
    await say(session, output)
    tool = await answer(session, statuses) | {"calls": called["calls"]}

    def interrupt(num: int) -> None:
        if num == SCRIPT["cancel_after"]:
            session.interrupt()

    await say(session, user(SCRIPT["cancel"]))
    cancel = await answer(session, statuses, interrupt)
    # A listener heard less than was generated: the plugin deletes the answer and creates it anew, shorter, under the same id.
    heard = cancel["text"].split()[0]
    spoken = session.chat_ctx.items[-1]
    session.truncate(message_id=spoken.id, modalities=["text"], audio_end_ms=0, audio_transcript=heard)
    await say(session, user(SCRIPT["turn"]))
    kept = session.chat_ctx.get_by_id(spoken.id)
    history = [
        {"type": item.type, "role": getattr(item, "role", None), "text": getattr(item, "text_content", None)}
        for item in session.chat_ctx.items
    ]
    await session.aclose()
    await model.aclose()
    truncated = {"heard": heard, "kept": kept.text_content if kept else None}
    report = {
        "turn": turn,
        "tool": tool,
        "cancel": cancel,
        "errors": errors,
        "history": history,
        "truncated": truncated,
    }
    print(json.dumps(report))


asyncio.run(main())
