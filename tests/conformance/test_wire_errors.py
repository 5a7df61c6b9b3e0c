"""Refusals on the wire, against PROTOCOL.md: error codes, close codes, and what is tolerated (P1, P7)."""

import json

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.conformance.conftest import Served
from tests.conformance.wire import (
    Json,
    Wire,
    close_code,
    dial,
    ended,
    joined,
    open_wire,
    order,
)

pytestmark = pytest.mark.conformance


SESSION = {"type": "realtime"}
MESSAGE = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "x"}]}
LONG = "x" * 70_000
REFUSED: list[tuple[Json, str, str | None]] = [
    ({"type": "session.upgrade"}, "invalid_value", "type"),
    ({"type": 7}, "invalid_type", "type"),
    ({"type": "session.update"}, "missing_required_parameter", "session"),
    ({"type": "session.update", "session": {}}, "missing_required_parameter", "session.type"),
    ({"type": "session.update", "session": {"type": "transcription"}}, "invalid_parameter", "session.type"),
    *[
        ({"type": "session.update", "session": SESSION | {name: value}}, "unknown_parameter", f"session.{name}")
        for name, value in {
            "modalities": ["text"],
            "temperature": 0.8,
            "voice": "alloy",
            "turn_detection": None,
            "max_response_output_tokens": 9,
            "input_audio_format": "pcm16",
            "input_audio_transcription": {"model": "whisper-1"},
        }.items()
    ],
    ({"type": "session.update", "session": SESSION | {"instructions": 5}}, "invalid_type", "session.instructions"),
    (
        {"type": "session.update", "session": SESSION | {"instructions": LONG}},
        "string_above_max_length",
        "session.instructions",
    ),
    *[
        (
            {"type": "session.update", "session": SESSION | {"max_output_tokens": value}},
            code,
            "session.max_output_tokens",
        )
        for value, code in {0: "integer_below_min_value", 4097: "integer_above_max_value"}.items()
    ],
    (
        {"type": "response.create", "response": {"max_output_tokens": 0}},
        "integer_below_min_value",
        "response.max_output_tokens",
    ),
    ({"type": "response.create", "response": {"temperature": 0.8}}, "unknown_parameter", "response.temperature"),
    ({"type": "conversation.item.create"}, "missing_required_parameter", "item"),
    (
        {"type": "conversation.item.create", "item": MESSAGE, "previous_item_id": "item_none"},
        "item_create_invalid_previous_item_id",
        "previous_item_id",
    ),
    ({"type": "conversation.item.retrieve", "item_id": "item_none"}, "item_retrieve_invalid_item_id", "item_id"),
    ({"type": "conversation.item.delete", "item_id": "item_none"}, "item_delete_invalid_item_id", "item_id"),
    ({"type": "response.cancel"}, "response_cancel_not_active", None),
    ({"type": "response.cancel", "response_id": "resp_none"}, "response_cancel_not_active", None),
    ({"type": "input_audio_buffer.commit"}, "input_audio_buffer_commit_empty", None),
]


@pytest.mark.parametrize(("event", "code", "param"), REFUSED, ids=lambda value: json.dumps(value)[:60])
async def test_a_mistake_is_answered_by_a_typed_error_and_the_session_goes_on(
    served: Served, event: Json, code: str, param: str | None
) -> None:
    """P1, P7. The error names the client's own event."""
    async with open_wire(served) as wire:
        await wire.socket.send(json.dumps({"event_id": "mine", **event}))
        error = await wire.error()
        await wire.say("[echo still here]")
        events = await wire.answer()

    assert (error["type"], error["code"], error["event_id"]) == ("invalid_request_error", code, "mine")
    assert error["message"]
    if param is not None:
        assert error["param"] == param
    assert joined(events) == "still here"


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ("{", "invalid_json"),
        ("", "invalid_json"),
        ("hello", "invalid_json"),
        ("[1]", "invalid_event"),
        ('"response.create"', "invalid_event"),
        ("null", "invalid_event"),
        ("{}", "missing_required_parameter"),
        ('{"type": "response.create", "event_id": ' + "[" * 2_000 + "]" * 2_000 + "}", None),
        ('{"type": "\\ud800"}', None),
    ],
)
async def test_a_frame_that_is_no_event_is_refused_and_the_session_goes_on(
    served: Served, frame: str, code: str | None
) -> None:
    """P1, P7."""
    async with open_wire(served) as wire:
        await wire.socket.send(frame)
        error = await wire.error()
        assert await wire.fence() == []

    assert error["type"] == "invalid_request_error"
    assert code is None or error["code"] == code


async def test_a_message_about_a_late_cancel_begins_as_clients_expect(served: Served) -> None:
    """P1. Clients tell a harmless late cancel by these words."""
    async with open_wire(served) as wire:
        await wire.send("response.cancel")
        error = await wire.error()

    assert error["message"].startswith("Cancellation failed")


async def test_an_id_in_use_is_refused(served: Served) -> None:
    """P1."""
    async with open_wire(served) as wire:
        item = await wire.say("x")
        await wire.send("conversation.item.create", item=MESSAGE | {"id": item["id"]})
        error = await wire.error()

    assert error["code"] == "item_create_duplicate_item_id"


async def test_a_second_answer_at_once_is_refused_and_the_first_goes_on(served: Served) -> None:
    """P1, P6."""
    async with open_wire(served) as wire:
        await wire.say("[tokens 4000]")
        await wire.send("response.create")
        await wire.until("response.output_text.delta")
        await wire.send("response.create", event_id="second")
        error = (await wire.until("error"))[-1]["error"]
        await wire.until("response.output_text.delta")
        await wire.send("response.cancel")
        events = await wire.until("response.done")

    assert (error["code"], error["event_id"]) == ("conversation_already_has_active_response", "second")
    assert ended(events).status == "cancelled"
    assert len([event for event in wire.log if event["type"] in ("response.created", "error")]) == 2


async def test_truncating_text_is_refused_and_of_an_unknown_item_too(served: Served) -> None:
    """P1."""
    async with open_wire(served) as wire:
        await wire.say("[tokens 3]")
        spoken = (await wire.answer())[-1]["response"]["output"][0]
        truncate: Json = {"content_index": 0, "audio_end_ms": 10}
        await wire.send("conversation.item.truncate", item_id=spoken["id"], **truncate)
        of_text = await wire.error()
        await wire.send("conversation.item.truncate", item_id="item_none", **truncate)
        of_none = await wire.error()

    assert of_text["code"] == "unsupported_content_type"
    assert of_none["code"] == "item_truncate_invalid_item_id"


async def test_audio_is_tolerated(served: Served) -> None:
    """P1. A voice client that only wants text back appends and clears audio all the time; Pipecat ends on any error there."""
    async with open_wire(served) as wire:
        await wire.send("input_audio_buffer.append", audio="AAAA")
        await wire.send("input_audio_buffer.clear")
        events = await wire.fence()

    assert order(events) == ["input_audio_buffer.cleared"]


async def test_a_binary_frame_closes_1003(served: Served) -> None:
    """P7."""
    async with open_wire(served) as wire:
        await wire.socket.send(b"\x00\x01")

        assert await close_code(wire.socket) == 1003


async def test_too_big_a_frame_closes_1009(served: Served) -> None:
    """P7."""
    async with open_wire(served) as wire:
        await wire.socket.send("x" * 1_200_000)

        assert await close_code(wire.socket) == 1009


@pytest.mark.parametrize(
    ("query", "headers", "code"),
    [
        ("?model=gpt-none", {}, "invalid_model"),
        ("", {}, "missing_model"),
        ("?model=gpt-realtime", {"OpenAI_Beta": "realtime=v1"}, "beta_api_shape_disabled"),
    ],
)
async def test_a_session_that_cannot_be_had_gets_an_error_and_close_4000(
    served: Served, query: str, headers: dict[str, str], code: str
) -> None:
    """P1. 4000 is a code that no SDK retries."""
    async with dial(served, query, **headers) as socket:
        wire = Wire(socket)
        error = await wire.error()
        closed = await close_code(socket)

    assert (error["type"], error["code"]) == ("invalid_request_error", code)
    assert closed == 4000


async def test_a_bad_token_in_the_header_gets_401(served: Served) -> None:
    """P1. The SDKs retry 5xx, never 401."""
    with pytest.raises(InvalidStatus) as refused:
        async with dial(served, "?model=gpt-realtime", token="sk-none"):
            pass

    assert refused.value.response.status_code == 401


async def test_a_bad_token_in_the_subprotocol_gets_an_error_and_close_3000(served: Served) -> None:
    """P1. A browser cannot read an HTTP status: the refusal must come inside the connection."""
    protocols = ["realtime", "openai-insecure-api-key.sk-none"]
    async with dial(served, "?model=gpt-realtime", subprotocols=protocols) as socket:
        wire = Wire(socket)
        error = await wire.error()
        with pytest.raises(ConnectionClosed) as closed:
            await socket.recv()

    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 3000
    assert closed.value.rcvd.reason == "invalid_request_error.invalid_api_key"


async def test_a_token_in_the_subprotocol_opens_a_session(served: Served) -> None:
    """P1. As @openai/agents-realtime and the Node SDK do in a browser; the token itself is not sent back."""
    protocols = ["realtime", f"openai-insecure-api-key.{served.token}", "openai-agents-sdk.0.20.0"]
    async with dial(served, "?model=gpt-realtime", subprotocols=protocols) as socket:
        wire = Wire(socket)
        await wire.next("session.created")
        await wire.say("[echo hello]")
        events = await wire.answer()

    assert socket.subprotocol == "realtime"
    assert joined(events) == "hello"
