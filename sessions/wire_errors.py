"""A client's mistakes as the wire names them: the code, the message and the parameter of an `error` event."""

import re
from typing import Literal

import msgspec
from msgspec import Struct

ErrorType = Literal["invalid_request_error", "server_error", "rate_limit_error"]


_MAX_MESSAGE_CHARS = 500
_MAX_PARAM_CHARS = 200


class WireError(Struct, frozen=True):
    """The `error` object of an error event. `event_id` is the client's, so that it knows which of its events was refused."""

    type: ErrorType
    code: str
    message: str
    param: str | None = None
    event_id: str | None = None


class BadEvent(Exception):
    """A client event that is refused; never leaves the package `sessions` but as an error event."""

    def __init__(
        self, code: str, message: str, param: str | None = None, *, type: ErrorType = "invalid_request_error"
    ) -> None:
        super().__init__(message)
        self.type: ErrorType = type
        self.code = code
        # Both may quote what the client sent, at any length.
        self.message = message[:_MAX_MESSAGE_CHARS]
        self.param = param[:_MAX_PARAM_CHARS] if param else param

    def as_wire_error(self, event_id: str | None) -> WireError:
        """The mistake as the `error` object of the event that answers `event_id`."""
        return WireError(self.type, self.code, self.message, self.param, event_id)


_AT = re.compile(r" - at `\$\.?(.*)`$")
_MISSING = re.compile(r"^Object missing required field `(.*)`$")
_UNKNOWN = re.compile(r"^Object contains unknown field `(.*)`$")


def from_validation_error(error: msgspec.ValidationError, prefix: str = "") -> BadEvent:
    """The wire's words for what msgspec found; `prefix` is the path of the decoded value within the event."""
    text = str(error)
    reason = _AT.sub("", text)
    at = _AT.search(text)
    inner = at.group(1) if at else ""
    path = ".".join(part for part in (prefix, inner.replace("[...]", "")) if part)
    if missing := _MISSING.match(reason):
        param = _join(path, missing.group(1))
        return BadEvent("missing_required_parameter", f"Missing required parameter: '{param}'.", param)
    if unknown := _UNKNOWN.match(reason):
        param = _join(path, unknown.group(1))
        return BadEvent("unknown_parameter", f"Unknown parameter: '{param}'.", param)
    if reason.startswith("Invalid value"):
        param = path if path.endswith("type") else _join(path, "type")
        return BadEvent(
            "invalid_value", f"Invalid value for '{param}': {reason.removeprefix('Invalid value ')}.", param
        )
    if reason.startswith("Invalid enum value"):
        return BadEvent("invalid_value", f"{reason} for '{path}'.", path or None)
    return BadEvent("invalid_type", f"Invalid type for '{path}': {reason}.", path or None)


def _join(path: str, field: str) -> str:
    return f"{path}.{field}" if path else field
