"""Both stores keep the same promises about whose a session is: P3, P4. Leases, takeover, and stores that came back empty or older."""

import asyncio

import pytest

from sessions.errors import SessionNotFound
from sessions.store import MAX_PART_BYTES, Append, DeadLetter, PlacedItem, Store
from tests.sessions.stores import (
    FIRST_EPOCH,
    OTHER,
    SESSION,
    Backup,
    adopt_when_lapsed,
    make_append,
    make_meta,
    make_placed,
    read_events,
    take_records,
)


async def restore(
    store: Store,
    owner: str,
    epoch: str,
    next_sequence: int,
    *,
    config: bytes = b"restored",
    items: tuple[PlacedItem, ...] = (make_placed("item_1", 1.0), make_placed("item_2", 2.0)),
) -> str | None:
    return await store.restore(make_meta(), owner, epoch, next_sequence=next_sequence, config=config, items=items)


async def test_a_claim_for_another_user_or_client_finds_nothing_and_changes_nothing(store: Store) -> None:
    """P7."""
    await store.create(make_meta(), "node-1")
    await store.renew("node-1", 60)

    for user_id in ("한", "", "null"):
        with pytest.raises(SessionNotFound):
            await store.claim(SESSION, "node-2", user_id=user_id)
        with pytest.raises(SessionNotFound):
            await store.claim(SESSION, "node-2", user_id="한나", client_id=user_id)
    assert await store.append([make_append(1)]) == ["ok"]
    assert await store.renew("node-1", 60) == []

    assert (await store.claim(SESSION, "node-2", user_id="한나", client_id="kiosk")).epoch == "2.node-2"


async def test_the_epoch_is_that_of_the_last_claim(store: Store) -> None:
    created = await store.create(make_meta(), "node-1")
    epochs = [await store.epoch(SESSION), (await store.claim(SESSION, "node-2")).epoch, await store.epoch(SESSION)]

    assert epochs == [created, "2.node-2", "2.node-2"]
    assert await store.epoch("sess_unknown") is None


async def test_renew_tells_once_what_others_have_claimed(store: Store) -> None:
    """P4: the older connection of a session that was resumed elsewhere is closed."""
    for session_id in (SESSION, OTHER):
        await store.create(make_meta(session_id), "node-1")
    untouched = await store.renew("node-1", 60)
    await store.claim(SESSION, "node-2")
    await store.claim(SESSION, "node-2")
    await store.claim(OTHER, "node-1")

    taken = [await store.renew("node-1", 60), await store.renew("node-1", 60)]

    assert untouched == []
    assert taken == [[SESSION], []]
    assert await store.renew("node-2", 60) == []


async def test_what_was_taken_and_claimed_back_is_not_told(store: Store) -> None:
    await store.create(make_meta(), "node-1")
    await store.claim(SESSION, "node-2")
    await store.claim(SESSION, "node-1")

    assert await store.renew("node-1", 60) == []
    assert await store.renew("node-2", 60) == [SESSION]


async def test_sessions_are_adopted_only_after_their_owners_lease(store: Store) -> None:
    """P4, P6."""
    await store.create(make_meta(), "node-1")
    await store.append([make_append(1, saved=[make_placed("item_1", 1.0)], config=b"{}")])
    await store.renew("node-1", 60)
    await store.renew("node-2", 60)
    early = await store.adopt("node-2", 10)
    await store.renew("node-1", 0.05)

    (adopted,) = await adopt_when_lapsed(store, "node-2")

    assert early == []
    assert (adopted.meta, adopted.epoch, adopted.next_sequence) == (make_meta(), "2.node-2", 2)
    assert (adopted.config, adopted.items) == (b"{}", (make_placed("item_1", 1.0),))
    assert await store.append([make_append(2), make_append(2, epoch="2.node-2")]) == ["fenced", "ok"]
    assert await store.renew("node-1", 60) == [SESSION]
    assert await store.adopt("node-3", 10) == []


async def test_an_owner_that_never_renewed_has_no_lease(store: Store) -> None:
    await store.create(make_meta(), "node-1")
    await store.renew("node-2", 60)

    assert [loaded.epoch for loaded in await store.adopt("node-2", 10)] == ["2.node-2"]


async def test_sessions_of_the_living_take_nothing_from_the_limit(store: Store) -> None:
    for number in range(6):
        await store.create(make_meta(f"sess_{number:026}"), "node-1" if number < 5 else "node-2")
    await store.renew("node-1", 60)

    assert [loaded.epoch for loaded in await store.adopt("node-3", 1)] == ["2.node-3"]


async def test_nobody_adopts_from_itself(store: Store) -> None:
    await store.create(make_meta(), "node-1")

    assert await store.adopt("node-1", 10) == []
    assert await store.append([make_append(1)]) == ["ok"]


async def test_a_lapsed_lease_that_nobody_used_goes_on(store: Store) -> None:
    """A pause that nobody noticed."""
    await store.create(make_meta(), "node-1")
    await store.surrender("node-1")
    await store.renew("node-1", 60)

    assert await store.adopt("node-2", 10) == []
    assert await store.append([make_append(1)]) == ["ok"]


async def test_a_surrendered_owners_sessions_are_adopted_at_once(store: Store) -> None:
    await store.create(make_meta(), "node-1")
    await store.renew("node-1", 60)
    await store.surrender("node-1")
    await store.surrender("unknown")

    assert [loaded.epoch for loaded in await store.adopt("node-2", 10)] == ["2.node-2"]


async def test_what_two_adopt_at_once_is_adopted_once_and_within_the_limit(store: Store) -> None:
    ids = {f"sess_{number:026}" for number in range(20)}
    for session_id in ids:
        await store.create(make_meta(session_id), "node-1")
    for owner in ("node-2", "node-3"):
        await store.renew(owner, 60)

    adopted: list[str] = []
    while True:
        found = await asyncio.gather(store.adopt("node-2", 7), store.adopt("node-3", 7))
        assert max(map(len, found)) <= 7
        adopted += [loaded.meta.session_id for part in found for loaded in part]
        if not any(found):
            break

    assert sorted(adopted) == sorted(ids)
    assert await store.adopt("node-2", 0) == []


async def test_an_ended_session_is_nobodys_until_it_is_claimed(store: Store) -> None:
    for session_id in (SESSION, OTHER):
        await store.create(make_meta(session_id), "node-1")
    assert (
        await store.append([make_append(1, ends=True), make_append(1, [], session_id=OTHER, ends=True)]) == ["ok"] * 2
    )
    adopted = await store.adopt("node-2", 10)

    claimed = await store.claim(SESSION, "node-2")

    assert adopted == []
    assert (claimed.epoch, claimed.next_sequence) == ("2.node-2", 2)
    assert await store.renew("node-1", 60) == []
    assert [loaded.meta.session_id for loaded in await store.adopt("node-3", 10)] == [SESSION]


async def test_an_end_that_is_not_committed_ends_nothing(store: Store) -> None:
    await store.create(make_meta(), "node-1")
    await store.append([make_append(1)])
    parts = [make_append(1, ends=True), make_append(9, ends=True), make_append(2, epoch="1.node-2", ends=True)]

    statuses = await store.append(parts)

    assert statuses == ["dup", "gap", "fenced"]
    assert len(await store.adopt("node-2", 10)) == 1


@pytest.mark.parametrize("num_events", [0, 2])
async def test_a_retried_end_is_a_dup(store: Store, num_events: int) -> None:
    """P3."""
    await store.create(make_meta(), "node-1")
    end = make_append(1, [b"{}"] * num_events, records=[b"record"], ends=True)

    assert [await store.append([end]), await store.append([end])] == [["ok"], ["dup"]]

    assert await take_records(store) == [b"record"]
    assert await store.adopt("node-2", 10) == []


async def test_an_end_of_a_claimed_session_ends_it_again(store: Store) -> None:
    await store.create(make_meta(), "node-1")
    await store.append([make_append(1, [], ends=True)])
    epoch = (await store.claim(SESSION, "node-2")).epoch

    assert await store.append([make_append(1, [], epoch=epoch, ends=True)]) == ["ok"]
    assert await store.adopt("node-3", 10) == []


async def test_a_store_that_came_back_empty_gets_the_session_back(store: Store, backup: Backup) -> None:
    await store.create(make_meta(), "node-1")
    await store.renew("node-1", 60)
    await store.append([make_append(1, [b"1", b"2"])])
    backup.wipe()

    assert await store.append([make_append(3)]) == ["gone"]
    epoch = await restore(store, "node-1", FIRST_EPOCH, 3)

    assert epoch == "2.node-1"
    # Its owner lives, though the store has forgotten that too.
    assert await store.adopt("node-2", 10) == []
    assert await store.append([make_append(3, [b"3"], epoch=epoch)]) == ["ok"]
    loaded = await store.claim(SESSION, "node-2", user_id="한나")
    assert (loaded.meta, loaded.epoch, loaded.next_sequence) == (make_meta(), "3.node-2", 4)
    assert (loaded.archived_sequence, loaded.config) == (2, b"restored")
    assert loaded.items == (make_placed("item_1", 1.0), make_placed("item_2", 2.0))
    assert await read_events(store) == [b"3"]
    assert await store.renew("node-1", 60) == [SESSION]


async def test_a_store_that_came_back_older_gets_the_session_back(store: Store, backup: Backup) -> None:
    await store.create(make_meta(), "node-1")
    await store.append([make_append(1, [b"1", b"2"], saved=[make_placed("item_0", 1.0)], config=b"old")])
    await store.trim(SESSION, 1, final=True)
    backup.take()
    await store.append([make_append(3, [b"3"])])
    backup.put_back()

    assert await store.append([make_append(4)]) == ["gap"]
    epoch = await restore(store, "node-1", FIRST_EPOCH, 4)

    assert epoch == "2.node-1"
    assert await store.append([make_append(4, [b"4"]), make_append(4, [b"4"], epoch=epoch)]) == ["fenced", "ok"]
    loaded = await store.claim(SESSION, "node-2")
    assert (loaded.archived_sequence, loaded.next_sequence, loaded.config) == (3, 5, b"restored")
    assert [placed.item.id for placed in loaded.items] == ["item_1", "item_2"]
    assert await read_events(store) == [b"4"]


async def test_an_older_owner_in_an_older_store_loses_the_session_to_the_later_one(
    store: Store, backup: Backup
) -> None:
    """P4: no forks."""
    await store.create(make_meta(), "node-1")
    await store.append([make_append(1)])
    backup.take()
    later = (await store.claim(SESSION, "node-2")).epoch
    await store.append([make_append(2, epoch=later)])
    backup.put_back()

    assert await store.append([make_append(3, epoch=later)]) == ["gone"]
    epoch = await restore(store, "node-2", later, 3)

    assert epoch == "3.node-2"
    assert await store.append([make_append(2)]) == ["fenced"]
    assert await restore(store, "node-1", FIRST_EPOCH, 2) is None
    assert await store.renew("node-1", 60) == [SESSION]


async def test_claims_in_an_older_store_never_let_a_former_owner_append(store: Store, backup: Backup) -> None:
    """P4: no forks: whatever numbers come twice, no epoch does."""
    await store.create(make_meta(), "node-1")
    backup.take()
    owners = ["node-2", "node-3"]
    former = [FIRST_EPOCH, *[(await store.claim(SESSION, owner)).epoch for owner in owners]]
    backup.put_back()

    for number in range(4, 8):
        epoch = (await store.claim(SESSION, f"node-{number}")).epoch
        statuses = await store.append([make_append(1, [], epoch=old) for old in former])
        assert set(statuses) <= {"fenced", "gone"}
        assert await store.append([make_append(1, [], epoch=epoch)]) == ["ok"]
        former.append(epoch)
    assert await store.append([make_append(1, [], epoch=old) for old in former[:-1]]) == ["fenced"] * 6


@pytest.mark.parametrize("claims", [["node-2"], ["node-2", "node-3", "node-1"]])
async def test_nothing_is_restored_over_a_later_epoch(store: Store, claims: list[str]) -> None:
    """P4."""
    await store.create(make_meta(), "node-1")
    for owner in claims:
        epoch = (await store.claim(SESSION, owner)).epoch
    await store.append([make_append(1, [b"1"], epoch=epoch, saved=[make_placed("item_9", 9.0)], config=b"theirs")])

    assert await restore(store, "node-1", FIRST_EPOCH, 7) is None
    # Of the same number, but another's.
    assert await restore(store, "node-4", f"{len(claims) + 1}.node-4", 7) is None

    assert await store.append([make_append(2, [b"2"], epoch=epoch)]) == ["ok"]
    loaded = await store.claim(SESSION, "node-5")
    assert (loaded.config, loaded.next_sequence, loaded.archived_sequence) == (b"theirs", 3, 0)
    assert [placed.item.id for placed in loaded.items] == ["item_9"]
    assert await read_events(store) == [b"1", b"2"]


async def test_a_retried_restore_is_no_other_owners(store: Store, backup: Backup) -> None:
    """P3: the reply to the first was lost."""
    await store.create(make_meta(), "node-1")
    backup.wipe()
    lost = await restore(store, "node-1", FIRST_EPOCH, 5)

    epoch = await restore(store, "node-1", FIRST_EPOCH, 5)

    assert (lost, epoch) == ("2.node-1", "3.node-1")
    assert epoch is not None
    assert await store.append([make_append(5, epoch="2.node-1"), make_append(5, epoch=epoch)]) == ["fenced", "ok"]
    assert await restore(store, "node-1", FIRST_EPOCH, 5) is None
    await store.claim(SESSION, "node-1")
    assert await restore(store, "node-1", "3.node-1", 6) is None


async def test_a_restored_session_without_a_lease_is_adopted(store: Store, backup: Backup) -> None:
    await store.create(make_meta(), "node-1")
    backup.wipe()
    await restore(store, "node-1", FIRST_EPOCH, 5, items=())
    await store.renew("node-2", 60)

    (adopted,) = await store.adopt("node-2", 10)

    assert (adopted.epoch, adopted.next_sequence, adopted.items) == ("3.node-2", 5, ())


async def test_a_part_that_is_too_large_is_refused_alone(store: Store) -> None:
    """P7: nobody else waits for a part that the store will never take."""
    ids = [f"sess_{number:026}" for number in range(5)]
    for session_id in ids:
        await store.create(make_meta(session_id), "node-1")
    parts = [make_append(1, session_id=session_id) for session_id in ids]
    large = bytes(MAX_PART_BYTES + 1)
    parts[1] = make_append(1, [large], session_id=ids[1])
    parts[3] = make_append(1, records=[large[: MAX_PART_BYTES // 2]] * 3, session_id=ids[3])

    assert await store.append(parts) == ["ok", "too_large", "ok", "too_large", "ok"]
    assert [len(await read_events(store, session_id)) for session_id in ids] == [1, 0, 1, 0, 1]
    assert await take_records(store) == []


async def test_parts_that_are_too_large_only_together_are_all_taken(store: Store) -> None:
    ids = [f"sess_{number:026}" for number in range(3)]
    for session_id in ids:
        await store.create(make_meta(session_id), "node-1")
    half = bytes(MAX_PART_BYTES // 2)
    parts: list[Append] = [make_append(1, [half], session_id=session_id) for session_id in ids]

    assert await store.append(parts) == ["ok"] * 3


async def test_dead_letters_are_revived_oldest_first_and_delivered_again(store: Store) -> None:
    records = [f"기록 {number}".encode() for number in range(3)]
    await store.enqueue(records)
    for delivery in await store.take("writer-1", 3, 0):
        await store.bury(delivery, f"왜: {delivery.record.decode()}")

    dead = await store.dead(2)
    none = [await store.dead(0), await store.revive(0)]
    num_revived = await store.revive(2)
    rest = await store.dead(10)
    taken = await store.take("writer-2", 10, 0)
    await store.acknowledge([delivery.receipt for delivery in taken])
    lag = await store.lag()

    assert dead == [DeadLetter(record, f"왜: {record.decode()}", 1) for record in records[:2]]
    assert none == [[], 0]
    assert num_revived == 2
    assert [letter.record for letter in rest] == records[2:]
    assert [(delivery.record, delivery.num_deliveries) for delivery in taken] == [(record, 1) for record in records[:2]]
    assert (lag.pending, lag.dead) == (0, 1)
    assert [await store.revive(10), await store.revive(10)] == [1, 0]
    assert await take_records(store) == records[2:]


async def test_a_revived_record_wakes_who_waits_and_can_be_buried_again(store: Store) -> None:
    await store.enqueue([b"record"])
    (delivery,) = await store.take("writer-1", 1, 0)
    await store.bury(delivery, "once")

    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(store.take("writer-1", 10, 60))
        await asyncio.sleep(0)
        await store.revive(1)
    (again,) = waiting.result()
    await store.bury(again, "twice")

    assert [letter.error for letter in await store.dead(10)] == ["twice"]
