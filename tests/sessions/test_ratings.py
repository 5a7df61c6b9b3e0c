"""Ratings in a dialogue: the latest choice holds, whatever order, repetition or node it meets; what is none is refused by name. P3."""

import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sessions.client_events import RefusedEvent, decode_client_event
from sessions.config import AvatarOptions, ResumptionOptions, SessionConfig
from sessions.effects import Effects
from sessions.feedback import Feedback, feedback_id
from sessions.limits import DialogueLimits
from sessions.records import FeedbackRecord
from sessions.server_events import encode_event
from sessions.wire_errors import BadEvent
from tests.sessions.builders import (
    META,
    NOW_MS,
    Json,
    Talk,
    json_of,
    kinds,
    make_call_chunk,
    make_chunk,
    make_dialogue,
    make_event,
    user_item,
)

SMILE = "😀"
RESUMABLE = SessionConfig(model="demo", resumption=ResumptionOptions(enabled=True))
AVATAR = SessionConfig(model="demo", avatar=AvatarOptions())
UP = Feedback(rating="up", rated_ms=NOW_MS)
CREATED = "avatar.feedback.created"
DELETED = "avatar.feedback.deleted"


def answered(*texts: str, config: SessionConfig | None = None, limits: DialogueLimits | None = None) -> Talk:
    """A talk whose last item, `item_2`, is an answer of these chunks."""
    talk = Talk(config=config, limits=limits)
    talk.add("Hi")
    talk.answer(*map(make_chunk, texts or ("Hello there",)), make_chunk(finish="stop"))
    return talk


def rate(talk: Talk, item_id: str = "item_2", **feedback: object) -> Json:
    """The one event that answers a rating."""
    [event] = talk.send("avatar.feedback.create", item_id=item_id, feedback={"rating": "up", **feedback})
    return event


def withdraw(talk: Talk, item_id: str = "item_2", **fields: object) -> Json:
    """The one event that answers a withdrawal."""
    [event] = talk.send("avatar.feedback.delete", feedback_id=id_of(item_id), **fields)
    return event


def refused(talk: Talk, item_id: str = "item_2", **feedback: object) -> tuple[str, str | None]:
    """Code and parameter of the error that answers a rating; nothing else comes of it."""
    try:
        error = talk.refused("avatar.feedback.create", item_id=item_id, feedback={"rating": "up", **feedback})
    except RefusedEvent as mistake:
        return mistake.reason.code, mistake.reason.param
    assert error["type"] == "invalid_request_error"
    return error["code"], error["param"]


def id_of(item_id: str) -> str:
    return feedback_id(META.session_id, item_id, META.user_id)


def recorded(talk: Talk) -> list[FeedbackRecord]:
    return [record for record in talk.records if isinstance(record, FeedbackRecord)]


# A rating


def test_a_rating_is_told_and_recorded_in_one_commit() -> None:
    """P3."""
    talk = answered()
    talk.now_ms += 5_000

    event = rate(talk, rating="down", reason="too-long", comment="Kürzer, bitte 🙏", start=0, end=5)

    assert event == {
        "type": CREATED,
        "event_id": f"event_01JD_{len(talk.events)}",
        "feedback": {
            "id": id_of("item_2"),
            "object": "avatar.feedback",
            "item_id": "item_2",
            "rating": "down",
            "reason": "too-long",
            "comment": "Kürzer, bitte 🙏",
            "start": 0,
            "end": 5,
            "rated_at_ms": talk.now_ms,
        },
    }
    assert talk.last.records == [
        FeedbackRecord(
            feedback_id=id_of("item_2"),
            session_id=META.session_id,
            item_id="item_2",
            user_id=META.user_id,
            role="user",
            sequence=len(talk.events),
            rating="down",
            reason="too-long",
            comment="Kürzer, bitte 🙏",
            start=0,
            end=5,
            rated_ms=talk.now_ms,
            received_ms=talk.now_ms,
        )
    ]


def test_a_plain_rating_says_null_for_what_it_does_not_say() -> None:
    feedback = rate(answered(), comment="")["feedback"]

    assert [feedback[name] for name in ("reason", "comment", "start", "end")] == [None] * 4


def test_a_rating_costs_the_store_one_item_and_not_the_whole_state() -> None:
    """Else a client that rates would write megabytes with each tap."""
    talk = answered()
    rate(talk)

    rate(talk, rating="down")

    assert talk.last.state is None
    assert [placed.item.id for placed in talk.last.saved_items] == ["item_2"]


@pytest.mark.parametrize("word", DialogueLimits().feedback_reasons)
def test_every_reason_of_the_settings_is_taken(word: str) -> None:
    assert rate(answered(), rating="down", reason=word)["feedback"]["reason"] == word


def test_the_reasons_are_the_installations_own() -> None:
    talk = answered(limits=DialogueLimits(feedback_reasons=("무례함",)))

    assert rate(talk, reason="무례함")["feedback"]["reason"] == "무례함"
    assert refused(talk, reason="other") == ("invalid_value", "feedback.reason")


# The latest choice


def test_a_later_choice_replaces_all_of_an_earlier_one() -> None:
    talk = answered()
    rate(talk, rating="down", reason="unsafe", comment="no", start=0, end=5)
    talk.now_ms += 1

    feedback = rate(talk, rating="up")["feedback"]

    assert (feedback["rating"], feedback["reason"], feedback["comment"], feedback["end"]) == ("up", None, None, None)


def test_an_older_choice_changes_nothing_and_is_answered_by_what_holds() -> None:
    """P3: a queued rating may arrive after a later one."""
    talk = answered()
    talk.now_ms += 1_000
    newest = rate(talk, rating="down", reason="other")["feedback"]

    late = rate(talk, rating="up", rated_at_ms=NOW_MS)

    assert (late["type"], late["feedback"]) == (CREATED, newest)
    assert talk.last == Effects(events=talk.last.events)


def test_a_doubled_rating_is_answered_again_and_recorded_once() -> None:
    """P3."""
    talk = answered()
    first = rate(talk, rated_at_ms=NOW_MS)

    second = rate(talk, rated_at_ms=NOW_MS)

    assert second["feedback"] == first["feedback"]
    assert talk.last == Effects(events=talk.last.events)
    assert len(recorded(talk)) == 1


def test_of_two_choices_in_one_millisecond_the_second_holds() -> None:
    talk = answered()
    rate(talk, rating="up")

    assert rate(talk, rating="down")["feedback"]["rating"] == "down"
    one, other = recorded(talk)
    assert (one.rated_ms, one.sequence < other.sequence) == (other.rated_ms, True)


def test_a_choice_from_the_future_was_made_now() -> None:
    """Else a clock that is ahead would lock out every later choice."""
    talk = answered()
    rate(talk, rating="up", rated_at_ms=10**30)
    talk.now_ms += 1

    feedback = rate(talk, rating="down", rated_at_ms=talk.now_ms)["feedback"]

    assert [record.rated_ms for record in recorded(talk)] == [NOW_MS, NOW_MS + 1]
    assert feedback["rating"] == "down"


# Withdrawn


def test_a_rating_can_be_withdrawn_again_and_again() -> None:
    """P3."""
    talk = answered()
    rate(talk)

    first, second = withdraw(talk), withdraw(talk)

    for event in (first, second):
        assert (event["type"], event["feedback_id"], event["item_id"]) == (DELETED, id_of("item_2"), "item_2")
    assert recorded(talk)[-1].rating is None


def test_an_older_choice_does_not_bring_a_withdrawn_rating_back() -> None:
    """P3."""
    talk = answered()
    rate(talk, rated_at_ms=NOW_MS - 10)
    withdraw(talk, rated_at_ms=NOW_MS - 2)

    assert rate(talk, rating="down", rated_at_ms=NOW_MS - 5)["type"] == DELETED
    assert rate(talk, rating="down", rated_at_ms=NOW_MS - 1)["type"] == CREATED


def test_an_older_withdrawal_does_not_take_a_later_choice() -> None:
    talk = answered()
    rate(talk, rating="down", rated_at_ms=NOW_MS)

    late = withdraw(talk, rated_at_ms=NOW_MS - 1)

    assert (late["type"], late["feedback"]["rating"]) == (CREATED, "down")


@pytest.mark.parametrize("feedback_id", ["fb_none", "", id_of("item_1"), id_of("item_2"), "x" * 1000])
def test_what_was_never_rated_cannot_be_withdrawn(feedback_id: str) -> None:
    error = answered().refused("avatar.feedback.delete", feedback_id=feedback_id, event_id="mine")

    assert (error["code"], error["param"]) == ("feedback_invalid_feedback_id", "feedback_id")
    assert error["event_id"] == "mine"
    assert len(error["message"]) < 200


def test_a_withdrawal_before_1970_is_refused() -> None:
    talk = answered()
    rate(talk)

    error = talk.refused("avatar.feedback.delete", feedback_id=id_of("item_2"), rated_at_ms=-1)

    assert (error["code"], error["param"]) == ("integer_below_min_value", "rated_at_ms")


# Which items, which text


def test_what_is_no_answer_is_refused() -> None:
    talk = Talk()
    talk.add("Hi")
    talk.answer(make_chunk("Let me look"), make_call_chunk(0, "get_weather", "{}", finish="tool_calls"))
    talk.send("conversation.item.create", item={"type": "function_call_output", "call_id": "call_1", "output": "x"})
    talk.send("conversation.item.create", item=user_item() | {"role": "system", "id": "rules"})
    items = [item.id for item in talk.dialogue.items]

    codes = {item_id: refused(talk, item_id) for item_id in items if item_id != "item_2"}

    assert len(codes) == 4
    assert set(codes.values()) == {("feedback_not_an_answer", "item_id")}
    assert rate(talk, "item_2")["type"] == CREATED


def test_an_item_that_is_not_there_is_refused_whether_it_was_deleted_or_never_was() -> None:
    talk = answered()
    rate(talk)
    talk.send("conversation.item.delete", item_id="item_2")

    for item_id in ("item_2", "item_none", "", "x" * 1000):
        assert refused(talk, item_id) == ("feedback_invalid_item_id", "item_id")
    talk.refused("avatar.feedback.delete", feedback_id=id_of("item_2"))


def test_an_answer_outside_the_conversation_is_none_of_its_items() -> None:
    talk = Talk()
    events = talk.answer(make_chunk("aside", finish="stop"), conversation="none")

    assert refused(talk, events[-1]["response"]["output"][0]["id"]) == ("feedback_invalid_item_id", "item_id")


def test_an_answer_is_rated_while_it_streams_and_goes_on_undisturbed() -> None:
    """P6."""
    talk = Talk()
    talk.add("Hi")
    response_id = talk.ask()
    talk.advance(response_id, make_chunk("Hello"))

    rated = rate(talk, "item_2", start=0, end=5)
    assert refused(talk, "item_2", start=0, end=6) == ("integer_above_max_value", "feedback.end")
    talk.advance(response_id, make_chunk(" there"))
    longer = rate(talk, "item_2", start=6, end=11)
    done = talk.advance(response_id, make_chunk(finish="stop"))[-1]

    assert [rated["type"], longer["type"]] == [CREATED, CREATED]
    assert done["response"]["output"][0]["content"][0]["text"] == "Hello there"
    assert rate(talk, "item_2", rated_at_ms=NOW_MS - 1)["feedback"]["start"] == 6, "it is the item's rating still"


def test_an_earlier_answer_is_rated_while_another_streams() -> None:
    talk = answered("one")
    talk.add("And?")
    response_id = talk.ask()
    talk.advance(response_id, make_chunk("two"))

    assert rate(talk, "item_2", start=0, end=3)["type"] == CREATED
    assert rate(talk, "item_4", start=0, end=3)["type"] == CREATED


def test_a_range_counts_utf16_code_units() -> None:
    talk = answered(SMILE)

    assert rate(talk, start=0, end=2)["type"] == CREATED
    assert refused(talk, start=0, end=3) == ("integer_above_max_value", "feedback.end")


def test_after_a_cut_the_range_may_be_of_what_was_said_and_not_heard() -> None:
    """A page shows what was generated; which of it is spoken is another matter."""
    talk = answered("Hello there")
    talk.send("avatar.item.truncate", item_id="item_2", content_index=0, char_end=5)

    assert rate(talk, start=6, end=11)["type"] == CREATED
    assert refused(talk, start=6, end=12) == ("integer_above_max_value", "feedback.end")


def test_a_rating_stays_when_its_answer_is_cut() -> None:
    talk = answered("Hello there")
    first = rate(talk, start=6, end=11)["feedback"]

    talk.send("avatar.item.truncate", item_id="item_2", content_index=0, char_end=5)

    assert rate(talk, rating="down", rated_at_ms=NOW_MS - 1)["feedback"] == first


def test_an_answer_that_comes_again_under_its_id_has_no_rating_yet() -> None:
    talk = answered()
    rate(talk, rating="down")
    talk.send("conversation.item.delete", item_id="item_2")
    content = [{"type": "output_text", "text": "Hello"}]
    again = {"type": "message", "role": "assistant", "id": "item_2", "content": content}
    talk.send("conversation.item.create", item=again)

    talk.refused("avatar.feedback.delete", feedback_id=id_of("item_2"))
    assert rate(talk, rating="up", rated_at_ms=NOW_MS - 1)["feedback"]["rating"] == "up"


MALFORMED: list[tuple[dict[str, Any], str, str]] = [
    ({"rating": "sideways"}, "invalid_value", "feedback.rating"),
    ({"rating": None}, "invalid_type", "feedback.rating"),
    ({"rating": 1}, "invalid_type", "feedback.rating"),
    ({"reason": "because"}, "invalid_value", "feedback.reason"),
    ({"reason": "x" * 100_000}, "invalid_value", "feedback.reason"),
    ({"reason": 5}, "invalid_type", "feedback.reason"),
    ({"comment": "x" * 2_001}, "string_above_max_length", "feedback.comment"),
    ({"comment": ["x"]}, "invalid_type", "feedback.comment"),
    ({"start": -1, "end": 2}, "integer_below_min_value", "feedback.start"),
    ({"start": 2, "end": 2}, "integer_below_min_value", "feedback.end"),
    ({"start": 5, "end": 2}, "integer_below_min_value", "feedback.end"),
    ({"start": 0, "end": 12}, "integer_above_max_value", "feedback.end"),
    ({"start": 0, "end": 10**30}, "integer_above_max_value", "feedback.end"),
    ({"start": 0, "end": 1.5}, "invalid_type", "feedback.end"),
    ({"start": 0}, "missing_required_parameter", "feedback.end"),
    ({"end": 3}, "missing_required_parameter", "feedback.start"),
    ({"rated_at_ms": -1}, "integer_below_min_value", "feedback.rated_at_ms"),
    ({"rated_at_ms": "yesterday"}, "invalid_type", "feedback.rated_at_ms"),
    ({"user_id": "eve"}, "unknown_parameter", "feedback.user_id"),
    ({"role": "admin"}, "unknown_parameter", "feedback.role"),
    ({"sequence": 10**9}, "unknown_parameter", "feedback.sequence"),
    ({"id": "fb_mine"}, "unknown_parameter", "feedback.id"),
]


@pytest.mark.parametrize(("change", "code", "param"), MALFORMED, ids=lambda value: str(value)[:30])
def test_a_malformed_rating_is_refused_by_name_and_changes_nothing(
    change: dict[str, Any], code: str, param: str
) -> None:
    """P7."""
    talk = answered("Hello there")

    assert refused(talk, **change) == (code, param)
    assert recorded(talk) == []
    assert [placed.feedback for placed in talk.dialogue.placed_items] == [None, None]


@pytest.mark.parametrize("name", ["user_id", "session_id", "role", "sequence_number", "rating"])
def test_a_rating_names_nobody_else(name: str) -> None:
    frame = f'{{"type":"avatar.feedback.create","item_id":"item_2","feedback":{{"rating":"up"}},"{name}":"x"}}'

    with pytest.raises(RefusedEvent) as caught:
        decode_client_event(frame)

    assert (caught.value.reason.code, caught.value.reason.param) == ("unknown_parameter", name)


def test_a_comment_of_2000_characters_is_taken_whatever_they_are() -> None:
    comment = (SMILE + "\x00\u202e") * 666 + "ab"

    assert rate(answered(), comment=comment)["feedback"]["comment"] == comment


# Another node, another connection


def test_ratings_survive_a_takeover() -> None:
    """P4."""
    talk = answered(config=RESUMABLE)
    rate(talk, rating="up")
    talk.now_ms += 1
    first = rate(talk, rating="down", reason="other", comment="hm", start=0, end=5)["feedback"]

    talk.crash()

    assert rate(talk, rating="up", rated_at_ms=NOW_MS)["feedback"] == first
    assert withdraw(talk)["type"] == DELETED


def test_a_rating_that_was_not_committed_never_happened() -> None:
    """P4: its client had no acknowledgement and sends it again."""
    talk = answered(config=RESUMABLE)
    rate(talk, rating="down")

    talk.crash(num_lost=1)

    assert [placed.feedback for placed in talk.dialogue.placed_items] == [None, None]
    assert recorded(talk) == []
    assert rate(talk, rating="down")["type"] == CREATED


def test_a_takeover_in_the_middle_of_a_rated_answer_goes_on_with_it() -> None:
    """P4."""
    talk = Talk(config=RESUMABLE)
    talk.add("Hi")
    response_id = talk.ask()
    talk.advance(response_id, make_chunk("Hello"))
    rate(talk, "item_2", rating="down", start=0, end=5)
    talk.advance(response_id, make_chunk(" there"))

    [prompt] = talk.crash()
    talk.advance(response_id, make_chunk("!", finish="stop"))

    assert prompt.spoken == "Hello there"
    assert rate(talk, rated_at_ms=NOW_MS - 1)["feedback"]["rating"] == "down"
    assert rate(talk, start=0, end=12)["type"] == CREATED


def come_back(talk: Talk) -> list[Json]:
    """What a client gets that comes back over a gap."""
    first = talk.dialogue.first_open_sequence or len(talk.journal) + 1
    told = [json_of(encode_event(event)) for event in talk.dialogue.greeting(resumed=False, gap=True)]
    return told + [json_of(event) for _, event in talk.dialogue.after_gap(talk.journal[first - 1 :], first)]


def test_a_client_that_comes_back_over_a_gap_is_told_the_ratings_after_the_history() -> None:
    """P4."""
    talk = answered(config=RESUMABLE)
    talk.add("More")
    talk.answer(make_chunk("again", finish="stop"))
    rate(talk, "item_2", rating="down", reason="unsafe")
    rate(talk, "item_4")
    withdraw(talk, "item_4")
    before = talk.dialogue.next_sequence

    events = come_back(talk)

    assert kinds(events) == ["session.created", *["conversation.item.added", "conversation.item.done"] * 4, CREATED]
    assert (events[-1]["feedback"]["item_id"], events[-1]["feedback"]["rating"]) == ("item_2", "down")
    assert talk.dialogue.next_sequence == before, "none of it is journaled"


def test_over_a_gap_the_rating_of_an_answer_that_still_streams_comes_after_its_item() -> None:
    """P4."""
    talk = Talk(config=RESUMABLE)
    talk.add("Hi")
    response_id = talk.ask()
    talk.advance(response_id, make_chunk("Hello"))
    rate(talk, "item_2")
    withdraw(talk, "item_2")
    talk.now_ms += 1
    rate(talk, "item_2", rating="down")

    told = [event for event in come_back(talk) if event["type"].startswith(("avatar.", "conversation."))]

    assert [(event["type"], event.get("item", {}).get("id")) for event in told[2:]] == [
        ("conversation.item.added", "item_2"),
        (CREATED, None),
        (DELETED, None),
        (CREATED, None),
    ]


# By another way than the connection


def add(talk: Talk, feedback: Feedback, item_id: str = "item_2") -> tuple[Feedback, list[Json]]:
    current, effects = talk.dialogue.rate(item_id, feedback, talk.now_ms)
    return current, talk.take(effects)


def test_a_choice_by_another_way_is_told_to_a_client_that_knows_of_ratings() -> None:
    """P1, P3."""
    talk = answered(config=AVATAR)

    current, events = add(talk, UP)

    assert current == UP
    assert kinds(events) == [CREATED]
    assert [record.rating for record in recorded(talk)] == ["up"]
    assert recorded(talk)[0].sequence == len(talk.events)


def test_a_client_that_knows_nothing_of_ratings_is_told_of_none() -> None:
    """P1: not when it is made, not after a gap, not by the next node."""
    talk = answered(config=RESUMABLE)

    current, events = add(talk, UP)
    talk.crash()

    assert (current, events) == (UP, [])
    assert [record.rating for record in recorded(talk)] == ["up"]
    assert CREATED not in kinds(come_back(talk))


@pytest.mark.parametrize("how", ["rates", "asks for the avatar"])
def test_a_client_that_asks_is_told_from_then_on(how: str) -> None:
    """P1."""
    talk = answered(config=RESUMABLE)
    add(talk, UP)
    if how == "rates":
        rate(talk, rated_at_ms=NOW_MS - 1)
    else:
        talk.send("session.update", session={"type": "realtime", "avatar": {}})

    talk.crash()

    assert kinds(come_back(talk))[-1] == CREATED


def test_an_older_choice_by_another_way_is_neither_told_nor_recorded() -> None:
    talk = answered(config=AVATAR)
    rate(talk, rating="down", rated_at_ms=NOW_MS)

    current, events = add(talk, Feedback(rating="up", rated_ms=NOW_MS - 1))

    assert (current.rating, events) == ("down", [])
    assert talk.last == Effects()


@pytest.mark.parametrize(
    ("item_id", "feedback", "code"),
    [
        ("item_none", UP, "feedback_invalid_item_id"),
        ("item_1", UP, "feedback_not_an_answer"),
        ("item_2", Feedback(rating="up", start=0, end=99, rated_ms=NOW_MS), "integer_above_max_value"),
    ],
)
def test_what_cannot_be_taken_by_another_way_has_no_effects(item_id: str, feedback: Feedback, code: str) -> None:
    talk = answered()

    with pytest.raises(BadEvent) as checked:
        talk.dialogue.check_rating(item_id, feedback)
    with pytest.raises(BadEvent) as taken:
        talk.dialogue.rate(item_id, feedback, NOW_MS)

    assert (checked.value.code, taken.value.code) == (code, code)
    assert rate(talk)["type"] == CREATED


# Any order


choices = st.lists(
    st.tuples(st.sampled_from(["item_2", "item_4"]), st.sampled_from(["up", "down", None]), st.booleans()), max_size=12
)


class Voter:
    """A client that sends each of its choices until it is acknowledged."""

    def __init__(self, talk: Talk, made: list[tuple[str, str | None, bool]]) -> None:
        self.talk = talk
        self.events: list[Json] = []
        self.last: dict[str, tuple[str | None, int]] = {}
        for number, (item_id, rating, has_comment) in enumerate(made):
            rated_at_ms = NOW_MS - 1_000 + number
            if item_id not in self.last:
                rating = rating or "up"  # nobody withdraws what was not given
            self.last[item_id] = (rating, rated_at_ms)
            if rating is None:
                fields: Json = {"feedback_id": id_of(item_id), "rated_at_ms": rated_at_ms}
                self.events.append({"kind": "avatar.feedback.delete", **fields})
                continue
            feedback = {"rating": rating, "rated_at_ms": rated_at_ms} | (
                {"comment": str(number)} if has_comment else {}
            )
            self.events.append({"kind": "avatar.feedback.create", "item_id": item_id, "feedback": feedback})
        self.waiting = set(range(len(self.events)))

    def send(self, number: int, *, is_lost: bool) -> None:
        """One of them; where the answer is lost, it has arrived and nobody knows."""
        [answer] = self.talk.send(**self.events[number])
        if answer["type"] != "error" and not is_lost:
            self.waiting.discard(number)


@settings(max_examples=200, deadline=None)
@given(choices, st.data())
def test_any_order_doubling_and_loss_ends_with_the_latest_choice(
    made: list[tuple[str, str | None, bool]], data: st.DataObject
) -> None:
    """P3, P4: in the dialogue, on the next node, and in the rows, however the writer meets the records."""
    talk = answered(config=RESUMABLE)
    talk.add("More")
    talk.answer(make_chunk("again", finish="stop"))
    voter = Voter(talk, made)
    numbers = st.integers(0, max(0, len(voter.events) - 1))
    for number in data.draw(st.lists(numbers, max_size=25 if voter.events else 0)):
        voter.send(number, is_lost=data.draw(st.booleans()))
        if data.draw(st.integers(0, 9)) == 0:
            talk.crash(num_lost=0)
    while voter.waiting:
        for number in data.draw(st.permutations(sorted(voter.waiting))):
            voter.send(number, is_lost=False)

    talk.crash()
    stored = {
        placed.item.id: (placed.feedback.rating, placed.feedback.rated_ms)
        for placed in talk.dialogue.placed_items
        if placed.feedback is not None
    }
    rows: dict[str, FeedbackRecord] = {}
    for record in data.draw(st.permutations(recorded(talk))):
        row = rows.get(record.feedback_id)
        if row is None or (record.rated_ms, record.sequence) > (row.rated_ms, row.sequence):
            rows[record.feedback_id] = record

    assert stored == voter.last
    assert {row.item_id: (row.rating, row.rated_ms) for row in rows.values()} == voter.last


def test_whoever_deletes_what_it_rated_and_rates_anew_does_not_fill_the_memory() -> None:
    """P7."""
    dialogue = make_dialogue(config=AVATAR, limits=DialogueLimits(max_items=4))
    said = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hello"}]}

    def rate_and_delete(first: int) -> None:
        for number in range(first, first + 1000):
            item_id = f"mine_{number}"
            for kind, fields in (
                ("conversation.item.create", {"item": {**said, "id": item_id}}),
                ("avatar.feedback.create", {"item_id": item_id, "feedback": {"rating": "up"}}),
                ("conversation.item.delete", {"item_id": item_id}),
            ):
                dialogue.receive(make_event(kind, **fields), NOW_MS)

    tracemalloc.start()
    try:
        rate_and_delete(0)
        before = tracemalloc.get_traced_memory()[0]
        rate_and_delete(1000)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()

    assert grown < 50_000
