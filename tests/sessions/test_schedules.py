"""The dialogue under any schedule: P4, P5 and P6 hold whatever order client events, chunks, failures, deaths and takeovers come in.

`Talk` checks each event against those before it: no gap in the numbers, one response.done for each response.created, nothing after it.
"""

from collections import deque
from typing import Literal

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sessions.feedback import feedback_id
from sessions.generation import Chunk, FinishReason
from sessions.limits import DialogueLimits
from sessions.server_events import encode_event
from sessions.state import decode_state
from sessions.utf16 import num_units
from tests.sessions.builders import META, Json, Talk, fold, json_of, make_call_chunk, make_chunk, user_item, wire_items
from tests.sessions.scripts import Script, cuttings, generate, scripts

# Few ids, so that items meet their like: deleted, created again, created twice, referred to when gone.
IDS = ["a", "b", "item_1", "item_2", "item_3"]
ids = st.sampled_from(IDS)
texts = st.text("ab\n\x00😀", min_size=0, max_size=3)
finishes: st.SearchStrategy[FinishReason | None] = st.sampled_from(
    [None, None, None, None, "stop", "tool_calls", "length", "content_filter"]
)
places = st.one_of(st.none(), st.just("root"), ids)
Interrupts = Literal["cancel", "refuse"] | None
interrupts: st.SearchStrategy[Interrupts] = st.sampled_from([None, "cancel", "refuse"])


class AnySchedule(RuleBasedStateMachine):
    """A client, an engine, a network and nodes that do whatever they like. What has a script is said to its end, if nobody ends it."""

    def __init__(self) -> None:
        super().__init__()
        self.talk = Talk(limits=DialogueLimits(max_items=6, max_answers=3))
        self.responses: list[str] = ["resp_never"]
        self.failed: set[str] = set()
        self.calls: dict[str, int] = {}
        self.scripts: dict[str, Script] = {}
        self.chunks: dict[str, deque[Chunk]] = {}
        # What the client wrote, with the number of the input by which it did: items, or None for those that it deleted.
        self.writes: list[tuple[int, str, Json | None]] = []

    @rule(text=texts, item_id=st.one_of(st.none(), ids), place=places, role=st.sampled_from(["user", "assistant"]))
    def create_item(self, text: str, item_id: str | None, place: str | None, role: str) -> None:
        item = user_item(text) | {"role": role, "content": [{"type": "text", "text": text}]}
        # A client may reuse an id of ours once it has seen it; it cannot guess one.
        seen = {"a", "b", *(event["item"]["id"] for event in self.talk.events if "item" in event)}
        if item_id in seen:
            item["id"] = item_id
        events = self.talk.send("conversation.item.create", item=item, previous_item_id=place)
        if events[-1]["type"] == "conversation.item.done":
            self._write(events[-1]["item"]["id"], events[-1]["item"])

    @rule(item_id=ids)
    def delete_item(self, item_id: str) -> None:
        events = self.talk.send("conversation.item.delete", item_id=item_id)
        if events[-1]["type"] == "conversation.item.deleted":
            self._write(item_id, None)

    @rule(item_id=ids, rating=st.sampled_from(["up", "down"]), ago_ms=st.one_of(st.none(), st.integers(-1, 3)))
    def rate_item(self, item_id: str, rating: str, ago_ms: int | None) -> None:
        when = {} if ago_ms is None else {"rated_at_ms": self.talk.now_ms - ago_ms}
        [event] = self.talk.send("avatar.feedback.create", item_id=item_id, feedback={"rating": rating, **when})
        item = next((item for item in wire_items(self.talk.dialogue) if item["id"] == item_id), {})
        assert (event["type"] != "error") == (item.get("role") == "assistant")

    @rule(item_id=ids)
    def withdraw_rating(self, item_id: str) -> None:
        rating_id = feedback_id(META.session_id, item_id, META.user_id)
        [event] = self.talk.send("avatar.feedback.delete", feedback_id=rating_id)
        assert event["type"] in ("error", "avatar.feedback.deleted")

    @rule(item_id=ids)
    def retrieve_item(self, item_id: str) -> None:
        self.talk.send("conversation.item.retrieve", item_id=item_id)

    @rule(item_id=ids, char_end=st.integers(-1, 9), last=st.booleans())
    def truncate_item(self, item_id: str, char_end: int, last: bool) -> None:
        items = wire_items(self.talk.dialogue)
        if last and items:
            item_id = items[-1]["id"]
        events = self.talk.send("avatar.item.truncate", item_id=item_id, content_index=0, char_end=char_end)
        if events[-1]["type"] == "avatar.item.truncated":
            assert 0 <= events[-1]["char_end"] <= char_end
            item = next(item for item in wire_items(self.talk.dialogue) if item["id"] == item_id)
            if item_id in self.written:
                self._write(item_id, item)

    @rule(
        conversation=st.sampled_from(["auto", "auto", "none"]),
        referred=st.one_of(st.none(), ids),
        script=scripts,
        sizes=cuttings,
    )
    def create_response(self, conversation: str, referred: str | None, script: Script, sizes: list[int]) -> None:
        given = {} if referred is None else {"input": [{"type": "item_reference", "id": referred}]}
        events = self.talk.send("response.create", response={"conversation": conversation, **given})
        if events[-1]["type"] == "response.created":
            response_id = events[-1]["response"]["id"]
            self.responses.append(response_id)
            self.scripts[response_id] = script
            self.chunks[response_id] = deque(generate(script, sizes=sizes))
            assert self.talk.last.generate is not None
            assert all(item.status != "in_progress" for item in self.talk.last.generate.items) or referred is not None

    @rule(data=st.data(), count=st.integers(1, 4))
    def go_on(self, data: st.DataObject, count: int) -> None:
        """The engine says what the script has next."""
        response_id = data.draw(st.sampled_from(self.responses))
        chunks = self.chunks.get(response_id, deque())
        for _ in range(min(count, len(chunks))):
            self.talk.advance(response_id, chunks.popleft())

    @rule(data=st.data(), text=texts, finish=finishes)
    def say(self, data: st.DataObject, text: str, finish: FinishReason | None) -> None:
        response_id = self._off_script(data)
        self.talk.advance(response_id, make_chunk(text, finish=finish))

    @rule(data=st.data(), arguments=texts, finish=finishes, begins=st.booleans())
    def call(self, data: st.DataObject, arguments: str, finish: FinishReason | None, begins: bool) -> None:
        response_id = self._off_script(data)
        if begins or response_id not in self.calls:
            self.calls[response_id] = self.calls.get(response_id, -1) + 1
        index = self.calls[response_id]
        self.talk.advance(response_id, make_call_chunk(index, "get_weather", arguments, finish=finish))

    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        response_id = data.draw(st.sampled_from(self.responses))
        self.failed.add(response_id)
        self.talk.fail(response_id)

    @rule(data=st.data(), named=st.booleans())
    def cancel(self, data: st.DataObject, named: bool) -> None:
        response_id = data.draw(st.sampled_from(self.responses)) if named else None
        was_open = response_id in self.talk.open_responses

        events = self.talk.send("response.cancel", response_id=response_id)

        is_done = events[-1]["type"] == "response.done"
        assert is_done or not was_open
        assert len(self.talk.last.aborts) == is_done

    @rule(instructions=texts, interrupt=interrupts)
    def update(self, instructions: str, interrupt: Interrupts) -> None:
        session = {"type": "realtime", "instructions": instructions, "avatar": {"interrupt": interrupt}}
        self.talk.send("session.update", session=session)

    @rule()
    def lose_the_connection(self) -> None:
        self.talk.detach()

    @rule()
    def connect_again(self) -> None:
        self.talk.attach()

    @rule(num_lost=st.integers(0, 3), sizes=cuttings)
    def die_and_be_taken_over(self, num_lost: int, sizes: list[int]) -> None:
        """P4: what was not committed never happened, what was goes on."""
        asked = {effects.generate.response_id: effects.generate for effects in self.talk.history if effects.generate}
        prompts = self.talk.crash(num_lost=num_lost)
        created = [event["response"]["id"] for event in self.talk.events if event["type"] == "response.created"]
        self.responses = ["resp_never", *created]
        self.writes = [write for write in self.writes if write[0] < len(self.talk.history)]
        assert not self.talk.dialogue.broken
        assert sorted(prompt.response_id for prompt in prompts) == self.talk.open_responses
        for prompt in prompts:
            before = asked[prompt.response_id]
            assert (prompt.items, prompt.instructions) == (before.items, before.instructions)
            if prompt.response_id in self.scripts:
                script = self.scripts[prompt.response_id]
                self.chunks[prompt.response_id] = deque(generate(script, prompt.spoken, sizes=sizes))

    @rule()
    def come_back_over_a_gap(self) -> None:
        """P4: what a greeting and the open answers' events say is the dialogue."""
        talk = self.talk
        first = talk.dialogue.first_open_sequence or len(talk.journal) + 1
        history = [json_of(encode_event(event)) for event in talk.dialogue.greeting(resumed=False, gap=True)[1:]]
        followed = [json_of(event) for _, event in talk.dialogue.after_gap(talk.journal[first - 1 :], first)]
        held = {entry.item.id: entry.feedback.rating for entry in talk.dialogue.placed_items if entry.feedback}
        assert folded_ratings(history + followed) == {item_id: rating for item_id, rating in held.items() if rating}
        given = {event["item"]["id"]: event["item"] for event in followed if event["type"].startswith("conversation.")}
        seen = {item["id"]: item for item in fold(history)}
        assert not given.keys() & seen.keys(), "an item came twice"
        assert given | seen == {item["id"]: item for item in wire_items(talk.dialogue)}
        created = [event["response"]["id"] for event in followed if event["type"] == "response.created"]
        assert sorted(created) == talk.open_responses

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

    @invariant()
    def another_node_would_load_the_same_dialogue(self) -> None:
        """P4."""
        again = self.talk.rebuilt()
        assert (again.placed_items, again.config) == (self.talk.dialogue.placed_items, self.talk.dialogue.config)

    @invariant()
    def what_a_client_was_given_is_recorded_as_sent(self) -> None:
        talk = self.talk
        sent = {record.response_id: record.sent_chars or 0 for record in talk.predictions}
        for record in talk.sent:
            assert record.sent_chars > sent[record.response_id]
            sent[record.response_id] = record.sent_chars
        for prediction in talk.predictions:
            assert sent[prediction.response_id] <= num_units(prediction.text)
        if decode_state(talk.stored_state).listener.is_attached:
            assert sent == {record.response_id: num_units(record.text) for record in talk.predictions}

    def teardown(self) -> None:
        """Whatever happened before, the end leaves nothing open, and what was said adds up. P6."""
        talk = self.talk
        for response_id in talk.open_responses:
            while self.chunks.get(response_id):
                talk.advance(response_id, self.chunks[response_id].popleft())
        still_open = talk.open_responses
        talk.end()
        assert sorted(talk.last.aborts) == still_open
        assert talk.open_responses == []
        for response_id in self.responses:
            assert talk.advance(response_id, make_chunk("late", finish="stop")) == []
        self.every_answer_is_open_or_recorded_once()
        self.another_node_would_load_the_same_dialogue()
        check_texts(talk.events)
        for event in talk.events:
            if event["type"] == "response.done":
                self._check_script(event["response"])

    @property
    def written(self) -> dict[str, Json]:
        items: dict[str, Json] = {}
        for _, item_id, item in self.writes:
            if item is None:
                items.pop(item_id, None)
            else:
                items[item_id] = item
        return items

    def _write(self, item_id: str, item: Json | None) -> None:
        self.writes.append((len(self.talk.history) - 1, item_id, item))

    def _off_script(self, data: st.DataObject) -> str:
        response_id = data.draw(st.sampled_from(self.responses))
        self.scripts.pop(response_id, None)
        self.chunks.pop(response_id, None)
        return response_id

    def _check_script(self, response: Json) -> None:
        """An answer that nobody ended or led astray is its script; one that was ended is the beginning of it."""
        script = self.scripts.get(response["id"])
        if script is None:
            return
        said = [of_wire(item) for item in response["output"]]
        if response["status"] in ("completed", "incomplete"):
            assert said == script.wire
            assert response["usage"]["output_tokens"] == script.num_tokens
            return
        assert response["status"] != "failed" or response["id"] in self.failed, "what is said again is what was said"
        for item, whole in zip(said, script.wire, strict=False):
            assert item.keys() == whole.keys()
            assert all(whole[key].startswith(item[key]) for key in item)


def of_wire(item: Json) -> Json:
    """An item as a script has it."""
    if item["type"] == "message":
        return {"text": "".join(part["text"] for part in item["content"])}
    return {"name": item["name"], "arguments": item["arguments"]}


def folded_ratings(events: list[Json]) -> dict[str, str]:
    """The ratings as a client sees them that believes the events; of an item that it was told of before."""
    ratings: dict[str, str] = {}
    told: set[str] = set()
    for event in events:
        match event["type"]:
            case "conversation.item.added":
                told.add(event["item"]["id"])
            case "avatar.feedback.created":
                assert event["feedback"]["item_id"] in told
                ratings[event["feedback"]["item_id"]] = event["feedback"]["rating"]
            case "avatar.feedback.deleted":
                assert event["item_id"] in told
                ratings.pop(event["item_id"], None)
    return ratings


def check_texts(events: list[Json]) -> None:
    """An item's deltas, its done event and the item in response.done are one text, and no item begins twice."""
    deltas: dict[str, str] = {}
    for event in events:
        match event["type"]:
            case "response.output_item.added":
                assert event["item"]["id"] not in deltas
                deltas[event["item"]["id"]] = ""
            case "response.output_text.delta" | "response.function_call_arguments.delta":
                deltas[event["item_id"]] += event["delta"]
            case "response.output_text.done":
                assert event["text"] == deltas[event["item_id"]]
            case "response.function_call_arguments.done":
                assert event["arguments"] == deltas[event["item_id"]]
            case "response.done":
                for item in event["response"]["output"]:
                    said = of_wire(item)
                    assert deltas[item["id"]] == said.get("text", said.get("arguments"))


TestAnySchedule = AnySchedule.TestCase
TestAnySchedule.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
