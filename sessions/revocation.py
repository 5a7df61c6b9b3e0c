"""A revocation: tokens that are refused from now on, though they have not expired. Says what is kept and how, not who may ask for it."""

from collections.abc import Iterable
from typing import Literal, NamedTuple

import msgspec
import structlog
from msgspec import Struct

_log = structlog.get_logger(__name__)

Kind = Literal["token", "user"]


class Revocation(Struct, frozen=True):
    """The token of that id and what it minted, or all tokens of that user that were issued up to `issued_until_s`.

    It is kept until `kept_until_s`, when no token that it names can be alive any more. Times are seconds since the epoch.
    """

    kind: Kind
    name: str
    issued_until_s: int
    kept_until_s: int

    def covers(self, other: "Revocation") -> bool:
        """Whether the other, of the same name, says nothing more."""
        return self.issued_until_s >= other.issued_until_s and self.kept_until_s >= other.kept_until_s


class Heard(NamedTuple):
    """What a reader hears: the revocations that are new to it, oldest first, and up to where it has read.

    `is_anew`: the reader was nowhere that the store knows, and is told all from its beginning; what is not told then is lost or forgotten.
    """

    revocations: list[Revocation]
    mark: str
    is_anew: bool


encode_revocation = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder(Revocation)


def decode_revocations(stored: Iterable[bytes]) -> list[Revocation]:
    """What `encode_revocation` wrote. What another release wrote otherwise is logged and left out: the rest must be heard of."""
    found: list[Revocation] = []
    for data in stored:
        try:
            found.append(_decoder.decode(data))
        except msgspec.MsgspecError:
            _log.exception("revocation.unreadable")
    return found
