"""Both stores tell a session that went on by itself from one that a client took elsewhere, and adopt around what cannot be read. P4, P7."""

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from sessions.redis_store import RedisStore
from sessions.store import Store
from tests.services import RedisServer
from tests.sessions.stores import FIRST_EPOCH, OTHER, SESSION, make_append, make_meta, take_records


@pytest.mark.parametrize(
    ("claims", "adopted_since"),
    [
        ("adopt", [True]),
        ("adopt, adopt", [True, True]),
        ("claim", [True]),
        ("resume", [False]),
        ("resume, adopt", [False, True]),
        ("adopt, resume", [False, False]),
        ("adopt, resume, adopt, claim", [False, False, True, True]),
    ],
)
async def test_only_what_no_client_has_claimed_since_is_adopted(
    store: Store, claims: str, adopted_since: list[bool]
) -> None:
    """P4: whose client may come back, and whose has gone on elsewhere."""
    epochs = [await store.create(make_meta(), "node-0")]

    for number, claim in enumerate(claims.split(", "), start=1):
        owner = f"node-{number}"
        match claim:
            case "adopt":
                (loaded,) = await store.adopt(owner, 1)
            case "resume":
                loaded = await store.claim(SESSION, owner, user_id="한나", client_id="kiosk")
            case _:
                loaded = await store.claim(SESSION, owner)
        epochs.append(loaded.epoch)

    assert [await store.is_adopted(SESSION, epoch) for epoch in epochs[:-1]] == adopted_since


async def test_a_session_that_nobody_claimed_or_knows_is_not_adopted(store: Store) -> None:
    await store.create(make_meta(), "node-1")

    assert not await store.is_adopted(SESSION, FIRST_EPOCH)
    assert not await store.is_adopted("sess_unknown", FIRST_EPOCH)


async def test_a_claim_that_left_no_note_counts_as_a_clients(own_redis: RedisServer, redis_store: RedisStore) -> None:
    """Nodes of the former release claim beside this one."""
    await redis_store.create(make_meta(), "node-1")
    await redis_store.adopt("node-2", 1)
    async with Redis.from_url(own_redis.url) as redis:
        await redis.hset(f"fl:{{0}}:{SESSION}:state", "epoch", "3.node-3")
    unnoted = await redis_store.is_adopted(SESSION, FIRST_EPOCH)
    await redis_store.claim(SESSION, "node-4")

    assert not unnoted
    assert not await redis_store.is_adopted(SESSION, FIRST_EPOCH)
    assert await redis_store.is_adopted(SESSION, "3.node-3")


async def test_a_session_that_cannot_be_read_is_adopted_by_nobody_and_keeps_no_other_from_it(store: Store) -> None:
    """P7: nor does it come again with each look for more."""
    for session_id in (SESSION, OTHER, "sess_third"):
        await store.create(make_meta(session_id), "node-1")
    unreadable = make_append(1, records=[b"record"])
    unreadable.saved_items["item_1"] = b'{"rank":0,"item":{"type":"of_a_later_release","id":"item_1"}}'
    await store.append([unreadable])

    with capture_logs() as logs:
        adopted = await store.adopt("node-2", 10)

    assert sorted(loaded.meta.session_id for loaded in adopted) == [OTHER, "sess_third"]
    assert [(entry["event"], entry["session_id"]) for entry in logs] == [("session.not_adopted", SESSION)]
    assert await store.adopt("node-2", 10) == []
    assert await take_records(store) == [b"record"]
