"""A thousand cancels at random moments, over fifty sessions, with a look inside: what is cut ends at once, once, and leaves nothing."""

import asyncio
import random
from collections import Counter
from pathlib import Path

import pytest

from server.settings import load_settings
from tests.end_to_end.client import DELTA, Client, open_client
from tests.end_to_end.conftest import COMMON
from tests.end_to_end.in_process import Served, served
from tests.end_to_end.processes import token_of
from tests.end_to_end.stored import text_of, until

NUM_SESSIONS = 50
NUM_CANCELS = 20
LONGEST_S = 0.12


async def cut_at_random(client: Client, chance: random.Random) -> Counter[str]:
    """Turns that are all cancelled: before the first token, among the tokens, twice; what the server said to the cancels."""
    answers: Counter[str] = Counter()
    for _ in range(NUM_CANCELS):
        await client.say("[tokens 4000] [pace 60]")
        await client.send("response.create")
        match chance.randrange(5):
            case 0:
                pass
            case 1:  # whatever the time that it takes
                await client.until(DELTA)
            case _:
                await asyncio.sleep(chance.uniform(0, LONGEST_S))
        num_cancels = 2 if chance.random() < 0.2 else 1
        for _ in range(num_cancels):
            await client.send("response.cancel")
        await client.send("conversation.item.retrieve", item_id="none", event_id="fence")
        while (event := await client.next())["type"] != "error" or event["error"]["event_id"] != "fence":
            if event["type"] == "response.done":
                answers[event["response"]["status"]] += 1
            if event["type"] == "error":
                answers[event["error"]["code"]] += 1
        answers["sent twice"] += num_cancels - 1
    return answers


def check_responses(client: Client) -> None:
    """Each response begins once and ends once, nothing of it comes after its end, and its end holds what was streamed."""
    is_open: dict[str, bool] = {}
    for event in client.events:
        match event["type"]:
            case "response.created":
                assert event["response"]["id"] not in is_open
                is_open[event["response"]["id"]] = True
            case "response.done":
                assert is_open[event["response"]["id"]], "a second end"
                is_open[event["response"]["id"]] = False
                assert text_of(event["response"]) == client.streamed(event["response"]["id"])
            case _ if "response_id" in event:
                assert is_open[event["response_id"]], f"{event['type']} after the end"
    assert not any(is_open.values())


async def test_a_thousand_cancels_at_random_moments_leave_nothing_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chance: random.Random
) -> None:
    """P5, P6."""
    for name, value in COMMON.items():
        monkeypatch.setenv(name, value)
    settings = load_settings(data_dir=tmp_path, events_per_s=1e6, events_burst=1000)
    async with served(settings) as server:
        baseline = asyncio.all_tasks()

        async def one(number: int) -> tuple[Client, Counter[str]]:
            async with open_client(server.port, token_of(f"user-{number}")) as client:
                answers = await cut_at_random(client, random.Random(chance.random()))
                # The slot is free by the time that the end is told, not some time later.
                still_open[number] = False
                check_slots(server, still_open)
                return client, answers

        still_open = dict.fromkeys(range(NUM_SESSIONS), True)
        async with asyncio.TaskGroup() as tasks:
            ones = [tasks.create_task(one(number)) for number in range(NUM_SESSIONS)]
        node = server.services.node

        async def is_quiet() -> bool:
            return node.num_sessions == 0 and asyncio.all_tasks() <= baseline

        assert node.engine.capacity().running == 0
        await until(is_quiet)

    answers: Counter[str] = sum((done.result()[1] for done in ones), Counter())
    assert answers["cancelled"] == NUM_SESSIONS * NUM_CANCELS
    assert answers["response_cancel_not_active"] == answers["sent twice"]
    clients = [done.result()[0] for done in ones]
    assert any(event["type"] == DELTA for client in clients for event in client.events), "all were cut before a token"
    for client in clients:
        check_responses(client)


def check_slots(server: Served, still_open: dict[int, bool]) -> None:
    """No more answers run than sessions are still at it."""
    assert server.services.node.engine.capacity().running <= sum(still_open.values())
