"""What clients send: whatever it is, it becomes one typed event or one `RefusedEvent` that names what is wrong. P7."""

import contextlib
import json

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sessions import client_events as incoming
from sessions.client_events import ClientEvent, RefusedEvent, decode_client_event
from tests.sessions.builders import NOW_MS, make_dialogue, user_item

KINDS = [
    "session.update",
    "conversation.item.create",
    "conversation.item.retrieve",
    "conversation.item.delete",
    "conversation.item.truncate",
    "avatar.item.truncate",
    "avatar.feedback.create",
    "avatar.feedback.delete",
    "response.create",
    "response.cancel",
    "input_audio_buffer.append",
    "input_audio_buffer.commit",
    "input_audio_buffer.clear",
    "output_audio_buffer.clear",
]
NAMES = [
    "type", "event_id", "session", "item", "item_id", "previous_item_id", "response", "response_id", "content", "id", "role", "text",
    "instructions", "tools", "tool_choice", "name", "parameters", "audio", "input", "output", "metadata", "conversation", "call_id",
    "arguments", "max_output_tokens", "truncation", "prompt", "avatar", "resumption", "content_index", "audio_end_ms", "char_end",
    "format", "rate", "feedback", "feedback_id", "rating", "reason", "comment", "start", "end", "rated_at_ms",
]  # fmt: skip
WORDS = [
    *KINDS,
    "realtime",
    "message",
    "function",
    "function_call",
    "item_reference",
    "user",
    "input_text",
    "none",
    "auto",
    "inf",
    "up",
    "other",
]
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.just(10**30)
    | st.floats()
    | st.sampled_from(WORDS)
    | st.text(st.characters(codec=None), max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
)
json_objects = st.dictionaries(st.sampled_from(NAMES), json_values, max_size=5)


def refusal(frame: str | bytes) -> RefusedEvent:
    with pytest.raises(RefusedEvent) as caught:
        decode_client_event(frame)
    return caught.value


def receive(frame: str | bytes) -> None:
    """Through the decoder and the dialogue, as a frame goes; nothing but a typed refusal may come of it."""
    dialogue = make_dialogue()
    try:
        event = decode_client_event(frame)
    except RefusedEvent as refused:
        effects = dialogue.refuse(refused)
        assert [type(event).__name__ for event in effects.events] == ["ErrorEvent"]
    else:
        effects = dialogue.receive(event, NOW_MS)
    for event_out in effects.events:
        assert b"\n" not in msgspec.json.encode(event_out)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60) | st.text(st.characters(codec=None), max_size=60))
@example(b"\xff\xfe")
@example("\ud800")
@example(b'{"type":"response.cancel","event_id":"\xff"}')
def test_any_bytes_and_any_text_are_an_event_or_a_refusal(frame: str | bytes) -> None:
    with contextlib.suppress(RefusedEvent):
        decode_client_event(frame)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(KINDS), json_objects)
def test_any_json_is_answered_and_never_crashes_the_session(kind: str, fields: dict[str, object]) -> None:
    receive(json.dumps({**fields, "type": kind}))


@settings(max_examples=300, deadline=None)
@given(json_objects)
def test_any_session_update_is_answered_and_never_crashes_the_session(session: dict[str, object]) -> None:
    receive(json.dumps({"type": "session.update", "session": {"type": "realtime", **session}}, indent=1))


@settings(max_examples=200, deadline=None)
@given(json_values)
def test_any_json_value_is_an_event_or_a_refusal(value: object) -> None:
    receive(json.dumps(value))


@pytest.mark.parametrize(
    "frame",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"type":"session.update","session":' + "[" * 50_000 + "]" * 50_000 + "}",
        '{"type":"response.create","response":{"metadata":' + '{"a":' * 20_000 + "1" + "}" * 20_000 + "}}",
    ],
)
def test_nesting_without_end_is_refused(frame: str) -> None:
    assert refusal(frame).reason.code in {"invalid_json", "invalid_event", "invalid_type"}


@pytest.mark.parametrize(
    "frame",
    [
        "",
        "{",
        "nope",
        "{'type':'response.cancel'}",
        '{"type":"response.cancel"} x',
        '{"type":"response.dance", nope',
        '{"type":"response.dance","a":' + "[" * 50_000,
        b'{"type":"response.dance","event_id":"\xff"}',
        '{"type":"response.create","response":{"max_output_tokens":NaN}}',
        '{"type":"conversation.item.retrieve","item_id":"\\ud800"}',
        '{"type":"session.update","session":{"type":"realtime","instructions":"\\udc00"}}',
        '{"type":"conversation.item.retrieve","item_id":"\ud800"}',
        b'{"type":"conversation.item.retrieve","item_id":"\xff"}',
        '{"type":"conversation.item.retrieve","item_id":"\x00"}',
    ],
)
def test_what_is_no_valid_json_is_called_so(frame: str | bytes) -> None:
    refused = refusal(frame)

    assert (refused.reason.code, refused.reason.param, refused.event_id) == ("invalid_json", None, None)


@pytest.mark.parametrize("frame", ["5", "[]", "null", '"x"', "true", "1e400", "9" * 5000])
def test_json_that_is_no_object_is_no_event(frame: str) -> None:
    assert refusal(frame).reason.code in {"invalid_event", "invalid_type", "invalid_json"}


@pytest.mark.parametrize(
    ("frame", "code", "param"),
    [
        ("{}", "missing_required_parameter", "type"),
        ('{"type":null}', "invalid_type", "type"),
        ('{"type":["x"]}', "invalid_type", "type"),
        ('{"type":"response.dance"}', "invalid_value", "type"),
        ('{"type":"conversation.item.delete"}', "missing_required_parameter", "item_id"),
        ('{"type":"conversation.item.delete","item_id":5}', "invalid_type", "item_id"),
        ('{"type":"response.cancel","why":1}', "unknown_parameter", "why"),
        ('{"type":"response.cancel","event_id":5}', "invalid_type", "event_id"),
        ('{"type":"response.create","response":5}', "invalid_type", "response"),
        ('{"type":"response.create","response":{"temperature":1}}', "unknown_parameter", "response.temperature"),
        ('{"type":"response.create","response":{"conversation":"x"}}', "invalid_value", "response.conversation"),
        ('{"type":"response.create","response":{"metadata":{"a":1}}}', "invalid_type", "response.metadata"),
        ('{"type":"conversation.item.create"}', "missing_required_parameter", "item"),
        ('{"type":"conversation.item.create","item":{}}', "missing_required_parameter", "item.type"),
        ('{"type":"conversation.item.create","item":{"type":"photo"}}', "invalid_value", "item.type"),
        (
            '{"type":"conversation.item.create","item":{"type":"message","role":"robot","content":[]}}',
            "invalid_value",
            "item.role",
        ),
        (
            '{"type":"conversation.item.create","item":{"type":"message","role":"user","content":[{"text":"x"}]}}',
            "missing_required_parameter",
            "item.content[0].type",
        ),
        (
            '{"type":"conversation.item.create","item":{"type":"message","role":"user","content":[{"type":"text","x":1}]}}',
            "unknown_parameter",
            "item.content[0].x",
        ),
        ('{"type":"session.update"}', "missing_required_parameter", "session"),
        (
            '{"type":"conversation.item.truncate","item_id":"x","content_index":1e30,"audio_end_ms":1}',
            "invalid_type",
            "content_index",
        ),
    ],
)
def test_a_mistake_is_named_by_its_code_and_parameter(frame: str, code: str, param: str) -> None:
    refused = refusal(frame)

    assert (refused.reason.code, refused.reason.param, refused.reason.type) == (code, param, "invalid_request_error")


def test_a_refusal_carries_the_clients_event_id_where_it_can_be_read() -> None:
    assert refusal('{"type":"response.dance","event_id":"mine"}').event_id == "mine"
    assert refusal('{"event_id":"mine","type":"response.cancel","x":1}').event_id == "mine"
    assert refusal('{"type":"response.dance","event_id":null}').event_id is None
    assert len(refusal(json.dumps({"type": "x", "event_id": "e" * 9000})).event_id or "") == 512


def test_an_unknown_type_is_quoted_in_part_only() -> None:
    assert len(refusal(json.dumps({"type": "x" * 10_000})).reason.message) < 200


@pytest.mark.parametrize(
    ("frame", "event"),
    [
        ('{"type":"response.create"}', incoming.ResponseCreate()),
        ('{"type":"response.create","response":null}', incoming.ResponseCreate(response=None)),
        ('{"type":"response.cancel","event_id":"e"}', incoming.ResponseCancel(event_id="e")),
        ('{"type":"response.cancel","response_id":null}', incoming.ResponseCancel()),
        ('{"type":"conversation.item.delete","item_id":"i"}', incoming.ItemDelete(item_id="i")),
        ('{"type":"input_audio_buffer.append","audio":"AA"}', incoming.InputAudioAppend(audio="AA")),
    ],
)
def test_an_event_is_decoded_as_its_own_type(frame: str, event: ClientEvent) -> None:
    assert decode_client_event(frame) == event
    assert decode_client_event(frame.encode()) == event


def test_an_item_is_decoded_whole() -> None:
    event = decode_client_event(
        json.dumps({"type": "conversation.item.create", "item": user_item("Hi", id="i"), "previous_item_id": "root"})
    )

    assert event == incoming.ItemCreate(
        item=incoming.NewMessage("user", (incoming.NewContent("input_text", "Hi"),), "i"), previous_item_id="root"
    )
