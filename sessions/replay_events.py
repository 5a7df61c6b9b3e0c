"""What is said on a connection that watches a replay: the one event of the client's, and ours. They are in no journal."""

from typing import Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from sessions.server_events import ErrorEvent
from sessions.wire_errors import BadEvent, from_validation_error

MIN_SPEED = 0.1
MAX_SPEED = 100.0
MAX_SILENCE_MS = 86_400_000

_TAG = "avatar.replay.update"
_MAX_EVENT_ID_CHARS = 512
_UNREADABLE = (msgspec.DecodeError, UnicodeError, RecursionError)


class ReplayUpdate(Struct, frozen=True, tag_field="type", tag=_TAG, forbid_unknown_fields=True, kw_only=True):
    """Go on in another way, or from another position, which is in milliseconds since the session's first event."""

    event_id: str | None = None
    speed: float | UnsetType = UNSET
    paused: bool | UnsetType = UNSET
    position: int | UnsetType = UNSET
    max_silence_ms: int | None | UnsetType = UNSET


class GapObject(Struct, frozen=True):
    """Events that cannot be shown, and why."""

    first_sequence_number: int
    last_sequence_number: int
    reason: str


class ReplayObject(Struct, frozen=True, kw_only=True):
    """A replay as its viewer sees it. `restarted`: what was shown before is void; all up to `position` follows at once.

    `masked`: personal data in the events is covered.
    """

    object: Literal["avatar.replay"] = "avatar.replay"
    session_id: str
    speed: float
    paused: bool
    position: int
    duration: int
    max_silence_ms: int | None
    first_sequence_number: int
    last_sequence_number: int
    is_live: bool
    restarted: bool
    holes: tuple[GapObject, ...]
    masked: Literal[True] | UnsetType = UNSET


class ReplayUpdated(Struct, frozen=True, tag_field="type", tag="avatar.replay.updated"):
    """First event of a replay, and the answer to each update."""

    event_id: str
    replay: ReplayObject


class ReplayGap(Struct, frozen=True, tag_field="type", tag="avatar.replay.gap"):
    """Events cannot be shown; those after them follow."""

    event_id: str
    first_sequence_number: int
    last_sequence_number: int
    reason: str


class ReplayDone(Struct, frozen=True, tag_field="type", tag="avatar.replay.done"):
    """All was shown; the viewer may seek."""

    event_id: str
    position: int


class _Envelope(Struct, frozen=True):
    type: object = UNSET
    event_id: object = None


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(ReplayUpdate)
_envelope_decoder = msgspec.json.Decoder(_Envelope)


class RefusedUpdate(Exception):
    """A frame that is no update of a replay: what is wrong, and the client's event id where one could be read."""

    def __init__(self, reason: BadEvent, event_id: str | None) -> None:
        super().__init__(str(reason))
        self.reason = reason
        self.event_id = event_id


def encode_replay_event(event: ReplayUpdated | ReplayGap | ReplayDone | ErrorEvent) -> bytes:
    """The event as one JSON object."""
    return _encoder.encode(event)


def decode_update(frame: str) -> ReplayUpdate:
    """The update in a frame; `RefusedUpdate` says what is wrong with one that is none."""
    event_id = None
    try:
        envelope = _envelope_decoder.decode(frame)
        event_id = envelope.event_id[:_MAX_EVENT_ID_CHARS] if isinstance(envelope.event_id, str) else None
        if envelope.type == _TAG:
            update = _decoder.decode(frame)
            check_update(update)
            return update
    except msgspec.ValidationError as error:
        is_object = not str(error).startswith("Expected `object`") or " - at" in str(error)
        reason = from_validation_error(error) if is_object else BadEvent("invalid_event", "Expected a JSON object.")
        raise RefusedUpdate(reason, event_id) from error
    except _UNREADABLE as error:
        raise RefusedUpdate(BadEvent("invalid_json", "The frame is not valid JSON."), event_id) from error
    except BadEvent as reason:
        raise RefusedUpdate(reason, event_id) from reason
    if envelope.type is UNSET:
        raise RefusedUpdate(
            BadEvent("missing_required_parameter", "Missing required parameter: 'type'.", "type"), event_id
        )
    if not isinstance(envelope.type, str):
        raise RefusedUpdate(BadEvent("invalid_type", "Invalid type for 'type': expected a string.", "type"), event_id)
    message = f"A replay can only be watched: send {_TAG}, and nothing else."
    raise RefusedUpdate(BadEvent("replay_read_only", message, "type"), event_id)


def check_update(update: ReplayUpdate) -> None:
    """`BadEvent` when a number is out of range; how far a position may go, only the session itself says."""
    if update.speed is not UNSET and not MIN_SPEED <= update.speed <= MAX_SPEED:
        raise BadEvent("invalid_value", f"Expected a speed from {MIN_SPEED:g} to {MAX_SPEED:g}.", "speed")
    for name in ("position", "max_silence_ms"):
        value = getattr(update, name)
        if isinstance(value, int) and value < 0:
            raise BadEvent("integer_below_min_value", f"Expected a value of at least 0, got {value}.", name)
    if isinstance(update.max_silence_ms, int) and update.max_silence_ms > MAX_SILENCE_MS:
        raise BadEvent(
            "integer_above_max_value",
            f"Expected a value of at most {MAX_SILENCE_MS}, got {update.max_silence_ms}.",
            "max_silence_ms",
        )
