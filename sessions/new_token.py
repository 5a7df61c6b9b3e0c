"""The token that a session.update may bring in place of a configuration: read here, kept nowhere. No configuration has a field for it."""

from typing import Literal

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from sessions.wire_errors import BadEvent, from_validation_error

PARAM = "session.token"


class _Session(Struct, frozen=True):
    token: Raw | UnsetType = UNSET


class _NewToken(Struct, frozen=True, forbid_unknown_fields=True):
    type: Literal["realtime"]
    token: str


_session_decoder = msgspec.json.Decoder(_Session)
_decoder = msgspec.json.Decoder(_NewToken)


def brings_token(session: Raw) -> bool:
    """Whether the `session` of a session.update has a token, of whatever kind; what cannot be read is for the configuration's own check."""
    try:
        return _session_decoder.decode(session).token is not UNSET
    except (msgspec.MsgspecError, RecursionError):
        return False


def new_token(session: Raw) -> str:
    """The token in a `session` that brings one; `BadEvent` where it is no text, or does not stand alone."""
    try:
        return _decoder.decode(session).token
    except msgspec.ValidationError as error:
        mistake = from_validation_error(error, prefix="session")
        if mistake.code != "unknown_parameter":
            raise mistake from error
    raise BadEvent("invalid_value", "A token stands alone: nothing else but the type may be in the session.", PARAM)
