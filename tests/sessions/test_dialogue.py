"""The dialogue by example: what each client event and each chunk of the engine makes of it. P5 and P6; schedules are in test_schedules."""

import json
from typing import Any

import msgspec
import pytest

from sessions.client_events import RefusedEvent, decode_client_event
from sessions.config import ResumptionOptions, SessionConfig
from sessions.effects import Close, Effects
from sessions.generation import Chunk, FunctionChoice, ToolCallDelta, Usage
from sessions.limits import DialogueLimits
from sessions.records import ArchiveRecord, PredictionRecord, SessionRecord
from sessions.state import DialogueState, decode_state, encode_state
from sessions.wire_errors import WireError
from tests.sessions.builders import (
    EXPIRES_AT,
    NOW_MS,
    USAGE,
    WEATHER,
    Json,
    Talk,
    fold,
    kinds,
    make_call_chunk,
    make_chunk,
    make_dialogue,
    make_event,
    user_item,
    wire_items,
)

TEXT_ANSWER = [
    "response.created",
    "response.output_item.added",
    "conversation.item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "conversation.item.done",
    "response.output_item.done",
    "response.done",
]
CALL = [
    "response.output_item.added",
    "conversation.item.added",
    "response.function_call_arguments.delta",
    "response.function_call_arguments.done",
    "conversation.item.done",
    "response.output_item.done",
]


def with_tools() -> Talk:
    return Talk(config=SessionConfig(model="demo", tools=(WEATHER,)))


def answering(*chunks: str) -> tuple[Talk, str]:
    """A talk with an answer in progress."""
    talk = Talk()
    talk.add("Hi")
    response_id = talk.ask()
    for text in chunks:
        talk.advance(response_id, make_chunk(text))
    return talk, response_id


# Answers


def test_the_session_opens_with_session_created_and_a_record() -> None:
    talk = Talk(config=SessionConfig(model="demo", instructions="Be brief."))

    assert kinds(talk.events) == ["session.created"]
    session = talk.events[0]["session"]
    assert (session["id"], session["type"], session["object"]) == ("sess_01JD", "realtime", "realtime.session")
    assert (session["model"], session["instructions"], session["expires_at"]) == ("demo", "Be brief.", EXPIRES_AT)
    assert not {"avatar", "resumption", "reasoning", "parallel_tool_calls"} & set(session)
    assert talk.records == [SessionRecord("sess_01JD", 1, "한나", "kiosk", "demo", "active", NOW_MS, NOW_MS)]
    assert decode_state(talk.stored_state) == DialogueState(talk.dialogue.config)


def test_a_text_turn_comes_in_the_order_of_the_live_api() -> None:
    talk = Talk()
    added = talk.add("Hi")

    answer = talk.answer(make_chunk("Hel"), make_chunk("lo", finish="stop"))

    assert kinds(added) == ["conversation.item.added", "conversation.item.done"]
    assert [event["previous_item_id"] for event in added] == [None, None]
    assert kinds(answer) == TEXT_ANSWER
    created, item_added, in_conversation, part, first, second, text, part_done, item_done, output_done, done = answer
    assert created["response"] == {
        "object": "realtime.response",
        "id": "resp_1",
        "status": "in_progress",
        "status_details": None,
        "output": [],
        "conversation_id": "conv_01JD",
        "output_modalities": ["text"],
        "max_output_tokens": "inf",
        "usage": None,
        "metadata": None,
    }
    empty = {
        "type": "message",
        "id": "item_2",
        "role": "assistant",
        "content": [],
        "status": "in_progress",
        "object": "realtime.item",
    }
    full = empty | {"status": "completed", "content": [{"type": "output_text", "text": "Hello"}]}
    place = {"response_id": "resp_1", "item_id": "item_2", "output_index": 0, "content_index": 0}
    assert (item_added["item"], item_added["output_index"], item_added["response_id"]) == (empty, 0, "resp_1")
    assert (in_conversation["item"], in_conversation["previous_item_id"]) == (empty, "item_1")
    assert part.items() >= (place | {"part": {"type": "text", "text": ""}}).items()
    assert [first["delta"], second["delta"]] == ["Hel", "lo"]
    assert first.items() >= place.items()
    assert text.items() >= (place | {"text": "Hello"}).items()
    assert part_done.items() >= (place | {"part": {"type": "text", "text": "Hello"}}).items()
    assert (item_done["item"], item_done["previous_item_id"]) == (full, "item_1")
    assert (output_done["item"], output_done["response_id"]) == (full, "resp_1")
    assert (done["response"]["status"], done["response"]["status_details"]) == ("completed", None)
    assert done["response"]["output"] == [full]
    assert done["response"]["usage"] == {
        "total_tokens": 15,
        "input_tokens": 12,
        "output_tokens": 3,
        "input_token_details": {
            "text_tokens": 12,
            "cached_tokens": 4,
            "cached_tokens_details": {"text_tokens": 4, "audio_tokens": 0, "image_tokens": 0},
            "audio_tokens": 0,
            "image_tokens": 0,
        },
        "output_token_details": {"text_tokens": 3, "audio_tokens": 0},
    }
    assert fold(talk.events) == wire_items(talk.dialogue)


def test_a_tool_call_comes_in_the_order_of_the_live_api() -> None:
    talk = with_tools()
    talk.add("Weather?")

    answer = talk.answer(
        make_call_chunk(0, "get_weather"),
        make_call_chunk(0, arguments='{"city":'),
        make_call_chunk(0, arguments='"Seoul"}', finish="tool_calls"),
    )

    assert kinds(answer) == [
        "response.created",
        *CALL[:2],
        "response.function_call_arguments.delta",
        *CALL[2:],
        "response.done",
    ]
    begun, arguments_done, item = answer[1]["item"], answer[5], answer[6]["item"]
    assert (begun["name"], begun["call_id"], begun["arguments"]) == ("get_weather", "call_1", "")
    assert [answer[3]["delta"], answer[4]["delta"]] == ['{"city":', '"Seoul"}']
    assert arguments_done["arguments"] == '{"city":"Seoul"}'
    assert (arguments_done["name"], arguments_done["call_id"]) == ("get_weather", "call_1")
    assert item == begun | {"status": "completed", "arguments": '{"city":"Seoul"}'}
    assert answer[-1]["response"]["status"] == "completed"


def test_several_tool_calls_are_items_of_their_own() -> None:
    talk = with_tools()
    talk.add("Weather twice?")

    answer = talk.answer(
        make_call_chunk(0, "get_weather", '{"city":"Seoul"}'),
        make_call_chunk(1, "get_weather", '{"city":"Busan"}', finish="tool_calls"),
    )

    assert kinds(answer) == ["response.created", *CALL, *CALL, "response.done"]
    calls = answer[-1]["response"]["output"]
    assert [call["arguments"] for call in calls] == ['{"city":"Seoul"}', '{"city":"Busan"}']
    assert len({call["call_id"] for call in calls}) == len({call["id"] for call in calls}) == 2
    assert [e["output_index"] for e in answer if e["type"] == "response.output_item.added"] == [0, 1]
    assert fold(talk.events) == wire_items(talk.dialogue)


def test_text_before_a_tool_call_is_done_before_the_call_begins() -> None:
    talk = with_tools()
    talk.add("Weather?")

    answer = talk.answer(
        make_chunk("Let me see."), make_chunk("", num_tokens=1), make_call_chunk(0, "get_weather", "{}", finish="stop")
    )

    assert kinds(answer) == [*TEXT_ANSWER[:5], *TEXT_ANSWER[6:10], *CALL, "response.done"]
    assert [item["type"] for item in answer[-1]["response"]["output"]] == ["message", "function_call"]
    assert talk.predictions[0].text == "Let me see."


def test_text_in_the_chunk_that_ends_a_call_comes_after_the_call() -> None:
    talk = with_tools()
    talk.add("Weather?")
    end = (ToolCallDelta(0, None, '"Seoul"}'), ToolCallDelta(1, "get_weather", "{"), ToolCallDelta(1, None, "}"))

    answer = talk.answer(
        make_call_chunk(0, "get_weather", '{"city":'),
        Chunk(" Now then.", 6, tool_calls=end),
        make_chunk(finish="stop"),
    )

    output = answer[-1]["response"]["output"]
    assert [(item.get("name"), item.get("arguments")) for item in output] == [
        ("get_weather", '{"city":"Seoul"}'),
        (None, None),
        ("get_weather", "{}"),
    ]
    assert output[1]["content"][0]["text"] == " Now then."
    assert fold(talk.events) == wire_items(talk.dialogue)


def test_an_answer_of_nothing_is_completed_with_no_output() -> None:
    talk = Talk()

    answer = talk.answer(make_chunk(finish="stop"))

    assert kinds(answer) == ["response.created", "response.done"]
    assert answer[-1]["response"]["output"] == []


def test_a_tools_output_is_in_the_next_prompt() -> None:
    talk = with_tools()
    talk.add("Weather?")
    talk.answer(make_call_chunk(0, "get_weather", "{}", finish="tool_calls"))
    output = {"type": "function_call_output", "call_id": "call_1", "output": "rain"}
    talk.send("conversation.item.create", item=output)

    talk.ask()

    assert talk.last.generate is not None
    assert [type(item).__name__ for item in talk.last.generate.items] == [
        "MessageItem",
        "FunctionCallItem",
        "FunctionCallOutputItem",
    ]
    assert len(talk.turns) == 1, "a tool's output is no turn of the user"


@pytest.mark.parametrize(("finish", "reason"), [("length", "max_output_tokens"), ("content_filter", "content_filter")])
def test_an_answer_that_is_cut_is_incomplete_with_its_reason(finish: Any, reason: str) -> None:
    """P6."""
    talk = Talk()

    answer = talk.answer(make_chunk("Hel"), make_chunk("lo", finish=finish), max_output_tokens=2)

    assert kinds(answer) == TEXT_ANSWER
    response = answer[-1]["response"]
    assert (response["status"], response["max_output_tokens"]) == ("incomplete", 2)
    assert response["status_details"] == {"type": "incomplete", "reason": reason}
    assert response["output"][0]["status"] == "incomplete"
    assert (talk.predictions[0].status, talk.predictions[0].status_reason) == ("incomplete", reason)


def test_an_engines_failure_ends_the_response_with_what_was_said() -> None:
    """P6, P9."""
    talk, response_id = answering("Hel")

    failed = talk.fail(response_id)

    assert kinds(failed) == TEXT_ANSWER[6:]
    assert failed[-1]["response"]["status_details"] == {
        "type": "failed",
        "error": {"type": "server_error", "code": "server_error", "message": "The engine is gone."},
    }
    assert wire_items(talk.dialogue)[-1]["content"] == [{"type": "output_text", "text": "Hel"}]
    record = talk.predictions[0]
    assert (record.status, record.status_reason, record.error) == ("failed", "server_error", "The engine is gone.")
    assert (record.text, record.output_tokens, record.input_tokens) == ("Hel", 1, 0)
    assert talk.fail(response_id) == []


def test_the_prompt_is_the_dialogue_and_the_sessions_configuration() -> None:
    talk = Talk(config=SessionConfig(model="demo", instructions="Be kind.", tools=(WEATHER,), max_output_tokens=99))
    talk.add("Hi")
    talk.answer(make_chunk("Hello", finish="stop"))
    talk.add("And?")

    talk.ask()

    prompt = talk.last.generate
    assert prompt is not None
    assert (prompt.response_id, prompt.session_id) == ("resp_2", "sess_01JD")
    assert (prompt.instructions, prompt.tools, prompt.tool_choice) == ("Be kind.", (WEATHER,), "auto")
    assert (prompt.max_output_tokens, prompt.truncation) == (99, "auto")
    assert prompt.items == talk.dialogue.items
    assert len(prompt.items) == 3


def test_a_response_may_ask_for_other_than_the_session() -> None:
    talk = Talk(config=SessionConfig(model="demo", instructions="Be kind.", tools=(WEATHER,), max_output_tokens=99))

    talk.ask(instructions="Be rude.", tool_choice="none", max_output_tokens="inf", metadata={"topic": "tea"})

    prompt = talk.last.generate
    assert prompt is not None
    assert (prompt.instructions, prompt.tools, prompt.max_output_tokens) == ("Be rude.", (), None)
    assert talk.events[-1]["response"]["metadata"] == {"topic": "tea"}
    assert talk.dialogue.config.instructions == "Be kind."


def test_a_response_may_bring_its_own_tools_and_demand_one() -> None:
    talk = Talk()
    tool = {"type": "function", "name": "now", "parameters": {}}

    talk.ask(tools=[tool], tool_choice={"type": "function", "name": "now"})

    prompt = talk.last.generate
    assert prompt is not None
    assert [tool.name for tool in prompt.tools] == ["now"]
    assert prompt.tool_choice == FunctionChoice("now")


def test_empty_instructions_of_a_response_are_not_the_sessions() -> None:
    talk = Talk(config=SessionConfig(model="demo", instructions="Be kind."))

    talk.ask(instructions="")

    assert talk.last.generate is not None
    assert talk.last.generate.instructions == ""


# Out of band


def test_an_out_of_band_answer_leaves_the_conversation_alone() -> None:
    talk = Talk()
    talk.add("Hi")
    before = talk.dialogue.items

    answer = talk.answer(make_chunk("Hel"), make_chunk("lo", finish="stop"), conversation="none", metadata={"a": "b"})

    assert kinds(answer) == [kind for kind in TEXT_ANSWER if not kind.startswith("conversation.")]
    for event in (answer[0], answer[-1]):
        assert event["response"]["conversation_id"] is None
        assert event["response"]["metadata"] == {"a": "b"}
    assert talk.dialogue.items == before
    assert talk.predictions[0].turn_id is None


def test_an_out_of_band_answer_runs_beside_the_default_one() -> None:
    """P6."""
    talk, default = answering("Hel")
    beside = talk.ask(conversation="none", input=[user_item("Is this rude?")])

    talk.advance(beside, make_chunk("No", finish="stop"))
    done = talk.advance(default, make_chunk("lo", finish="stop"))

    assert talk.ended_responses == [beside, default]
    assert done[-1]["response"]["output"][0]["content"][0]["text"] == "Hello"
    assert talk.dialogue.num_answers == 0


def test_input_replaces_the_dialogue_and_may_be_empty_or_refer_to_it() -> None:
    talk = Talk()
    talk.add("Hi", id="item_mine")

    talk.ask(conversation="none", input=[])
    empty = talk.last.generate
    talk.ask(conversation="none", input=[{"type": "item_reference", "id": "item_mine"}, user_item("Twice")])
    referring = talk.last.generate

    assert empty is not None
    assert empty.items == ()
    assert referring is not None
    assert referring.items[0] == talk.dialogue.items[0]
    assert len(referring.items) == 2
    assert len(talk.dialogue.items) == 1


def test_input_that_refers_to_nothing_is_refused() -> None:
    talk = Talk()

    error = talk.refused(
        "response.create", response={"input": [user_item(), {"type": "item_reference", "id": "item_x"}]}
    )

    assert (error["code"], error["param"]) == ("invalid_value", "response.input[1].id")


def test_a_wrong_item_in_input_is_named() -> None:
    talk = Talk()
    wrong = {"type": "message", "role": "user", "content": [{"type": "input_audio", "audio": "AAAA"}]}

    error = talk.refused("response.create", response={"conversation": "none", "input": [wrong]})

    assert (error["code"], error["param"]) == ("invalid_value", "response.input[0].content[0].type")


# Barge-in


@pytest.mark.parametrize("named", [False, True])
def test_cancel_ends_the_answer_with_what_was_said(named: bool) -> None:
    """P5, P6."""
    talk, response_id = answering("Hel", "lo")

    cancelled = talk.send("response.cancel", **({"response_id": response_id} if named else {}))

    assert kinds(cancelled) == TEXT_ANSWER[6:]
    assert talk.last.aborts == [response_id]
    assert cancelled[0]["text"] == "Hello"
    response = cancelled[-1]["response"]
    assert response["status_details"] == {"type": "cancelled", "reason": "client_cancelled"}
    assert wire_items(talk.dialogue)[-1]["status"] == "incomplete"
    assert (talk.predictions[0].status, talk.predictions[0].status_reason) == ("cancelled", "client_cancelled")


def test_cancel_before_the_first_token_leaves_no_item() -> None:
    """P5, P6."""
    talk, _ = answering()

    cancelled = talk.send("response.cancel")

    assert kinds(cancelled) == ["response.done"]
    assert len(talk.dialogue.items) == 1
    assert talk.predictions[0].first_token_ms is None


def test_tokens_that_come_after_a_cancel_are_dropped() -> None:
    """P5."""
    talk, response_id = answering("Hel")
    talk.send("response.cancel")

    late = talk.advance(response_id, make_chunk("lo")) + talk.advance(response_id, make_chunk("!", finish="stop"))

    assert late == []
    assert talk.last == Effects()
    assert len(talk.predictions) == 1


def test_a_cancelled_answer_is_in_the_next_prompt_as_far_as_it_was_said() -> None:
    """P5."""
    talk, _ = answering("Hel")
    talk.send("response.cancel")

    talk.ask()

    assert talk.last.generate is not None
    assert [item.text for item in talk.last.generate.items] == ["Hi", "Hel"]  # type: ignore[union-attr]


def test_a_call_that_was_cut_off_is_in_no_prompt() -> None:
    talk = with_tools()
    talk.add("Weather?")
    response_id = talk.ask()
    talk.advance(response_id, make_call_chunk(0, "get_weather", '{"ci'))
    cancelled = talk.send("response.cancel")

    talk.ask()

    assert kinds(cancelled) == [*CALL[3:], "response.done"]
    assert cancelled[1]["item"]["status"] == "incomplete"
    assert talk.last.generate is not None
    assert len(talk.last.generate.items) == 1


def test_an_answer_in_progress_is_in_no_prompt() -> None:
    talk, _ = answering("Hel")

    talk.ask(conversation="none")

    assert talk.last.generate is not None
    assert [item.id for item in talk.last.generate.items] == ["item_1"]


@pytest.mark.parametrize("fields", [{}, {"response_id": "resp_9"}])
def test_cancelling_nothing_is_refused_in_the_words_that_sdks_look_for(fields: dict[str, str]) -> None:
    talk = Talk()

    error = talk.refused("response.cancel", event_id="mine", **fields)

    assert error["code"] == "response_cancel_not_active"
    assert error["message"].startswith("Cancellation failed")
    assert error["event_id"] == "mine"


def test_cancel_without_an_id_never_means_an_out_of_band_answer() -> None:
    talk = Talk()
    beside = talk.ask(conversation="none")

    error = talk.refused("response.cancel")
    cancelled = talk.send("response.cancel", response_id=beside)

    assert error["code"] == "response_cancel_not_active"
    assert kinds(cancelled) == ["response.done"]


def test_a_second_answer_in_the_conversation_is_refused_until_the_first_ends() -> None:
    talk, response_id = answering("Hel")

    error = talk.refused("response.create")

    assert error["code"] == "conversation_already_has_active_response"
    assert response_id in error["message"]
    talk.send("response.cancel")
    talk.ask()


# Items


def test_items_go_last_first_or_after_another() -> None:
    talk = Talk()
    talk.add(id="b")
    talk.add(id="d")

    first = talk.add(id="a", previous_item_id="root")
    third = talk.add(id="c", previous_item_id="b")
    last = talk.add(id="e", previous_item_id="d")

    assert [item.id for item in talk.dialogue.items] == ["a", "b", "c", "d", "e"]
    assert [events[0]["previous_item_id"] for events in (first, third, last)] == [None, "b", "d"]
    assert fold(talk.events) == wire_items(talk.dialogue)


def test_an_item_put_first_is_saved_and_moves_no_other() -> None:
    talk = Talk()
    talk.add(id="b")

    talk.add(id="a", previous_item_id="root")

    assert [placed.item.id for placed in talk.last.saved_items] == ["a"]


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"item": user_item(id="taken")}, "item_create_duplicate_item_id", "item.id"),
        (
            {"item": user_item(), "previous_item_id": "gone"},
            "item_create_invalid_previous_item_id",
            "previous_item_id",
        ),
        ({"item": user_item(id="")}, "invalid_value", "item.id"),
        ({"item": user_item(id="a\u0000b")}, "invalid_value", "item.id"),
        ({"item": user_item(id="x" * 65)}, "string_above_max_length", "item.id"),
        ({"item": user_item(id="mine ")}, "invalid_value", "item.id"),
        ({"item": user_item("x" * 101)}, "string_above_max_length", "item"),
        (
            {"item": {"type": "message", "role": "user", "content": [{"type": "output_text", "text": "x"}]}},
            "invalid_value",
            "item.content[0].type",
        ),
        (
            {"item": {"type": "message", "role": "assistant", "content": [{"type": "input_text", "text": "x"}]}},
            "invalid_value",
            "item.content[0].type",
        ),
        (
            {"item": {"type": "message", "role": "user", "content": [{"type": "input_text"}]}},
            "missing_required_parameter",
            "item.content[0].text",
        ),
        ({"item": {"type": "function_call_output", "call_id": "", "output": "x"}}, "invalid_value", "item.call_id"),
        (
            {"item": {"type": "function_call", "name": "f", "arguments": "x" * 101}},
            "string_above_max_length",
            "item",
        ),
        (
            {"item": {"type": "function_call_output", "call_id": "c", "output": "x" * 101}},
            "string_above_max_length",
            "item",
        ),
    ],
)
def test_a_wrong_item_is_refused_by_name(fields: dict[str, object], code: str, param: str) -> None:
    talk = Talk(limits=DialogueLimits(max_item_chars=100))
    talk.add(id="taken")

    error = talk.refused("conversation.item.create", event_id="mine", **fields)

    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", code, param)
    assert error["event_id"] == "mine"


def test_items_of_every_kind_and_role_are_kept_as_they_were_written() -> None:
    talk = Talk()
    spoken: Json = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hel"}]}
    system = {"type": "message", "role": "system", "content": [{"type": "input_text", "text": "Be kind."}]}
    call = {"type": "function_call", "name": "f", "arguments": "{}", "call_id": "call_x"}
    output = {"type": "function_call_output", "call_id": "call_x", "output": "1"}

    written: list[Json] = [system, spoken | {"status": "incomplete"}, call, output]
    for item in written:
        talk.send("conversation.item.create", item=item)

    kept = wire_items(talk.dialogue)
    assert all(item.items() >= given.items() for item, given in zip(kept, written, strict=True))
    assert [item["status"] for item in kept] == ["completed", "incomplete", "completed", "completed"]
    assert talk.turns == []


def test_a_part_of_type_text_is_taken_as_the_roles_own() -> None:
    talk = Talk()

    talk.send(
        "conversation.item.create",
        item={
            "type": "message",
            "role": "user",
            "content": [{"type": "text", "text": "Hi"}, {"type": "input_text", "text": "!"}],
        },
    )

    assert wire_items(talk.dialogue)[0]["content"] == [
        {"type": "input_text", "text": "Hi"},
        {"type": "input_text", "text": "!"},
    ]
    assert talk.turns[0].text == "Hi!"


def test_an_item_is_retrieved_as_the_server_has_it() -> None:
    talk = Talk()
    added = talk.add("Hi", id="mine")

    [retrieved] = talk.send("conversation.item.retrieve", item_id="mine")

    assert retrieved["type"] == "conversation.item.retrieved"
    assert retrieved["item"] == added[1]["item"]


@pytest.mark.parametrize("verb", ["retrieve", "delete", "truncate"])
def test_an_unknown_item_is_refused_with_the_verbs_own_code(verb: str) -> None:
    talk = Talk()
    more = {"content_index": 0, "audio_end_ms": 1} if verb == "truncate" else {}

    error = talk.refused(f"conversation.item.{verb}", item_id="gone", **more)

    assert (error["code"], error["param"]) == (f"item_{verb}_invalid_item_id", "item_id")


def test_text_is_not_truncated_as_audio_would_be() -> None:
    talk = Talk()
    talk.add(id="mine")

    error = talk.refused("conversation.item.truncate", item_id="mine", content_index=0, audio_end_ms=5)

    assert error["code"] == "unsupported_content_type"
    assert error["message"] == "Only model output audio messages can be truncated"


def test_a_deleted_item_is_gone_and_its_id_free() -> None:
    """LiveKit truncates text by delete and create with the same id."""
    talk = Talk()
    talk.add("one", id="a")
    talk.add("two", id="b")

    [deleted] = talk.send("conversation.item.delete", item_id="a")
    dropped = talk.last.dropped_items
    talk.add("o", id="a", previous_item_id="root")

    assert (deleted["type"], deleted["item_id"], dropped) == ("conversation.item.deleted", "a", ["a"])
    assert [item["content"][0]["text"] for item in wire_items(talk.dialogue)] == ["o", "two"]
    assert talk.rebuilt().items == talk.dialogue.items


def test_an_answer_that_is_deleted_while_it_is_spoken_stays_deleted() -> None:
    """P5, P6."""
    talk, response_id = answering("Hel")
    talk.send("conversation.item.delete", item_id="item_2")

    done = talk.advance(response_id, make_chunk("lo", finish="stop"))

    assert "conversation.item.done" not in kinds(done)
    assert done[-1]["response"]["output"][0]["id"] == "item_2"
    assert [item.id for item in talk.dialogue.items] == ["item_1"]
    assert talk.rebuilt().items == talk.dialogue.items


def test_an_answer_never_overwrites_what_the_client_put_in_its_place() -> None:
    """P5: the dialogue remembers what the listener heard, though the answer was still in progress when it was cut."""
    talk, response_id = answering("Hello, ", "and ")
    talk.send("conversation.item.delete", item_id="item_2")
    heard = {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "Hello"}],
        "id": "item_2",
    }
    talk.send("conversation.item.create", item=heard, previous_item_id="item_1")

    talk.advance(response_id, make_chunk("so on", finish="stop"))

    assert wire_items(talk.dialogue)[-1]["content"] == heard["content"]
    assert talk.rebuilt().items == talk.dialogue.items


def test_an_answer_goes_on_in_the_middle_when_items_are_added_meanwhile() -> None:
    talk, response_id = answering("Hel")
    talk.add("Wait", id="later")
    talk.add("First", id="earlier", previous_item_id="item_1")

    done = talk.advance(response_id, make_chunk("lo", finish="stop"))

    item_done = next(event for event in done if event["type"] == "conversation.item.done")
    assert item_done["previous_item_id"] == "earlier"
    assert [item.id for item in talk.dialogue.items] == ["item_1", "earlier", "item_2", "later"]
    assert fold(talk.events) == wire_items(talk.dialogue)
    assert talk.rebuilt().items == talk.dialogue.items


# Configuration


def updated(talk: Talk, **session: object) -> dict[str, Any]:
    """The effective session after an update that must be accepted."""
    [event] = talk.send("session.update", session={"type": "realtime", **session})
    assert event["type"] == "session.updated"
    effective: dict[str, Any] = event["session"]
    return effective


def test_an_update_changes_the_fields_that_it_has_and_no_other() -> None:
    talk = Talk()
    updated(talk, instructions="Be kind.", tools=[{"type": "function", "name": "f", "parameters": {"a": 1}}])

    session = updated(talk, max_output_tokens=7, tool_choice="required")

    assert (session["instructions"], session["max_output_tokens"], session["tool_choice"]) == (
        "Be kind.",
        7,
        "required",
    )
    assert session["tools"] == [{"type": "function", "name": "f", "parameters": {"a": 1}}]
    assert decode_state(talk.stored_state).config == talk.dialogue.config


def test_empty_values_clear_and_null_sets_back() -> None:
    talk = Talk()
    updated(talk, instructions="Be kind.", tools=[{"type": "function", "name": "f"}], max_output_tokens=7)

    cleared = updated(talk, instructions="", tools=[])
    reset = updated(talk, max_output_tokens=None, instructions=None, audio=None)

    assert (cleared["instructions"], cleared["tools"]) == ("", [])
    assert (reset["max_output_tokens"], reset["instructions"]) == ("inf", "")
    assert reset["audio"] == Talk().events[0]["session"]["audio"]


def test_audio_is_merged_to_any_depth_and_echoed() -> None:
    talk = Talk()
    updated(talk, audio={"input": {"transcription": {"model": "whisper-1", "language": "en"}}})

    session = updated(
        talk,
        audio={
            "input": {"transcription": {"language": "ko"}, "turn_detection": {"type": "server_vad"}},
            "output": {"format": {"type": "audio/pcm", "rate": 16000}},
        },
    )

    audio = session["audio"]
    assert audio["input"]["transcription"] == {"model": "whisper-1", "language": "ko"}
    assert audio["input"]["turn_detection"] is None, "no turn is detected here, and who reads otherwise sends no cancel"
    assert audio["input"]["format"] == {"type": "audio/pcm", "rate": 24000}
    assert audio["output"]["format"] == {"type": "audio/pcm", "rate": 24000}, "Pipecat knows no other rate"
    assert audio["output"]["voice"] == "alloy"


@pytest.mark.parametrize("asked", [["audio"], ["text"], ["text", "audio"], None])
def test_the_modality_is_text_whatever_is_asked_for(asked: object) -> None:
    talk = Talk()

    session = updated(talk, output_modalities=asked)
    response = talk.send("response.create", response={"output_modalities": asked})[0]["response"]

    assert session["output_modalities"] == response["output_modalities"] == ["text"]


def test_what_belongs_to_the_connection_is_accepted_and_kept() -> None:
    talk = Talk()

    session = updated(talk, model="gpt-realtime", id="sess_mine", object="realtime.session", expires_at=1)

    assert (session["model"], session["id"], session["expires_at"]) == ("demo", "sess_01JD", EXPIRES_AT)


def test_what_a_text_server_ignores_is_echoed_as_it_was_written() -> None:
    talk = Talk()

    session = updated(
        talk, tracing="auto", prompt={"id": "p"}, include=[], parallel_tool_calls=False, reasoning={"effort": "low"}
    )

    assert (session["tracing"], session["prompt"], session["include"]) == ("auto", {"id": "p"}, [])
    assert (session["parallel_tool_calls"], session["reasoning"]) == (False, {"effort": "low"})


def test_our_extensions_are_echoed_to_those_who_ask_for_them() -> None:
    """P1."""
    talk = Talk()

    session = updated(talk, avatar={"segments": True, "cues": ["emotion"]}, resumption={"enabled": True})

    assert session["avatar"] == {"segments": True, "cues": ["emotion"], "interrupt": None}
    assert session["resumption"] == {"enabled": True}
    assert talk.dialogue.config.resumption == ResumptionOptions(enabled=True)


def test_newlines_in_a_clients_json_do_not_reach_the_journal() -> None:
    """P2: the stores part a commit's events at newlines."""
    talk = Talk()
    frame = (
        '{"type":"session.update","session":{"type":"realtime",'
        '"tools":[{"type":"function","name":"f","parameters":{\n"a":\r\n1}}],"prompt":{\n"id":"a\\nb"},"include":[\n],'
        '"tracing":\n{"a":\n1},"reasoning":{\n},"audio":{\n"input":\n{"x":1}}}}'
    )

    effects = talk.dialogue.receive(decode_client_event(frame), NOW_MS)

    [event] = talk.take(effects)
    assert event["session"]["prompt"] == {"id": "a\nb"}
    encoded = msgspec.json.encode(effects.events[0])
    assert b"\n" not in encoded
    assert b"\r" not in encoded


@pytest.mark.parametrize(
    ("session", "code", "param"),
    [
        ({}, "missing_required_parameter", "session.type"),
        ({"type": "transcription"}, "invalid_parameter", "session.type"),
        *(
            ({"type": "realtime", name: None}, "unknown_parameter", f"session.{name}")
            for name in (
                "modalities",
                "temperature",
                "voice",
                "turn_detection",
                "max_response_output_tokens",
                "input_audio_format",
                "input_audio_transcription",
            )
        ),
        ({"type": "realtime", "instructions": 7}, "invalid_type", "session.instructions"),
        ({"type": "realtime", "instructions": "x" * 51}, "string_above_max_length", "session.instructions"),
        ({"type": "realtime", "max_output_tokens": 0}, "integer_below_min_value", "session.max_output_tokens"),
        ({"type": "realtime", "max_output_tokens": 4097}, "integer_above_max_value", "session.max_output_tokens"),
        ({"type": "realtime", "max_output_tokens": "many"}, "invalid_value", "session.max_output_tokens"),
        (
            {"type": "realtime", "tool_choice": {"type": "function", "name": "f"}},
            "invalid_value",
            "session.tool_choice.name",
        ),
        (
            {"type": "realtime", "tools": [{"type": "mcp", "server_label": "x"}]},
            "invalid_value",
            "session.tools[0].type",
        ),
        (
            {"type": "realtime", "tools": [{"type": "function", "name": "f"}] * 2},
            "invalid_value",
            "session.tools[1].name",
        ),
        ({"type": "realtime", "tools": [{"type": "function", "name": ""}]}, "invalid_value", "session.tools[0].name"),
        (
            {"type": "realtime", "tools": [{"type": "function", "name": "f", "parameters": [1]}]},
            "invalid_type",
            "session.tools[0].parameters",
        ),
        (
            {"type": "realtime", "tools": [{"type": "function", "name": f"f{n}"} for n in range(129)]},
            "invalid_value",
            "session.tools",
        ),
        ({"type": "realtime", "audio": 5}, "invalid_type", "session.audio"),
        ({"type": "realtime", "output_modalities": ["video"]}, "invalid_value", "session.output_modalities[0]"),
        ({"type": "realtime", "avatar": {"wings": 2}}, "unknown_parameter", "session.avatar.wings"),
        (
            {"type": "realtime", "truncation": {"type": "retention_ratio"}},
            "missing_required_parameter",
            "session.truncation.retention_ratio",
        ),
        (7, "invalid_type", "session"),
    ],
)
def test_a_rejected_update_names_what_is_wrong_and_changes_nothing(session: object, code: str, param: str) -> None:
    talk = Talk(
        config=SessionConfig(model="demo", instructions="Be kind."), limits=DialogueLimits(max_instructions_chars=50)
    )

    error = talk.refused("session.update", session=session, event_id="mine")

    assert (error["code"], error["param"], error["event_id"]) == (code, param, "mine")


@pytest.mark.parametrize("number", ["1e400", "9" * 5000, "-" + "9" * 5000])
@pytest.mark.parametrize("field", ["audio", "prompt", "truncation"])
def test_numbers_beyond_any_type_are_refused_or_echoed_and_never_a_crash(field: str, number: str) -> None:
    """P7."""
    talk = Talk()
    frame = f'{{"type":"session.update","session":{{"type":"realtime","{field}":{{"type":"retention_ratio","retention_ratio":{number}}}}}}}'

    effects = talk.dialogue.receive(decode_client_event(frame), NOW_MS)

    assert [type(event).__name__ for event in effects.events] in (["ErrorEvent"], ["SessionUpdated"])


@pytest.mark.parametrize("field", ["audio", "prompt", "tools"])
@pytest.mark.parametrize("depth", [100, 600, 900, 940, 980])
def test_deep_nesting_is_refused_or_echoed_and_never_a_crash(field: str, depth: int) -> None:
    """P7: twice, since merging descends into what is there."""
    talk = Talk()
    nested = '{"a":' * depth + "1" + "}" * depth
    value = f'[{{"type":"function","name":"f","parameters":{nested}}}]' if field == "tools" else nested
    frame = f'{{"type":"session.update","session":{{"type":"realtime","{field}":{value}}}}}'

    for _ in range(2):
        try:
            event = decode_client_event(frame)
        except RefusedEvent:
            return
        effects = talk.dialogue.receive(event, NOW_MS)
        assert len(effects.events) == 1


# Limits


def test_a_conversation_holds_so_many_items_and_no_more() -> None:
    talk = Talk(limits=DialogueLimits(max_items=2))
    talk.add()
    talk.add()

    error = talk.refused("conversation.item.create", item=user_item())
    talk.send("conversation.item.delete", item_id="item_1")

    assert (error["code"], error["param"]) == ("conversation_too_long", "item")
    assert kinds(talk.add()) == ["conversation.item.added", "conversation.item.done"]


def test_answers_count_among_the_items() -> None:
    """P7: a client that only asks for answers would fill the store too."""
    talk = Talk(limits=DialogueLimits(max_items=2))
    talk.add()
    talk.advance(talk.ask(), make_chunk("Hello", finish="stop"))

    error = talk.refused("response.create")
    aside = talk.send("response.create", response={"conversation": "none"})

    assert error["code"] == "conversation_too_long"
    assert kinds(aside) == ["response.created"]


@pytest.mark.parametrize(
    "item",
    [
        user_item("a" * 60),
        {"type": "function_call_output", "call_id": "call_1", "output": "a" * 60},
        {"type": "function_call", "call_id": "call_1", "name": "look", "arguments": json.dumps({"a": "a" * 60})},
    ],
    ids=lambda item: item["type"],
)
def test_a_conversation_holds_so_many_characters_and_no_more(item: Json) -> None:
    talk = Talk(limits=DialogueLimits(max_chars=100))
    talk.add("b" * 30)
    talk.add("c" * 30)

    error = talk.refused("conversation.item.create", item=item)
    talk.send("conversation.item.delete", item_id="item_1")

    assert (error["code"], error["param"]) == ("conversation_too_long", "item")
    assert kinds(talk.send("conversation.item.create", item=item)) == [
        "conversation.item.added",
        "conversation.item.done",
    ]


def test_a_configuration_grows_to_so_many_bytes_and_no_more() -> None:
    """What is merged key by key would else grow with every update."""
    talk = Talk(limits=DialogueLimits(max_config_bytes=4_000))
    update = {"type": "realtime", "audio": {"input": {"a": "a" * 1_000}}}
    talk.send("session.update", session=update)

    error = talk.refused("session.update", session={"type": "realtime", "audio": {"input": {"b": "b" * 4_000}}})

    assert (error["code"], error["param"]) == ("invalid_value", "session")


def test_so_many_answers_run_at_once_and_no_more() -> None:
    talk = Talk(limits=DialogueLimits(max_answers=2))
    talk.ask()
    talk.ask(conversation="none")

    error = talk.refused("response.create", response={"conversation": "none"})

    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    talk.send("response.cancel")
    talk.ask(conversation="none")


@pytest.mark.parametrize(
    ("response", "code", "param"),
    [
        ({"instructions": "x" * 51}, "string_above_max_length", "response.instructions"),
        ({"max_output_tokens": 0}, "integer_below_min_value", "response.max_output_tokens"),
        ({"max_output_tokens": 4097}, "integer_above_max_value", "response.max_output_tokens"),
        ({"metadata": {str(n): "x" for n in range(17)}}, "invalid_value", "response.metadata"),
        ({"metadata": {"x" * 65: ""}}, "string_above_max_length", "response.metadata"),
        ({"metadata": {"x": "x" * 513}}, "string_above_max_length", "response.metadata"),
        ({"tools": [{"type": "function", "name": ""}]}, "invalid_value", "response.tools[0].name"),
        ({"tool_choice": {"type": "function", "name": "f"}}, "invalid_value", "response.tool_choice.name"),
    ],
)
def test_a_response_beyond_a_limit_is_refused_by_name(response: dict[str, object], code: str, param: str) -> None:
    talk = Talk(limits=DialogueLimits(max_instructions_chars=50))

    error = talk.refused("response.create", response=response)

    assert (error["code"], error["param"]) == (code, param)
    assert talk.dialogue.num_answers == 0


def test_metadata_at_its_limits_is_kept() -> None:
    talk = Talk()
    metadata = {f"{n:064}": "x" * 512 for n in range(16)}

    answer = talk.answer(make_chunk("Hi", finish="stop"), metadata=metadata)

    assert answer[0]["response"]["metadata"] == answer[-1]["response"]["metadata"] == metadata


# Audio events, which a text server tolerates


def test_audio_is_tolerated_and_never_answered_as_if_it_were_heard() -> None:
    talk = Talk()

    assert talk.send("input_audio_buffer.append", audio="AAAA") == []
    assert talk.send("output_audio_buffer.clear") == []
    assert kinds(talk.send("input_audio_buffer.clear")) == ["input_audio_buffer.cleared"]
    assert talk.refused("input_audio_buffer.commit")["code"] == "input_audio_buffer_commit_empty"


def test_a_frame_that_is_no_event_is_answered_by_an_error() -> None:
    talk = Talk()
    with pytest.raises(RefusedEvent) as caught:
        decode_client_event('{"type":"response.dance","event_id":"mine"}')

    [event] = talk.take(talk.dialogue.refuse(caught.value))

    assert event["error"] == {
        "type": "invalid_request_error",
        "code": "invalid_value",
        "message": "Invalid value: 'response.dance' is no event of this protocol.",
        "param": "type",
        "event_id": "mine",
    }


def test_a_reported_failure_is_an_error_event() -> None:
    talk = Talk()

    [event] = talk.take(talk.dialogue.report(WireError("server_error", "server_error", "Sorry.")))

    assert (event["type"], event["error"]["message"]) == ("error", "Sorry.")


# Records


def test_each_user_message_is_a_turn_and_each_response_a_prediction_of_it() -> None:
    talk = Talk()
    talk.add("one")
    talk.now_ms += 10
    talk.answer(make_chunk("1", finish="stop"))
    talk.add("two")
    talk.answer(make_chunk("2", finish="stop"))
    talk.answer(make_chunk("2!", finish="stop"))

    assert [(turn.turn_id, turn.number, turn.text) for turn in talk.turns] == [
        ("turn_1", 1, "one"),
        ("turn_2", 2, "two"),
    ]
    assert [turn.item_id for turn in talk.turns] == ["item_1", "item_3"]
    assert [record.turn_id for record in talk.predictions] == ["turn_1", "turn_2", "turn_2"]
    assert decode_state(talk.stored_state).num_turns == 2


def test_a_prediction_says_all_of_its_answer() -> None:
    talk = Talk(config=SessionConfig(model="demo", instructions="Be kind.", tools=(WEATHER,)))
    talk.add("Hi")
    response_id = talk.ask(max_output_tokens=50)
    talk.now_ms += 30
    talk.advance(response_id, make_chunk("Hel", usage=Usage(12, 1, 4)))
    talk.now_ms += 20

    talk.advance(response_id, make_chunk("lo", finish="stop"))

    [record] = talk.predictions
    assert record == PredictionRecord(
        response_id="resp_1",
        session_id="sess_01JD",
        sequence=talk.dialogue.next_sequence - 1,
        turn_id="turn_1",
        model="demo",
        model_version="2026-11",
        status="completed",
        status_reason=None,
        text="Hello",
        output=record.output,
        request=record.request,
        input_tokens=12,
        output_tokens=3,
        cached_tokens=4,
        created_ms=NOW_MS,
        first_token_ms=NOW_MS + 30,
        done_ms=NOW_MS + 50,
        sent_chars=5,
        trace=record.trace,
    )
    assert msgspec.json.decode(record.output) == talk.events[-1]["response"]["output"]
    assert msgspec.json.decode(record.request) == {
        "instructions": "Be kind.",
        "input_item_ids": ["item_1"],
        "tool_names": ["get_weather"],
        "max_output_tokens": 50,
    }


def test_usage_is_never_less_than_what_was_streamed() -> None:
    talk, response_id = answering()
    talk.advance(response_id, make_chunk("a b c", num_tokens=5, usage=Usage(12, 1)))

    cancelled = talk.send("response.cancel")

    assert cancelled[-1]["response"]["usage"]["output_tokens"] == 5
    assert talk.predictions[0].output_tokens == 5


def test_records_carry_ever_growing_sequence_numbers() -> None:
    talk = Talk()
    for _ in range(3):
        talk.add()
        talk.answer(make_chunk("Hi", finish="stop"))
    talk.ask()
    talk.end()

    sequences = [record.sequence for record in talk.records[:-2]]  # type: ignore[union-attr]
    assert sequences == sorted(set(sequences))
    assert talk.session_records[-1].sequence == talk.dialogue.next_sequence - 1


# The end


def test_the_end_cancels_what_runs_and_archives_all_of_it() -> None:
    """P3, P6."""
    talk, default = answering("Hel")
    beside = talk.ask(conversation="none")
    talk.now_ms += 5

    talk.end()

    assert talk.ended_responses == [default, beside]
    assert talk.last.aborts == [default, beside]
    assert [(r.status, r.status_reason) for r in talk.predictions] == [("cancelled", "disconnected")] * 2
    ended = talk.session_records[-1]
    assert (ended.status, ended.ended_ms, ended.created_ms) == ("ended", NOW_MS + 5, NOW_MS)
    last = len(talk.events)
    assert talk.records[-1] == ArchiveRecord("sess_01JD", last, NOW_MS, last_sequence=last, final=True)
    assert talk.dialogue.num_answers == 0
    assert talk.advance(default, make_chunk("late")) == []


def test_the_end_of_a_quiet_session_makes_no_events() -> None:
    talk = Talk()

    assert talk.end() == []
    assert talk.records[-1] == ArchiveRecord("sess_01JD", 1, NOW_MS, last_sequence=1, final=True)


def test_expiry_ends_the_answers_then_says_so_then_closes() -> None:
    """P6: and no answer can hold the session open beyond its time."""
    talk, response_id = answering("Hel")

    events = talk.take(talk.dialogue.expire(NOW_MS, code=4401, reason="Your token has expired."))

    assert kinds(events) == [*TEXT_ANSWER[6:], "error"]
    assert (events[-1]["error"]["code"], events[-1]["error"]["message"]) == (
        "session_expired",
        "Your token has expired.",
    )
    assert (talk.last.aborts, talk.last.close) == ([response_id], Close(4401, "Your token has expired."))
    assert (talk.predictions[0].status, talk.predictions[0].status_reason) == ("cancelled", "expired")


def test_a_dialogue_that_is_loaded_goes_on_where_it_was() -> None:
    """P4."""
    talk = Talk()
    talk.add("one")
    talk.answer(make_chunk("1", finish="stop"))
    again = talk.rebuilt()

    effects = again.receive(make_event("conversation.item.create", item=user_item("two", id="mine")), NOW_MS)

    assert effects.events[0].event_id == f"event_01JD_{len(talk.events) + 1}"
    assert effects.events[0].previous_item_id == "item_2"  # type: ignore[union-attr]
    assert effects.records[0].number == 2  # type: ignore[union-attr]


def test_the_state_is_read_as_it_was_written() -> None:
    config = SessionConfig(
        model="demo",
        tools=(WEATHER,),
        tool_choice=FunctionChoice("get_weather"),
        resumption=ResumptionOptions(enabled=True),
    )
    state = DialogueState(config, "turn_7", 7)

    assert decode_state(encode_state(state)) == state


def test_a_dialogue_knows_its_ids() -> None:
    assert make_dialogue().conversation_id == "conv_01JD"
    assert USAGE.cached_tokens <= USAGE.input_tokens


def test_the_short_way_of_a_delta_says_what_the_long_one_says() -> None:
    short, long = Talk(), Talk()
    chunks = [make_chunk("Hel"), make_chunk("lo "), make_chunk("there"), make_chunk("!", finish="stop")]

    for talk in (short, long):
        talk.add("Hi")
    by_short, by_long = short.ask(), long.ask()
    for chunk in chunks:
        short.advance(by_short, chunk)
        long.take(long.dialogue.advance(by_long, chunk, long.now_ms))

    assert short.events == long.events
    assert short.records == long.records
    assert short.dialogue.delta(by_short, make_chunk("late")) is None


def test_the_short_way_is_only_for_text_of_a_message_that_has_begun() -> None:
    talk = Talk()
    talk.add("Hi")
    response_id = talk.ask()

    assert talk.dialogue.delta(response_id, make_chunk("first")) is None
    talk.advance(response_id, make_chunk("first"))

    assert talk.dialogue.delta(response_id, make_chunk("")) is None
    assert talk.dialogue.delta(response_id, make_chunk("!", finish="stop")) is None
    assert talk.dialogue.delta("resp_unknown", make_chunk("text")) is None
    assert talk.dialogue.delta(response_id, make_chunk("text")) is not None
