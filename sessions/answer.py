"""One response while it streams: its parameters, its open output items, its tokens and times. Emits nothing itself."""

from typing import Literal

import msgspec
from msgspec import Struct

from sessions.generation import Prompt, Usage
from sessions.items import FunctionCallItem, Item, ItemStatus, MessageItem, OutputText
from sessions.server_events import (
    CachedTokenDetails,
    InputTokenDetails,
    OutputTokenDetails,
    ResponseObject,
    ResponseStatus,
    ResponseUsage,
    StatusDetails,
)


class OpenMessage:
    """A message whose text is still growing."""

    __slots__ = ("item_id", "output_index", "parts")

    def __init__(self, item_id: str, output_index: int) -> None:
        self.item_id = item_id
        self.output_index = output_index
        self.parts: list[str] = []

    def text(self) -> str:
        """The text so far."""
        return "".join(self.parts)

    def item(self, status: ItemStatus) -> MessageItem:
        """The message as an item; an in-progress one has no content on the wire."""
        content = () if status == "in_progress" else (OutputText(self.text()),)
        return MessageItem(self.item_id, "assistant", content, status)


class OpenCall:
    """A tool call whose arguments are still growing."""

    __slots__ = ("call_id", "index", "item_id", "name", "output_index", "parts")

    def __init__(self, item_id: str, output_index: int, *, index: int, call_id: str, name: str) -> None:
        self.item_id = item_id
        self.output_index = output_index
        self.index = index
        self.call_id = call_id
        self.name = name
        self.parts: list[str] = []

    def arguments(self) -> str:
        """The arguments so far, as JSON text."""
        return "".join(self.parts)

    def item(self, status: ItemStatus) -> FunctionCallItem:
        """The call as an item."""
        return FunctionCallItem(self.item_id, self.call_id, self.name, self.arguments(), status)


class AnswerRequest(Struct, frozen=True):
    """What was asked of the engine, as kept with the prediction: enough to see later why an answer came out as it did."""

    instructions: str
    input_item_ids: tuple[str, ...]
    tool_names: tuple[str, ...]
    max_output_tokens: int | None


class Answer:
    """A response that has begun and not ended."""

    __slots__ = (
        "conversation_id",
        "created_ms",
        "done",
        "first_token_ms",
        "max_output_tokens",
        "metadata",
        "num_tokens",
        "open",
        "prompt",
        "turn_id",
        "usage",
    )

    def __init__(
        self,
        prompt: Prompt,
        *,
        conversation_id: str | None,
        turn_id: str | None,
        max_output_tokens: int | Literal["inf"],
        metadata: dict[str, str] | None,
        created_ms: int,
    ) -> None:
        self.prompt = prompt
        self.conversation_id = conversation_id
        self.turn_id = turn_id
        self.max_output_tokens = max_output_tokens
        self.metadata = metadata
        self.created_ms = created_ms
        self.first_token_ms: int | None = None
        self.num_tokens = 0
        self.usage: Usage | None = None
        self.open: OpenMessage | OpenCall | None = None
        self.done: list[Item] = []

    @property
    def response_id(self) -> str:
        """The response's id."""
        return self.prompt.response_id

    @property
    def in_conversation(self) -> bool:
        """Whether the answer becomes part of the dialogue."""
        return self.conversation_id is not None

    def final_usage(self) -> Usage | None:
        """The tokens so far: the engine's own count when it gave one, its output never less than what was streamed."""
        if self.usage is None:
            return None
        return msgspec.structs.replace(self.usage, output_tokens=max(self.usage.output_tokens, self.num_tokens))

    def as_response(self, status: ResponseStatus, details: StatusDetails | None = None) -> ResponseObject:
        """The response as clients see it now."""
        return ResponseObject(
            id=self.response_id,
            status=status,
            status_details=details,
            output=tuple(self.done),
            conversation_id=self.conversation_id,
            max_output_tokens=self.max_output_tokens,
            usage=None if status == "in_progress" else _wire_usage(self.final_usage()),
            metadata=self.metadata,
        )

    def request(self) -> AnswerRequest:
        """What was asked, for the record."""
        return AnswerRequest(
            instructions=self.prompt.instructions,
            input_item_ids=tuple(item.id for item in self.prompt.items),
            tool_names=tuple(tool.name for tool in self.prompt.tools),
            max_output_tokens=self.prompt.max_output_tokens,
        )


def _wire_usage(usage: Usage | None) -> ResponseUsage | None:
    if usage is None:
        return None
    return ResponseUsage(
        total_tokens=usage.input_tokens + usage.output_tokens,
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        input_token_details=InputTokenDetails(
            text_tokens=usage.input_tokens,
            cached_tokens=usage.cached_tokens,
            cached_tokens_details=CachedTokenDetails(text_tokens=usage.cached_tokens),
        ),
        output_token_details=OutputTokenDetails(text_tokens=usage.output_tokens),
    )
