"""Redis's log after a death amid a write: nothing of what nobody was promised comes back, and all of what somebody was promised does."""

import asyncio
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sessions.feedback import Feedback
from sessions.redis_store import RedisStore
from tests.services import RedisServer, ServiceFailed, redis_server
from tests.sessions.stores import SESSION, make_append, make_meta, make_placed, read_events, take_records

NUM_CUTS = 12
PROMISED = [b'{"kept":1}', b'{"kept":2}']
NEVER_PROMISED = [b'{"torn":3}', b'{"torn":4}', b'{"torn":5}']
SINCE = [b'{"since":3}']
THUMB = Feedback(rating="up", rated_ms=1)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of the test's own."""
    folder = tmp_path / "a folder"
    folder.mkdir()
    with redis_server(folder) as server:
        yield server


def log_of(server: RedisServer) -> Path:
    (path,) = server.directory.glob("appendonlydir/*.incr.aof")
    return path


async def append_twice(server: RedisServer) -> tuple[bytes, bytes]:
    """Redis's log after the first of two appends, and what the second added to it. Redis is dead then."""
    async with RedisStore(server.url, timeout_s=10) as store:
        await store.create(make_meta(SESSION), "node-1")
        first = make_append(1, PROMISED, saved=[make_placed("item_1", 1.0)], records=[b"promised"], config=b"1")
        await store.append([first])
        before = log_of(server).read_bytes()
        second = make_append(
            3, NEVER_PROMISED, saved=[make_placed("item_2", 2.0)], records=[b"never promised"], config=b"2"
        )
        await store.append([second])
    server.kill()
    return before, log_of(server).read_bytes()[len(before) :]


async def test_of_a_torn_append_nothing_comes_back_and_nothing_is_lost_since(server: RedisServer) -> None:
    before, torn = await append_twice(server)
    for num_bytes in range(0, len(torn), len(torn) // NUM_CUTS):
        log_of(server).write_bytes(before + torn[:num_bytes])
        server.start()
        kept = {path.read_bytes() for path in server.directory.glob("torn.*")}
        assert torn[:num_bytes] in kept or num_bytes == 0
        async with RedisStore(server.url, timeout_s=10) as store:
            await store.rate(SESSION, "item_1", THUMB)
        server.kill()
        server.start()
        async with RedisStore(server.url, timeout_s=10) as store:
            loaded = await store.claim(SESSION, "node-2")
            since = make_append(3, SINCE, epoch=loaded.epoch, records=[b"since"])
            assert await store.append([since]) == ["ok"]
        server.kill()
        server.start()

        async with RedisStore(server.url, timeout_s=10) as store:
            assert await read_events(store) == [*PROMISED, *SINCE]
            heir = await store.claim(SESSION, "node-3")
            assert (heir.next_sequence, heir.config) == (4, b"1")
            assert [(placed.item.id, placed.feedback) for placed in heir.items] == [("item_1", THUMB)]
            assert await take_records(store) == [b"promised", b"since"]
        server.kill()


async def test_a_log_that_was_cut_amid_a_transaction_before_keeps_all_that_followed(server: RedisServer) -> None:
    before, whole = await append_twice(server)
    half = whole[: whole.index(b"\r\n*", whole.index(b"XADD")) + 2]
    log_of(server).write_bytes(before + half + whole)

    server.start()

    async with RedisStore(server.url, timeout_s=10) as store:
        assert (await store.claim(SESSION, "node-2")).next_sequence == 6


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param((b"*", b"X", 0), id="a flipped byte"),
        pytest.param((b"$", b"$7", 65 << 20), id="more than one write has"),
    ],
)
async def test_a_log_that_is_damaged_and_not_torn_is_refused_and_left_as_it_is(
    server: RedisServer, damage: tuple[bytes, bytes, int]
) -> None:
    before, whole = await append_twice(server)
    good, bad, num_more = damage
    log_of(server).write_bytes(before + whole.replace(good, bad, 1) + whole + bytes(num_more))
    damaged = log_of(server).read_bytes()

    with pytest.raises(ServiceFailed, match="ended"):
        server.start()

    assert log_of(server).read_bytes() == damaged


async def test_of_two_in_one_folder_one_waits(server: RedisServer) -> None:
    folder = os.open(server.directory, os.O_RDONLY)
    try:
        with pytest.raises(BlockingIOError):
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        server.kill()
        fcntl.flock(folder, fcntl.LOCK_EX)
        server.spawn()
        await asyncio.sleep(0.5)
        assert not server.is_answering()
        assert not server.has_ended()
    finally:
        os.close(folder)
    async with asyncio.timeout(60):
        while not server.is_answering():  # noqa: ASYNC110
            await asyncio.sleep(0.05)
