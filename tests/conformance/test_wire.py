"""One session's answers and items on the wire, against PROTOCOL.md: order, places, ends (P1, P5, P6)."""

import json

import pytest

from tests.conformance.conftest import Served
from tests.conformance.wire import (
    CALL_ORDER,
    MESSAGE_ORDER,
    WEATHER,
    ended,
    joined,
    of,
    only,
    open_wire,
    order,
    started,
)

pytestmark = pytest.mark.conformance

CALL_WEATHER = '[call get_weather {"city": "Seoul"}]'


async def test_session_created_comes_first_and_unprompted(served: Served) -> None:
    """P1."""
    async with open_wire(served) as wire:
        session = wire.log[0]["session"]

    assert session["type"] == "realtime"
    assert session["object"] == "realtime.session"
    assert session["id"].startswith("sess_")
    assert session["output_modalities"] == ["text"]
    assert session["tools"] == []
    assert session["tool_choice"] == "auto"
    assert session["expires_at"] > 1_700_000_000


async def test_a_text_turn_keeps_the_documented_order(served: Served) -> None:
    """P1."""
    async with open_wire(served) as wire:
        user = await wire.say("Hello. [tokens 12]")
        events = await wire.answer(metadata={"topic": "greeting"})

    response, created = ended(events), started(events[0])
    item = response.output[0] if response.output else None
    assert order(events) == MESSAGE_ORDER
    assert created.status == "in_progress"
    assert created.output == []
    assert created.usage is None
    assert created.status_details is None
    assert (response.id, response.status, response.status_details) == (created.id, "completed", None)
    assert response.conversation_id == created.conversation_id
    assert response.conversation_id is not None
    assert response.conversation_id.startswith("conv_")
    assert response.output_modalities == ["text"]
    assert response.metadata == created.metadata == {"topic": "greeting"}
    assert only(events, "conversation.item.added")["previous_item_id"] == user["id"]
    assert only(events, "conversation.item.done")["previous_item_id"] == user["id"]
    assert item is not None
    assert item.type == "message"
    assert item.status == "completed"
    assert len({event["event_id"] for event in wire.log}) == len(wire.log)


async def test_every_place_that_holds_the_text_holds_the_same_text(served: Served) -> None:
    """P1."""
    async with open_wire(served) as wire:
        await wire.say("[echo It is 7 °C, 안녕하세요, 👋🏽 and so on.]")
        events = await wire.answer()

    text = joined(events)
    parts = [{"type": "output_text", "text": text}]
    assert text == "It is 7 °C, 안녕하세요, 👋🏽 and so on."
    assert only(events, "response.output_text.done")["text"] == text
    assert only(events, "response.content_part.added")["part"] == {"type": "text", "text": ""}
    assert only(events, "response.content_part.done")["part"] == {"type": "text", "text": text}
    assert only(events, "conversation.item.done")["item"]["content"] == parts
    assert only(events, "response.output_item.done")["item"]["content"] == parts
    assert events[-1]["response"]["output"][0]["content"] == parts


async def test_all_events_of_an_answer_name_the_same_response_item_and_place(served: Served) -> None:
    """P1."""
    async with open_wire(served) as wire:
        await wire.say("[tokens 5]")
        events = await wire.answer()

    item_id = events[-1]["response"]["output"][0]["id"]
    placed = [event for event in events if "content_index" in event]
    assert len(placed) == 5 + 3
    for event in placed:
        assert event["response_id"] == events[0]["response"]["id"]
        assert (event["item_id"], event["output_index"], event["content_index"]) == (item_id, 0, 0)


async def test_usage_counts_the_whole_dialogue_each_turn(served: Served) -> None:
    """P1."""
    async with open_wire(served) as wire:
        await wire.say("one [tokens 6]")
        first = ended(await wire.answer()).usage
        await wire.say("two [tokens 6]")
        second = ended(await wire.answer()).usage

    assert first is not None
    assert second is not None
    assert first.input_tokens is not None
    assert first.output_tokens == second.output_tokens == 6
    assert second.input_tokens is not None
    assert second.input_tokens > first.input_tokens
    for usage in (first, second):
        assert usage.total_tokens == (usage.input_tokens or 0) + (usage.output_tokens or 0)
        details = usage.input_token_details
        assert details is not None
        assert details.text_tokens == usage.input_tokens
        assert details.cached_tokens is not None
        assert details.cached_tokens <= (usage.input_tokens or 0)
        assert details.audio_tokens == 0
        assert usage.output_token_details is not None
        assert usage.output_token_details.text_tokens == usage.output_tokens


async def test_a_tool_call_keeps_the_documented_order_and_its_result_is_answered(served: Served) -> None:
    """P1. The added item is in progress: agents-js would run a tool twice that is completed from the start."""
    async with open_wire(served) as wire:
        await wire.update(tools=[WEATHER])
        await wire.say(CALL_WEATHER)
        called = await wire.answer()
        done = only(called, "response.function_call_arguments.done")
        output = {"type": "function_call_output", "call_id": done["call_id"], "output": '{"degrees": 31}'}
        await wire.send("conversation.item.create", item=output)
        await wire.next("conversation.item.added")
        await wire.next("conversation.item.done")
        answered = await wire.answer()

    added = only(called, "response.output_item.added")["item"]
    item = only(called, "response.output_item.done")["item"]
    assert order(called) == CALL_ORDER
    assert added["status"] == "in_progress"
    assert (added["name"], added["call_id"]) == ("get_weather", done["call_id"])
    assert json.loads(done["arguments"]) == {"city": "Seoul"}
    assert done["name"] == "get_weather"
    assert joined(called, "response.function_call_arguments.delta") == done["arguments"] == item["arguments"]
    assert (item["id"], item["status"]) == (added["id"], "completed")
    assert ended(called).status == "completed"
    assert only(called, "conversation.item.done")["item"] == item
    assert order(answered) == MESSAGE_ORDER
    assert '{"degrees": 31}' in joined(answered)


async def test_a_tool_result_may_come_before_the_response_that_asked_for_it_is_done(served: Served) -> None:
    """P1. Pipecat answers a call at its arguments.done, which is before response.done."""
    async with open_wire(served) as wire:
        await wire.update(tools=[WEATHER])
        await wire.say(CALL_WEATHER)
        await wire.send("response.create")
        done = (await wire.until("response.function_call_arguments.done"))[-1]
        output = {"type": "function_call_output", "call_id": done["call_id"], "output": "31 degrees"}
        await wire.send("conversation.item.create", item=output)
        await wire.fence()
        answered = await wire.answer()

    assert not [event for event in wire.log if event["type"] == "error" and event["error"]["event_id"] != "fence"]
    assert "31 degrees" in joined(answered)


async def test_a_cancelled_answer_ends_in_order_and_then_is_silent(served: Served) -> None:
    """P1, P5, P6."""
    async with open_wire(served) as wire:
        await wire.say("[tokens 4000]")
        await wire.send("response.create")
        events = await wire.until("response.output_text.delta")
        await wire.send("response.cancel")
        events += await wire.until("response.done")
        await wire.say("[tokens 3]")
        later = await wire.answer()
        await wire.send("conversation.item.retrieve", item_id=events[-1]["response"]["output"][0]["id"])
        kept = (await wire.next("conversation.item.retrieved"))["item"]

    response = ended(events)
    assert order(events) == MESSAGE_ORDER
    assert response.status == "cancelled"
    assert response.status_details is not None
    assert (response.status_details.type, response.status_details.reason) == ("cancelled", "client_cancelled")
    assert response.usage is not None
    assert response.usage.output_tokens is not None
    assert 0 < response.usage.output_tokens < 4000
    assert only(events, "response.output_item.done")["item"]["status"] == "incomplete"
    assert only(events, "response.output_text.done")["text"] == joined(events)
    assert kept["status"] == "incomplete"
    assert kept["content"][0]["text"] == joined(events)
    assert of(later, events[0]["response"]["id"]) == []
    assert ended(later).status == "completed"


async def test_an_answer_cancelled_before_its_first_token_ends_too(served: Served) -> None:
    """P6."""
    async with open_wire(served) as wire:
        await wire.say("[hang]")
        await wire.send("response.create")
        await wire.next("response.created")
        await wire.send("response.cancel")
        done = await wire.next("response.done")

    assert done["response"]["status"] == "cancelled"
    assert done["response"]["output"] == []


async def test_an_answer_that_is_too_long_is_incomplete(served: Served) -> None:
    """P1, P6."""
    async with open_wire(served) as wire:
        await wire.say("[tokens 40]")
        events = await wire.answer(max_output_tokens=4)

    response = ended(events)
    assert order(events) == MESSAGE_ORDER
    assert response.status == "incomplete"
    assert response.status_details is not None
    assert (response.status_details.type, response.status_details.reason) == ("incomplete", "max_output_tokens")
    assert response.max_output_tokens == 4
    assert response.usage is not None
    assert response.usage.output_tokens == 4
    assert events[-1]["response"]["output"][0]["status"] == "incomplete"
    assert len([event for event in events if event["type"] == "response.output_text.delta"]) == 4


async def test_an_answer_that_fails_says_so_once_and_the_session_goes_on(served: Served) -> None:
    """P6, P9."""
    async with open_wire(served) as wire:
        await wire.say("[fail after 3]")
        events = await wire.answer()
        await wire.say("[tokens 3]")
        later = await wire.answer()

    response = ended(events)
    assert order(events) == MESSAGE_ORDER
    assert response.status == "failed"
    assert response.status_details is not None
    assert response.status_details.type == "failed"
    assert response.status_details.error is not None
    assert response.status_details.error.type == "server_error"
    assert response.status_details.error.code
    assert ended(later).status == "completed"


async def test_an_out_of_band_answer_runs_beside_the_conversations_own(served: Served) -> None:
    """P1."""
    async with open_wire(served) as wire:
        await wire.say("[tokens 60]")
        await wire.send("response.create")
        default_id = (await wire.next("response.created"))["response"]["id"]
        question = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "[echo aside]"}]}
        params = {"conversation": "none", "input": [question], "metadata": {"for": "the side"}}
        await wire.send("response.create", response=params)
        while {e["response"]["id"] for e in wire.log if e["type"] == "response.done"} <= {default_id}:
            await wire.recv()
        if default_id not in {e["response"]["id"] for e in wire.log if e["type"] == "response.done"}:
            await wire.until("response.done")
        aside_id = next(e["response"]["id"] for e in wire.log if e.get("response", {}).get("metadata"))
        aside = of(wire.log, aside_id)
        await wire.send("conversation.item.retrieve", item_id=aside[-1]["response"]["output"][0]["id"])
        error = await wire.error()

    assert order(aside) == [kind for kind in MESSAGE_ORDER if not kind.startswith("conversation.")]
    assert joined(aside) == "aside"
    assert aside[0]["response"]["conversation_id"] is None
    assert aside[-1]["response"]["conversation_id"] is None
    assert aside[-1]["response"]["metadata"] == {"for": "the side"}
    assert error["code"] == "item_retrieve_invalid_item_id"
    assert ended(of(wire.log, default_id)).status == "completed"
    assert ended(of(wire.log, default_id)).conversation_id is not None


async def test_an_out_of_band_answer_sees_what_its_input_names(served: Served) -> None:
    """P1. `[]` is an empty context; an item_reference stands for an item of the conversation."""
    async with open_wire(served) as wire:
        item = await wire.say("[echo referred to]")
        await wire.say("[echo not this]")
        referred = await wire.answer(conversation="none", input=[{"type": "item_reference", "id": item["id"]}])
        empty = await wire.answer(conversation="none", input=[], max_output_tokens=3)

    assert joined(referred) == "referred to"
    assert joined(empty)
    assert "not this" not in joined(empty)


async def test_a_response_may_override_the_sessions_tools_and_instructions_with_null_meaning_no_override(
    served: Served,
) -> None:
    """P1. LiveKit sends `instructions: null` with every response.create."""
    async with open_wire(served) as wire:
        await wire.say(CALL_WEATHER)
        without = await wire.answer(instructions=None, metadata={"client_event_id": "x"}, tools=None, tool_choice=None)
        await wire.say(CALL_WEATHER)
        with_tools = await wire.answer(tools=[WEATHER], tool_choice={"type": "function", "name": "get_weather"})

    assert order(without) == MESSAGE_ORDER
    assert order(with_tools) == CALL_ORDER


async def test_a_tool_may_be_demanded_and_tools_may_be_forbidden(served: Served) -> None:
    """P1."""
    async with open_wire(served) as wire:
        await wire.update(tools=[WEATHER], tool_choice="required")
        await wire.say("Hello.")
        demanded = await wire.answer()
        await wire.say(CALL_WEATHER)
        forbidden = await wire.answer(tool_choice="none")

    assert order(demanded) == CALL_ORDER
    assert order(forbidden) == MESSAGE_ORDER


async def test_items_are_placed_where_the_client_says(served: Served) -> None:
    """P1. "root" is the front, absent is the end; previous_item_id null says that an item is first."""
    async with open_wire(served) as wire:
        last = await wire.say("c", previous_item_id=None)
        first = await wire.say("a", previous_item_id="root")
        await wire.say("b", previous_item_id=first["id"])
        item = {
            "type": "message",
            "role": "system",
            "id": "0861322bc0254c0bb3cb331d470a1d17",
            "content": [{"type": "input_text", "text": "d"}],
        }
        await wire.send("conversation.item.create", item=item)
        appended = await wire.next("conversation.item.added")

    added = [e["previous_item_id"] for e in wire.log if e["type"] == "conversation.item.added"]
    assert added == [None, None, first["id"], last["id"]]
    assert appended["item"]["id"] == item["id"]
    assert appended["item"]["status"] == "completed"
    assert appended["item"]["object"] == "realtime.item"


async def test_an_id_may_be_used_again_after_its_item_is_deleted(served: Served) -> None:
    """P1. LiveKit truncates text so: delete, then create under the same id at the same place, without waiting."""
    async with open_wire(served) as wire:
        user = await wire.say("[tokens 5]")
        spoken = (await wire.answer())[-1]["response"]["output"][0]
        await wire.say("next")
        shorter = {
            "type": "message",
            "role": "assistant",
            "id": spoken["id"],
            "content": [{"type": "output_text", "text": "The"}],
        }
        await wire.send("conversation.item.delete", item_id=spoken["id"])
        await wire.send("conversation.item.create", item=shorter, previous_item_id=user["id"])
        deleted = await wire.next("conversation.item.deleted")
        added = await wire.next("conversation.item.added")
        await wire.next("conversation.item.done")
        await wire.send("conversation.item.retrieve", item_id=spoken["id"])
        kept = (await wire.next("conversation.item.retrieved"))["item"]

    assert deleted["item_id"] == spoken["id"]
    assert added["previous_item_id"] == user["id"]
    assert kept["content"] == [{"type": "output_text", "text": "The"}]


async def test_an_item_may_be_deleted_while_it_is_being_generated(served: Served) -> None:
    """P6."""
    async with open_wire(served) as wire:
        await wire.say("[tokens 4000]")
        await wire.send("response.create")
        delta = (await wire.until("response.output_text.delta"))[-1]
        await wire.send("conversation.item.delete", item_id=delta["item_id"])
        deleted = (await wire.until("conversation.item.deleted"))[-1]
        await wire.until("response.output_text.delta")
        await wire.send("response.cancel")
        done = (await wire.until("response.done"))[-1]

    assert deleted["item_id"] == delta["item_id"]
    assert done["response"]["status"] == "cancelled"


async def test_what_no_client_asked_for_is_not_sent(served: Served) -> None:
    """P1. `parse` refuses any field that openai-python does not name; here are the ones that we have names for."""
    async with open_wire(served) as wire:
        await wire.say("[echo (happy) Hello there! (wave) Bye.]")
        await wire.answer()

    sent = wire.log
    assert not [event for event in sent if event["type"].startswith("avatar.")]
    assert not [event for event in sent if "sequence_number" in event]
    assert not {"avatar", "resumption"} & sent[0]["session"].keys()
