"""The whole harness is proven: each bug that is planted in a real process is found, and with none planted the same deeds find nothing."""

import asyncio
import contextlib
import json
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed

from tests.faults.campaign import settle
from tests.faults.checker import Verdict
from tests.faults.faults import POINTS, kill_at
from tests.faults.fleet import LEASE_S, Fleet, open_fleet
from tests.faults.talker import Given, Habits, Talker
from tests.services import MariadbServer

pytestmark = pytest.mark.chaos

Deed = Callable[[Fleet, Talker], Awaitable[None]]
PATIENT = Habits(cancels=0, truncates=0, deletes=0, drops=0, abandons=0, patience_s=20)
SETTLED_S = 20.0
FOUND_S = 8.0


async def kill_nodes_mid_answer(fleet: Fleet, talker: Talker) -> None:
    """What the client has heard by then must be there when it comes back."""
    await talker.begin()
    await talker.say("[tokens 120] [pace 100] kill")
    answer = await talker.ask()
    assert answer is not None
    await talker.hear(answer, 20)
    for node in fleet.named("node"):
        node.kill()
    await talker.ended(answer)
    await talker.close()


async def come_back_mid_answer(_: Fleet, talker: Talker) -> None:
    """A connection that broke."""
    await talker.begin()
    await talker.say("[tokens 120] [pace 100] come back")
    answer = await talker.ask()
    assert answer is not None
    await talker.hear(answer, 20)
    talker.drop()
    await asyncio.sleep(0.1)
    await talker.ended(answer)
    await talker.close()


async def wake_the_old_owner(fleet: Fleet, talker: Talker) -> None:
    """A node that slept over its lease finds a message that the client sent meanwhile, and has since given up."""
    first, second = fleet.named("node")
    talker.move([first.roads["client"].port])
    await talker.begin()
    first.pause()
    old = talker.lose_touch()
    item = {"id": "item_unheard", "type": "message", "role": "user", "content": [{"type": "input_text", "text": "?"}]}
    await old.send(json.dumps({"type": "conversation.item.create", "item": item}))
    await asyncio.sleep(1.2 * LEASE_S)
    talker.move([second.roads["client"].port])
    await talker.come_back()
    first.go_on()
    with contextlib.suppress(ConnectionClosed):
        async with asyncio.timeout(10):
            await old.recv()
    await talker.turn()
    await talker.close()
    old.transport.abort()


async def kill_the_writer_before_s3(fleet: Fleet, talker: Talker) -> None:
    """A writer that dies when it is about to archive."""
    point = next(point for point in POINTS if point.name == "between MySQL and S3")
    writer = fleet.members["writer1"]
    async with asyncio.TaskGroup() as tasks:
        killed = tasks.create_task(kill_at(writer, point, within_s=10))
        await talker.converse(1)
        await talker.close()
    assert killed.result(), "nothing was archived"


DEEDS: dict[str, tuple[str, Deed]] = {
    "acknowledge_before_commit": ("node", kill_nodes_mid_answer),
    "skip_the_epoch_check": ("node", wake_the_old_owner),
    "acknowledge_before_archiving": ("writer", kill_the_writer_before_s3),
    "drop_an_event_at_resume": ("node", come_back_mid_answer),
}


async def verdict_on(
    deeds: list[Deed], directory: Path, mariadb: MariadbServer, bugs: dict[str, str] | None = None
) -> Verdict:
    """What is found after these deeds."""
    chance = random.Random(1)
    async with open_fleet(directory, chance, num_writers=1, bugs=bugs, mariadb_service=mariadb) as fleet:
        talkers = [Talker(f"user{number}", fleet.ports, chance, PATIENT) for number, _ in enumerate(deeds)]
        for deed, talker in zip(deeds, talkers, strict=True):
            await fleet.until_up()
            with contextlib.suppress(Given):
                await deed(fleet, talker)
        fleet.mend()
        await fleet.until_up()
        return await settle(fleet, talkers, within_s=FOUND_S if bugs else SETTLED_S)


@pytest.mark.parametrize("bug", DEEDS)
async def test_a_planted_bug_is_found(bug: str, tmp_path: Path, mariadb_service: MariadbServer) -> None:
    kind, deed = DEEDS[bug]

    verdict = await verdict_on([deed], tmp_path, mariadb_service, {kind: bug})

    figures = verdict.figures
    assert figures.lost or figures.doubled or figures.diverged


async def test_without_a_planted_bug_nothing_is_found(tmp_path: Path, mariadb_service: MariadbServer) -> None:
    """P2, P3, P4."""
    verdict = await verdict_on([deed for _, deed in DEEDS.values()], tmp_path, mariadb_service)

    assert verdict.complaints == []
