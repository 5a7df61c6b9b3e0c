"""Both stores keep the same promises about revocations: none is missed by who reads on, none is kept for ever."""

import asyncio
import time
from pathlib import Path

import msgspec
import pytest
from redis.asyncio import Redis

from sessions.redis_store import RedisStore
from sessions.revocation import Kind, Revocation
from sessions.sqlite_store import SqliteStore
from sessions.store import Store
from tests.services import RedisServer
from tests.sessions.stores import Backup

NOW_S = int(time.time())


def make_revocation(name: str, *, kind: Kind = "token", left_s: int = 3600) -> Revocation:
    return Revocation(kind, name, NOW_S, NOW_S + left_s)


async def read_all(store: Store, after: str = "") -> tuple[list[Revocation], str]:
    """All that come after the mark, and the last mark."""
    found: list[Revocation] = []
    while True:
        some, mark, _ = await store.revocations(after, 0)
        if mark == after:
            return found, mark
        found += some
        after = mark


async def test_an_empty_store_has_none(store: Store) -> None:
    assert (await read_all(store))[0] == []


async def test_revocations_are_read_in_order_and_once(store: Store) -> None:
    first, second, third = (
        make_revocation("t1"),
        make_revocation("한나 \n\x00é", kind="user"),
        make_revocation("t2", left_s=7),
    )
    await store.revoke(first)
    await store.revoke(second)

    found, mark = await read_all(store)
    await store.revoke(third)

    assert found == [first, second]
    assert [(await store.revocations(each, 0)).is_anew for each in ("", mark)] == [True, False]
    assert (await read_all(store, mark))[0] == [third]
    assert (await read_all(store))[0] == [first, second, third]


async def test_more_than_are_read_at_once_are_read_one_after_the_other(store: Store) -> None:
    revocations = [make_revocation(f"t{number}") for number in range(1100)]
    for revocation in revocations:
        await store.revoke(revocation)

    assert (await read_all(store))[0] == revocations


async def test_who_waits_hears_of_a_revocation_at_once(store: Store) -> None:
    await store.revoke(make_revocation("old"))
    _, mark = await read_all(store)
    new = make_revocation("new")

    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(store.revocations(mark, 60))
        # Into its wait, where it is; else it only finds what is there already.
        await asyncio.sleep(0.05)
        await store.revoke(new)

    assert waiting.result()[0] == [new]


async def test_who_waits_gives_up_after_its_wait_and_misses_nothing_by_that(store: Store) -> None:
    async with asyncio.timeout(20):
        found, mark, _ = await store.revocations("", 0.05)
    await store.revoke(make_revocation("new"))

    assert found == []
    assert (await read_all(store, mark))[0] == [make_revocation("new")]


async def test_a_cancelled_wait_misses_nothing(store: Store) -> None:
    waiting = asyncio.ensure_future(store.revocations("", 60))
    await asyncio.sleep(0.05)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting

    await store.revoke(make_revocation("new"))

    assert (await read_all(store))[0] == [make_revocation("new")]


async def test_what_is_due_goes_with_the_next_revocation(store: Store) -> None:
    for number in range(3):
        await store.revoke(make_revocation(f"due{number}", left_s=-5))
    _, mark = await read_all(store)
    alive = [make_revocation("alive"), make_revocation("alive too")]

    for revocation in alive:
        await store.revoke(revocation)

    assert (await read_all(store))[0] == alive
    # The mark itself has gone.
    assert (await read_all(store, mark))[0] == alive


async def test_a_store_that_came_back_empty_is_read_from_its_beginning(store: Store, backup: Backup) -> None:
    for number in range(3):
        await store.revoke(make_revocation(f"t{number}"))
    _, mark = await read_all(store)
    backup.wipe()

    nothing = await store.revocations(mark, 0)
    await store.revoke(make_revocation("new"))

    assert (nothing.revocations, nothing.is_anew) == ([], True)
    for known in (mark, nothing.mark):
        assert (await read_all(store, known))[0] == [make_revocation("new")]


async def test_a_store_that_came_back_older_is_read_from_its_beginning(store: Store, backup: Backup) -> None:
    await store.revoke(make_revocation("t1"))
    backup.take()
    await store.revoke(make_revocation("t2"))
    _, mark = await read_all(store)
    backup.put_back()
    await store.revoke(make_revocation("t3"))

    assert (await store.revocations(mark, 0)).is_anew
    assert (await read_all(store, mark))[0] == [make_revocation("t1"), make_revocation("t3")]


async def test_a_mark_of_the_future_does_not_keep_who_waits_from_hearing(store: Store) -> None:
    future = f"{(NOW_S + 86_400) * 1000}-0" if isinstance(store, RedisStore) else f"{(NOW_S + 86_400) * 1_000_000}"

    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(store.revocations(future, 60))
        await asyncio.sleep(0.05)
        await store.revoke(make_revocation("new"))

    assert waiting.result()[0] == [make_revocation("new")]


async def test_what_another_release_wrote_does_not_keep_the_rest_from_being_heard_of(store: Store) -> None:
    unknown = msgspec.structs.replace(make_revocation("a device"), kind="device")
    await store.revoke(unknown)
    await store.revoke(make_revocation("t1"))

    assert (await read_all(store))[0] == [make_revocation("t1")]


async def test_revocations_survive_the_process(tmp_path: Path) -> None:
    for _ in range(2):
        async with SqliteStore(tmp_path / "sessions.sqlite") as store:
            await store.revoke(make_revocation("t1"))

    async with SqliteStore(tmp_path / "sessions.sqlite") as store:
        assert (await read_all(store))[0] == [make_revocation("t1")] * 2


async def test_the_stream_expires_with_the_last_of_its_entries(own_redis: RedisServer) -> None:
    async with RedisStore(own_redis.url, timeout_s=10) as store, Redis.from_url(own_redis.url) as redis:
        await store.revoke(make_revocation("longest", left_s=7200))
        await store.revoke(make_revocation("short", left_s=60))

        assert await redis.expiretime("fl:revoked") == NOW_S + 7200


async def test_redis_forgets_what_is_due_a_bounded_number_at_a_time(own_redis: RedisServer) -> None:
    async with RedisStore(own_redis.url, timeout_s=10) as store, Redis.from_url(own_redis.url) as redis:
        for _ in range(150):
            await redis.xadd("fl:revoked", {"until": NOW_S - 5, "revocation": "{}"})

        for number, left in enumerate((51, 2, 3)):
            await store.revoke(make_revocation(f"t{number}"))
            assert await redis.xlen("fl:revoked") == left
