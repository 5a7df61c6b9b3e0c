"""What a user who goes on does to an answer in progress: nothing, as with OpenAI, or it ends it, or has to wait, as the session says."""

from typing import Literal

import pytest

from sessions.config import AvatarOptions, SessionConfig
from sessions.limits import DialogueLimits
from tests.sessions.builders import Json, Talk, fold, kinds, make_chunk, user_item, wire_items


def answering(interrupt: Literal["cancel", "refuse"] | None, *, limits: DialogueLimits | None = None) -> Talk:
    """A talk with an answer in progress."""
    talk = Talk(config=SessionConfig(model="demo", avatar=AvatarOptions(interrupt=interrupt)), limits=limits)
    talk.add("Hi")
    talk.advance(talk.ask(), make_chunk("Hello"))
    return talk


def cancelled_by_turn(event: Json) -> bool:
    details = {"type": "cancelled", "reason": "turn_detected"}
    return event["type"] == "response.done" and bool(event["response"]["status_details"] == details)


def test_a_users_message_cancels_the_answer_and_is_added_after_it() -> None:
    """P5, P6."""
    talk = answering("cancel")

    events = talk.add("Wait")

    done = kinds(events).index("response.done")
    assert cancelled_by_turn(events[done])
    assert kinds(events)[done + 1 :] == ["conversation.item.added", "conversation.item.done"]
    assert talk.last.aborts == ["resp_1"]
    assert [item["status"] for item in wire_items(talk.dialogue)] == ["completed", "incomplete", "completed"]
    assert (talk.predictions[0].status, talk.predictions[0].status_reason) == ("cancelled", "turn_detected")
    assert (talk.predictions[0].turn_id, talk.turns[-1].number) == ("turn_1", 2)
    assert fold(talk.events) == wire_items(talk.dialogue)


def test_a_second_response_cancels_the_first_and_knows_what_it_said() -> None:
    """P5, P6."""
    talk = answering("cancel")

    events = talk.send("response.create")

    assert cancelled_by_turn(events[-2])
    assert events[-1]["type"] == "response.created"
    assert talk.last.generate is not None
    assert [item.text for item in talk.last.generate.items] == ["Hi", "Hello"]  # type: ignore[union-attr]
    assert (talk.last.aborts, talk.open_responses) == (["resp_1"], ["resp_2"])


def test_a_response_that_refers_to_the_answer_it_cancels_has_it_as_far_as_it_was_said() -> None:
    talk = answering("cancel")

    talk.send("response.create", response={"input": [{"type": "item_reference", "id": "item_2"}]})

    assert talk.last.generate is not None
    assert [item.text for item in talk.last.generate.items] == ["Hello"]  # type: ignore[union-attr]


def test_the_answer_is_cancelled_even_where_no_further_one_has_room() -> None:
    talk = answering("cancel", limits=DialogueLimits(max_answers=1))

    assert kinds(talk.send("response.create"))[-1] == "response.created"
    assert talk.refused("response.create", response={"conversation": "none"})["code"] == "rate_limit_exceeded"


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("conversation.item.create", {"item": user_item(id="")}),
        ("conversation.item.create", {"item": user_item(), "previous_item_id": "gone"}),
        ("conversation.item.create", {"item": user_item(id="item_1")}),
        ("response.create", {"response": {"max_output_tokens": 0}}),
        ("response.create", {"response": {"input": [{"type": "item_reference", "id": "gone"}]}}),
    ],
)
def test_what_is_refused_cancels_nothing(kind: str, fields: dict[str, object]) -> None:
    talk = answering("cancel")

    talk.refused(kind, **fields)

    assert talk.open_responses == ["resp_1"]


@pytest.mark.parametrize("interrupt", [None, "cancel", "refuse"])
def test_only_the_user_interrupts_and_only_the_conversations_answer(
    interrupt: Literal["cancel", "refuse"] | None,
) -> None:
    talk = answering(interrupt)
    talk.send("response.create", response={"conversation": "none"})
    talk.send("conversation.item.create", item=user_item() | {"role": "system"})
    talk.send("conversation.item.create", item={"type": "function_call_output", "call_id": "call_x", "output": "1"})

    assert talk.open_responses == ["resp_1", "resp_2"]
    talk.advance("resp_1", make_chunk(finish="stop"))
    talk.add("And?")
    assert talk.open_responses == ["resp_2"], "an answer beside the conversation is in nobody's way"


def test_a_session_may_have_the_user_wait() -> None:
    """P6."""
    talk = answering("refuse")

    message = talk.refused("conversation.item.create", item=user_item("Wait"))
    response = talk.refused("response.create")

    assert message["code"] == response["code"] == "conversation_already_has_active_response"
    assert "resp_1" in message["message"]
    talk.advance("resp_1", make_chunk(finish="stop"))
    assert kinds(talk.add("And?")) == ["conversation.item.added", "conversation.item.done"]


def test_without_a_setting_it_is_as_with_openai() -> None:
    """P1."""
    talk = answering(None)

    assert kinds(talk.add("Wait")) == ["conversation.item.added", "conversation.item.done"]
    assert talk.refused("response.create")["code"] == "conversation_already_has_active_response"
    assert talk.open_responses == ["resp_1"]


def test_the_setting_can_be_changed_while_the_session_lasts_and_is_checked() -> None:
    talk = answering(None)

    [event] = talk.send("session.update", session={"type": "realtime", "avatar": {"interrupt": "cancel"}})
    error = talk.refused("session.update", session={"type": "realtime", "avatar": {"interrupt": "shout"}})

    assert event["session"]["avatar"]["interrupt"] == "cancel"
    assert (error["code"], error["param"]) == ("invalid_value", "session.avatar.interrupt")
    assert "response.done" in kinds(talk.add("Wait"))
