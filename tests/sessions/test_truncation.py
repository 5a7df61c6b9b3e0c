"""Generated, sent and heard: three texts of one answer, kept apart. A barge-in leaves the dialogue with what was heard."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessions.dialogue import Dialogue
from sessions.records import HeardRecord, PredictionRecord, SentRecord
from sessions.utf16 import clip, num_units
from tests.sessions.builders import (
    NOW_MS,
    Json,
    Talk,
    fold,
    kinds,
    make_call_chunk,
    make_chunk,
    make_event,
    user_item,
    wire_items,
)

SMILE = "😀"


def answered(*texts: str, finish: bool = True) -> Talk:
    """A talk whose last item, `item_2`, is an answer of these chunks."""
    talk = Talk()
    talk.add("Hi")
    response_id = talk.ask()
    for text in texts:
        talk.advance(response_id, make_chunk(text))
    if finish:
        talk.advance(response_id, make_chunk(finish="stop"))
    return talk


def truncate(talk: Talk, char_end: int, item_id: str = "item_2") -> list[Json]:
    return talk.send("avatar.item.truncate", item_id=item_id, content_index=0, char_end=char_end)


def held(talk: Talk, item_id: str = "item_2") -> tuple[str, str]:
    """The text and the status of the dialogue's item, which clients and store must have too."""
    assert fold(talk.events) == wire_items(talk.dialogue)
    assert talk.rebuilt().items == talk.dialogue.items
    item = next(item for item in wire_items(talk.dialogue) if item["id"] == item_id)
    return "".join(part["text"] for part in item["content"]), item["status"]


# What was heard


def test_the_dialogue_holds_what_was_heard_and_so_does_the_next_prompt() -> None:
    """P5."""
    talk = answered("Hello there")

    events = truncate(talk, 5)
    heard = held(talk)
    talk.ask()

    assert events == [
        {
            "type": "avatar.item.truncated",
            "event_id": events[0]["event_id"],
            "item_id": "item_2",
            "content_index": 0,
            "char_end": 5,
        }
    ]
    assert heard == ("Hello", "incomplete")
    assert talk.last.generate is not None
    assert [item.text for item in talk.last.generate.items] == ["Hi", "Hello"]  # type: ignore[union-attr]


def test_what_was_heard_is_recorded_beside_what_was_generated_and_sent() -> None:
    """P5."""
    talk = answered("Hello ", f"there {SMILE}")
    talk.now_ms += 7

    truncate(talk, 14)

    [prediction] = talk.predictions
    assert (prediction.text, prediction.sent_chars) == (f"Hello there {SMILE}", 14)
    assert talk.heard == [
        HeardRecord("resp_1", "item_2", "sess_01JD", len(talk.events), f"Hello there {SMILE}", 14, NOW_MS + 7)
    ]
    truncate(talk, 5)
    assert (talk.heard[-1].heard_text, talk.heard[-1].heard_chars) == ("Hello", 5)


def test_an_answer_that_is_still_spoken_is_cancelled_and_then_cut() -> None:
    """P5, P6."""
    talk = answered("Hello ", "there", finish=False)

    events = truncate(talk, 8)

    assert kinds(events)[-2:] == ["response.done", "avatar.item.truncated"]
    assert events[-2]["response"]["status_details"] == {"type": "cancelled", "reason": "client_cancelled"}
    assert events[-2]["response"]["output"][0]["content"][0]["text"] == "Hello there"
    assert talk.last.aborts == ["resp_1"]
    assert held(talk) == ("Hello th", "incomplete")
    assert [type(record) for record in talk.records[-2:]] == [PredictionRecord, HeardRecord]
    assert talk.predictions[0].text == "Hello there"


def test_a_cut_in_a_message_before_a_tool_call_stops_the_call_too() -> None:
    """P5: who interrupts the words does not want what follows them."""
    talk = answered("Let me see.", finish=False)
    talk.advance("resp_1", make_call_chunk(0, "get_weather", '{"ci'))

    events = truncate(talk, 3)

    assert kinds(events)[-2:] == ["response.done", "avatar.item.truncated"]
    assert held(talk) == ("Let", "incomplete")
    assert talk.dialogue.num_answers == 0


def test_an_answer_beside_the_conversation_is_not_interrupted() -> None:
    talk = answered("Hello there")
    talk.ask(conversation="none")

    truncate(talk, 3)

    assert talk.dialogue.num_answers == 1


def test_a_report_that_comes_late_after_a_cancel_still_counts() -> None:
    """P5."""
    talk = answered("Hello there", finish=False)
    talk.send("response.cancel")
    talk.add("And?")

    truncate(talk, 5)

    assert held(talk) == ("Hello", "incomplete")
    assert talk.heard[-1].response_id == "resp_1"


def test_a_later_report_corrects_an_earlier_one_up_to_what_was_sent() -> None:
    """P5."""
    talk = answered("Hello there")
    truncate(talk, 2)

    truncate(talk, 8)
    longer = held(talk)
    truncate(talk, 11)
    whole = held(talk)
    error = talk.refused("avatar.item.truncate", item_id="item_2", content_index=0, char_end=12)

    assert (longer, whole) == (("Hello th", "incomplete"), ("Hello there", "completed"))
    assert error["code"] == "integer_above_max_value"
    assert [record.heard_chars for record in talk.heard] == [2, 8, 11]


def test_a_report_may_be_corrected_on_another_node() -> None:
    """P4, P5."""
    talk = answered("Hello there")
    truncate(talk, 2)
    talk.crash()

    truncate(talk, 8)

    assert held(talk) == ("Hello th", "incomplete")
    assert talk.heard[-1].response_id == "resp_1"


def test_the_same_report_twice_is_the_same_as_once() -> None:
    talk = answered("Hello there")
    first = truncate(talk, 5)
    items = talk.dialogue.items

    again = truncate(talk, 5)

    assert talk.dialogue.items == items
    assert talk.last.saved_items == []
    assert again[0] | {"event_id": ""} == first[0] | {"event_id": ""}


@pytest.mark.parametrize(("char_end", "text", "counted"), [(0, "", 0), (1, "a", 1), (2, "a", 1), (3, f"a{SMILE}", 3)])
def test_ends_are_utf_16_units_and_never_cut_a_character_in_two(char_end: int, text: str, counted: int) -> None:
    talk = answered(f"a{SMILE}b")

    events = truncate(talk, char_end)

    assert events[0]["char_end"] == counted
    assert held(talk) == (text, "incomplete")


def test_a_message_of_which_all_was_heard_stays_complete_and_is_recorded() -> None:
    talk = answered("Hello")

    truncate(talk, 5)

    assert held(talk) == ("Hello", "completed")
    assert talk.heard[-1].heard_chars == 5


def test_only_the_last_answers_can_be_corrected_upwards() -> None:
    """And the others are cut all the same."""
    talk = answered("Hello there")
    truncate(talk, 5)
    for _ in range(8):
        talk.answer(make_chunk("More", finish="stop"))

    error = talk.refused("avatar.item.truncate", item_id="item_2", content_index=0, char_end=6)
    num_records = len(talk.records)
    truncate(talk, 4)

    assert error["code"] == "integer_above_max_value"
    assert held(talk) == ("Hell", "incomplete")
    assert len(talk.records) == num_records, "its answer is not known any more"


def test_all_messages_of_an_answer_make_up_what_was_heard() -> None:
    talk = answered("First. ", finish=False)
    talk.advance("resp_1", make_call_chunk(0, "get_weather", "{}"))
    talk.advance("resp_1", make_chunk("Then.", finish="stop"))

    truncate(talk, 2, "item_4")

    assert (talk.heard[-1].item_id, talk.heard[-1].heard_text) == ("item_4", "First. Th")


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"item_id": "gone"}, "item_truncate_invalid_item_id", "item_id"),
        ({"item_id": "item_1"}, "invalid_value", "item_id"),
        ({"item_id": "call"}, "invalid_value", "item_id"),
        ({"content_index": 1}, "invalid_value", "content_index"),
        ({"content_index": -1}, "invalid_value", "content_index"),
        ({"char_end": -1}, "integer_below_min_value", "char_end"),
        ({"char_end": 7}, "integer_above_max_value", "char_end"),
        ({"char_end": 10**30}, "integer_above_max_value", "char_end"),
    ],
)
@pytest.mark.parametrize("finish", [True, False])
def test_a_wrong_report_is_named_and_changes_nothing(
    finish: bool, fields: dict[str, object], code: str, param: str
) -> None:
    """P5: and cancels nothing."""
    talk = answered(f"Hell{SMILE}", finish=finish)
    call = {"type": "function_call", "id": "call", "name": "f", "arguments": "{}"}
    talk.send("conversation.item.create", item=call)
    right = {"item_id": "item_2", "content_index": 0, "char_end": 1}

    error = talk.refused("avatar.item.truncate", event_id="mine", **(right | fields))

    assert (error["code"], error["param"], error["event_id"]) == (code, param, "mine")
    assert talk.dialogue.num_answers == (not finish)


def test_a_message_that_the_client_wrote_for_the_assistant_can_be_cut() -> None:
    talk = Talk()
    parts = [{"type": "output_text", "text": "Hello "}, {"type": "output_text", "text": "there"}]
    talk.send("conversation.item.create", item={"type": "message", "role": "assistant", "content": parts, "id": "mine"})

    error = talk.refused("avatar.item.truncate", item_id="mine", content_index=0, char_end=7)
    truncate(talk, 6, "mine")

    assert error["code"] == "integer_above_max_value"
    assert held(talk, "mine") == ("Hello ", "incomplete")
    assert talk.heard == [], "no answer of ours was heard"


def test_an_id_that_was_deleted_and_taken_again_is_no_answer_any_more() -> None:
    talk = answered("Hello there")
    truncate(talk, 2)
    talk.send("conversation.item.delete", item_id="item_2")
    item = user_item("Good", id="item_2") | {"role": "assistant", "content": [{"type": "text", "text": "Good"}]}
    talk.send("conversation.item.create", item=item)

    talk.refused("avatar.item.truncate", item_id="item_2", content_index=0, char_end=8)
    truncate(talk, 1)

    assert held(talk) == ("G", "incomplete")
    assert len(talk.heard) == 1


def test_what_a_client_wrote_in_an_answers_place_is_not_that_answer() -> None:
    """P5: LiveKit's way to cut, while the answer is still being generated."""
    talk = answered("Hello there", finish=False)
    talk.send("conversation.item.delete", item_id="item_2")
    item = user_item("Hello", id="item_2") | {"role": "assistant", "content": [{"type": "text", "text": "Hello"}]}
    talk.send("conversation.item.create", item=item)
    talk.advance("resp_1", make_chunk("!", finish="stop"))

    truncate(talk, 2)

    assert held(talk) == ("He", "incomplete")
    assert talk.heard == []


# What was sent


def test_words_that_nobody_was_there_for_are_not_sent_until_somebody_is() -> None:
    """P4, P5."""
    talk = answered(f"Hel{SMILE}", finish=False)
    talk.detach()
    talk.advance("resp_1", make_chunk("lo", finish="stop"))
    [prediction] = talk.predictions
    talk.now_ms += 9

    talk.attach()

    assert (prediction.text, prediction.sent_chars) == (f"Hel{SMILE}lo", 5)
    assert talk.sent == [SentRecord("resp_1", "sess_01JD", talk.dialogue.next_sequence - 1, 7, NOW_MS + 9)]


def test_an_answer_that_ends_after_the_client_is_back_was_sent_whole() -> None:
    talk = answered("Hel", finish=False)
    talk.detach()
    talk.advance("resp_1", make_chunk("lo"))
    talk.attach()

    talk.advance("resp_1", make_chunk("!", finish="stop"))

    assert talk.predictions[0].sent_chars == 6
    assert talk.sent == []


def test_what_was_sent_is_known_on_another_node_too() -> None:
    """P4."""
    talk = answered("Hel", finish=False)
    talk.detach()
    talk.advance("resp_1", make_chunk("lo"))
    talk.crash()
    talk.detach()
    talk.advance("resp_1", make_chunk("!", finish="stop"))
    talk.crash()

    talk.attach()

    assert talk.predictions[0].sent_chars == 3
    assert [record.sent_chars for record in talk.sent] == [6]


def test_whoever_was_connected_when_a_node_died_had_what_was_committed() -> None:
    talk = answered("Hel", "lo", finish=False)
    talk.crash()
    talk.detach()

    talk.advance("resp_1", make_chunk("!", finish="stop"))

    assert talk.predictions[0].sent_chars == 5


def test_coming_and_going_twice_is_the_same_as_once() -> None:
    talk = answered("Hel", finish=False)
    talk.detach()
    talk.advance("resp_1", make_chunk("lo"))
    talk.detach()
    talk.advance("resp_1", make_chunk("!", finish="stop"))
    talk.attach()
    talk.attach()

    assert talk.predictions[0].sent_chars == 3
    assert len(talk.sent) == 1
    assert talk.last.state is None


def test_what_was_missed_is_recorded_once_however_often_the_client_goes() -> None:
    talk = answered("Hel", finish=False)
    talk.detach()
    talk.advance("resp_1", make_chunk("lo", finish="stop"))
    talk.attach()

    talk.detach()
    talk.attach()

    assert len(talk.sent) == 1


def test_an_answer_that_ended_before_the_client_went_needs_no_record() -> None:
    talk = answered("Hello")
    talk.detach()
    talk.attach()

    assert talk.sent == []


def test_a_cancel_in_absence_counts_what_was_sent_before_it() -> None:
    talk = answered("Hel", finish=False)
    talk.detach()
    talk.advance("resp_1", make_chunk("lo"))

    talk.end()

    assert (talk.predictions[0].text, talk.predictions[0].sent_chars) == ("Hello", 3)


# UTF-16


@given(st.text("aé한😀\n", max_size=12), st.integers(0, 30))
def test_texts_are_measured_and_cut_as_javascript_does(text: str, end: int) -> None:
    units = text.encode("utf-16-le")

    cut = clip(text, end)

    assert num_units(text) == len(units) // 2
    assert text.startswith(cut)
    assert num_units(cut) == min(end, num_units(text)) or num_units(cut) == end - 1
    if num_units(cut) < min(end, num_units(text)):
        assert text[len(cut)] == SMILE


def test_a_dialogue_takes_reports_before_anything_was_said() -> None:
    dialogue: Dialogue = Talk().dialogue
    event = make_event("avatar.item.truncate", item_id="x", content_index=0, char_end=0)

    [error] = dialogue.receive(event, NOW_MS).events

    assert error.error.code == "item_truncate_invalid_item_id"  # type: ignore[union-attr]
