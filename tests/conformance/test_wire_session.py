"""What session.update takes and what it answers, against PROTOCOL.md's table (P1)."""

import json

import pytest

from tests.conformance.conftest import Served
from tests.conformance.wire import (
    MESSAGE_ORDER,
    WEATHER,
    Json,
    ended,
    open_wire,
    order,
)

pytestmark = pytest.mark.conformance


DEFAULT_AGENTS_JS = {
    "instructions": "Be brief.",
    "model": "gpt-realtime",
    "output_modalities": ["audio"],
    "audio": {
        "input": {
            "format": {"type": "audio/pcm", "rate": 24000},
            "noise_reduction": None,
            "transcription": {"model": "gpt-4o-mini-transcribe"},
            "turn_detection": {"type": "semantic_vad"},
        },
        "output": {"format": {"type": "audio/pcm", "rate": 24000}, "speed": 1},
    },
    "tools": [WEATHER],
}
ACCEPTED: list[tuple[Json, Json]] = [
    ({"instructions": "Sing."}, {"instructions": "Sing."}),
    ({"instructions": ""}, {"instructions": ""}),
    ({"tools": [WEATHER]}, {"tools": [WEATHER]}),
    ({"tools": []}, {"tools": []}),
    ({"tool_choice": "none"}, {"tool_choice": "none"}),
    ({"max_output_tokens": 7}, {"max_output_tokens": 7}),
    ({"max_output_tokens": "inf"}, {"max_output_tokens": "inf"}),
    ({"truncation": "disabled"}, {"truncation": "disabled"}),
    ({"tracing": "auto"}, {"tracing": "auto"}),
    ({"tracing": None}, {"tracing": None}),
    (
        {"include": ["item.input_audio_transcription.logprobs"]},
        {"include": ["item.input_audio_transcription.logprobs"]},
    ),
    ({"parallel_tool_calls": False}, {"parallel_tool_calls": False}),
    ({"reasoning": {"effort": "low"}}, {"reasoning": {"effort": "low"}}),
    ({"output_modalities": ["text"]}, {"output_modalities": ["text"]}),
    ({"output_modalities": ["audio"]}, {"output_modalities": ["text"]}),
    ({"output_modalities": ["audio", "text"]}, {"output_modalities": ["text"]}),
    ({"id": "sess_mine", "object": "realtime.session", "expires_at": 1}, {"object": "realtime.session"}),
    (DEFAULT_AGENTS_JS, {"output_modalities": ["text"], "instructions": "Be brief.", "tools": [WEATHER]}),
]


@pytest.mark.parametrize(("change", "effect"), ACCEPTED, ids=lambda value: json.dumps(value)[:50])
async def test_a_session_update_is_acknowledged_with_its_effect(served: Served, change: Json, effect: Json) -> None:
    """P1."""
    async with open_wire(served) as wire:
        before = wire.log[0]["session"]
        after = await wire.update(**change)

    assert {name: after[name] for name in effect} == effect
    for kept in {*before} - {*change}:
        assert after[kept] == before[kept]
    assert (after["id"], after["model"]) == (before["id"], before["model"])


async def test_audio_settings_are_merged_to_any_depth_and_echoed(served: Served) -> None:
    """P1. Pipecat ends its session on any PCM rate but 24,000."""
    async with open_wire(served) as wire:
        before = wire.log[0]["session"]["audio"]
        await wire.update(audio={"output": {"voice": "marin"}})
        await wire.update(audio={"input": {"turn_detection": {"type": "server_vad", "threshold": 0.4}}})
        await wire.update(audio={"input": {"format": {"type": "audio/pcm", "rate": 16000}}})
        after = (await wire.update(audio={"input": {"turn_detection": None}, "output": {"speed": 1.2}}))["audio"]

    assert wire.log[-2]["session"]["audio"]["input"]["turn_detection"] is None, "none is detected, so none is claimed"
    assert after["output"] == before["output"] | {"voice": "marin", "speed": 1.2}
    assert after["input"] == before["input"] | {"turn_detection": None}
    assert after["input"]["format"] == {"type": "audio/pcm", "rate": 24000}


async def test_a_model_in_a_session_update_changes_nothing(served: Served) -> None:
    """P1. agents-js and LiveKit name a model in every update."""
    async with open_wire(served) as wire:
        before = wire.log[0]["session"]
        after = await wire.update(model="gpt-realtime-2.1")

    assert after == before


async def test_a_rejected_update_changes_nothing(served: Served) -> None:
    """P1."""
    async with open_wire(served) as wire:
        await wire.send("session.update", session={"type": "realtime", "instructions": "New.", "temperature": 0.8})
        error = await wire.error()
        after = await wire.update()

    assert error["code"] == "unknown_parameter"
    assert after == wire.log[0]["session"]


async def test_what_an_update_sets_is_what_the_next_answer_gets(served: Served) -> None:
    """P1."""
    async with open_wire(served) as wire:
        await wire.update(max_output_tokens=3, output_modalities=["audio"])
        await wire.say("[tokens 30]")
        events = await wire.answer(output_modalities=["audio"])

    response = ended(events)
    assert order(events) == MESSAGE_ORDER
    assert response.status == "incomplete"
    assert response.max_output_tokens == 3
    assert response.output_modalities == ["text"]
