"""What a client may send, decoded into one frozen struct each. Unknown events and unknown fields are refused by name."""

from typing import Literal

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from sessions.config import NULL, Json
from sessions.feedback import Rating
from sessions.generation import FunctionTool, ToolChoice
from sessions.items import ItemStatus, Role
from sessions.wire_errors import BadEvent, from_validation_error


class NewContent(Struct, frozen=True, forbid_unknown_fields=True):
    """A content part as clients write it; which types a role may use is the dialogue's to check."""

    type: str
    text: str | None = None
    transcript: str | None = None
    audio: str | None = None
    image_url: str | None = None
    detail: str | None = None


class NewMessage(Struct, frozen=True, tag_field="type", tag="message", forbid_unknown_fields=True):
    """A message to add."""

    role: Role
    content: tuple[NewContent, ...]
    id: str | None = None
    object: str | None = None
    status: ItemStatus | None = None
    phase: str | None = None


class NewFunctionCall(Struct, frozen=True, tag_field="type", tag="function_call", forbid_unknown_fields=True):
    """An earlier tool call to add to the history."""

    name: str
    arguments: str
    call_id: str | None = None
    id: str | None = None
    object: str | None = None
    status: ItemStatus | None = None


class NewFunctionCallOutput(
    Struct, frozen=True, tag_field="type", tag="function_call_output", forbid_unknown_fields=True
):
    """A tool's answer to add."""

    call_id: str
    output: str
    id: str | None = None
    object: str | None = None
    status: ItemStatus | None = None


class ItemReference(Struct, frozen=True, tag_field="type", tag="item_reference", forbid_unknown_fields=True):
    """An item of the conversation, named in the `input` of an out-of-band response."""

    id: str


NewItem = NewMessage | NewFunctionCall | NewFunctionCallOutput
NewInput = NewItem | ItemReference


class ResponseParams(Struct, frozen=True, forbid_unknown_fields=True):
    """What one response asks for; what is absent comes from the session."""

    conversation: Literal["auto", "none"] | None = None
    input: tuple[NewInput, ...] | None = None
    instructions: str | None = None
    tools: tuple[FunctionTool, ...] | None = None
    tool_choice: ToolChoice | None = None
    max_output_tokens: int | Literal["inf"] | None = None
    metadata: dict[str, str] | None = None
    output_modalities: tuple[Literal["text", "audio"], ...] | None = None
    audio: Json = NULL
    parallel_tool_calls: bool | None = None
    prompt: Json = NULL
    reasoning: Json = NULL


class NewFeedback(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a user thinks of an answer, or of its text from `start` to `end`, in UTF-16 code units.

    `rated_at_ms` is when it was chosen, for what had to wait to be sent; absent, that is now.
    """

    rating: Rating
    reason: str | None = None
    comment: str | None = None
    start: int | None = None
    end: int | None = None
    rated_at_ms: int | None = None


class _ClientEvent(Struct, frozen=True, tag_field="type", forbid_unknown_fields=True, kw_only=True):
    event_id: str | None = None


class SessionUpdate(_ClientEvent, frozen=True, tag="session.update"):
    """Change the session's configuration."""

    session: Raw


class ItemCreate(_ClientEvent, frozen=True, tag="conversation.item.create"):
    """Add an item; `previous_item_id` null or absent appends, "root" puts it first."""

    item: NewItem
    previous_item_id: str | None = None


class ItemRetrieve(_ClientEvent, frozen=True, tag="conversation.item.retrieve"):
    """Ask for an item as the server has it."""

    item_id: str


class ItemDelete(_ClientEvent, frozen=True, tag="conversation.item.delete"):
    """Forget an item."""

    item_id: str


class ItemTruncate(_ClientEvent, frozen=True, tag="conversation.item.truncate"):
    """Cut an item's audio; refused, since this server speaks text."""

    item_id: str
    content_index: int
    audio_end_ms: int


class AvatarItemTruncate(_ClientEvent, frozen=True, tag="avatar.item.truncate"):
    """Cut an answer's message to what was heard of it: the text before `char_end`, in UTF-16 code units."""

    item_id: str
    content_index: int
    char_end: int


class FeedbackCreate(_ClientEvent, frozen=True, tag="avatar.feedback.create"):
    """Rate an answer; a later rating of it replaces an earlier one."""

    item_id: str
    feedback: NewFeedback


class FeedbackDelete(_ClientEvent, frozen=True, tag="avatar.feedback.delete"):
    """Withdraw a rating."""

    feedback_id: str
    rated_at_ms: int | None = None


class ResponseCreate(_ClientEvent, frozen=True, tag="response.create"):
    """Ask for an answer."""

    response: ResponseParams | None | UnsetType = UNSET


class ResponseCancel(_ClientEvent, frozen=True, tag="response.cancel"):
    """Stop an answer; without an id, the conversation's."""

    response_id: str | None = None


class InputAudioAppend(_ClientEvent, frozen=True, tag="input_audio_buffer.append"):
    """Audio, which is tolerated and dropped."""

    audio: str


class InputAudioCommit(_ClientEvent, frozen=True, tag="input_audio_buffer.commit"):
    """Commit of the audio buffer, which is always empty."""


class InputAudioClear(_ClientEvent, frozen=True, tag="input_audio_buffer.clear"):
    """Clearing of the audio buffer."""


class OutputAudioClear(_ClientEvent, frozen=True, tag="output_audio_buffer.clear"):
    """Clearing of the audio output, of which there is none."""


ClientEvent = (
    SessionUpdate
    | ItemCreate
    | ItemRetrieve
    | ItemDelete
    | ItemTruncate
    | AvatarItemTruncate
    | FeedbackCreate
    | FeedbackDelete
    | ResponseCreate
    | ResponseCancel
    | InputAudioAppend
    | InputAudioCommit
    | InputAudioClear
    | OutputAudioClear
)


class _Envelope(Struct, frozen=True):
    type: object = UNSET
    event_id: object = None


_decoder: msgspec.json.Decoder[ClientEvent] = msgspec.json.Decoder(ClientEvent)
_envelope_decoder = msgspec.json.Decoder(_Envelope)
_MAX_EVENT_ID_LENGTH = 512
# UnicodeError: a lone surrogate cannot be encoded again; RecursionError: nesting deeper than the decoder goes. A decoder that stopped at
# a wrong value never saw what follows it, so the envelope's can still meet each of them.
_UNREADABLE = (msgspec.DecodeError, UnicodeError, RecursionError)


class RefusedEvent(Exception):
    """A frame that is no client event: what is wrong with it, and the client's event id where one could be read."""

    def __init__(self, reason: BadEvent, event_id: str | None) -> None:
        super().__init__(str(reason))
        self.reason = reason
        self.event_id = event_id


def decode_client_event(frame: str | bytes) -> ClientEvent:
    """The event in a frame; `RefusedEvent` says what is wrong with one that is none."""
    try:
        return _decoder.decode(frame)
    except msgspec.ValidationError as error:
        raise RefusedEvent(_reason(error, frame), _event_id(frame)) from error
    except _UNREADABLE as error:
        raise RefusedEvent(_not_json(), None) from error


def _reason(error: msgspec.ValidationError, frame: str | bytes) -> BadEvent:
    if str(error).startswith("Expected `object`") and "- at" not in str(error):
        return BadEvent("invalid_event", "Expected a JSON object.")
    reason = from_validation_error(error)
    if reason.param == "type":
        return _unknown_type(frame)
    return reason


def _unknown_type(frame: str | bytes) -> BadEvent:
    try:
        found = _envelope_decoder.decode(frame).type
    except _UNREADABLE:
        return _not_json()
    if found is UNSET:
        return BadEvent("missing_required_parameter", "Missing required parameter: 'type'.", "type")
    if not isinstance(found, str):
        return BadEvent("invalid_type", "Invalid type for 'type': expected a string.", "type")
    return BadEvent("invalid_value", f"Invalid value: {found[:64]!r} is no event of this protocol.", "type")


def _not_json() -> BadEvent:
    return BadEvent("invalid_json", "The frame is not valid JSON.")


def _event_id(frame: str | bytes) -> str | None:
    try:
        found = _envelope_decoder.decode(frame).event_id
    except _UNREADABLE:
        return None
    return found[:_MAX_EVENT_ID_LENGTH] if isinstance(found, str) else None
