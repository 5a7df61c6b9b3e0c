"""One response while it streams: its parameters, its open output items, its tokens and times. Emits nothing itself."""

from collections.abc import Sequence
from typing import Literal

import msgspec
from msgspec import Struct

from sessions.generation import Origin, Prompt, ToolCallDelta, Usage
from sessions.items import FunctionCallItem, Item, ItemStatus, MessageItem, OutputText
from sessions.records import PredictionRecord, PredictionStatus, Trace
from sessions.repetition import Repetition
from sessions.server_events import (
    CachedTokenDetails,
    InputTokenDetails,
    OutputTokenDetails,
    ResponseObject,
    ResponseStatus,
    ResponseUsage,
    StatusDetails,
)
from sessions.utf16 import num_units

_encoder = msgspec.json.Encoder()
_UNTOLD = Origin(prompt=None, sampling=msgspec.Raw(b"{}"))


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
    """A response that has begun and not ended. `first_sequence` is the number of its response.created.

    `sent_chars` is how much of its text a client had when the connection was lost; None while one is connected. `repetition` is set while
    an engine generates again what clients already have: `open` is None then, so that nothing is added to the wrong item.
    """

    __slots__ = (
        "conversation_id",
        "created_ms",
        "done",
        "first_sequence",
        "first_token_ms",
        "max_output_tokens",
        "metadata",
        "num_tokens",
        "open",
        "origin",
        "prompt",
        "prompt_version",
        "repeated",
        "repetition",
        "sent_chars",
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
        first_sequence: int,
        prompt_version: str | None = None,
    ) -> None:
        self.prompt = prompt
        self.conversation_id = conversation_id
        self.turn_id = turn_id
        self.max_output_tokens = max_output_tokens
        self.metadata = metadata
        self.created_ms = created_ms
        self.first_sequence = first_sequence
        self.prompt_version = prompt_version
        self.origin = _UNTOLD
        self.first_token_ms: int | None = None
        self.num_tokens = 0
        self.usage: Usage | None = None
        self.open: OpenMessage | OpenCall | None = None
        self.done: list[Item] = []
        self.sent_chars: int | None = None
        self.repetition: Repetition | None = None
        self.repeated: OpenMessage | OpenCall | None = None

    @property
    def response_id(self) -> str:
        """The response's id."""
        return self.prompt.response_id

    @property
    def in_conversation(self) -> bool:
        """Whether the answer becomes part of the dialogue."""
        return self.conversation_id is not None

    @property
    def unfinished(self) -> OpenMessage | OpenCall | None:
        """The output item that clients were not told the end of."""
        return self.open or self.repeated

    def text(self) -> str:
        """The text so far, of all messages."""
        text = "".join(item.text for item in self.done if isinstance(item, MessageItem))
        return text + self.unfinished_text()

    def unfinished_text(self) -> str:
        """The text so far of the message that is being said; empty when none is."""
        return self.unfinished.text() if isinstance(self.unfinished, OpenMessage) else ""

    def num_continued(self, deltas: Sequence[ToolCallDelta]) -> int:
        """How many of the pieces of calls, from the first, go on with the call that is open."""
        if self.repetition is not None:
            index = self.repetition.call_index
        elif isinstance(self.open, OpenCall):
            index = self.open.index
        else:
            return 0
        return next((number for number, delta in enumerate(deltas) if delta.index != index), len(deltas))

    def told(self, origin: Origin, max_prompt_bytes: int) -> None:
        """The engine tells how the answer came to be, the second time more of it; a longer prompt than this is not remembered."""
        text = origin.prompt or ""
        # A character has 4 bytes at most, so that nearly every prompt is measured without being encoded.
        if 4 * len(text) > max_prompt_bytes and len(text.encode(errors="surrogatepass")) > max_prompt_bytes:
            origin = msgspec.structs.replace(origin, prompt=None)
        self.origin = origin

    def end_repetition(self) -> None:
        """What clients have was generated again, or will not be: the answer goes on, or ends, where it was."""
        if self.repetition is None:
            return
        # Never the sum: the tokens of a chunk that was new in part are counted in both.
        self.num_tokens = max(self.num_tokens, self.repetition.num_tokens)
        if isinstance(self.repeated, OpenCall):
            self.repeated.index = self.repetition.call_index
        self.open, self.repetition, self.repeated = self.repeated, None, None

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

    def as_prediction(
        self,
        status: PredictionStatus,
        details: StatusDetails | None,
        *,
        reason: str | None,
        sequence: int,
        model: str,
        model_version: str,
        persona: str,
        done_ms: int,
    ) -> PredictionRecord:
        """The answer, which has ended, as a record; `reason` where it says more than the wire's."""
        usage = self.final_usage()
        error = details.error if details else None
        text = self.text()
        return PredictionRecord(
            response_id=self.response_id,
            session_id=self.prompt.session_id,
            sequence=sequence,
            turn_id=self.turn_id,
            model=model,
            model_version=model_version,
            status=status,
            status_reason=reason or (details.reason if details else None) or (error.code if error else None),
            text=text,
            output=msgspec.Raw(_encoder.encode(self.done)),
            request=msgspec.Raw(_encoder.encode(_request(self.prompt))),
            input_tokens=usage.input_tokens if usage else 0,
            output_tokens=usage.output_tokens if usage else self.num_tokens,
            cached_tokens=usage.cached_tokens if usage else 0,
            created_ms=self.created_ms,
            first_token_ms=self.first_token_ms,
            done_ms=done_ms,
            error=error.message if error else None,
            sent_chars=num_units(text) if self.sent_chars is None else self.sent_chars,
            trace=self._trace(persona, done_ms),
        )

    def _trace(self, persona: str, done_ms: int) -> Trace:
        origin, last_token_ms = self.origin, self.origin.last_token_ms
        if last_token_ms is None and self.first_token_ms is not None:
            last_token_ms = done_ms  # an answer that was stopped was being decoded until then
        return Trace(
            prompt=origin.prompt,
            prompt_format=origin.prompt_format,
            sampling=origin.sampling,
            queued_ms=origin.taken_ms,
            engine_first_token_ms=origin.first_token_ms,
            last_token_ms=last_token_ms,
            prompt_version=self.prompt_version,
            persona=persona,
        )


def _request(prompt: Prompt) -> AnswerRequest:
    return AnswerRequest(
        instructions=prompt.instructions,
        input_item_ids=tuple(item.id for item in prompt.items),
        tool_names=tuple(tool.name for tool in prompt.tools),
        max_output_tokens=prompt.max_output_tokens,
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
