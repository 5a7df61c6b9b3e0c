"""The configuration: parsing of a change, merging, and what is kept of a client's frame."""

import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET, Raw

from sessions.config import (
    NULL,
    AvatarOptions,
    SessionConfig,
    merge,
    parse_session_patch,
)
from sessions.wire_errors import BadEvent

DEFAULT = SessionConfig(model="demo")
leaves = st.none() | st.integers(-5, 5) | st.text(max_size=3)
objects = st.dictionaries(
    st.sampled_from(["a", "b", "c"]),
    st.recursive(leaves, lambda inner: st.dictionaries(st.sampled_from("abc"), inner)),
    max_size=3,
)


def patched(config: SessionConfig, **fields: object) -> SessionConfig:
    return merge(config, parse_session_patch(json.dumps({"type": "realtime", **fields}).encode()))


def read(raw: Raw) -> object:
    return msgspec.json.decode(raw)


def test_a_patch_of_nothing_leaves_the_configuration_itself() -> None:
    assert patched(DEFAULT) is DEFAULT


def test_absent_and_null_are_not_the_same() -> None:
    patch = parse_session_patch(b'{"type":"realtime","instructions":null}')

    assert (patch.instructions, patch.tools) == (None, UNSET)


def test_null_sets_each_field_back_to_its_default() -> None:
    changed = patched(
        DEFAULT,
        instructions="x",
        tools=[{"type": "function", "name": "f"}],
        tool_choice="none",
        max_output_tokens=5,
        truncation="disabled",
        avatar={"segments": True},
        resumption={"enabled": True},
        audio={"x": 1},
        prompt={"id": "p"},
        tracing="auto",
        include=["x"],
        parallel_tool_calls=True,
        reasoning={"effort": "low"},
    )
    nulls = dict.fromkeys(field for field in SessionConfig.__struct_fields__ if field != "model")

    assert changed.avatar == AvatarOptions(segments=True)
    assert all(getattr(changed, field) != getattr(DEFAULT, field) for field in nulls)
    assert patched(changed, **nulls) == DEFAULT


def test_the_model_is_the_connections() -> None:
    assert patched(DEFAULT, model="gpt-realtime").model == "demo"


@settings(max_examples=100, deadline=None)
@given(st.lists(objects, max_size=4))
def test_audio_is_merged_key_by_key_to_any_depth(changes: list[dict[str, object]]) -> None:
    config = DEFAULT
    expected = read(config.audio)
    for change in changes:
        config = patched(config, audio=change)
        expected = merged(expected, change)

    assert read(config.audio) == expected


def merged(base: object, change: object) -> object:
    if not isinstance(base, dict) or not isinstance(change, dict):
        return change
    return base | {key: merged(base[key], value) if key in base else value for key, value in change.items()}


@pytest.mark.parametrize(
    "direction", [{"format": {"type": "audio/pcm", "rate": 8000}}, {"format": {"type": "audio/pcm"}}]
)
def test_pcm_is_echoed_at_the_one_rate_that_pipecat_knows(direction: dict[str, object]) -> None:
    audio = read(patched(DEFAULT, audio={"input": direction}).audio)

    assert isinstance(audio, dict)
    assert audio["input"]["format"] == {"type": "audio/pcm", "rate": 24000}


@pytest.mark.parametrize("found", [None, "pcm16", {"type": "audio/pcmu"}])
def test_another_format_is_echoed_as_it_is(found: object) -> None:
    audio = read(patched(DEFAULT, audio={"input": {"format": found}, "output": 5}).audio)

    assert isinstance(audio, dict)
    kept = {"type": "audio/pcmu", "rate": 24000} if isinstance(found, dict) else found
    assert (audio["input"]["format"], audio["output"]) == (kept, 5)


def test_what_is_kept_is_compact_and_holds_no_frame() -> None:
    """P7: a Raw that is a view would hold the whole frame for as long as the session lives."""
    frame = bytearray(
        b'{"type":"realtime","prompt":{\n  "id": "p q"\n},"tools":[{"type":"function","name":"f","parameters":{\n"a" : 1}}]}'
    )
    config = merge(DEFAULT, parse_session_patch(bytes(frame)))

    assert bytes(config.prompt) == b'{"id":"p q"}'
    assert bytes(config.tools[0].parameters) == b'{"a":1}'
    assert bytes(patched(config, prompt=None).prompt) == bytes(NULL)


@pytest.mark.parametrize("number", ["1e400", "9" * 5000])
def test_a_number_beyond_any_type_in_audio_is_a_mistake_of_the_client(number: str) -> None:
    patch = parse_session_patch(f'{{"type":"realtime","audio":{{"a":{number}}}}}'.encode())

    with pytest.raises(BadEvent) as caught:
        merge(DEFAULT, patch)

    assert (caught.value.code, caught.value.param) == ("invalid_value", "session.audio")
