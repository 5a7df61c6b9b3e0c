"""What OpenAI's streaming chat completions look like on the wire, as far as the engine reads and writes them.

Source: OpenAI's API reference, "Chat completions / streaming".
"""

from collections.abc import Sequence
from typing import Any

import httpx
import msgspec
from msgspec import Struct

from engine.base import EngineUnavailable
from sessions.generation import FinishReason, ToolCallDelta, Usage
from sessions.items import FunctionCallOutputItem, Item, MessageItem


class Function(Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class Call(Struct, gc=False):
    index: int = 0
    function: Function | None = None

    def delta(self) -> ToolCallDelta:
        function = self.function or Function()
        return ToolCallDelta(self.index, function.name or None, function.arguments or "")


class Delta(Struct, gc=False):
    content: str | None = None
    tool_calls: list[Call] | None = None


class Choice(Struct, gc=False):
    delta: Delta = msgspec.field(default_factory=Delta)
    finish_reason: str | None = None


class Details(Struct, gc=False):
    cached_tokens: int | None = None


class TokenUsage(Struct, gc=False):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: Details | None = None

    def usage(self, num_spoken: int) -> Usage:
        """That of the whole answer, of which so many tokens were read with the prompt."""
        num_input = self.prompt_tokens - num_spoken
        num_cached = (self.prompt_tokens_details or Details()).cached_tokens or 0
        return Usage(num_input, self.completion_tokens + num_spoken, min(num_cached, num_input))


class Times(Struct, gc=False):
    """What vLLM tells of a request when it is started with `--enable-per-request-metrics`. The first counts from when it left the queue."""

    time_to_first_token_ms: float | None = None


class Error(Struct, gc=False):
    message: str = ""
    code: str | int | None = None


class Event(Struct, gc=False):
    """A piece of an answer; an answer that is not streamed is read as one too, for its usage."""

    choices: list[Choice] = []
    usage: TokenUsage | None = None
    error: Error | None = None
    metrics: Times | None = None


class Refusal(Struct):
    """An error's body: OpenAI nests it in `error`, older vLLM does not."""

    error: Error | None = None
    message: str = ""
    code: str | int | None = None


class Model(Struct):
    id: str
    owned_by: str = ""
    max_model_len: int | None = None


class Models(Struct):
    data: list[Model]


FINISH: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}
_events = msgspec.json.Decoder(Event)


def read_event(line: bytes) -> Event:
    """What one line of the stream says; `EngineUnavailable` when it says nothing that is known."""
    try:
        return _events.decode(line)
    except msgspec.MsgspecError as error:
        raise EngineUnavailable(f"the endpoint sent what is no event: {error}") from error


def read_error(body: bytes) -> Error:
    """Why a request was refused, in whichever words."""
    try:
        refusal = msgspec.json.decode(body, type=Refusal)
    except msgspec.MsgspecError:
        return Error(body[:200].decode(errors="replace"))
    return refusal.error or Error(refusal.message, refusal.code)


def retry_after_s(response: httpx.Response) -> float | None:
    """When the endpoint asks to be asked again, if it does."""
    try:
        return float(response.headers["retry-after"])
    except (KeyError, ValueError):  # absent, or a date
        return None


def messages_of(instructions: str, items: Sequence[Item], spoken: str) -> list[dict[str, Any]]:
    """The conversation as chat messages; what was spoken of the answer is the last one."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": instructions}] if instructions else []
    for item in items:
        if isinstance(item, MessageItem):
            messages.append({"role": item.role, "content": item.text})
        elif isinstance(item, FunctionCallOutputItem):
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": item.output})
        else:
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": None})
            function = {"name": item.name, "arguments": item.arguments}
            call = {"id": item.call_id, "type": "function", "function": function}
            messages[-1].setdefault("tool_calls", []).append(call)
    messages = messages or [{"role": "user", "content": ""}]
    return [*messages, {"role": "assistant", "content": spoken}] if spoken else messages
