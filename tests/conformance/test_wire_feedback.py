"""Ratings on the wire, against PROTOCOL.md's extensions: what is sent, what comes back, and who is spared (P1, P3, P7)."""

import json
from typing import Any

import pytest

from tests.conformance.conftest import Served
from tests.conformance.wire import Json, dial, open_wire
from tests.end_to_end.processes import request

pytestmark = pytest.mark.conformance

KEYS = ["id", "object", "item_id", "rating", "reason", "comment", "start", "end", "rated_at_ms"]


class Rated:
    """A session whose client asks for nothing but ratings, and its answer."""

    def __init__(self, socket: Any) -> None:
        self.socket = socket
        self.log: list[Json] = []
        self.item_id = ""

    async def send(self, kind: str, **fields: object) -> None:
        await self.socket.send(json.dumps({"type": kind, **fields}))

    async def next(self) -> Json:
        event: Json = json.loads(await self.socket.recv())
        self.log.append(event)
        return event

    async def until(self, *kinds: str) -> Json:
        while (event := await self.next())["type"] not in kinds:
            pass
        return event

    async def ask(self, text: str) -> Json:
        """A whole turn; its response.done."""
        message = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}
        await self.send("conversation.item.create", item=message)
        await self.send("response.create")
        done = await self.until("response.done")
        self.item_id = done["response"]["output"][0]["id"]
        return done

    async def rate(self, **feedback: object) -> Json:
        await self.send("avatar.feedback.create", event_id="mine", item_id=self.item_id, feedback=feedback)
        return await self.until("avatar.feedback.created", "avatar.feedback.deleted", "error")


def dial_session(served: Served) -> Any:
    return dial(served, "?model=gpt-realtime")


async def test_a_rating_is_created_changed_and_deleted_as_documented(served: Served) -> None:
    """P3."""
    async with dial_session(served) as socket:
        rated = Rated(socket)
        await rated.ask("[echo Hello there]")
        created = await rated.rate(rating="down", reason="inaccurate", comment="No.", start=0, end=5)
        changed = await rated.rate(rating="up")
        for _ in range(2):
            await rated.send("avatar.feedback.delete", feedback_id=created["feedback"]["id"])
            deleted = await rated.until("avatar.feedback.deleted", "error")

    feedback = created["feedback"]
    assert list(created) == ["type", "event_id", "feedback"]
    assert list(feedback) == KEYS
    assert feedback["id"].startswith("fb_")
    assert (feedback["object"], feedback["item_id"], feedback["rating"]) == ("avatar.feedback", rated.item_id, "down")
    assert (feedback["reason"], feedback["comment"], feedback["start"], feedback["end"]) == ("inaccurate", "No.", 0, 5)
    assert changed["feedback"]["id"] == feedback["id"]
    assert [changed["feedback"][key] for key in KEYS[3:8]] == ["up", None, None, None, None]
    assert list(deleted) == ["type", "event_id", "feedback_id", "item_id"]
    assert (deleted["feedback_id"], deleted["item_id"]) == (feedback["id"], rated.item_id)
    assert len({event["event_id"] for event in rated.log}) == len(rated.log)


async def test_an_answer_is_rated_while_it_streams(served: Served) -> None:
    async with dial_session(served) as socket:
        rated = Rated(socket)
        message = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "[tokens 4000]"}]}
        await rated.send("conversation.item.create", item=message)
        await rated.send("response.create")
        rated.item_id = (await rated.until("response.output_text.delta"))["item_id"]
        created = await rated.rate(rating="up", start=0, end=1)
        kinds = [event["type"] for event in rated.log]
        await rated.until("response.output_text.delta")
        await rated.send("response.cancel")
        done = await rated.until("response.done")

    assert created["type"] == "avatar.feedback.created"
    assert "response.output_text.done" not in kinds
    assert (done["response"]["status"], done["response"]["output"][0]["id"]) == ("cancelled", rated.item_id)


REFUSED: list[tuple[Json, str, str]] = [
    ({"feedback": {"rating": "up"}}, "missing_required_parameter", "item_id"),
    ({"item_id": "{answer}"}, "missing_required_parameter", "feedback"),
    ({"item_id": "{answer}", "feedback": {}}, "missing_required_parameter", "feedback.rating"),
    ({"item_id": "item_none", "feedback": {"rating": "up"}}, "feedback_invalid_item_id", "item_id"),
    ({"item_id": "{question}", "feedback": {"rating": "up"}}, "feedback_not_an_answer", "item_id"),
    ({"item_id": "{answer}", "feedback": {"rating": "so so"}}, "invalid_value", "feedback.rating"),
    ({"item_id": "{answer}", "feedback": {"rating": "up", "reason": "x"}}, "invalid_value", "feedback.reason"),
    (
        {"item_id": "{answer}", "feedback": {"rating": "up", "comment": "x" * 2001}},
        "string_above_max_length",
        "feedback.comment",
    ),
    ({"item_id": "{answer}", "feedback": {"rating": "up", "user": "eve"}}, "unknown_parameter", "feedback.user"),
    ({"item_id": "{answer}", "feedback": {"rating": "up"}, "user_id": "eve"}, "unknown_parameter", "user_id"),
    (
        {"item_id": "{answer}", "feedback": {"rating": "up", "start": 0, "end": 99}},
        "integer_above_max_value",
        "feedback.end",
    ),
]


async def test_what_is_no_rating_is_refused_by_name_and_the_session_goes_on(served: Served) -> None:
    """P7."""
    async with dial_session(served) as socket:
        rated = Rated(socket)
        await rated.ask("[echo Hello there]")
        question = next(event["item"]["id"] for event in rated.log if event["type"] == "conversation.item.done")
        for fields, code, param in REFUSED:
            item_id = fields.get("item_id", "").format(answer=rated.item_id, question=question)
            sent = fields | ({"item_id": item_id} if item_id else {})
            await rated.send("avatar.feedback.create", event_id="mine", **sent)
            error = (await rated.until("error"))["error"]
            assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", code, param), fields
            assert error["event_id"] == "mine"
        assert (await rated.rate(rating="up"))["type"] == "avatar.feedback.created"
        assert (await rated.ask("[echo On]"))["response"]["status"] == "completed"


async def test_a_client_that_rates_over_rest_alone_gets_no_event_that_openai_does_not_send(served: Served) -> None:
    """P1: `open_wire` refuses any."""
    async with open_wire(served) as wire:
        await wire.say("[echo Hello there]")
        done = (await wire.answer())[-1]
        asked = {
            "session_id": wire.log[0]["session"]["id"],
            "item_id": done["response"]["output"][0]["id"],
            "feedback": {"rating": "down", "reason": "other"},
        }
        bearer = {"authorization": f"Bearer {served.token}"}
        status, answer = request(served.port, "POST", "/v1/feedback", body=asked, headers=bearer)
        feedback = json.loads(answer)["feedback"]
        await wire.say("[echo And on]")
        await wire.answer()
        noticed = await wire.fence()

    assert (status, list(feedback), feedback["rating"]) == (201, KEYS, "down")
    assert noticed == []
