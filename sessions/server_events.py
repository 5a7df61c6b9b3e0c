"""What the server sends: one frozen struct an event, encoded once. Field order is the wire's.

Source: protocol/PROTOCOL.md and openai-python 3.54.0 `openai.types.realtime`.
"""

from typing import Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from sessions.config import NULL, AvatarOptions, Json, ResumptionOptions, SessionConfig
from sessions.feedback import Feedback, Rating
from sessions.generation import FunctionTool, ToolChoice, Truncation
from sessions.items import Item
from sessions.wire_errors import WireError

ResponseStatus = Literal["in_progress", "completed", "cancelled", "incomplete", "failed"]


class ResumptionOutcome(Struct, frozen=True, kw_only=True):
    """How a resume went: with all that was missed, or with a gap, across which the dialogue's items are given instead."""

    enabled: Literal[True] = True
    resumed: bool
    gap: bool


class SessionObject(Struct, frozen=True, kw_only=True):
    """The session as clients see it."""

    type: Literal["realtime"] = "realtime"
    object: Literal["realtime.session"] = "realtime.session"
    id: str
    model: str
    output_modalities: tuple[str, ...] = ("text",)
    instructions: str
    tools: tuple[FunctionTool, ...]
    tool_choice: ToolChoice
    max_output_tokens: int | Literal["inf"]
    tracing: Json
    truncation: Truncation
    prompt: Json
    include: Json
    expires_at: int
    audio: Json
    parallel_tool_calls: bool | UnsetType = UNSET
    reasoning: Json | UnsetType = UNSET
    avatar: AvatarOptions | UnsetType = UNSET
    resumption: ResumptionOptions | ResumptionOutcome | UnsetType = UNSET


def session_object(
    config: SessionConfig, *, session_id: str, expires_at: int, outcome: ResumptionOutcome | None = None
) -> SessionObject:
    """The session's object with its full effective configuration; our extensions only where the client asked for them."""
    return SessionObject(
        id=session_id,
        model=config.model,
        instructions=config.instructions,
        tools=config.tools,
        tool_choice=config.tool_choice,
        max_output_tokens=config.max_output_tokens,
        tracing=config.tracing,
        truncation=config.truncation,
        prompt=config.prompt,
        include=config.include,
        expires_at=expires_at,
        audio=config.audio,
        parallel_tool_calls=UNSET if config.parallel_tool_calls is None else config.parallel_tool_calls,
        reasoning=UNSET if config.reasoning == NULL else config.reasoning,
        avatar=config.avatar or UNSET,
        resumption=outcome or config.resumption or UNSET,
    )


class FailureDetail(Struct, frozen=True):
    """Why a response failed."""

    type: str
    code: str
    message: str


class StatusDetails(Struct, frozen=True, omit_defaults=True):
    """Why a response did not complete."""

    type: Literal["cancelled", "incomplete", "failed"]
    reason: Literal["client_cancelled", "turn_detected", "max_output_tokens", "content_filter"] | None = None
    error: FailureDetail | None = None


class CachedTokenDetails(Struct, frozen=True):
    """Which of the cached input tokens were of what kind."""

    text_tokens: int
    audio_tokens: int = 0
    image_tokens: int = 0


class InputTokenDetails(Struct, frozen=True):
    """Which of the input tokens were of what kind; cached ones are part of them."""

    text_tokens: int
    cached_tokens: int
    cached_tokens_details: CachedTokenDetails
    audio_tokens: int = 0
    image_tokens: int = 0


class OutputTokenDetails(Struct, frozen=True):
    """Which of the output tokens were of what kind."""

    text_tokens: int
    audio_tokens: int = 0


class ResponseUsage(Struct, frozen=True):
    """Tokens of one response; the input is the whole prompt, history included."""

    total_tokens: int
    input_tokens: int
    output_tokens: int
    input_token_details: InputTokenDetails
    output_token_details: OutputTokenDetails


class ResponseObject(Struct, frozen=True, kw_only=True):
    """A response as clients see it."""

    object: Literal["realtime.response"] = "realtime.response"
    id: str
    status: ResponseStatus
    status_details: StatusDetails | None
    output: tuple[Item, ...]
    conversation_id: str | None
    output_modalities: tuple[str, ...] = ("text",)
    max_output_tokens: int | Literal["inf"]
    usage: ResponseUsage | None
    metadata: dict[str, str] | None


class TextPart(Struct, frozen=True, tag_field="type", tag="text"):
    """A content part in response.content_part events; SDKs refuse any other type here."""

    text: str


class SessionCreated(Struct, frozen=True, tag_field="type", tag="session.created"):
    """First event of a connection."""

    event_id: str
    session: SessionObject


class SessionUpdated(Struct, frozen=True, tag_field="type", tag="session.updated"):
    """Acknowledges a session.update."""

    event_id: str
    session: SessionObject


class ItemAdded(Struct, frozen=True, tag_field="type", tag="conversation.item.added"):
    """An item is in the conversation from here on."""

    event_id: str
    previous_item_id: str | None
    item: Item


class ItemDone(Struct, frozen=True, tag_field="type", tag="conversation.item.done"):
    """An item is complete."""

    event_id: str
    previous_item_id: str | None
    item: Item


class ItemRetrieved(Struct, frozen=True, tag_field="type", tag="conversation.item.retrieved"):
    """Answers conversation.item.retrieve."""

    event_id: str
    item: Item


class ItemDeleted(Struct, frozen=True, tag_field="type", tag="conversation.item.deleted"):
    """Answers conversation.item.delete."""

    event_id: str
    item_id: str


class AvatarItemTruncated(Struct, frozen=True, tag_field="type", tag="avatar.item.truncated"):
    """Answers avatar.item.truncate: the dialogue holds the message's text before `char_end` and no more."""

    event_id: str
    item_id: str
    content_index: int
    char_end: int


class FeedbackObject(Struct, frozen=True, kw_only=True):
    """A rating as clients see it; `rating` is null once it is withdrawn."""

    id: str
    object: Literal["avatar.feedback"] = "avatar.feedback"
    item_id: str
    rating: Rating | None
    reason: str | None
    comment: str | None
    start: int | None
    end: int | None
    rated_at_ms: int


def feedback_object(feedback_id: str, item_id: str, feedback: Feedback) -> FeedbackObject:
    """The rating of that item as clients see it."""
    return FeedbackObject(
        id=feedback_id,
        item_id=item_id,
        rating=feedback.rating,
        reason=feedback.reason,
        comment=feedback.comment,
        start=feedback.start,
        end=feedback.end,
        rated_at_ms=feedback.rated_ms,
    )


class FeedbackCreated(Struct, frozen=True, tag_field="type", tag="avatar.feedback.created"):
    """The user's rating of an answer is this, durably."""

    event_id: str
    feedback: FeedbackObject


class FeedbackDeleted(Struct, frozen=True, tag_field="type", tag="avatar.feedback.deleted"):
    """The user's rating of an answer is withdrawn, durably."""

    event_id: str
    feedback_id: str
    item_id: str


class InputAudioCleared(Struct, frozen=True, tag_field="type", tag="input_audio_buffer.cleared"):
    """Answers input_audio_buffer.clear."""

    event_id: str


class ErrorEvent(Struct, frozen=True, tag_field="type", tag="error"):
    """A refused client event, or a failure the client should know of; the session goes on."""

    event_id: str
    error: WireError


class ResponseCreated(Struct, frozen=True, tag_field="type", tag="response.created"):
    """A response begins."""

    event_id: str
    response: ResponseObject


class OutputItemAdded(Struct, frozen=True, tag_field="type", tag="response.output_item.added"):
    """A response begins an item."""

    event_id: str
    response_id: str
    output_index: int
    item: Item


class ContentPartAdded(Struct, frozen=True, tag_field="type", tag="response.content_part.added"):
    """A response's message begins a part."""

    event_id: str
    response_id: str
    item_id: str
    output_index: int
    content_index: int
    part: TextPart


class OutputTextDelta(Struct, frozen=True, tag_field="type", tag="response.output_text.delta"):
    """Text as it is generated."""

    event_id: str
    response_id: str
    item_id: str
    output_index: int
    content_index: int
    delta: str


class OutputTextDone(Struct, frozen=True, tag_field="type", tag="response.output_text.done"):
    """The whole text of a part."""

    event_id: str
    response_id: str
    item_id: str
    output_index: int
    content_index: int
    text: str


class ContentPartDone(Struct, frozen=True, tag_field="type", tag="response.content_part.done"):
    """A part is complete."""

    event_id: str
    response_id: str
    item_id: str
    output_index: int
    content_index: int
    part: TextPart


class FunctionCallArgumentsDelta(Struct, frozen=True, tag_field="type", tag="response.function_call_arguments.delta"):
    """Arguments of a tool call as they are generated."""

    event_id: str
    response_id: str
    item_id: str
    output_index: int
    call_id: str
    delta: str


class FunctionCallArgumentsDone(Struct, frozen=True, tag_field="type", tag="response.function_call_arguments.done"):
    """The whole arguments of a tool call."""

    event_id: str
    response_id: str
    item_id: str
    output_index: int
    call_id: str
    name: str
    arguments: str


class OutputItemDone(Struct, frozen=True, tag_field="type", tag="response.output_item.done"):
    """A response's item is complete."""

    event_id: str
    response_id: str
    output_index: int
    item: Item


class ResponseDone(Struct, frozen=True, tag_field="type", tag="response.done"):
    """A response ended; exactly one for each response.created."""

    event_id: str
    response: ResponseObject


ServerEvent = (
    SessionCreated
    | SessionUpdated
    | ItemAdded
    | ItemDone
    | ItemRetrieved
    | ItemDeleted
    | AvatarItemTruncated
    | FeedbackCreated
    | FeedbackDeleted
    | InputAudioCleared
    | ErrorEvent
    | ResponseCreated
    | OutputItemAdded
    | ContentPartAdded
    | OutputTextDelta
    | OutputTextDone
    | ContentPartDone
    | FunctionCallArgumentsDelta
    | FunctionCallArgumentsDone
    | OutputItemDone
    | ResponseDone
)

_encoder = msgspec.json.Encoder()


def encode_event(event: ServerEvent) -> bytes:
    """The event as one JSON object without newlines: what the journal holds and what is sent."""
    return _encoder.encode(event)


def with_sequence_number(event: bytes, sequence_number: int) -> bytes:
    """An encoded event for a client that asked for sequence numbers; the journal's bytes stay as they are for the others."""
    return b'%b,"sequence_number":%d}' % (event[:-1], sequence_number)
