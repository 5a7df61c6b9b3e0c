"""What the server sends: openai-python's own types accept every event, and a sequence number is added without harm. P1."""

import json
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.realtime import RealtimeServerEvent
from pydantic import BaseModel

from sessions.config import SessionConfig
from sessions.generation import FunctionChoice, RetentionRatio
from sessions.items import InputText, MessageItem
from sessions.server_events import InputAudioCleared, ItemDone, ServerEvent, encode_event, with_sequence_number
from tests.sessions.builders import WEATHER, Talk, make_call_chunk, make_chunk, user_item

OPENAI_EVENTS: dict[str, type[BaseModel]] = {
    name: model
    for model in get_args(get_args(RealtimeServerEvent)[0])
    for name in get_args(model.model_fields["type"].annotation)
}


def everything() -> list[dict[str, Any]]:
    """One of each event and each ending of a response."""
    talk = Talk(config=SessionConfig(model="demo", instructions="Be kind.", tools=(WEATHER,)))
    talk.add("Hi", id="mine")
    talk.answer(make_chunk("Hello"), make_call_chunk(0, "get_weather", "{}", finish="tool_calls"), metadata={"a": "b"})
    talk.send("conversation.item.create", item={"type": "function_call_output", "call_id": "call_1", "output": "rain"})
    talk.send("conversation.item.create", item=user_item() | {"role": "system"}, previous_item_id="root")
    talk.answer(make_chunk("cut", finish="length"), max_output_tokens=1)
    talk.answer(make_chunk("bad", finish="content_filter"), conversation="none")
    talk.fail(talk.ask())
    talk.ask()
    talk.send("response.cancel")
    talk.send("avatar.item.truncate", item_id="item_1", content_index=0, char_end=2)
    rated = talk.send("avatar.feedback.create", item_id="item_1", feedback={"rating": "up", "start": 0, "end": 2})
    talk.send("avatar.feedback.delete", feedback_id=rated[0]["feedback"]["id"])
    talk.send("conversation.item.retrieve", item_id="mine")
    talk.send("conversation.item.delete", item_id="mine")
    talk.send("conversation.item.delete", item_id="mine", event_id="again")
    talk.send("input_audio_buffer.clear")
    update = {"tool_choice": {"type": "function", "name": "get_weather"}, "max_output_tokens": 5, "tracing": "auto"}
    talk.send("session.update", session={"type": "realtime", "truncation": "disabled", "include": [], **update})
    ratio = {"type": "retention_ratio", "retention_ratio": 0.8}
    talk.send("session.update", session={"type": "realtime", "truncation": ratio, "prompt": {"id": "p"}})
    assert talk.dialogue.config.tool_choice == FunctionChoice("get_weather")
    assert talk.dialogue.config.truncation == RetentionRatio(0.8)
    return talk.events


def test_every_event_is_one_that_openai_python_knows_in_every_field() -> None:
    """P1."""
    events = [event for event in everything() if not event["type"].startswith("avatar.")]

    for event in events:
        parsed = OPENAI_EVENTS[event["type"]].model_validate_json(json.dumps(event), strict=True)
        assert parsed.model_dump(exclude_unset=True, mode="json") == event or event["type"].startswith("session.")
        assert parsed.model_extra == {}


def test_every_type_of_event_is_tested() -> None:
    tags = {event.__struct_config__.tag for event in get_args(ServerEvent)}

    assert {event["type"] for event in everything()} == tags


def test_type_comes_first_and_the_event_id_next() -> None:
    for event in everything():
        assert list(event)[:2] == ["type", "event_id"]


@given(st.text(max_size=20), st.integers(1, 10**12))
def test_a_sequence_number_is_added_and_nothing_else_changes(text: str, sequence_number: int) -> None:
    event = encode_event(ItemDone("event_1", None, MessageItem("item_1", "user", (InputText(text),))))

    numbered = json.loads(with_sequence_number(event, sequence_number))

    assert numbered.pop("sequence_number") == sequence_number
    assert numbered == json.loads(event)
    assert b"\n" not in event


def test_the_shortest_event_takes_a_sequence_number_too() -> None:
    event = encode_event(InputAudioCleared("e"))

    assert with_sequence_number(event, 7) == b'{"type":"input_audio_buffer.cleared","event_id":"e","sequence_number":7}'


@pytest.mark.parametrize("kind", ["session.created", "session.updated"])
def test_the_sessions_extras_are_those_that_openai_sends(kind: str) -> None:
    event = next(event for event in everything() if event["type"] == kind)
    parsed = OPENAI_EVENTS[kind].model_validate_json(json.dumps(event), strict=True)

    assert set(parsed.session.model_extra) == {"id", "object", "expires_at"}  # type: ignore[attr-defined]
