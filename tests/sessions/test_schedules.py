"""The dialogue under any schedule: P5 and P6 hold whatever order client events, chunks, failures and deletes come in.

`Talk` checks each event against those before it: no gap in the numbers, one response.done for each response.created, nothing after it.
"""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sessions.dialogue import DialogueLimits
from sessions.generation import FinishReason
from tests.sessions.builders import Json, Talk, fold, make_call_chunk, make_chunk, user_item, wire_items

# Few ids, so that items meet their like: deleted, created again, created twice, referred to when gone.
IDS = ["a", "b", "item_1", "item_2", "item_3"]
ids = st.sampled_from(IDS)
texts = st.text("ab\n\x00😀", min_size=0, max_size=3)
finishes: st.SearchStrategy[FinishReason | None] = st.sampled_from(
    [None, None, None, None, "stop", "tool_calls", "length", "content_filter"]
)
places = st.one_of(st.none(), st.just("root"), ids)


class AnySchedule(RuleBasedStateMachine):
    """A client, an engine and a network that do whatever they like."""

    def __init__(self) -> None:
        super().__init__()
        self.talk = Talk(limits=DialogueLimits(max_items=6, max_answers=3))
        self.responses: list[str] = ["resp_never"]
        self.calls: dict[str, int] = {}
        self.written: dict[str, Json] = {}

    @rule(text=texts, item_id=st.one_of(st.none(), ids), place=places, role=st.sampled_from(["user", "assistant"]))
    def create_item(self, text: str, item_id: str | None, place: str | None, role: str) -> None:
        item = user_item(text) | {"role": role, "content": [{"type": "text", "text": text}]}
        # A client may reuse an id of ours once it has seen it; it cannot guess one.
        seen = {"a", "b", *(event["item"]["id"] for event in self.talk.events if "item" in event)}
        if item_id in seen:
            item["id"] = item_id
        events = self.talk.send("conversation.item.create", item=item, previous_item_id=place)
        if events[-1]["type"] == "conversation.item.done":
            self.written[events[-1]["item"]["id"]] = events[-1]["item"]

    @rule(item_id=ids)
    def delete_item(self, item_id: str) -> None:
        events = self.talk.send("conversation.item.delete", item_id=item_id)
        if events[-1]["type"] == "conversation.item.deleted":
            self.written.pop(item_id, None)

    @rule(item_id=ids)
    def retrieve_item(self, item_id: str) -> None:
        self.talk.send("conversation.item.retrieve", item_id=item_id)

    @rule(conversation=st.sampled_from(["auto", "auto", "none"]), referred=st.one_of(st.none(), ids))
    def create_response(self, conversation: str, referred: str | None) -> None:
        given = {} if referred is None else {"input": [{"type": "item_reference", "id": referred}]}
        events = self.talk.send("response.create", response={"conversation": conversation, **given})
        if events[-1]["type"] == "response.created":
            self.responses.append(events[-1]["response"]["id"])
            assert self.talk.last.generate is not None
            assert all(item.status != "in_progress" for item in self.talk.last.generate.items) or referred is not None

    @rule(data=st.data(), text=texts, finish=finishes)
    def say(self, data: st.DataObject, text: str, finish: FinishReason | None) -> None:
        self.talk.advance(data.draw(st.sampled_from(self.responses)), make_chunk(text, finish=finish))

    @rule(data=st.data(), arguments=texts, finish=finishes, begins=st.booleans())
    def call(self, data: st.DataObject, arguments: str, finish: FinishReason | None, begins: bool) -> None:
        response_id = data.draw(st.sampled_from(self.responses))
        if begins or response_id not in self.calls:
            self.calls[response_id] = self.calls.get(response_id, -1) + 1
        index = self.calls[response_id]
        self.talk.advance(response_id, make_call_chunk(index, "get_weather", arguments, finish=finish))

    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        self.talk.fail(data.draw(st.sampled_from(self.responses)))

    @rule(data=st.data(), named=st.booleans())
    def cancel(self, data: st.DataObject, named: bool) -> None:
        response_id = data.draw(st.sampled_from(self.responses)) if named else None
        was_open = response_id in self.talk.open_responses

        events = self.talk.send("response.cancel", response_id=response_id)

        is_done = events[-1]["type"] == "response.done"
        assert is_done or not was_open
        assert len(self.talk.last.aborts) == is_done

    @rule(instructions=texts)
    def update(self, instructions: str) -> None:
        self.talk.send("session.update", session={"type": "realtime", "instructions": instructions})

    @rule()
    def pass_time(self) -> None:
        self.talk.now_ms += 1

    @invariant()
    def a_client_that_believes_the_events_has_the_same_items(self) -> None:
        assert fold(self.talk.events) == wire_items(self.talk.dialogue)

    @invariant()
    def what_a_client_wrote_is_never_overwritten(self) -> None:
        items = {item["id"]: item for item in wire_items(self.talk.dialogue)}
        assert {item_id: items[item_id] for item_id in self.written} == self.written

    @invariant()
    def every_answer_is_open_or_recorded_once(self) -> None:
        talk = self.talk
        assert talk.dialogue.num_answers == len(talk.open_responses)
        assert [record.response_id for record in talk.predictions] == talk.ended_responses
        assert sorted([*talk.open_responses, *talk.ended_responses]) == sorted(self.responses[1:])

    @precondition(lambda self: not self.talk.open_responses)
    @invariant()
    def another_node_would_load_the_same_dialogue(self) -> None:
        """P4."""
        again = self.talk.rebuilt()
        assert (again.items, again.config) == (self.talk.dialogue.items, self.talk.dialogue.config)

    def teardown(self) -> None:
        """Whatever happened before, the end leaves nothing open. P6."""
        talk = self.talk
        still_open = talk.open_responses
        talk.end()
        assert sorted(talk.last.aborts) == still_open
        assert talk.open_responses == []
        for response_id in self.responses:
            assert talk.advance(response_id, make_chunk("late", finish="stop")) == []
        self.every_answer_is_open_or_recorded_once()
        self.another_node_would_load_the_same_dialogue()


TestAnySchedule = AnySchedule.TestCase
TestAnySchedule.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
