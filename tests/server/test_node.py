"""What becomes of sessions that a node may not have any more, or cannot store, and of its lease meanwhile. P3, P4, P6."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from server.live import LiveSession
from sessions import sqlite_transactions
from sessions.config import ResumptionOptions, SessionConfig
from sessions.errors import StoreUnavailable
from sessions.records import ArchiveRecord, Record, SessionRecord
from sessions.store import Append, AppendStatus, LoadedSession
from tests.server.house import House, Limits, Screen, ask, open_house, send, turns, until
from tests.sessions.builders import user_item

RESUMABLE = SessionConfig(model="demo", resumption=ResumptionOptions(enabled=True))
MOVED = (1013, "the session has moved; resume again")
SUPERSEDED = (4001, "superseded by another connection")


async def seen(session: LiveSession, screen: Screen) -> int:
    """The number of the last event of an answer that the client has whole."""
    ask(session, "[echo before]")
    number: int = (await screen.until("response.done"))["sequence_number"]
    return number


@pytest.fixture
async def heirs(house: House) -> AsyncIterator[House]:
    """A second node on the same store, which adopts what the first has, once a test has stopped its heart."""
    async with open_house(house.store, Limits(), name="node-2") as heirs:
        yield heirs


async def adopted(house: House, heirs: House, session: LiveSession) -> None:
    """The first node misses its lease, though its client is still connected."""
    house.stop_beating()
    await until(lambda: heirs.node.find(session.session_id) is not None)


async def told(house: House, session: LiveSession, by: str) -> None:
    """The first node learns of it."""
    if by == "news":
        await house.node._renew()
    else:
        ask(session, "[echo anybody there?]")


# Taken by another node


@pytest.mark.parametrize("by", ["news", "append"])
async def test_a_client_whose_session_was_adopted_is_asked_to_come_back(house: House, heirs: House, by: str) -> None:
    """P4: it never left, and no other connection has its session."""
    session, first = await house.open(RESUMABLE)
    last = await seen(session, first)
    await adopted(house, heirs, session)

    await told(house, session, by)
    closed = await first.until_closed()
    resumed, second = await heirs.resume(session, after=last)
    ask(resumed, "[echo still here]")
    done = await second.until("response.done")

    assert closed == MOVED
    assert second.events[0]["session"]["resumption"] == {"enabled": True, "resumed": True, "gap": False}
    assert done["response"]["status"] == "completed"


@pytest.mark.parametrize("by", ["news", "append"])
async def test_a_client_whose_session_another_connection_has_after_its_adoption_is_not(
    house: House, heirs: House, by: str
) -> None:
    """P4: the two would take it from each other for ever."""
    session, first = await house.open(RESUMABLE)
    last = await seen(session, first)
    await adopted(house, heirs, session)
    moved = await house.store.claim(session.session_id, "node-3", user_id="한나", client_id="kiosk")
    await house.store.claim(session.session_id, "node-4")

    await told(house, session, by)

    assert await first.until_closed() == SUPERSEDED
    assert moved.next_sequence > last


async def test_a_client_is_asked_to_come_back_when_nobody_knows_who_has_its_session(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P4, P9: a code that is never retried would end the conversation."""
    session, screen = await house.open(RESUMABLE)

    async def unanswered(session_id: str, since: str) -> bool:
        raise StoreUnavailable("the store is away")

    monkeypatch.setattr(house.store, "is_adopted", unanswered)
    await house.store.claim(session.session_id, "node-2", user_id="한나")
    ask(session, "[echo hi]")

    assert await screen.until_closed() == MOVED


async def test_a_session_that_was_taken_does_nothing_more_while_its_client_is_told(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P4, P7: what a client sends until its connection is closed must start no answer that nobody would stop."""
    session, screen = await house.open(RESUMABLE)
    is_adopted, asked, gate = house.store.is_adopted, asyncio.Event(), asyncio.Event()

    async def answer_later(session_id: str, since: str) -> bool:
        asked.set()
        await gate.wait()
        return await is_adopted(session_id, since)

    monkeypatch.setattr(house.store, "is_adopted", answer_later)
    await house.store.claim(session.session_id, "node-2")
    send(session, "conversation.item.create", item=user_item("fenced"))
    await asked.wait()
    ask(session, "[echo late]")
    await turns(10)
    gate.set()

    assert await screen.until_closed() == MOVED
    assert house.engine.num_chunks == 0


async def test_a_node_that_cannot_ask_whether_a_session_was_taken_claims_it_anew(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P6: it may be its own, and the news come only once."""
    session, screen = await house.open(RESUMABLE)
    renew, epoch = house.store.renew, house.store.epoch
    news = [session.session_id]

    async def renew_with_news(owner: str, lease_s: float) -> list[str]:
        taken = await renew(owner, lease_s)
        return [*taken, news[0]] if news else taken

    async def unanswered_once(session_id: str) -> str | None:
        if news:
            news.clear()
            raise StoreUnavailable("the store is away")
        return await epoch(session_id)

    monkeypatch.setattr(house.store, "epoch", unanswered_once)
    monkeypatch.setattr(house.store, "renew", renew_with_news)
    closed = await screen.until_closed()
    await until(lambda: house.node.find(session.session_id) not in (None, session))
    resumed, second = await house.resume(session, after=1)
    ask(resumed, "[echo back]")

    assert closed[0] == 1013
    assert (await second.until("response.done"))["response"]["status"] == "completed"


# Too large, and refused again


async def overflow(house: House, session: LiveSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """More waits for the store than it takes at once, and as that is refused the next is on its way."""
    append = house.store.append

    async def append_and_send(batch: Sequence[Append]) -> list[AppendStatus]:
        statuses = await append(batch)
        if "too_large" in statuses:
            send(session, "conversation.item.create", item=user_item("too late"))
        return statuses

    monkeypatch.setattr(house.store, "append", append_and_send)
    monkeypatch.setattr(sqlite_transactions, "MAX_PART_BYTES", 20_000)
    with house.store.stalled():
        send(session, "conversation.item.create", item=user_item("on its way"))
        await turns(3)
        for _ in range(20):
            send(session, "conversation.item.create", item=user_item("y" * 900))


async def test_a_part_that_is_too_large_costs_the_connection_and_nothing_that_was_stored(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P3, P8: the store has lost nothing, and is not written anew."""
    session, first = await house.open(RESUMABLE)
    last = await seen(session, first)
    before = await house.stored_events(session)

    await overflow(house, session, monkeypatch)
    closed = await first.until_closed()
    await until(lambda: house.node.find(session.session_id) not in (None, session))
    after = await house.stored_events(session)
    resumed, second = await house.resume(session, after=last)
    ask(resumed, "[echo still here]")
    await second.until("response.done")

    assert closed == (1009, "more was sent at once than can be stored")
    assert after[: len(before)] == before
    assert second.events[0]["session"]["resumption"] == {"enabled": True, "resumed": True, "gap": False}


async def test_a_session_whose_part_was_too_large_ends_and_is_archived_whole(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P6, P8."""
    session, screen = await house.open()
    ask(session, "[echo before]")
    await screen.until("response.done")
    records: list[Record] = []

    await overflow(house, session, monkeypatch)
    async with asyncio.timeout(20):
        while not any(isinstance(record, ArchiveRecord) for record in records):
            records += await house.records()
    archive = next(record for record in records if isinstance(record, ArchiveRecord))

    assert screen.closed is not None
    assert [record.status for record in records if isinstance(record, SessionRecord)][-1] == "ended"
    assert (archive.forgotten_sequence, archive.final) == (0, True)
    assert archive.last_sequence == len(await house.stored_events(session))


async def test_a_session_that_the_store_refuses_once_it_was_written_back_is_claimed_anew(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P6: this node owns it still, and no other would adopt it."""
    session, first = await house.open(RESUMABLE)
    append = house.store.append

    async def refuse(batch: Sequence[Append]) -> list[AppendStatus]:
        return await append(batch) if first.closed else ["gap"] * len(batch)

    monkeypatch.setattr(house.store, "append", refuse)
    ask(session, "[echo hi]")
    closed = await first.until_closed()
    await until(lambda: house.node.find(session.session_id) not in (None, session))
    resumed, second = await house.resume(session, after=1)
    ask(resumed, "[echo still here]")

    assert closed[0] == 1013
    assert (await second.until("response.done"))["response"]["status"] == "completed"


# The lease


async def test_the_lease_is_kept_while_sessions_are_adopted(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """P4: else the heir of one node is taken for dead as well, and the next, and the next."""
    renew, adopting, gate, num_renewals = house.store.renew, asyncio.Event(), asyncio.Event(), 0

    async def adopt_for_long(owner: str, limit: int) -> list[LoadedSession]:
        adopting.set()
        await gate.wait()
        return []

    async def renew_and_count(owner: str, lease_s: float) -> list[str]:
        nonlocal num_renewals
        taken = await renew(owner, lease_s)
        num_renewals += adopting.is_set()
        return taken

    monkeypatch.setattr(house.store, "adopt", adopt_for_long)
    monkeypatch.setattr(house.store, "renew", renew_and_count)
    await until(lambda: num_renewals >= 5)

    gate.set()


async def test_a_renewal_that_is_not_answered_keeps_no_other_waiting(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P4: a call to the store may take longer than the lease lasts."""
    renew, gate, num_renewals = house.store.renew, asyncio.Event(), 0

    async def renew_but_once(owner: str, lease_s: float) -> list[str]:
        nonlocal num_renewals
        num_renewals += 1
        if num_renewals == 1:
            await gate.wait()
        return await renew(owner, lease_s)

    monkeypatch.setattr(house.store, "renew", renew_but_once)
    await until(lambda: num_renewals >= 5)

    gate.set()


async def test_nobody_adopts_before_its_own_lease_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """P4: who was cut off itself would take the others for dead."""
    async with open_house(tmp_path / "sessions.db", Limits(lease_s=0.05)) as house:
        renew, adopt = house.store.renew, house.store.adopt
        order: list[str] = []

        async def renew_and_tell(owner: str, lease_s: float) -> list[str]:
            taken = await renew(owner, lease_s)
            order.append("renewed")
            return taken

        async def adopt_and_tell(owner: str, limit: int) -> list[LoadedSession]:
            order.append("adopts")
            found = await adopt(owner, limit)
            order.append("adopted")
            return found

        monkeypatch.setattr(house.store, "renew", renew_and_tell)
        monkeypatch.setattr(house.store, "adopt", adopt_and_tell)
        await until(lambda: order.count("adopts") >= 5)

    since_adoption = "".join({"adopted": "|", "adopts": "a", "renewed": "r"}[step] for step in order).split("|")
    assert all("ra" in steps for steps in since_adoption[1:-1])
