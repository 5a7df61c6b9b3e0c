"""A connection that is lost and comes back: what it is greeted with, what fills a gap, and what an end without return leaves."""

import pytest

from sessions.config import ResumptionOptions, SessionConfig
from sessions.dialogue import EndReason
from sessions.records import ArchiveRecord
from sessions.server_events import encode_event
from sessions.state import decode_state
from tests.sessions.builders import (
    NOW_MS,
    Json,
    Talk,
    fold,
    json_of,
    kinds,
    make_call_chunk,
    make_chunk,
    user_item,
    wire_items,
)

RESUMABLE = SessionConfig(model="demo", resumption=ResumptionOptions(enabled=True))


def greeting(talk: Talk, *, resumed: bool, gap: bool) -> list[Json]:
    """What a resumed connection is greeted with; the journal knows nothing of it."""
    before = talk.dialogue.next_sequence
    events = [json_of(encode_event(event)) for event in talk.dialogue.greeting(resumed=resumed, gap=gap)]
    assert talk.dialogue.next_sequence == before
    return events


def after_gap(talk: Talk) -> list[tuple[int, Json]]:
    """What follows a greeting with a gap."""
    first = talk.dialogue.first_open_sequence or len(talk.journal) + 1
    return [(number, json_of(event)) for number, event in talk.dialogue.after_gap(talk.journal[first - 1 :], first)]


# Greetings


def test_a_resume_is_greeted_with_the_session_and_how_it_went() -> None:
    """P4."""
    talk = Talk(config=RESUMABLE)
    talk.add("Hi")

    [event] = greeting(talk, resumed=True, gap=False)

    assert event["type"] == "session.created"
    assert event["session"]["id"] == "sess_01JD"
    assert event["session"]["resumption"] == {"resumed": True, "gap": False, "enabled": True}
    assert talk.events[0]["session"]["resumption"] == {"enabled": True}, "of what went how only a resume tells"


def test_a_greetings_ids_are_its_own() -> None:
    talk = Talk(config=RESUMABLE)
    talk.add("Hi")
    seen = {event["event_id"] for event in talk.events}

    events = greeting(talk, resumed=False, gap=True) + greeting(talk, resumed=False, gap=True)

    ids = [event["event_id"] for event in events]
    assert len({*ids, *seen}) == len(ids) + len(seen)


def test_a_gap_is_filled_with_the_items_as_they_are_now() -> None:
    """P4."""
    talk = Talk(config=RESUMABLE)
    talk.add("one")
    talk.answer(make_chunk("Hello there", finish="stop"))
    talk.add("two", previous_item_id="root")
    talk.send("avatar.item.truncate", item_id="item_2", content_index=0, char_end=5)

    created, *history = greeting(talk, resumed=False, gap=True)

    assert created["session"]["resumption"] == {"resumed": False, "gap": True, "enabled": True}
    assert kinds(history) == ["conversation.item.added", "conversation.item.done"] * 3
    assert fold(history) == wire_items(talk.dialogue)
    assert after_gap(talk) == []


def test_an_open_answer_follows_a_gap_from_its_beginning_and_nothing_else_does() -> None:
    """P4."""
    talk = Talk(config=RESUMABLE)
    talk.add("Hi")
    response_id = talk.ask()
    talk.advance(response_id, make_chunk("See: "))
    talk.add("Hello?")
    talk.advance(response_id, make_call_chunk(0, "get_weather", "{"))
    talk.send("conversation.item.retrieve", item_id="item_1")

    _, *history = greeting(talk, resumed=False, gap=True)
    followed = after_gap(talk)

    assert [item["id"] for item in fold(history)] == ["item_1", "item_3"]
    assert kinds(event for _, event in followed) == [
        "response.created",
        "response.output_item.added",
        "conversation.item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "conversation.item.done",
        "response.output_item.done",
        "response.output_item.added",
        "conversation.item.added",
        "response.function_call_arguments.delta",
    ]
    assert all(talk.events[number - 1] == event for number, event in followed), "unchanged, under their numbers"
    seen = fold([*history, *(event for _, event in followed)])
    assert {item["id"]: item for item in seen} == {item["id"]: item for item in wire_items(talk.dialogue)}


def test_answers_beside_the_conversation_follow_a_gap_too() -> None:
    talk = Talk(config=RESUMABLE)
    ended = talk.ask(conversation="none")
    beside = talk.ask(conversation="none")
    talk.advance(beside, make_chunk("Yes"))
    talk.advance(ended, make_chunk("No", finish="stop"))

    followed = [event for _, event in after_gap(talk)]

    assert kinds(followed)[:2] == ["response.created", "response.output_item.added"]
    assert ended not in str(followed)


def test_what_a_client_put_in_an_answers_place_is_history_and_the_answers_own_is_not() -> None:
    talk = Talk(config=RESUMABLE)
    talk.add("Hi")
    talk.advance(talk.ask(), make_chunk("Hel"))
    talk.send("conversation.item.delete", item_id="item_2")
    talk.add("mine", id="item_2")

    _, *history = greeting(talk, resumed=False, gap=True)
    followed = [event for _, event in after_gap(talk)]

    assert fold(history) == wire_items(talk.dialogue)
    assert not any(kind.startswith("conversation.") for kind in kinds(followed))


def test_a_gap_on_another_node_is_filled_the_same() -> None:
    """P4."""
    talk = Talk(config=RESUMABLE)
    talk.add("Hi")
    talk.advance(talk.ask(), make_chunk("Hel"))
    _, *history = greeting(talk, resumed=False, gap=True)
    followed = after_gap(talk)

    talk.crash()

    again = greeting(talk, resumed=False, gap=True)[1:]
    assert [event | {"event_id": ""} for event in again] == [event | {"event_id": ""} for event in history]
    assert after_gap(talk) == followed


# Ends


@pytest.mark.parametrize("reason", ["disconnected", "client_closed"])
def test_an_end_is_stored_as_what_it_was(reason: EndReason) -> None:
    """P6."""
    talk = Talk()
    talk.ask()

    events = talk.end(reason)

    assert events[-1]["response"]["status_details"] == {"type": "cancelled", "reason": "client_cancelled"}
    assert (talk.predictions[0].status, talk.predictions[0].status_reason) == ("cancelled", reason)
    assert talk.last.ends


def test_a_session_that_may_be_resumed_is_idle_and_others_have_ended() -> None:
    """P3, P4."""
    idle, over = Talk(config=RESUMABLE), Talk()
    idle.now_ms = over.now_ms = NOW_MS + 5

    idle.end()
    over.end()

    assert [(record.status, record.ended_ms) for record in (idle.session_records[-1], over.session_records[-1])] == [
        ("idle", None),
        ("ended", NOW_MS + 5),
    ]
    assert idle.records[-1] == ArchiveRecord("sess_01JD", 1, NOW_MS, last_sequence=1, final=True)


def test_nothing_but_an_end_ends() -> None:
    talk = Talk(config=RESUMABLE)
    talk.add("Hi")
    talk.answer(make_chunk("Hello", finish="stop"))
    talk.detach()

    assert not any(effects.ends for effects in talk.history)


def test_an_idle_session_that_is_resumed_is_active_again() -> None:
    """P4."""
    talk = Talk(config=RESUMABLE)
    talk.add("Hi")
    talk.end()
    talk.crash()
    talk.now_ms += 9

    talk.attach()
    num_records = len(talk.records)
    talk.attach()

    last = talk.session_records[-1]
    assert (last.status, last.updated_ms, last.ended_ms) == ("active", NOW_MS + 9, None)
    assert len(talk.records) == num_records
    assert not decode_state(talk.stored_state).has_ended
    assert kinds(talk.send("conversation.item.create", item=user_item("And?")))[-1] == "conversation.item.done"


def test_a_session_that_went_on_elsewhere_is_no_news() -> None:
    talk = Talk(config=RESUMABLE)
    talk.detach()
    talk.crash()

    talk.attach()

    assert [record.status for record in talk.session_records] == ["active"]
