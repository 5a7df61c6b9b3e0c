"""What a request asks for: its query and its body as typed values, with every mistake named by its parameter."""

import re
from contextlib import aclosing
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta, Struct
from starlette.exceptions import HTTPException
from starlette.requests import Request

from sessions.wire_errors import BadEvent, from_validation_error

T = TypeVar("T")

MAX_BODY_BYTES = 64 * 1024
MAX_DROPPED_BYTES = 1024 * 1024
_MAX_PARAMETERS = 32

Limit = Annotated[int, Meta(ge=1, le=200)]
Name = Annotated[str, Meta(min_length=1, max_length=255)]
# What an id of ours is made of; the database compares nothing else with its columns of ids.
Id = Annotated[str, Meta(pattern="^[!-~]{1,64}$")]
Milliseconds = Annotated[int, Meta(ge=0, lt=10**14)]

_BOUND = re.compile(r"Expected `(int|float|str)` (>=|<=|<|of length >=|of length <=) (-?[0-9.]+)")
_CODES = {
    ">=": "integer_below_min_value",
    "<=": "integer_above_max_value",
    "<": "integer_above_max_value",
    "of length >=": "string_below_min_length",
    "of length <=": "string_above_max_length",
}


class Nothing(Struct, frozen=True, forbid_unknown_fields=True):
    """A query without parameters."""


def query_of(request: Request, kind: type[T]) -> T:
    """The query's parameters as a struct; `BadEvent` for one that is unknown, doubled, of the wrong type or out of bounds."""
    pairs = request.query_params.multi_items()
    if len(pairs) > _MAX_PARAMETERS:
        raise BadEvent("invalid_value", f"At most {_MAX_PARAMETERS} parameters are read.")
    values: dict[str, str] = {}
    for name, value in pairs:
        if name in values:
            raise BadEvent("invalid_value", f"The parameter '{name}' is given twice.", name)
        _check_text(value, name)
        values[name] = value
    try:
        return msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        raise refusal(error) from error


async def body_of(request: Request, kind: type[T]) -> T:
    """The JSON body; `BadEvent` where it is not what is expected, 413 where it is too large."""
    body = await read_body(request)
    try:
        return msgspec.json.decode(body or b"{}", type=kind)
    except msgspec.ValidationError as error:
        raise refusal(error) from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadEvent("invalid_json", "The body is not valid JSON.") from error


async def read_body(request: Request) -> bytes:
    """The body, or 413. Of one that is too large a part is read and dropped, so that its sender sees the answer, not a reset."""
    body = bytearray()
    num_bytes = 0
    async with aclosing(request.stream()) as chunks:
        async for chunk in chunks:
            num_bytes += len(chunk)
            if num_bytes <= MAX_BODY_BYTES:
                body += chunk
            elif num_bytes > MAX_DROPPED_BYTES:
                break
    if num_bytes > MAX_BODY_BYTES:
        raise HTTPException(413)
    return bytes(body)


def refusal(error: msgspec.ValidationError) -> BadEvent:
    """What msgspec found, in the wire's words and with the wire's codes for bounds."""
    found = from_validation_error(error)
    if "matching regex" in str(error):
        return BadEvent("invalid_value", f"'{found.param}' is not well formed.", found.param)
    bound = _BOUND.search(str(error))
    if bound is None or found.code != "invalid_type":
        return found
    limit = int(float(bound[3])) - (bound[2] == "<")
    what = "a length of" if bound[1] == "str" else "a value of"
    most = "at least" if ">=" in bound[2] else "at most"
    return BadEvent(_CODES[bound[2]], f"Expected {what} {most} {limit} for '{found.param}'.", found.param)


def _check_text(value: str, name: str) -> None:
    # A percent-encoded byte that is no UTF-8 arrives as U+FFFD: it would find nothing, and say nothing.
    if "\0" in value or "\ufffd" in value:
        raise BadEvent("invalid_value", f"The text of '{name}' is not valid.", name)
