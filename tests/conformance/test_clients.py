"""The clients of others, unmodified: each is a small program that knows nothing of Flueman but a base URL, a key and a model (P1)."""

import pytest

from tests.conformance.conftest import Served, TlsFront
from tests.conformance.report import HERE, HistoryItem, check, run_client

pytestmark = [pytest.mark.conformance, pytest.mark.usefixtures("installed")]


async def test_the_official_node_sdk_streams_calls_a_tool_and_cancels(served: Served, tls_front: TlsFront) -> None:
    """P1."""
    environment = {
        "OPENAI_BASE_URL": tls_front.base_url,
        "OPENAI_API_KEY": served.token,
        "NODE_EXTRA_CA_CERTS": str(tls_front.ca_file),
    }

    report = await run_client(["node", "clients/openai_node.mjs"], served.script, environment)

    check(report, served.script)


async def test_agents_realtime_streams_calls_a_tool_and_cancels(served: Served) -> None:
    """P1. With the SDK's own defaults: audio out, semantic VAD, transcription, tracing."""
    environment = {"OPENAI_API_KEY": served.token}

    report = await run_client(["node", "clients/agents_realtime.mjs"], served.script, environment)

    check(report, served.script)
    assert report.history == (
        HistoryItem("message", "user", served.script.turn),
        HistoryItem("message", "assistant", report.turn.text),
        HistoryItem("message", "user", served.script.tool),
        HistoryItem("function_call", None, None),
        HistoryItem("message", "assistant", report.tool.text),
        HistoryItem("message", "user", served.script.cancel),
        HistoryItem("message", "assistant", report.cancel.text),
    )


async def test_the_python_agents_sdk_streams_calls_a_tool_and_cancels(served: Served) -> None:
    """P1. It validates every event by openai-python's types and reports each that does not fit as an error."""
    environment = {"OPENAI_API_KEY": served.token}
    python = HERE / ".venv-agents/bin/python"

    report = await run_client([python, "clients/agents_python.py"], served.script, environment)

    check(report, served.script)


async def test_livekits_plugin_streams_calls_a_tool_interrupts_and_truncates(served: Served) -> None:
    """P1. Its truncation deletes the answer and creates it anew under the same id, in the same place."""
    environment = {"OPENAI_API_KEY": served.token}
    python = HERE / ".venv-livekit/bin/python"

    report = await run_client([python, "clients/livekit_turn.py"], served.script, environment)

    check(report, served.script)
    assert report.truncated is not None
    heard = report.truncated["heard"]
    assert heard
    assert report.truncated["kept"] == heard
    assert report.history == (
        HistoryItem("message", "user", served.script.turn),
        HistoryItem("message", "assistant", report.turn.text),
        HistoryItem("message", "user", served.script.tool),
        HistoryItem("function_call", None, None),
        HistoryItem("function_call_output", None, None),
        HistoryItem("message", "assistant", report.tool.text),
        HistoryItem("message", "user", served.script.cancel),
        HistoryItem("message", "assistant", heard),
        HistoryItem("message", "user", served.script.turn),
    )


async def test_pipecats_service_streams_calls_a_tool_and_is_interrupted(served: Served) -> None:
    """P1. Pipecat tells its pipeline no response status; of a cancel it passes on that the item is incomplete."""
    environment = {"OPENAI_API_KEY": served.token}
    python = HERE / ".venv-pipecat/bin/python"

    report = await run_client([python, "clients/pipecat_turn.py"], served.script, environment)

    check(report, served.script, cancelled_as="incomplete")
