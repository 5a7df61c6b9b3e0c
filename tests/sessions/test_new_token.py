"""The token in a session.update: seen where there is one, and taken only where it stands alone."""

import msgspec
import pytest
from msgspec import Raw

from sessions.config import parse_session_patch
from sessions.new_token import brings_token, new_token
from sessions.wire_errors import BadEvent


def raw(session: object) -> Raw:
    return Raw(session if isinstance(session, bytes) else msgspec.json.encode(session))


@pytest.mark.parametrize(
    "session",
    [
        {"type": "realtime"},
        {"type": "realtime", "instructions": '{"token":"t"}'},
        {"type": "realtime", "tools": [{"type": "function", "name": "f", "parameters": {"token": {}}}]},
        {"Token": "t"},
        [],
        "token",
        None,
        b'{"instructions":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_an_update_without_a_token_is_the_configurations(session: object) -> None:
    assert not brings_token(raw(session))


def test_a_token_that_stands_alone_is_taken() -> None:
    session = raw({"type": "realtime", "token": "ek_a.b.c"})

    assert brings_token(session)
    assert new_token(session) == "ek_a.b.c"


@pytest.mark.parametrize(
    ("session", "code", "param"),
    [
        ({"type": "realtime", "token": "canary", "instructions": "x"}, "invalid_value", "session.token"),
        ({"instructions": None, "type": "realtime", "token": "canary"}, "invalid_value", "session.token"),
        ({"type": "realtime", "token": "canary", "unheard_of": 1}, "invalid_value", "session.token"),
        ({"type": "realtime", "token": None}, "invalid_type", "session.token"),
        ({"type": "realtime", "token": ["canary"]}, "invalid_type", "session.token"),
        ({"type": "transcription", "token": "canary"}, "invalid_value", "session.type"),
        ({"token": "canary"}, "missing_required_parameter", "session.type"),
    ],
)
def test_one_that_does_not_is_refused_by_name_and_not_repeated(session: object, code: str, param: str) -> None:
    assert brings_token(raw(session))

    with pytest.raises(BadEvent) as refused:
        new_token(raw(session))

    assert (refused.value.code, refused.value.param) == (code, param)
    assert "canary" not in refused.value.message


def test_no_configuration_has_one() -> None:
    with pytest.raises(BadEvent) as refused:
        parse_session_patch(b'{"type":"realtime","token":"canary"}')

    assert (refused.value.code, refused.value.param) == ("unknown_parameter", "session.token")
