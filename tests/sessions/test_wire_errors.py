"""Mistakes in the wire's words: what msgspec finds is named by code and parameter."""

import msgspec
import pytest
from msgspec import Struct

from sessions.wire_errors import BadEvent, WireError, from_validation_error


class Cat(Struct, tag_field="type", tag="cat", forbid_unknown_fields=True):
    name: str
    lives: int = 9


class Dog(Struct, tag_field="type", tag="dog", forbid_unknown_fields=True):
    name: str


class Zoo(Struct, forbid_unknown_fields=True):
    animals: list[Cat | Dog]
    keepers: dict[str, Cat] = {}


def mistake(data: str, *, kind: object = Zoo, prefix: str = "") -> BadEvent:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.json.decode(data, type=kind)
    return from_validation_error(caught.value, prefix)


@pytest.mark.parametrize("prefix", ["", "session"])
@pytest.mark.parametrize(
    ("data", "code", "param"),
    [
        ("{}", "missing_required_parameter", "animals"),
        ('{"animals":[],"x":1}', "unknown_parameter", "x"),
        ('{"animals":5}', "invalid_type", "animals"),
        ('{"animals":[{"type":"cat"}]}', "missing_required_parameter", "animals[0].name"),
        ('{"animals":[{"type":"cat","name":"a","tail":1}]}', "unknown_parameter", "animals[0].tail"),
        ('{"animals":[{"type":"cat","name":5}]}', "invalid_type", "animals[0].name"),
        ('{"animals":[{"type":"cow"}]}', "invalid_value", "animals[0].type"),
        ('{"animals":[{}]}', "missing_required_parameter", "animals[0].type"),
        ('{"animals":[],"keepers":{"ann":{"type":"cat","name":5}}}', "invalid_type", "keepers.name"),
        ('{"animals":[{"type":"cat","name":"a","lives":1.5}]}', "invalid_type", "animals[0].lives"),
    ],
)
def test_each_mistake_has_its_code_and_the_path_of_its_field(prefix: str, data: str, code: str, param: str) -> None:
    found = mistake(data, prefix=prefix)

    path = f"{prefix}.{param}" if prefix else param
    assert (found.code, found.param) == (code, path)
    assert path in found.message
    assert "$" not in found.message, "msgspec's own path says nothing to a client"
    assert " - at " not in found.message


def test_a_wrong_root_has_the_prefix_or_nothing_for_its_path() -> None:
    assert mistake("5").param is None
    assert mistake("5", prefix="session").param == "session"


def test_an_event_id_is_the_clients() -> None:
    mistake = BadEvent("rate_limit_exceeded", "Too fast.", "x", type="rate_limit_error")

    assert mistake.as_wire_error("mine") == WireError(
        "rate_limit_error", "rate_limit_exceeded", "Too fast.", "x", "mine"
    )
    assert str(mistake) == "Too fast."
