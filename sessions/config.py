"""The session's configuration: its defaults, what a client may change, and how a change is merged.

A text server acts on instructions, tools, limits and truncation; what belongs to audio is checked, kept and echoed, never acted on.
Source: openai-python 3.54.0 `RealtimeSessionCreateRequest`.
"""

from typing import Literal

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from sessions.generation import FunctionTool, ToolChoice, Truncation
from sessions.limits import DialogueLimits
from sessions.wire_errors import BadEvent, from_validation_error

# A value that is kept and echoed as the client wrote it.
Json = Raw
NULL = Raw(b"null")

MAX_OUTPUT_TOKENS = 4096
MAX_TOOLS = 128
PCM_RATE_HZ = 24_000

_DEFAULT_AUDIO = Raw(
    msgspec.json.encode(
        {
            "input": {
                "format": {"type": "audio/pcm", "rate": PCM_RATE_HZ},
                "transcription": None,
                "noise_reduction": None,
                "turn_detection": None,
            },
            "output": {"format": {"type": "audio/pcm", "rate": PCM_RATE_HZ}, "voice": "alloy", "speed": 1.0},
        }
    )
)


class AvatarOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """What an avatar asks for beyond OpenAI's protocol.

    `interrupt` says what a user's message or a response.create does to the conversation's answer in progress: it cancels it, or is refused.
    None is OpenAI's way: a message leaves it alone, a response.create is refused.
    """

    segments: bool = False
    cues: tuple[Literal["emotion", "gesture"], ...] = ()
    interrupt: Literal["cancel", "refuse"] | None = None


class ResumptionOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """Whether the session outlives its connection, and events carry sequence numbers, which a resuming client will name."""

    enabled: bool = False


class SessionConfig(Struct, frozen=True):
    """The effective configuration. Fields from `audio` on are echoed only."""

    model: str
    instructions: str = ""
    tools: tuple[FunctionTool, ...] = ()
    tool_choice: ToolChoice = "auto"
    max_output_tokens: int | Literal["inf"] = "inf"
    truncation: Truncation = "auto"
    avatar: AvatarOptions | None = None
    resumption: ResumptionOptions | None = None
    audio: Json = _DEFAULT_AUDIO
    prompt: Json = NULL
    tracing: Json = NULL
    include: Json = NULL
    parallel_tool_calls: bool | None = None
    reasoning: Json = NULL


class SessionPatch(Struct, frozen=True, forbid_unknown_fields=True):
    """The `session` of a session.update: every field but `type` optional; a field that is present replaces, `audio` merges."""

    type: str
    instructions: str | None | UnsetType = UNSET
    tools: tuple[FunctionTool, ...] | None | UnsetType = UNSET
    tool_choice: ToolChoice | None | UnsetType = UNSET
    max_output_tokens: int | Literal["inf"] | None | UnsetType = UNSET
    truncation: Truncation | None | UnsetType = UNSET
    output_modalities: tuple[Literal["text", "audio"], ...] | None | UnsetType = UNSET
    avatar: AvatarOptions | None | UnsetType = UNSET
    resumption: ResumptionOptions | None | UnsetType = UNSET
    audio: Json | UnsetType = UNSET
    prompt: Json | UnsetType = UNSET
    tracing: Json | UnsetType = UNSET
    include: Json | UnsetType = UNSET
    parallel_tool_calls: bool | None | UnsetType = UNSET
    reasoning: Json | UnsetType = UNSET
    # Sent by @openai/agents-realtime and others with every update; the connection's own values stay.
    model: str | None | UnsetType = UNSET
    id: str | None | UnsetType = UNSET
    object: str | None | UnsetType = UNSET
    expires_at: Json | UnsetType = UNSET
    client_secret: Json | UnsetType = UNSET


_patch_decoder = msgspec.json.Decoder(SessionPatch)
_encoder = msgspec.json.Encoder()


def parse_session_patch(raw: bytes | msgspec.Raw) -> SessionPatch:
    """The checked `session` object of a session.update or a client secret; `BadEvent` names the field that is wrong."""
    try:
        patch = _patch_decoder.decode(raw)
    except msgspec.ValidationError as error:
        raise from_validation_error(error, prefix="session") from error
    except RecursionError as error:
        raise BadEvent("invalid_value", "The session is nested too deeply.", "session") from error
    if patch.type != "realtime":
        raise BadEvent(
            "invalid_parameter", f"Session type {patch.type!r} is not served here; use 'realtime'.", "session.type"
        )
    check_max_output_tokens(patch.max_output_tokens, "session.max_output_tokens")
    check_tools(patch.tools, "session.tools")
    if isinstance(patch.audio, Raw) and bytes(patch.audio)[:1] not in (b"{", b"n"):
        raise BadEvent("invalid_type", "Invalid type for 'session.audio': expected an object.", "session.audio")
    return patch


def merge(config: SessionConfig, patch: SessionPatch) -> SessionConfig:
    """The configuration after the change; null sets a field back to its default, `audio` is merged key by key, to any depth.

    `BadEvent` when what is kept as it came cannot be read.
    """
    defaults = SessionConfig(model=config.model)
    changes: dict[str, object] = {}
    for field in _MERGED_FIELDS:
        value = getattr(patch, field)
        if value is not UNSET:
            changes[field] = getattr(defaults, field) if value is None else _kept(value)
    if isinstance(patch.audio, Raw):
        changes["audio"] = _merge_audio(config.audio, patch.audio)
    return msgspec.structs.replace(config, **changes) if changes else config


def check_size(config: SessionConfig, limits: DialogueLimits) -> None:
    """`BadEvent` when the configuration, which is kept and echoed whole, is longer than it may be."""
    num_bytes = len(_encoder.encode(config))
    if num_bytes > limits.max_config_bytes:
        message = f"The session's configuration would have {num_bytes} bytes, of at most {limits.max_config_bytes}."
        raise BadEvent("invalid_value", message, "session")


def check_max_output_tokens(value: int | str | None | UnsetType, param: str) -> None:
    """`BadEvent` unless the value is "inf", absent, or within 1 to 4096, OpenAI's bounds."""
    if not isinstance(value, int):
        return
    if value < 1:
        raise BadEvent("integer_below_min_value", f"Expected a value of at least 1, got {value}.", param)
    if value > MAX_OUTPUT_TOKENS:
        raise BadEvent(
            "integer_above_max_value", f"Expected a value of at most {MAX_OUTPUT_TOKENS}, got {value}.", param
        )


def check_tools(tools: tuple[FunctionTool, ...] | None | UnsetType, param: str) -> None:
    """`BadEvent` when there are too many tools, a name twice, or a schema that is not an object."""
    if not isinstance(tools, tuple):
        return
    if len(tools) > MAX_TOOLS:
        raise BadEvent("invalid_value", f"At most {MAX_TOOLS} tools are served, got {len(tools)}.", param)
    names: set[str] = set()
    for index, tool in enumerate(tools):
        if not tool.name or tool.name in names:
            raise BadEvent("invalid_value", "Tool names must be present and unique.", f"{param}[{index}].name")
        if not bytes(tool.parameters).lstrip().startswith((b"{", b"null")):
            raise BadEvent("invalid_type", "Expected a JSON schema object.", f"{param}[{index}].parameters")
        names.add(tool.name)


_MERGED_FIELDS = (
    "instructions",
    "tools",
    "tool_choice",
    "max_output_tokens",
    "truncation",
    "avatar",
    "resumption",
    "prompt",
    "tracing",
    "include",
    "parallel_tool_calls",
    "reasoning",
)


_JsonObject = dict[str, object]
_object_decoder = msgspec.json.Decoder(_JsonObject | None)


def _kept(value: object) -> object:
    match value:
        case Raw():
            return _compact(value)
        case tuple():
            return tuple(map(_kept, value))
        case FunctionTool():
            return msgspec.structs.replace(value, parameters=_compact(value.parameters))
        case _:
            return value


def _compact(raw: Raw) -> Raw:
    # The journal parts events at newlines. And a Raw is a view of the whole frame that it came in: a copy lets the frame go.
    return Raw(msgspec.json.format(bytes(raw), indent=-1))


def _merge_audio(old: Raw, change: Raw) -> Raw:
    try:
        changes = _object_decoder.decode(change)
        if changes is None:
            return _DEFAULT_AUDIO
        merged = _deep_merge(_object_decoder.decode(old) or {}, changes)
        return Raw(_encoder.encode({name: _as_served(direction) for name, direction in merged.items()}))
    except (msgspec.ValidationError, RecursionError) as error:
        # Numbers beyond any type, and nesting that the decoder could skip but merging cannot follow.
        raise BadEvent("invalid_value", "Numbers are too big or nesting is too deep.", "session.audio") from error


def _deep_merge(base: _JsonObject, change: _JsonObject) -> _JsonObject:
    merged = dict(base)
    for key, value in change.items():
        old = merged.get(key)
        merged[key] = _deep_merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _as_served(direction: object) -> object:
    if not isinstance(direction, dict):
        return direction
    served = dict(direction)
    found = served.get("format")
    if isinstance(found, dict) and found.get("type") == "audio/pcm":
        # Pipecat's types allow no rate but 24,000 for PCM: an echo of another would end its session.
        served["format"] = {**found, "rate": PCM_RATE_HZ}
    if "turn_detection" in served:
        # No turn is detected here. A client that reads otherwise (openai-agents) sends no cancel, trusting the server to have cancelled.
        served["turn_detection"] = None
    return served
