"""Pipecat's OpenAIRealtimeLLMService against a running server: a streamed turn, a tool call round trip and an interruption.

Runs in `.venv-pipecat`, not in the project's own environment. Only the base URL, the key and the model are ours. Each scene is a
pipeline of its own, since the service sends no further user text into a session that has begun.
"""

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from loguru import logger
from pipecat.adapters.llm.schemas.function_schema import FunctionSchema
from pipecat.adapters.llm.schemas.tools_schema import ToolsSchema
from pipecat.frames.frames import (
    EndFrame,
    ErrorFrame,
    Frame,
    InterruptionFrame,
    LLMRunFrame,
    LLMTextFrame,
    MetricsFrame,
)
from pipecat.metrics.metrics import LLMUsageMetricsData
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.services.llm_service import FunctionCallParams
from pipecat.services.openai.realtime.events import AudioConfiguration, AudioInput, ConversationItem, SessionProperties
from pipecat.services.openai.realtime.llm import OpenAIRealtimeLLMService
from pipecat.workers.runner import WorkerRunner

SCRIPT = json.loads(os.environ["CONFORMANCE_SCRIPT"])
Json = dict[str, Any]
WEATHER = FunctionSchema(
    name="get_weather",
    description="The weather in a city",
    properties={"city": {"type": "string"}},
    required=["city"],
)


class Listener(FrameProcessor):  # type: ignore[misc]  # Pipecat is not installed where mypy runs
    """Sits behind the service and writes down what an avatar would be given."""

    def __init__(self, on_delta: Callable[[int], Awaitable[None]]) -> None:
        super().__init__()
        self.text = ""
        self.num_deltas = 0
        self.output_tokens = 0
        self._on_delta = on_delta

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        await self.push_frame(frame, direction)
        if isinstance(frame, LLMTextFrame):
            self.text += frame.text
            self.num_deltas += 1
            await self._on_delta(self.num_deltas)
        elif isinstance(frame, MetricsFrame):
            usage = [data.value for data in frame.data if isinstance(data, LLMUsageMetricsData)]
            self.output_tokens = usage[-1].completion_tokens if usage else self.output_tokens


async def play(text: str, *, cancel_after: int = 0) -> Json:
    """One pipeline, from its first user message until an assistant's message is complete."""
    calls: list[Json] = []
    errors: list[str] = []
    statuses: asyncio.Queue[str] = asyncio.Queue()
    llm = OpenAIRealtimeLLMService(
        api_key=os.environ["OPENAI_API_KEY"],
        base_url=SCRIPT["ws_url"],
        settings=OpenAIRealtimeLLMService.Settings(
            model=SCRIPT["model"],
            system_instruction="Be brief.",
            session_properties=SessionProperties(
                output_modalities=["text"], audio=AudioConfiguration(input=AudioInput(turn_detection=False))
            ),
        ),
    )

    async def get_weather(params: FunctionCallParams) -> None:
        calls.append({"name": params.function_name, "arguments": dict(params.arguments)})
        await params.result_callback({"weather": SCRIPT["tool_result"]})

    llm.register_function("get_weather", get_weather)

    async def on_item(service: OpenAIRealtimeLLMService, item_id: str, item: ConversationItem | None) -> None:
        if item is not None and item.role == "assistant" and item.status != "in_progress":
            statuses.put_nowait(item.status)

    llm.add_event_handler("on_conversation_item_updated", on_item)

    async def on_delta(num: int) -> None:
        if num == cancel_after:
            await worker.queue_frame(InterruptionFrame())

    listener = Listener(on_delta)
    aggregators = LLMContextAggregatorPair(
        LLMContext([{"role": "user", "content": text}], tools=ToolsSchema(standard_tools=[WEATHER]))
    )
    worker = PipelineWorker(
        Pipeline([aggregators.user(), llm, listener, aggregators.assistant()]),
        params=PipelineParams(enable_metrics=True, enable_usage_metrics=True),
    )

    async def on_error(worker: PipelineWorker, frame: ErrorFrame) -> None:
        errors.append(frame.error)

    worker.add_event_handler("on_pipeline_error", on_error)

    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    running = asyncio.create_task(runner.run())
    await worker.queue_frame(LLMRunFrame())
    status = await statuses.get()  # from conversation.item.done
    await statuses.get()  # once more from response.done, after which the usage is known
    await worker.queue_frame(EndFrame())
    await running
    return {
        "text": listener.text,
        "num_deltas": listener.num_deltas,
        "calls": calls,
        "status": status,
        "output_tokens": listener.output_tokens,
        "errors": errors,
    }


async def main() -> None:
    logger.remove()
    logger.add(sys.stderr, level=os.environ.get("LOG_LEVEL", "WARNING"))
    scenes = {
        "turn": await play(SCRIPT["turn"]),
        "tool": await play(SCRIPT["tool"]),
        "cancel": await play(SCRIPT["cancel"], cancel_after=SCRIPT["cancel_after"]),
    }
    errors = [error for scene in scenes.values() for error in scene.pop("errors")]
    print(json.dumps(scenes | {"errors": errors}))


asyncio.run(main())
