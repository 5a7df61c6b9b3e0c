"""What is thought of a stored item changes whoever owns the session, in both stores: the latest choice stays, the owner's change too."""

import asyncio
from typing import Any

import pytest
from msgspec import structs

from sessions.errors import StoreUnavailable
from sessions.feedback import Feedback
from sessions.redis_store import RedisStore
from sessions.store import Append, PlacedItem, Store
from tests.sessions.stores import OTHER, SESSION, make_append, make_meta, make_placed

ITEM = make_placed("item_é", 2.5, "호")
UP = Feedback(rating="up", comment="좋아요", rated_ms=1_000)


async def begin(store: Store, placed: PlacedItem = ITEM) -> None:
    """A session of two items, owned by "node-1"."""
    await store.create(make_meta(), "node-1")
    await store.append([make_append(1, saved=[placed, make_placed("item_2", 3.0)])])


def rated(placed: PlacedItem, feedback: Feedback, *, is_untold: bool = True) -> PlacedItem:
    return structs.replace(placed, feedback=feedback, is_untold=is_untold)


async def test_a_choice_is_kept_with_its_item_for_the_next_owner(store: Store) -> None:
    """P4: and nothing else changes, not even the owner."""
    await begin(store)

    await store.rate(SESSION, ITEM.item.id, UP)

    assert await store.item(SESSION, ITEM.item.id) == rated(ITEM, UP)
    assert await store.append([make_append(2)]) == ["ok"]
    assert (await store.claim(SESSION, "node-2")).items == (rated(ITEM, UP), make_placed("item_2", 3.0))


@pytest.mark.parametrize(
    ("later", "stays"),
    [
        (Feedback(rating="down", rated_ms=999), False),
        (UP, False),
        (Feedback(rating="down", rated_ms=1_000), True),
        (Feedback(rating=None, rated_ms=1_001), True),
    ],
    ids=["earlier", "same", "second in the millisecond", "withdrawn"],
)
async def test_only_a_later_choice_replaces_one_that_is_there(store: Store, later: Feedback, stays: bool) -> None:
    """P3: what the dialogue has told of stays so."""
    told = rated(ITEM, UP, is_untold=False)
    await begin(store, told)

    await store.rate(SESSION, ITEM.item.id, later)

    assert await store.item(SESSION, ITEM.item.id) == (rated(ITEM, later) if stays else told)


async def test_what_is_not_there_cannot_be_rated_and_does_not_come_to_be(store: Store) -> None:
    await begin(store)
    await store.create(make_meta(OTHER), "node-1")
    await store.append([make_append(2, dropped=["item_2"])])

    for session_id, item_id in ((SESSION, "item_2"), (OTHER, ITEM.item.id), ("sess_}{*", ITEM.item.id), (SESSION, "")):
        await store.rate(session_id, item_id, UP)

    assert (await store.claim(SESSION, "node-2")).items == (ITEM,)
    assert (await store.claim(OTHER, "node-2")).items == ()
    assert await store.peek("sess_}{*") is None


async def test_of_choices_at_once_the_latest_stays(store: Store) -> None:
    """P3."""
    await begin(store)
    choices = [Feedback(rating="down", rated_ms=rated_ms) for rated_ms in (4, 3, 2, 1)]

    await asyncio.gather(*(store.rate(SESSION, ITEM.item.id, choice) for choice in choices))

    assert await store.item(SESSION, ITEM.item.id) == rated(ITEM, choices[0])


def let_the_owner_overtake(store: RedisStore, monkeypatch: pytest.MonkeyPatch, changes: list[Append]) -> None:
    """The owner commits these one by one, each between the reading of an item and its change."""
    run = store._run

    async def run_after(*arguments: Any) -> Any:
        if changes:
            assert await store.append([changes.pop(0)]) == ["ok"]
        return await run(*arguments)

    monkeypatch.setattr(store, "_run", run_after)


async def test_what_the_owner_changes_meanwhile_is_rated_as_it_is_now(
    redis_store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P3: neither the owner's change is lost nor the choice."""
    cut, longer = make_placed(ITEM.item.id, 2.5, "cut"), make_placed(ITEM.item.id, 2.75, "longer")
    await begin(redis_store)
    let_the_owner_overtake(redis_store, monkeypatch, [make_append(2, saved=[cut]), make_append(3, saved=[longer])])

    await redis_store.rate(SESSION, ITEM.item.id, UP)

    assert await redis_store.item(SESSION, ITEM.item.id) == rated(longer, UP)


async def test_an_item_that_the_owner_drops_or_rates_meanwhile_is_left_so(
    redis_store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P3."""
    later = rated(ITEM, Feedback(rating="down", rated_ms=2_000), is_untold=False)
    await begin(redis_store)
    changes = [make_append(2, saved=[later]), make_append(3, dropped=["item_2"])]
    let_the_owner_overtake(redis_store, monkeypatch, changes)

    await redis_store.rate(SESSION, ITEM.item.id, UP)
    await redis_store.rate(SESSION, "item_2", UP)

    assert (await redis_store.claim(SESSION, "node-2")).items == (later,)


async def test_an_item_that_changes_all_the_time_is_given_up(
    redis_store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await begin(redis_store)
    texts = [make_placed(ITEM.item.id, 2.5, f"{number}") for number in range(100)]
    let_the_owner_overtake(
        redis_store, monkeypatch, [make_append(number, saved=[placed]) for number, placed in enumerate(texts, 2)]
    )

    with pytest.raises(StoreUnavailable, match="all the time"):
        await redis_store.rate(SESSION, ITEM.item.id, UP)

    stored = await redis_store.item(SESSION, ITEM.item.id)
    assert stored is not None
    assert stored.feedback is None
