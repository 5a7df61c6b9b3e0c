"""A dialogue restored on another node: an open answer goes on under its ids, as if nothing had happened, or is known to be lost."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from sessions.config import SessionConfig
from sessions.dialogue import Dialogue
from sessions.generation import Chunk, Prompt, ToolCallDelta, Usage
from sessions.items import MessageItem
from sessions.state import decode_state
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
    user_item,
    wire_items,
)
from tests.sessions.scripts import Script, cuttings, generate, scripts


def answering(*chunks: Chunk, **response: object) -> tuple[Talk, str]:
    """A talk with an answer in progress, of a session that has instructions and a tool."""
    talk = Talk(config=SessionConfig(model="demo", instructions="Be kind.", tools=(WEATHER,)))
    talk.add("Hi")
    response_id = talk.ask(**response)
    for chunk in chunks:
        talk.advance(response_id, chunk)
    return talk, response_id


def prompt_of(talk: Talk) -> Prompt:
    """The last prompt that an engine was given."""
    return next(effects.generate for effects in reversed(talk.history) if effects.generate is not None)


def without_cuts(events: list[Json]) -> list[Json]:
    """The events without their ids and with each item's deltas joined, so that how an answer was cut does not matter."""
    joined: list[Json] = []
    for event in events:
        event = {key: value for key, value in event.items() if key != "event_id"}
        if event["type"].endswith(".delta") and joined and joined[-1]["type"] == event["type"]:
            joined[-1] = joined[-1] | {"delta": joined[-1]["delta"] + event["delta"]}
        else:
            joined.append(event)
    return joined


# What is stored


def test_an_answer_is_stored_when_it_and_its_items_begin_and_end_and_never_for_a_token() -> None:
    talk, response_id = answering()
    chunks = [
        *(make_chunk(text) for text in ("Let ", "me ", "see.")),
        make_call_chunk(0, "get_weather"),
        make_call_chunk(0, arguments='{"city":'),
        make_call_chunk(0, arguments='"Ulm"}'),
        make_chunk(finish="stop"),
    ]

    stored = [talk.last.state is not None]
    for chunk in chunks:
        talk.advance(response_id, chunk)
        stored.append(talk.last.state is not None)

    assert stored == [True, True, False, False, True, False, False, True]
    assert decode_state(talk.stored_state).answers == ()


def test_what_is_stored_of_an_answer_names_items_instead_of_repeating_them() -> None:
    talk, response_id = answering(make_chunk("Hel", usage=Usage(12, 0)), max_output_tokens=50, metadata={"a": "b"})

    [stored] = decode_state(talk.stored_state).answers

    assert (stored.response_id, stored.first_sequence, stored.turn_id) == (response_id, 4, "turn_1")
    assert stored.items == ("item_1",)
    assert (stored.instructions, stored.tools) == (None, None), "they are the session's"
    assert (stored.max_output_tokens, stored.metadata, stored.usage) == (50, {"a": "b"}, Usage(12, 0))
    assert stored.next_sequence == talk.dialogue.next_sequence


def test_a_prompt_is_restored_as_it_was_asked_whatever_has_changed_since() -> None:
    """P4."""
    talk, _ = answering(make_chunk("Hel"), instructions="Be rude.", max_output_tokens="inf", metadata={"a": "b"})
    beside = talk.ask(conversation="none", input=[user_item("Twice"), {"type": "item_reference", "id": "item_1"}])
    first, second = (effects.generate for effects in talk.history if effects.generate is not None)
    talk.send("conversation.item.delete", item_id="item_1")
    talk.add("Other", id="item_1")
    talk.send("session.update", session={"type": "realtime", "instructions": "Be brief.", "tools": []})

    prompts = talk.crash()

    assert prompts == [msgspec.structs.replace(first, spoken="Hel"), second]
    done = talk.advance(beside, make_chunk("x", finish="stop"))[-1]
    assert (done["response"]["conversation_id"], talk.predictions[-1].turn_id) == (None, None)


@pytest.mark.parametrize("again", [False, True])
def test_a_prompt_keeps_an_item_that_was_deleted_or_written_anew_since(again: bool) -> None:
    talk, _ = answering(make_chunk("Hel"))
    talk.send("conversation.item.delete", item_id="item_1")
    if again:
        talk.send("conversation.item.create", item=user_item("Other", id="item_1") | {"role": "system"})

    [prompt] = talk.crash()

    assert prompt == msgspec.structs.replace(prompt_of(talk), spoken="Hel")


def test_a_prompt_keeps_a_message_whole_that_was_truncated_since() -> None:
    talk, _ = answering(make_chunk("Hello there", finish="stop"))
    beside = talk.ask(conversation="none", input=[{"type": "item_reference", "id": "item_2"}])
    whole = prompt_of(talk)
    talk.send("avatar.item.truncate", item_id="item_2", content_index=0, char_end=5)

    [prompt] = talk.crash()

    assert prompt == whole
    assert prompt.response_id == beside
    assert wire_items(talk.dialogue)[-1]["content"][0]["text"] == "Hello"


# Going on


def test_an_answer_goes_on_after_the_last_delta_under_its_ids() -> None:
    """P4."""
    talk, response_id = answering(make_chunk("Hel", usage=Usage(12, 0, 4)), make_chunk("lo"), make_chunk(" there"))
    talk.now_ms += 50

    [prompt] = talk.crash(num_lost=1)
    events = talk.advance(response_id, make_chunk(" you")) + talk.advance(response_id, make_chunk("!", finish="stop"))

    assert prompt == msgspec.structs.replace(prompt_of(talk), spoken="Hello")
    assert kinds(events)[:2] == ["response.output_text.delta", "response.output_text.delta"]
    done = events[-1]["response"]
    assert done["output"][0] | {"status": "?"} == fold(talk.events)[1] | {"status": "?"}
    assert (done["id"], done["output"][0]["id"]) == (response_id, "item_2")
    assert done["output"][0]["content"][0]["text"] == "Hello you!"
    assert kinds(talk.events).count("response.output_item.added") == 1
    [record] = talk.predictions
    assert (record.created_ms, record.first_token_ms, record.turn_id) == (NOW_MS, NOW_MS, "turn_1")
    assert record.model_version == "2026-11"


def test_the_short_way_is_open_to_a_continued_message() -> None:
    talk, response_id = answering(make_chunk("Hel"))
    talk.crash()

    event = talk.dialogue.delta(response_id, make_chunk("lo"))

    assert event is not None
    assert (event.item_id, event.output_index, event.event_id) == ("item_2", 0, f"event_01JD_{len(talk.events) + 1}")


def test_an_answer_that_had_not_begun_to_speak_begins_anew() -> None:
    talk, response_id = answering()

    [prompt] = talk.crash()
    events = talk.advance(response_id, make_chunk("Hi", finish="stop"))

    assert prompt == prompt_of(talk)
    assert kinds(events)[0] == "response.output_item.added"


def test_a_call_is_generated_again_and_only_its_rest_is_sent() -> None:
    """P4."""
    talk, response_id = answering(
        make_chunk("See: "), make_call_chunk(0, "get_weather"), make_call_chunk(0, arguments='{"city":')
    )

    [prompt] = talk.crash()
    again = talk.advance(response_id, make_call_chunk(0, "get_weather"))
    rest = talk.advance(response_id, make_call_chunk(0, arguments='{"city":"Ulm"}', finish="tool_calls"))

    assert prompt.spoken == "See: "
    assert again == []
    assert kinds(rest)[:2] == ["response.function_call_arguments.delta", "response.function_call_arguments.done"]
    assert (rest[0]["delta"], rest[1]["arguments"]) == ('"Ulm"}', '{"city":"Ulm"}')
    assert (rest[1]["call_id"], rest[1]["item_id"]) == ("call_1", "item_3")
    assert kinds(talk.events).count("response.output_item.added") == 2


def test_text_after_a_call_in_one_chunk_is_new_when_the_call_is_generated_again() -> None:
    """P4."""
    talk, response_id = answering(make_call_chunk(0, "get_weather"), make_call_chunk(0, arguments='{"city":'))

    talk.crash()
    again = talk.advance(response_id, make_call_chunk(0, "get_weather", '{"ci'))
    usage = replace(USAGE, output_tokens=0)  # an engine that counts for itself would hide what is counted here
    rest = Chunk(" Done.", 9, (ToolCallDelta(0, None, 'ty":"Ulm"}'),), usage=usage, finish_reason="stop")
    events = talk.advance(response_id, rest)

    call, said = events[-1]["response"]["output"]
    assert again == []
    assert (call["name"], call["arguments"]) == ("get_weather", '{"city":"Ulm"}')
    assert said["content"][0]["text"] == " Done."
    assert events[-1]["response"]["usage"]["output_tokens"] == 10
    assert fold(talk.events) == wire_items(talk.dialogue)


def test_a_call_that_comes_out_otherwise_fails_the_answer() -> None:
    """P4, P6: clients would be told of a call that was never made."""
    talk, response_id = answering(make_call_chunk(0, "get_weather", '{"city":"U'))
    talk.crash()

    events = talk.advance(response_id, make_call_chunk(0, "get_weather", '{"city":"Berlin"}'))

    details = events[-1]["response"]["status_details"]
    assert (details["type"], details["error"]["code"]) == ("failed", "server_error")
    assert "could not be continued" in details["error"]["message"]
    assert talk.last.aborts == [response_id]
    assert events[-1]["response"]["output"][0]["arguments"] == '{"city":"U'
    assert talk.advance(response_id, make_chunk("late")) == []
    assert fold(talk.events) == wire_items(talk.dialogue)


def test_a_cancel_amid_a_replay_ends_what_clients_have() -> None:
    """P5, P6."""
    talk, response_id = answering(make_call_chunk(0, "get_weather", '{"city":'))
    talk.crash()
    talk.advance(response_id, make_call_chunk(0, "get_weather", "{"))

    cancelled = talk.send("response.cancel")

    assert cancelled[-1]["response"]["output"][0]["arguments"] == '{"city":'
    assert fold(talk.events) == wire_items(talk.dialogue)


def test_a_second_death_amid_a_replay_changes_nothing() -> None:
    talk, response_id = answering(make_call_chunk(0, "get_weather", '{"city":'))
    [first] = talk.crash()
    talk.advance(response_id, make_call_chunk(0, "get_weather", "{"))
    talk.add("Hello?")

    [second] = talk.crash()
    rest = talk.advance(response_id, make_call_chunk(0, "get_weather", '{"city":1}', finish="stop"))

    assert second == first
    assert rest[0]["delta"] == "1}"


def test_usage_is_the_engines_as_of_an_undisturbed_run() -> None:
    talk, response_id = answering(make_chunk("Hel", usage=Usage(12, 0)), make_chunk("lo"))
    talk.crash()

    done = talk.advance(response_id, Chunk("!", 1, usage=Usage(12, 3), finish_reason="stop"))[-1]

    assert (done["response"]["usage"]["input_tokens"], done["response"]["usage"]["output_tokens"]) == (12, 3)


def test_a_cancel_after_a_takeover_counts_what_was_spoken_before_it() -> None:
    talk, _ = answering(make_chunk("Hel", usage=Usage(12, 0)), make_chunk("lo"))
    talk.crash()

    done = talk.send("response.cancel")[-1]

    assert done["response"]["usage"]["output_tokens"] == 2


def test_an_answer_in_a_place_that_was_deleted_or_taken_leaves_it_alone() -> None:
    """P5."""
    talk, response_id = answering(make_chunk("Hel"))
    talk.send("conversation.item.delete", item_id="item_2")
    talk.add("mine", id="item_2")
    talk.crash()

    events = talk.advance(response_id, make_chunk("lo", finish="stop"))

    assert events[-1]["response"]["output"][0]["content"][0]["text"] == "Hello"
    assert fold(talk.events) == wire_items(talk.dialogue)
    assert wire_items(talk.dialogue)[-1]["content"][0]["text"] == "mine"


def test_an_answer_keeps_its_place_among_items_that_were_added_around_it() -> None:
    talk, response_id = answering(make_chunk("Hel"))
    for number in range(60):
        # Halving the gap between two places until all are numbered anew.
        talk.add(id=f"n{number}", previous_item_id="item_1")
    talk.crash()

    talk.advance(response_id, make_chunk("lo", finish="stop"))

    assert fold(talk.events) == wire_items(talk.dialogue)
    assert wire_items(talk.dialogue)[-1]["id"] == "item_2"


@settings(max_examples=150, deadline=None)
@given(scripts, cuttings, st.data())
def test_an_answer_is_as_undisturbed_however_often_and_wherever_its_node_dies(
    script: Script, sizes: list[int], data: st.DataObject
) -> None:
    """P4: same events, same ids, same usage, no word twice."""
    calm, response_id = answering()
    for chunk in generate(script, sizes=sizes):
        calm.advance(response_id, chunk)

    talk, _ = answering()
    chunks = generate(script, sizes=sizes)
    for _ in range(data.draw(st.integers(1, 3), "deaths")):
        num_heard = data.draw(st.integers(0, max(0, len(chunks) - 1)), "chunks before the death")
        for chunk in chunks[:num_heard]:
            talk.advance(response_id, chunk)
        # The ids of what was never committed come again: a new node does not know of them.
        prompts = talk.crash(num_lost=data.draw(st.integers(0, num_heard), "inputs that were not committed"))
        recount(talk)
        assert [prompt.response_id for prompt in prompts] == [response_id]
        chunks = generate(script, prompts[0].spoken, sizes=data.draw(cuttings, "cuts"))
    for chunk in chunks:
        talk.advance(response_id, chunk)

    assert without_cuts(talk.events) == without_cuts(calm.events)
    assert wire_items(talk.dialogue) == wire_items(calm.dialogue)
    [record], [calm_record] = talk.predictions, calm.predictions
    assert (record.text, record.sent_chars, record.output_tokens) == (
        calm_record.text,
        calm_record.sent_chars,
        calm_record.output_tokens,
    )


def recount(talk: Talk) -> None:
    """Let ids be counted on from those that were committed."""
    outputs = [event["item"] for event in talk.events if event["type"] == "response.output_item.added"]
    talk.new_id.set("item_", 1 + len(outputs))
    talk.new_id.set("call_", sum(item["type"] == "function_call" for item in outputs))


# What cannot be continued


def restore(talk: Talk, events: list[bytes]) -> Dialogue:
    return Dialogue.restore(talk.loaded(), events, new_id=talk.new_id, expires_at=EXPIRES_AT)


def damaged(event: bytes, **changes: Any) -> bytes:
    return msgspec.json.encode(msgspec.json.decode(event) | changes)


@pytest.mark.parametrize(
    "damage",
    [
        lambda events: events[-1:],
        lambda events: [],
        lambda events: [*events[:-2], events[-1]],
        lambda events: [*events, events[-1]],
        lambda events: [*events[:-1], b'{"type":"resp'],
        lambda events: [*events[:-1], b"\xff"],
        lambda events: [*events[:-1], damaged(events[-1], item_id="item_9")],
        lambda events: [*events[:-1], damaged(events[-1], type="response.function_call_arguments.delta")],
        lambda events: [*events[:-1], damaged(events[-1], event_id="event_01JD_1")],
        lambda events: [*events[:-1], damaged(events[-1], delta=None)],
    ],
    ids=["trimmed", "empty", "hole", "doubled", "torn", "bytes", "item", "type", "number", "null"],
)
def test_an_answer_whose_events_are_missing_or_damaged_cannot_be_continued_and_is_named(damage: Any) -> None:
    """P4, P6: better failed than forked."""
    talk, response_id = answering(make_chunk("Hel"), make_chunk("lo"), make_chunk(" there"))

    dialogue = restore(talk, damage(talk.journal[3:]))

    assert dialogue.broken == (response_id,)
    assert dialogue.unfinished() == []
    effects = dialogue.fail(response_id, code="server_error", message="It could not be continued.", now_ms=NOW_MS)
    assert effects.events[-1].response.status == "failed"  # type: ignore[union-attr]
    assert not dialogue.broken
    assert dialogue.num_answers == 0
    assert all(item.status != "in_progress" for item in dialogue.items)


def test_an_answer_whose_items_are_missing_cannot_be_continued() -> None:
    talk, response_id = answering(make_chunk("Hel"))
    del talk.stored_items["item_1"]

    assert restore(talk, talk.journal).broken == (response_id,)


def test_only_answers_that_the_damage_concerns_are_lost() -> None:
    """P6."""
    talk, default = answering(make_chunk("Hel"), make_chunk("lo"))
    first_of_beside = len(talk.journal)
    beside = talk.ask(conversation="none")
    talk.advance(beside, make_chunk("Yes"))

    # The state that was stored with the second answer holds all that the first one said before it.
    whole = restore(talk, talk.journal[first_of_beside:])
    assert (whole.broken, [prompt.spoken for prompt in whole.unfinished()]) == ((), ["Hello", "Yes"])

    talk.advance(default, make_chunk(" there"))
    damaged_one = [*talk.journal[:-1], damaged(talk.journal[-1], item_id="item_9")]
    dialogue = restore(talk, damaged_one)
    assert dialogue.broken == (default,)
    assert [prompt.spoken for prompt in dialogue.unfinished()] == ["Yes"]


def test_a_dialogue_that_was_written_back_to_an_empty_store_needs_nothing_of_the_journal_before() -> None:
    """P4: its state holds what its answers have said."""
    talk, _ = answering(make_chunk("Hel"), make_chunk("lo"))
    talk.stored_state = talk.dialogue.encoded_state()
    items = {placed.item.id: placed for placed in talk.dialogue.placed_items}
    assert {item_id: placed.item.status for item_id, placed in items.items()} == {
        "item_1": "completed",
        "item_2": "in_progress",
    }

    dialogue = restore(talk, [])

    assert [prompt.spoken for prompt in dialogue.unfinished()] == ["Hello"]


def test_a_quiet_dialogue_needs_no_events() -> None:
    talk, _ = answering(make_chunk("Hello", finish="stop"))
    assert decode_state(talk.stored_state).first_open_sequence is None

    dialogue = restore(talk, [])

    assert (dialogue.broken, dialogue.unfinished(), dialogue.items) == ((), [], talk.dialogue.items)


def test_the_journal_is_needed_from_the_earliest_open_answer_on() -> None:
    talk, default = answering(make_chunk("Hel"))
    talk.ask(conversation="none")
    assert talk.dialogue.first_open_sequence == decode_state(talk.stored_state).first_open_sequence == 4

    talk.advance(default, make_chunk("!", finish="stop"))

    begun = [index for index, event in enumerate(talk.events, 1) if event["type"] == "response.created"]
    assert talk.dialogue.first_open_sequence == begun[1]


def test_what_a_node_stored_before_answers_were_kept_is_still_read() -> None:
    old = b'{"config":{"model":"demo"},"turn_id":"turn_7","num_turns":7}'

    state = decode_state(old)

    assert (state.turn_id, state.num_turns, state.answers, state.first_open_sequence) == ("turn_7", 7, (), None)


def test_a_message_of_the_assistant_is_stored_before_it_has_text() -> None:
    talk, _ = answering(make_chunk("Hel"))

    assert [item.status for item in restore(talk, talk.journal).items] == ["completed", "in_progress"]
    assert isinstance(talk.dialogue.items[-1], MessageItem)
