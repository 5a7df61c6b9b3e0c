"""Reading and sending wait for each other, and both go on: a long conversation to who comes back, frames after a store that lost some."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from server.throttle import Throttle
from tests.server.house import WAIT_S, House, Limits, Screen, ask, open_house, send, until
from tests.server.test_resume import RESUMABLE
from tests.sessions.builders import user_item

NUM_ITEMS = 90
SLICE_BYTES = 64 * 1024


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path / "sessions.sqlite", Limits()) as house:
        yield house


class SlowScreen(Screen):
    """Congested as soon as anything is unread. `most` is how many bytes were unread at once."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self._unread = 0

    def send_texts(self, payloads: list[bytes]) -> None:
        super().send_texts(payloads)
        self._unread += sum(map(len, payloads))
        self.most = max(self.most, self._unread)
        self.is_congested = self._unread > 0

    def read(self) -> None:
        """All of it."""
        self._unread = 0
        self.is_congested = False


@pytest.mark.parametrize("after", [1, 4711], ids=["missed events", "gap"])
async def test_a_long_conversation_is_sent_as_fast_as_it_is_read(house: House, after: int) -> None:
    """P4, P7."""
    session, first = await house.open(RESUMABLE)
    for _ in range(NUM_ITEMS):
        send(session, "conversation.item.create", item=user_item("a" * 1000))
    await first.until("conversation.item.done", NUM_ITEMS)
    resumed = await house.node.resume(session.session_id, user_id="한나", client_id="kiosk")
    screen = SlowScreen()

    resumed.attach(screen, after=after)
    async with asyncio.timeout(WAIT_S):
        while sum(event["type"] == "conversation.item.done" for event in screen.events) < NUM_ITEMS:
            await asyncio.sleep(0.001)
            screen.read()
            resumed.wake()

    assert sum(map(len, screen.payloads)) > 3 * SLICE_BYTES
    assert screen.most < 2 * SLICE_BYTES
    assert screen.closed is None


async def test_reading_goes_on_once_the_store_has_back_what_it_lost(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P9: whoever waits for room is told when the store has it all, though nothing more is committed then."""
    session, screen = await house.open(RESUMABLE)
    ask(session, "[echo before]")
    await screen.until("response.done")
    restore, gate = house.store.restore, asyncio.Event()

    async def restore_later(*arguments: Any, **options: Any) -> str | None:
        await gate.wait()
        return await restore(*arguments, **options)

    monkeypatch.setattr(house.store, "restore", restore_later)
    is_reading = True

    def read_on() -> None:
        nonlocal is_reading
        is_reading = session.has_room
        session.on_room = None if is_reading else read_on

    await house.store.forget_everything()
    send(session, "conversation.item.create", item=user_item("after"))
    await until(lambda: not session.has_room)
    read_on()
    paused = not is_reading
    gate.set()
    await until(lambda: is_reading)

    assert paused
    assert session.has_room


async def test_what_a_frame_brings_about_is_told_in_bytes(house: House) -> None:
    session, _ = await house.open()
    send(session, "conversation.item.create", item=user_item("a" * 1000) | {"id": "long"})

    asked = session.receive('{"type":"conversation.item.retrieve","item_id":"long"}')
    refused = session.receive("{")

    assert 1000 < asked < 2000
    assert refused < 1000


def test_an_event_counts_by_what_it_costs() -> None:
    """P7: what is answered is journaled for all; a small question may have a large answer."""
    small, large = (Throttle(rate=100, burst=200, num_left=200, last_s=0) for _ in range(2))

    num_small = next(n for n in range(1000) if small.delay_s(0.0, num_bytes=100))
    num_large = next(n for n in range(1000) if large.delay_s(0.0, num_bytes=200_000))

    assert 150 < num_small <= 200
    assert num_large < 10
