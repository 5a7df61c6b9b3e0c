"""What a dialogue asks of an engine and what comes back: the prompt, its chunks, their end.

These types stand here and not in `engine` because the dialogue, which must not know engines, both makes and reads them.
"""

from typing import Literal

from msgspec import Raw, Struct

from sessions.items import Item

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


class FunctionTool(Struct, frozen=True, tag_field="type", tag="function", omit_defaults=True):
    """A tool that the client can run; `parameters` is a JSON schema, kept as the client wrote it."""

    name: str
    description: str | None = None
    parameters: Raw = Raw(b"{}")


class FunctionChoice(Struct, frozen=True, tag_field="type", tag="function"):
    """The client's demand that one tool be called."""

    name: str


class RetentionRatio(Struct, frozen=True, tag_field="type", tag="retention_ratio"):
    """Truncation that, once the context is full, keeps only this share of it (0 to 1), so that prefix caches last."""

    retention_ratio: float


ToolChoice = Literal["none", "auto", "required"] | FunctionChoice
Truncation = Literal["auto", "disabled"] | RetentionRatio


class Prompt(Struct, frozen=True):
    """One answer asked of an engine. `max_output_tokens` None means as many as the context still holds.

    `spoken` is text of this very answer that was generated before: the engine goes on directly after it. Limit and usage stay those of
    the whole answer.
    """

    response_id: str
    session_id: str
    instructions: str
    items: tuple[Item, ...]
    tools: tuple[FunctionTool, ...] = ()
    tool_choice: ToolChoice = "auto"
    max_output_tokens: int | None = None
    truncation: Truncation = "auto"
    spoken: str = ""


class Usage(Struct, frozen=True):
    """Tokens counted by the engine; `cached_tokens` is the part of the input found in its prefix cache."""

    input_tokens: int
    output_tokens: int
    cached_tokens: int = 0


class ToolCallDelta(Struct, frozen=True):
    """A piece of the `index`-th tool call of an answer (0-based). The first piece of each call carries its name."""

    index: int
    name: str | None = None
    arguments: str = ""


class Origin(Struct, frozen=True, kw_only=True):
    """How an answer came to be, as its engine tells. Times are milliseconds since the epoch, None where the engine cannot know them.

    `prompt` is the very text that the model read before its first token, or the JSON of messages and tools as posted where an endpoint
    renders them. `sampling` is the JSON object of what was in force, the model's own defaults included where they are known.
    `taken_ms` is when the request left the engine's queue.
    """

    prompt: str | None
    prompt_format: Literal["text", "messages"] = "text"
    sampling: Raw
    taken_ms: int | None = None
    first_token_ms: int | None = None
    last_token_ms: int | None = None


class Chunk(Struct, frozen=True):
    """What an engine produced since its last chunk: text without half characters, tool call pieces, or both.

    `num_tokens` counts the tokens that were decoded for it. `usage` is set on the first chunk when the engine knows its input by then,
    and always on the last one, which is the one with `finish_reason`. Text of tool calls never appears in `text`. `origin` is set on the
    first chunk, and again on the last one, where more of it is known.
    """

    text: str = ""
    num_tokens: int = 0
    tool_calls: tuple[ToolCallDelta, ...] = ()
    usage: Usage | None = None
    finish_reason: FinishReason | None = None
    origin: Origin | None = None
