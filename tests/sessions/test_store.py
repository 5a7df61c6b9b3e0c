"""Both stores keep the same promises: P2, P3, P4. What only one of them can break is tested beside this file."""

import asyncio

import pytest
from msgspec import structs

from sessions.errors import SessionError, SessionNotFound
from sessions.feedback import Feedback
from sessions.store import Glimpse, Store
from tests.sessions.stores import (
    OTHER,
    SESSION,
    check_mixed_batch,
    make_append,
    make_meta,
    make_placed,
    read_events,
    take_records,
)


async def test_a_created_session_is_loaded_as_it_was_created(store: Store) -> None:
    epoch = await store.create(make_meta(), "node-1")

    loaded = await store.claim(SESSION, "node-2")

    assert epoch == "1.node-1"
    assert loaded.meta == make_meta()
    assert (loaded.epoch, loaded.next_sequence, loaded.archived_sequence) == ("2.node-2", 1, 0)
    assert (loaded.config, loaded.items) == (b"", ())


async def test_every_claim_raises_the_epoch(store: Store) -> None:
    await store.create(make_meta(), "node-1")

    epochs = [(await store.claim(SESSION, owner)).epoch for owner in ("node-2", "node-1", "node-1")]

    assert epochs == ["2.node-2", "3.node-1", "4.node-1"]


async def test_a_repeated_create_finds_its_own_session_and_refuses_anothers(store: Store) -> None:
    await store.create(make_meta(), "node-1")

    assert await store.create(make_meta(), "node-1") == "1.node-1"
    with pytest.raises(SessionError, match="exists"):
        await store.create(make_meta(), "node-2")


async def test_a_create_never_takes_a_session_that_has_begun(store: Store) -> None:
    await store.create(make_meta(), "node-1")
    await store.append([make_append(1)])

    with pytest.raises(SessionError, match="exists"):
        await store.create(make_meta(), "node-1")


async def test_claiming_an_unknown_session_says_so(store: Store) -> None:
    with pytest.raises(SessionNotFound) as caught:
        await store.claim(SESSION, "node-1")

    assert caught.value.session_id == SESSION


async def test_a_peek_claims_nothing_and_sees_what_was_committed(store: Store) -> None:
    """P4: who only looks takes no session from its owner."""
    epoch = await store.create(make_meta(), "node-1")
    assert await store.peek(SESSION) == Glimpse(make_meta(), 1, 0, has_owner=True)

    await store.append([make_append(1, [b"{}", b"{}"])])
    await store.trim(SESSION, 1, final=False)

    assert await store.peek(SESSION) == Glimpse(make_meta(), 3, 1, has_owner=True)
    assert await store.epoch(SESSION) == epoch
    assert await store.append([make_append(3)]) == ["ok"]


async def test_a_peek_sees_whether_a_session_has_ended(store: Store) -> None:
    await store.create(make_meta(), "node-1")
    await store.append([make_append(1, ends=True)])

    ended = await store.peek(SESSION)
    await store.claim(SESSION, "node-2")
    claimed = await store.peek(SESSION)

    assert ended == Glimpse(make_meta(), 2, 0, has_owner=False)
    assert claimed == Glimpse(make_meta(), 2, 0, has_owner=True)


async def test_a_peek_at_an_unknown_session_finds_none(store: Store) -> None:
    await store.create(make_meta(), "node-1")

    assert await store.peek(OTHER) is None
    assert await store.peek("sess_}{*") is None


async def test_an_item_is_read_as_it_was_committed_last(store: Store) -> None:
    """With what is thought of it; of another session, or dropped, it is not there."""
    await store.create(make_meta(), "node-1")
    await store.create(make_meta(OTHER), "node-1")
    rated = structs.replace(make_placed("item_é", 2.0), feedback=Feedback(rating="down", comment="호", rated_ms=5))
    await store.append([make_append(1, saved=[make_placed("item_1", 1.0), make_placed("item_é", 2.0)])])
    await store.append([make_append(2, saved=[rated], dropped=["item_1"])])

    assert await store.item(SESSION, "item_é") == rated
    assert [placed.feedback for placed in (await store.claim(SESSION, "node-2")).items] == [rated.feedback]
    for session_id, item_id in ((OTHER, "item_é"), (SESSION, "item_1"), (SESSION, ""), ("sess_}{*", "item_é")):
        assert await store.item(session_id, item_id) is None


async def test_ping_answers(store: Store) -> None:
    await store.ping()


async def test_append_answers_ok_dup_gap_fenced_and_gone(store: Store) -> None:
    """P3, P4."""
    await store.create(make_meta(), "node-1")
    events = [b'{"n":1}', b'{"n":2}']

    assert await store.append([make_append(1, events)]) == ["ok"]
    assert await store.append([make_append(1, events)]) == ["dup"]
    assert await store.append([make_append(4)]) == ["gap"]
    assert await store.append([make_append(2, [b"{}", b"{}"])]) == ["gap"]
    assert await store.append([make_append(3, epoch="2.node-2")]) == ["gone"]
    assert await store.append([make_append(1, epoch="1.node-2")]) == ["fenced"]
    await store.claim(SESSION, "node-2")
    assert await store.append([make_append(3)]) == ["fenced"]
    assert await store.append([make_append(1, events)]) == ["fenced"]
    assert await store.append([make_append(3, epoch="2.node-2")]) == ["ok"]
    assert await store.append([make_append(4, epoch="10.node-1")]) == ["gone"]
    assert await store.append([make_append(1, session_id=OTHER)]) == ["gone"]
    assert await store.append([]) == []
    assert await read_events(store) == [*events, b'{"n":1}']
    assert (await store.claim(SESSION, "node-3")).next_sequence == 4


async def test_one_batch_commits_many_sessions_each_with_its_own_status(store: Store) -> None:
    await check_mixed_batch(store)


async def test_two_parts_of_one_session_in_a_batch_follow_each_other(store: Store) -> None:
    await store.create(make_meta(), "node-1")

    statuses = await store.append([make_append(1, [b"1"]), make_append(2, [b"2"]), make_append(2, [b"2"])])

    assert statuses == ["ok", "ok", "dup"]
    assert await read_events(store) == [b"1", b"2"]


async def test_a_part_that_is_not_committed_leaves_nothing_behind(store: Store) -> None:
    """P4: a fenced owner writes no record, no item, no config."""
    await store.create(make_meta(), "node-1")
    await store.append([make_append(1, saved=[make_placed("item_1", 1.0)], config=b"old")])
    await store.claim(SESSION, "node-2")
    changes = make_append(2, records=[b"record"], saved=[make_placed("item_2", 2.0)], dropped=["item_1"], config=b"new")

    fenced = await store.append([changes])
    changes.epoch, changes.first_sequence = "2.node-2", 7
    gap = await store.append([changes])
    changes.epoch = "3.node-1"
    gone = await store.append([changes])

    loaded = await store.claim(SESSION, "node-3")
    assert (fenced, gap, gone) == (["fenced"], ["gap"], ["gone"])
    assert [placed.item.id for placed in loaded.items] == ["item_1"]
    assert loaded.config == b"old"
    assert await take_records(store) == []
    assert len(await read_events(store)) == 1


async def test_a_retry_adds_its_records_once(store: Store) -> None:
    """P3."""
    await store.create(make_meta(), "node-1")
    part = make_append(1, records=[b"record"])

    await store.append([part])
    assert await store.append([part]) == ["dup"]

    assert await take_records(store) == [b"record"]


async def test_records_are_appended_without_events_under_the_epoch(store: Store) -> None:
    await store.create(make_meta(), "node-1")
    await store.append([make_append(1)])

    assert await store.append([make_append(2, [], records=[b"record"], config=b"{}")]) == ["ok"]
    assert await store.append([make_append(1, [], records=[b"early"])]) == ["gap"]
    await store.claim(SESSION, "node-2")
    assert await store.append([make_append(2, [], records=[b"late"])]) == ["fenced"]

    assert await take_records(store) == [b"record"]
    assert len(await store.journal(SESSION, 0, 10)) == 1
    loaded = await store.claim(SESSION, "node-3")
    assert (loaded.next_sequence, loaded.config) == (2, b"{}")


async def test_events_records_and_items_keep_every_character(store: Store) -> None:
    text = "안녕하세요 🎉👩‍👩‍👧 \u2028 \x00 é"
    event = f'{{"delta":"{text}"}}'.encode()
    odd = bytes(range(1, 10)) + b"\xff\xfe" + bytes(range(11, 256))
    await store.create(make_meta(), "node-1")

    await store.append(
        [make_append(1, [event, odd], records=[event, odd], saved=[make_placed("항목🎈", 0.1, text)], config=odd)]
    )

    assert await read_events(store) == [event, odd]
    assert await take_records(store) == [event, odd]
    loaded = await store.claim(SESSION, "node-2")
    assert loaded.items == (make_placed("항목🎈", 0.1, text),)
    assert loaded.config == odd


async def test_large_events_and_numbers_are_kept(store: Store) -> None:
    await store.create(make_meta(), "node-1")
    events = [b"x" * 300_000, *(f"{number}".encode() for number in range(3000))]

    await store.append([make_append(1, events, at_ms=9_999_999_999_999)])
    await store.append([make_append(3002)])

    whole, last = await store.journal(SESSION, 0, 10)
    assert whole.events == tuple(events)
    assert (whole.first_sequence, whole.at_ms, last.first_sequence) == (1, 9_999_999_999_999, 3002)


async def test_items_come_back_by_rank_without_the_dropped_ones(store: Store) -> None:
    await store.create(make_meta(), "node-1")
    await store.append([make_append(1, saved=[make_placed(f"item_{rank}", rank) for rank in (3.0, -1.5, 10.0, 2.25)])])

    await store.append([make_append(2, saved=[make_placed("item_3.0", 2.125, "moved")], dropped=["item_10.0"])])
    await store.append([make_append(3, saved=[make_placed("item_2.25", 9.0, "again")], dropped=["item_2.25"])])

    items = (await store.claim(SESSION, "node-2")).items
    assert [placed.item.id for placed in items] == ["item_-1.5", "item_3.0", "item_2.25"]
    assert items[1] == make_placed("item_3.0", 2.125, "moved")


async def test_the_journal_pages_and_gives_a_cut_entry_whole(store: Store) -> None:
    await store.create(make_meta(), "node-1")
    await store.append([make_append(1, [b"1", b"2", b"3"], at_ms=100)])
    await store.append([make_append(4, [b"4"], at_ms=200)])
    await store.append([make_append(5, [b"5", b"6"], at_ms=300)])

    async def page(after: int, limit: int) -> list[tuple[int, int, tuple[bytes, ...]]]:
        return [
            (entry.first_sequence, entry.at_ms, entry.events) for entry in await store.journal(SESSION, after, limit)
        ]

    first, second, third = (1, 100, (b"1", b"2", b"3")), (4, 200, (b"4",)), (5, 300, (b"5", b"6"))
    assert await page(0, 10) == [first, second, third]
    assert await page(2, 2) == [first, second]
    assert await page(3, 10) == [second, third]
    assert await page(5, 10) == [third]
    assert await page(6, 10) == []
    assert await store.journal(OTHER, 0, 10) == []


async def test_trim_forgets_only_what_is_archived(store: Store) -> None:
    await store.create(make_meta(), "node-1")
    for first in (1, 3, 5):
        await store.append([make_append(first, [b"a", b"b"])])

    await store.trim(SESSION, 4, final=False)
    await store.trim(SESSION, 2, final=False)

    assert [entry.first_sequence for entry in await store.journal(SESSION, 0, 10)] == [5]
    loaded = await store.claim(SESSION, "node-2")
    assert (loaded.archived_sequence, loaded.next_sequence) == (4, 7)


async def test_a_final_trim_keeps_events_that_were_added_after_the_archive(store: Store) -> None:
    """P3: a session that was resumed meanwhile loses nothing."""
    await store.create(make_meta(), "node-1")
    await store.append([make_append(1, [b"1", b"2"])])
    await store.append([make_append(3, [b"3"])])

    await store.trim(SESSION, 2, final=True)

    assert await read_events(store) == [b"3"]


async def test_a_session_goes_on_after_everything_was_archived(store: Store) -> None:
    await store.create(make_meta(), "node-1")
    await store.append([make_append(1, [b"1", b"2"])])
    await store.trim(SESSION, 2, final=True)
    loaded = await store.claim(SESSION, "node-2")

    status = await store.append([make_append(loaded.next_sequence, [b"3"], epoch=loaded.epoch)])

    assert status == ["ok"]
    assert [(entry.first_sequence, entry.events) for entry in await store.journal(SESSION, 0, 10)] == [(3, (b"3",))]


async def test_records_are_taken_once_in_order_and_acknowledged(store: Store) -> None:
    await store.enqueue([b"1", b"2", b"3"])

    first = await store.take("writer-1", 2, 0)
    second = await store.take("writer-2", 2, 0)
    before = await store.lag()
    await store.acknowledge([delivery.receipt for delivery in (*first, *second)])

    assert [delivery.record for delivery in first] == [b"1", b"2"]
    assert [delivery.record for delivery in second] == [b"3"]
    assert {delivery.num_deliveries for delivery in (*first, *second)} == {1}
    assert before.pending == 3
    assert (await store.lag()).pending == 0
    assert await store.reclaim("writer-1", 10, 0) == []
    await store.acknowledge([])
    await store.enqueue([])


async def test_what_is_not_acknowledged_is_reclaimed_and_counted(store: Store) -> None:
    """P3: a crash of the writer redelivers."""
    await store.enqueue([b"1", b"2", b"3"])
    taken = await store.take("writer-1", 2, 0)
    await store.acknowledge([taken[0].receipt])

    once = await store.reclaim("writer-2", 10, 0)
    busy = await store.reclaim("writer-3", 10, 60)
    twice = await store.reclaim("writer-2", 10, 0)

    assert [(delivery.record, delivery.num_deliveries) for delivery in once] == [(b"2", 2)]
    assert busy == []
    assert [(delivery.record, delivery.num_deliveries) for delivery in twice] == [(b"2", 3)]
    assert await take_records(store) == [b"3"]
    assert len(await store.reclaim("writer-2", 1, 0)) == 1


async def test_a_buried_record_is_a_dead_letter_and_no_longer_in_the_outbox(store: Store) -> None:
    await store.enqueue([b"poison", b"good"])
    poison, _ = await store.take("writer-1", 2, 0)

    await store.bury(poison, "errno 4025: 값")
    await store.bury(poison, "errno 4025: 값")

    lag = await store.lag()
    assert (lag.pending, lag.dead) == (1, 1)
    assert [delivery.record for delivery in await store.reclaim("writer-2", 10, 0)] == [b"good"]


async def test_lag_is_the_age_of_the_oldest_record(store: Store) -> None:
    empty = await store.lag()
    await store.enqueue([b"1"])
    # The stores take the time of their own clock, in milliseconds: let it tick.
    while (await store.lag()).oldest_s == 0:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    await store.enqueue([b"2"])
    (first,) = await store.take("writer-1", 1, 0)
    taken = await store.lag()
    await store.acknowledge([first.receipt])

    assert (empty.pending, empty.oldest_s, empty.dead) == (0, 0, 0)
    assert taken.pending == 2
    assert taken.oldest_s > 0
    assert (await store.lag()).pending == 1


@pytest.mark.parametrize("by_append", [True, False])
async def test_take_wakes_when_a_record_arrives(store: Store, by_append: bool) -> None:
    await store.create(make_meta(), "node-1")

    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        taken = tasks.create_task(store.take("writer-1", 10, 60))
        await asyncio.sleep(0)
        if by_append:
            await store.append([make_append(1, records=[b"record"])])
        else:
            await store.enqueue([b"record"])

    assert [delivery.record for delivery in taken.result()] == [b"record"]


async def test_take_gives_up_after_its_wait(store: Store) -> None:
    async with asyncio.timeout(5):
        assert await store.take("writer-1", 10, 0.05) == []
        assert await store.take("writer-1", 10, 0) == []


async def test_a_cancelled_take_holds_nothing_and_loses_nothing(store: Store) -> None:
    waiting = asyncio.ensure_future(store.take("writer-1", 10, 60))
    await asyncio.sleep(0.05)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting

    await store.enqueue([b"record"])
    async with asyncio.timeout(5):
        taken = await store.take("writer-2", 10, 5) or await store.reclaim("writer-2", 10, 0)

    assert [delivery.record for delivery in taken] == [b"record"]
