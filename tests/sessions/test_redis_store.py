"""What only the store on Redis can break: scripts, connections, expiry, a Redis that is paused, killed, full or forgetful."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from sessions.errors import SessionNotFound, StoreUnavailable
from sessions.redis_durability import StoreNotDurable
from sessions.redis_line import Script
from sessions.redis_store import RedisStore
from tests.services import RedisServer, redis_server, tcp_proxy
from tests.sessions.stores import (
    OTHER,
    SESSION,
    adopt_when_lapsed,
    check_mixed_batch,
    make_append,
    make_meta,
    make_placed,
    read_events,
    take_records,
)


@pytest.fixture
async def redis(own_redis: RedisServer) -> AsyncIterator[Redis]:
    async with Redis.from_url(own_redis.url) as client:
        yield client


@pytest.mark.parametrize("num_shards", [1, 3])
async def test_one_batch_commits_many_sessions_on_any_number_of_shards(own_redis: RedisServer, num_shards: int) -> None:
    async with RedisStore(own_redis.url, num_shards=num_shards, timeout_s=10) as store:
        await check_mixed_batch(store)


async def test_a_final_session_expires_and_leaves_no_key(own_redis: RedisServer, redis: Redis) -> None:
    async with RedisStore(own_redis.url, retention_s=600, timeout_s=10) as store:
        for session_id in (SESSION, OTHER):
            await store.create(make_meta(session_id), "node-1")
            await store.append(
                [make_append(1, [b"1", b"2"], session_id=session_id, saved=[make_placed("item_1", 1.0)])]
            )
        await store.trim(SESSION, 2, final=True)
        # Resumed after its end: its new journal must not stay for ever either.
        await store.trim(OTHER, 2, final=True)
        epoch = (await store.claim(OTHER, "node-2")).epoch
        await store.append([make_append(3, epoch=epoch, session_id=OTHER, saved=[make_placed("item_2", 2.0)])])

        journals = await redis.keys("*:journal")
        lifetimes = [await redis.pttl(key) for key in await redis.keys("*:sess_*")]
        for key in await redis.keys("*:sess_*"):
            await redis.pexpire(key, 1)
        while await redis.keys("*:sess_*"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)

        assert journals == [f"fl:{{0}}:{OTHER}:journal".encode()]
        assert len(lifetimes) == 5
        assert all(0 < lifetime <= 600_000 for lifetime in lifetimes)
        with pytest.raises(SessionNotFound):
            await store.claim(SESSION, "node-3")
        assert await store.append([make_append(3)]) == ["gone"]
        await store.trim(SESSION, 2, final=True)
        assert await redis.keys("*:sess_*") == []


async def test_a_claim_starts_the_retention_of_a_final_session_anew(redis_store: RedisStore, redis: Redis) -> None:
    state = f"fl:{{0}}:{SESSION}:state"
    await redis_store.create(make_meta(), "node-1")
    await redis_store.trim(SESSION, 0, final=True)
    await redis.pexpire(state, 60_000)

    await redis_store.claim(SESSION, "node-2")

    assert await redis.pttl(state) > 60_000


async def test_shards_share_one_outbox_protocol(own_redis: RedisServer) -> None:
    async with RedisStore(own_redis.url, num_shards=3, timeout_s=10) as store:
        for number in range(9):
            await store.enqueue([f"{number}".encode()])

        taken = await store.take("writer-1", 6, 0.05)
        rest = await store.take("writer-1", 6, 0.05)
        pending = (await store.lag()).pending
        again = await store.reclaim("writer-2", 5, 0)
        await store.bury(taken[0], "poison")
        await store.acknowledge([delivery.receipt for delivery in (*taken[1:], *rest)])

        assert (len(taken), len(rest), pending, len(again)) == (6, 3, 9, 5)
        lag = await store.lag()
        assert (lag.pending, lag.dead) == (0, 1)


async def test_a_record_that_was_handed_out_and_is_nobodys_is_found(redis_store: RedisStore, redis: Redis) -> None:
    """P3."""
    await redis_store.enqueue([b"one", b"two", b"three"])
    await redis_store.take("writer-1", 1, 0.05)
    await redis.xgroup_setid("fl:{0}:outbox", "writer", "$")  # two and three count as handed out, to nobody

    found = await redis_store.reclaim("writer-2", 2, 0)
    rest = await redis_store.reclaim("writer-2", 10, 60)
    early = await redis_store.reclaim("writer-3", 10, 60)
    late = await redis_store.reclaim("writer-3", 10, 0)
    await redis_store.acknowledge([delivery.receipt for delivery in late])

    assert [delivery.record for delivery in found] == [b"one", b"two"]
    assert (rest, early) == ([], [])
    assert [(delivery.record, delivery.num_deliveries) for delivery in late] == [
        (b"one", 3),
        (b"two", 2),
        (b"three", 1),
    ]
    assert (await redis_store.lag()).pending == 0


async def test_what_is_new_is_not_reclaimed(redis_store: RedisStore) -> None:
    await redis_store.enqueue([b"one", b"two"])
    await redis_store.take("writer-1", 1, 0.05)

    found = await redis_store.reclaim("writer-2", 10, 0)

    assert [delivery.record for delivery in found] == [b"one"]


async def test_what_was_created_by_half_is_nobodys_and_goes(redis_store: RedisStore, own_redis: RedisServer) -> None:
    """As a Redis leaves it whose disk was full: told to nobody, and in nobody's way."""
    async with Redis.from_url(own_redis.url) as client:
        await client.sadd("fl:{0}:owned:dead", SESSION, "sess_never")
        await client.zadd("fl:{0}:owners", {"dead": 0})
        await client.hset(f"fl:{{0}}:{SESSION}:state", mapping={"owner": "dead", "epoch": "1.dead"})
        with pytest.raises(SessionNotFound):
            await redis_store.claim(SESSION, "node-1", user_id="mia")

        assert await redis_store.adopt("node-1", 10) == []

        assert sorted(await client.keys()) == [b"fl:{0}:outbox"]


async def test_production_refuses_a_redis_that_forgets_and_names_every_wrong_setting(tmp_path: Path) -> None:
    wrong = {"appendfsync": "everysec", "aof-load-truncated": "yes", "maxmemory-policy": "allkeys-lru"}
    with redis_server(tmp_path) as server:
        async with Redis.from_url(server.url) as client:
            for name, value in wrong.items():
                await client.config_set(name, value)

        with pytest.raises(StoreNotDurable) as caught:
            async with RedisStore(server.url, production=True, timeout_s=10):
                pass
        with capture_logs() as logs:
            async with RedisStore(server.url, timeout_s=10) as store:
                await store.ping()

    assert caught.value.settings == wrong
    assert "'everysec' (must be 'always')" in str(caught.value)
    assert [(log["event"], log["log_level"]) for log in logs] == [("redis.not_durable", "warning")]


async def test_a_redis_that_forbids_config_is_used_with_a_warning(own_redis: RedisServer, redis: Redis) -> None:
    await redis.acl_setuser(
        "app", enabled=True, passwords="+secret", keys=["*"], channels=["*"], categories=["+@all"], commands=["-config"]
    )
    url = own_redis.url.replace("://", "://app:secret@")

    with capture_logs() as logs:
        async with RedisStore(url, production=True, timeout_s=10) as store:
            await store.create(make_meta(), "node-1")

    assert [log["event"] for log in logs] == ["redis.durability_unknown"]


async def test_scripts_are_loaded_again_when_redis_forgot_them(redis_store: RedisStore, redis: Redis) -> None:
    await redis_store.create(make_meta(), "node-1")
    await redis_store.append([make_append(1)])
    await redis.script_flush()

    assert await redis_store.append([make_append(2)]) == ["ok"]
    assert (await redis_store.claim(SESSION, "node-2")).next_sequence == 3


async def test_an_empty_redis_in_its_place_gets_its_groups_again(redis_store: RedisStore, redis: Redis) -> None:
    await redis.flushall()

    with pytest.raises(StoreUnavailable):
        await redis_store.take("writer-1", 10, 0)
    await redis_store.enqueue([b"record"])

    assert await take_records(redis_store) == [b"record"]


async def test_a_full_redis_refuses_all_and_changes_nothing(redis_store: RedisStore, redis: Redis) -> None:
    """P9."""
    await redis_store.create(make_meta(), "node-1")
    await redis.config_set("maxmemory", 1)

    with pytest.raises(StoreUnavailable, match="maxmemory"):
        await redis_store.append([make_append(1, records=[b"record"])])
    await redis.config_set("maxmemory", 0)

    assert await redis_store.append([make_append(1, records=[b"record"])]) == ["ok"]
    assert await take_records(redis_store) == [b"record"]


def set_patience(store: RedisStore, timeout_s: float) -> None:
    store._timeout_s = timeout_s
    for line in store._lines:
        line._timeout_s = timeout_s


async def test_a_paused_redis_is_unavailable_in_time_and_the_retry_is_a_dup(own_redis: RedisServer) -> None:
    """P3, P9: a paused Redis still gets what was sent to it, so the retry must not commit it again."""
    async with RedisStore(own_redis.url, timeout_s=10) as store:
        await store.create(make_meta(), "node-1")
        await store.append([make_append(1, [b"1"])])
        own_redis.pause()

        # Impatient only now: a slow disk may take longer for what came before and for what comes after.
        set_patience(store, 0.3)
        async with asyncio.timeout(60):
            with pytest.raises(StoreUnavailable) as caught:
                await store.append([make_append(2, [b"2"], records=[b"record"])])
            calls = [store.ping() for _ in range(60)]
            answers = await asyncio.gather(*calls, store.take("writer-1", 1, 0.1), return_exceptions=True)
        own_redis.resume()
        set_patience(store, 10)

        assert isinstance(caught.value.__cause__, TimeoutError)
        assert {type(answer) for answer in answers} == {StoreUnavailable}
        assert await store.append([make_append(2, [b"2"], records=[b"record"])]) == ["dup"]
        assert await read_events(store) == [b"1", b"2"]
        assert (await store.lag()).pending == 1
        await store.ping()


async def test_a_killed_redis_keeps_what_was_acknowledged(own_redis: RedisServer) -> None:
    """P3."""
    async with RedisStore(own_redis.url, production=True, timeout_s=10) as store:
        await store.create(make_meta(), "node-1")
        await store.append([make_append(1, [b"1"], records=[b"record"], saved=[make_placed("item_1", 1.0)])])
        own_redis.kill()
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                await store.append([make_append(2, [b"2"])])
        with pytest.raises(StoreUnavailable):
            await store.ping()
        own_redis.start()

        # The connection to the dead one was dropped: the first call after its return works.
        assert await store.append([make_append(1, [b"1"]), make_append(2, [b"2"])]) == ["dup", "ok"]
        assert await read_events(store) == [b"1", b"2"]
        assert [placed.item.id for placed in (await store.claim(SESSION, "node-2")).items] == ["item_1"]
        assert await take_records(store) == [b"record"]


async def test_without_redis_the_store_does_not_open(own_redis: RedisServer) -> None:
    own_redis.kill()

    with pytest.raises(StoreUnavailable):
        async with RedisStore(own_redis.url):
            pass


async def test_a_lost_reply_is_reported_once_and_its_retry_is_a_dup(own_redis: RedisServer) -> None:
    """P3: the append got through, its reply did not."""
    async with tcp_proxy(own_redis.port) as proxy, RedisStore(f"redis://127.0.0.1:{proxy.port}", timeout_s=10) as store:
        await store.create(make_meta(), "node-1")
        await store.append([make_append(1, [b"1"])])
        part = make_append(2, [b"2"], records=[b"record"])

        proxy.lose_next_reply()
        with pytest.raises(StoreUnavailable):
            await store.append([part])

        assert await store.append([part]) == ["dup"]
        assert await read_events(store) == [b"1", b"2"]
        assert await take_records(store) == [b"record"]


async def test_a_cancelled_append_leaves_no_reply_for_the_next_call(own_redis: RedisServer) -> None:
    async with RedisStore(own_redis.url, timeout_s=10) as store:
        for session_id in (SESSION, OTHER):
            await store.create(make_meta(session_id), "node-1")
        await store.append([make_append(1, session_id=SESSION)])
        own_redis.pause()
        cut = asyncio.ensure_future(store.append([make_append(9), make_append(9), make_append(9)]))
        await asyncio.sleep(0.05)
        cut.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cut
        own_redis.resume()

        assert await store.append([make_append(1, session_id=OTHER)]) == ["ok"]


async def test_appends_at_once_each_get_their_own_answer(redis_store: RedisStore) -> None:
    ids = [f"sess_{number:026}" for number in range(30)]
    await asyncio.gather(*(redis_store.create(make_meta(session_id), "node-1") for session_id in ids))

    parts = [make_append(1 if number % 3 else 2, session_id=session_id) for number, session_id in enumerate(ids)]
    statuses = await asyncio.gather(*(redis_store.append([part]) for part in parts))

    assert statuses == [["ok"] if number % 3 else ["gap"] for number in range(30)]


async def test_no_owner_and_no_key_of_one_stays(own_redis: RedisServer, redis: Redis) -> None:
    """A node that ended, one that was killed, and one whose sessions were never ended and expire."""
    async with RedisStore(own_redis.url, retention_s=0.05, timeout_s=10) as store:
        ids = [f"sess_{number:026}" for number in range(4)]
        for session_id, owner in zip(ids, ("node-1", "node-1", "node-2", "node-3"), strict=True):
            await store.create(make_meta(session_id), owner)
            await store.renew(owner, 60)
        ends = [make_append(1, [], session_id=session_id, ends=True) for session_id in ids]
        ends[2].epoch = "1.node-2"
        await store.append(ends[:1])
        epoch = (await store.claim(ids[1], "node-2")).epoch
        await store.renew("node-1", 60)
        ends[1].epoch = epoch
        assert await store.append(ends[1:3]) == ["ok", "ok"]
        owned = await redis.keys("*:owned:*")
        for session_id in ids:
            await store.trim(session_id, 0, final=True)
        while await redis.keys("*:sess_*"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        expired = await redis.smembers("fl:{0}:owned:node-3")

        await store.renew("node-3", 60)
        found_out = await redis.keys("*:owned:*")
        await store.surrender("node-1")
        for owner in ("node-2", "node-3"):
            await store.renew(owner, 0.001)
        await asyncio.sleep(0.01)
        await store.renew("node-4", 60)
        await store.adopt("node-4", 10)

        assert owned == [b"fl:{0}:owned:node-3"]
        assert expired == {ids[3].encode()}
        assert found_out == []
        assert sorted(await redis.keys("*")) == [b"fl:{0}:outbox", b"fl:{0}:owners"]
        assert await redis.zrange("fl:{0}:owners", 0, -1) == [b"node-4"]


async def test_expired_sessions_of_a_dead_owner_are_forgotten_with_it(own_redis: RedisServer, redis: Redis) -> None:
    async with RedisStore(own_redis.url, retention_s=0.05, timeout_s=10) as store:
        await store.create(make_meta(), "node-1")
        await store.trim(SESSION, 0, final=True)
        while await redis.keys("*:sess_*"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)

        assert await store.adopt("node-2", 10) == []
        assert await redis.keys("*") == [b"fl:{0}:outbox"]


async def test_what_was_taken_from_an_owner_that_never_comes_back_expires(
    redis_store: RedisStore, redis: Redis
) -> None:
    await redis_store.create(make_meta(), "node-1")
    await redis_store.claim(SESSION, "node-2")

    assert 0 < await redis.pttl("fl:{0}:taken:node-1") <= 3_600_000
    await redis_store.surrender("node-1")
    assert await redis.keys("*:taken:*") == []


async def test_owners_have_sessions_on_every_shard(own_redis: RedisServer) -> None:
    async with RedisStore(own_redis.url, num_shards=3, timeout_s=10) as store:
        ids = [f"sess_{number:026}" for number in range(20)]
        for session_id in ids:
            await store.create(make_meta(session_id), "node-1")
        await store.renew("node-1", 60)
        await store.renew("node-2", 60)
        early = await store.adopt("node-2", 100)
        for session_id in ids[:6]:
            await store.claim(session_id, "node-2")
        told = [await store.renew("node-1", 60), await store.renew("node-1", 60)]
        await store.surrender("node-1")

        adopted = [await store.adopt("node-2", 9) for _ in range(3)]

        assert early == []
        assert [sorted(taken) for taken in told] == [ids[:6], []]
        assert [len(sessions) for sessions in adopted] == [9, 5, 0]
        assert sorted(loaded.meta.session_id for sessions in adopted for loaded in sessions) == ids[6:]


async def test_dead_letters_of_every_shard_are_revived_oldest_first(own_redis: RedisServer) -> None:
    async with RedisStore(own_redis.url, num_shards=3, timeout_s=10) as store:
        records = [f"{number}".encode() for number in range(5)]
        for record in records:
            await store.enqueue([record])
            (delivery,) = await store.take("writer-1", 1, 1)
            await store.bury(delivery, "poison")
            # A letter's age is counted in milliseconds.
            await asyncio.sleep(0.002)

        dead = await store.dead(4)
        num_revived = [await store.revive(4), (await store.lag()).dead, await store.revive(4)]

        assert [letter.record for letter in dead] == records[:4]
        assert num_revived == [4, 1, 1]
        assert sorted([delivery.record for delivery in await store.take("writer-1", 9, 1)]) == records


async def load_claim(store: RedisStore) -> None:
    """Redis knows the script from here on: the next reply is that of a claim that was done."""
    with pytest.raises(SessionNotFound):
        await store.claim("sess_unknown", "node-2")


async def test_a_claim_whose_reply_was_lost_is_adopted_by_the_claimer(own_redis: RedisServer) -> None:
    """P6: a session of a living owner that knows nothing of it would wait for ever."""
    async with tcp_proxy(own_redis.port) as proxy, RedisStore(f"redis://127.0.0.1:{proxy.port}", timeout_s=10) as store:
        await store.create(make_meta(), "node-1")
        await store.renew("node-1", 60)
        await store.renew("node-2", 60)
        await load_claim(store)

        proxy.lose_next_reply()
        with pytest.raises(StoreUnavailable):
            await store.claim(SESSION, "node-2")
        with pytest.raises(SessionNotFound):
            await store.claim(SESSION, "node-2", user_id="a stranger")

        assert [loaded.epoch for loaded in await store.adopt("node-2", 10)] == ["3.node-2"]
        assert await store.adopt("node-2", 10) == []


async def test_a_creation_whose_reply_was_lost_is_adopted_by_its_creator(own_redis: RedisServer) -> None:
    """P6: its client was turned away, and nobody else would ever end it."""
    async with tcp_proxy(own_redis.port) as proxy, RedisStore(f"redis://127.0.0.1:{proxy.port}", timeout_s=10) as store:
        await store.create(make_meta(OTHER), "node-1")
        await store.renew("node-1", 60)

        proxy.lose_next_reply()
        with pytest.raises(StoreUnavailable):
            await store.create(make_meta(), "node-1")

        assert [(found.meta.session_id, found.epoch) for found in await store.adopt("node-1", 10)] == [
            (SESSION, "2.node-1")
        ]
        assert await store.adopt("node-1", 10) == []


async def test_a_claim_that_was_lost_and_repeated_is_not_adopted(own_redis: RedisServer) -> None:
    async with tcp_proxy(own_redis.port) as proxy, RedisStore(f"redis://127.0.0.1:{proxy.port}", timeout_s=10) as store:
        await load_claim(store)
        for session_id in (SESSION, OTHER):
            await store.create(make_meta(session_id), "node-1")
            proxy.lose_next_reply()
            with pytest.raises(StoreUnavailable):
                await store.claim(session_id, "node-2")
        await store.claim(SESSION, "node-2")
        await store.claim(OTHER, "node-3")
        await store.renew("node-3", 60)

        assert await store.adopt("node-2", 10) == []
        part = make_append(1, epoch="3.node-2")
        assert await store.append([part]) == ["ok"]


async def test_an_adoption_whose_reply_was_lost_comes_again(
    own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P6."""
    async with tcp_proxy(own_redis.port) as proxy, RedisStore(f"redis://127.0.0.1:{proxy.port}", timeout_s=10) as store:
        await store.create(make_meta(), "node-1")
        await store.renew("node-2", 60)
        await load_claim(store)
        search = store._run_everywhere

        async def search_and_cut(script: Script, *arguments: str | bytes | int) -> list[object]:
            found = await search(script, *arguments)
            proxy.lose_next_reply()
            return found

        with monkeypatch.context() as patched:
            patched.setattr(store, "_run_everywhere", search_and_cut)
            with pytest.raises(StoreUnavailable):
                await store.adopt("node-2", 10)

        assert [loaded.epoch for loaded in await store.adopt("node-2", 10)] == ["3.node-2"]


async def test_what_was_taken_is_told_again_when_the_reply_was_lost(own_redis: RedisServer) -> None:
    async with tcp_proxy(own_redis.port) as proxy, RedisStore(f"redis://127.0.0.1:{proxy.port}", timeout_s=10) as store:
        await store.create(make_meta(), "node-1")
        await store.renew("node-1", 60)
        await store.claim(SESSION, "node-2")

        proxy.lose_next_reply()
        with pytest.raises(StoreUnavailable):
            await store.renew("node-1", 60)

        assert [await store.renew("node-1", 60), await store.renew("node-1", 60)] == [[SESSION], []]


async def test_after_an_outage_nobody_is_adopted_who_could_not_renew(own_redis: RedisServer) -> None:
    """P9: all leases lapse while Redis is away; the first to be back must not take everything from those who live."""
    async with RedisStore(own_redis.url, timeout_s=10) as store:
        await store.create(make_meta(), "node-1")
        for owner in ("node-1", "node-2"):
            await store.renew(owner, 0.2)
        own_redis.kill()
        await asyncio.sleep(0.3)
        own_redis.start()

        await store.renew("node-2", 1)
        early = await store.adopt("node-2", 10)
        adopted = await adopt_when_lapsed(store, "node-2")

        assert early == []
        assert [loaded.epoch for loaded in adopted] == ["2.node-2"]


async def test_a_session_of_the_former_shape_is_claimed(redis_store: RedisStore, redis: Redis) -> None:
    await redis_store.create(make_meta(), "node-1")
    await redis.hset(f"fl:{{0}}:{SESSION}:state", "epoch", "7")

    assert (await redis_store.claim(SESSION, "node-2")).epoch == "8.node-2"


async def test_an_owner_that_renews_just_before_it_is_adopted_keeps_its_session(
    redis_store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P4."""
    await redis_store.create(make_meta(), "node-1")
    search = redis_store._run_everywhere

    async def search_and_renew(script: Script, *arguments: str | bytes | int) -> list[object]:
        found = await search(script, *arguments)
        monkeypatch.undo()
        await redis_store.renew("node-1", 60)
        return found

    monkeypatch.setattr(redis_store, "_run_everywhere", search_and_renew)

    assert await redis_store.adopt("node-2", 10) == []
    assert await redis_store.append([make_append(1)]) == ["ok"]


async def test_neither_a_claim_nor_a_search_shortens_a_lease(own_redis: RedisServer, redis_store: RedisStore) -> None:
    await redis_store.renew("node-1", 60)
    assert await redis_store.adopt("node-2", 10) == []
    async with RedisStore(own_redis.url, timeout_s=10) as store:
        await store.create(make_meta(), "node-1")

    assert await redis_store.adopt("node-2", 10) == []


async def test_a_restored_session_lasts_until_it_ends_again(redis_store: RedisStore, redis: Redis) -> None:
    await redis_store.create(make_meta(), "node-1")
    await redis_store.trim(SESSION, 0, final=True)

    await redis_store.restore(make_meta(), "node-1", "1.node-1", next_sequence=2, config=b"", items=())

    assert await redis.pttl(f"fl:{{0}}:{SESSION}:state") == -1
