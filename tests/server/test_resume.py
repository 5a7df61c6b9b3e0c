"""Coming back: on the same node, on another, to a session that was restored, and to one that is another's. P2, P4."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from structlog.testing import capture_logs

from server.live import LiveSession
from sessions.config import ResumptionOptions, SessionConfig
from sessions.errors import SessionNotFound, StoreUnavailable
from sessions.records import ArchiveRecord, PredictionRecord, SessionRecord
from sessions.state import DialogueState, encode_state
from sessions.store import Append, JournalEntry, LoadedSession, SessionMeta
from tests.server.house import House, Limits, Screen, ask, open_house, response_done, send, turns, until
from tests.sessions.builders import NOW_MS, Json, kinds, user_item

RESUMABLE = SessionConfig(model="demo", resumption=ResumptionOptions(enabled=True))
DELTA = "response.output_text.delta"


def numbers(events: list[Json]) -> list[int]:
    return [event["sequence_number"] for event in events]


def text_of(*screens: Screen) -> str:
    return "".join(event["delta"] for screen in screens for event in screen.events if event["type"] == DELTA)


def drop(house: House, screen: Screen) -> None:
    """The client's connection is gone, not by its choice."""
    for session in house.sessions:
        session.lost(screen, by_choice=False)


@pytest.fixture
async def others(tmp_path: Path, house: House) -> AsyncIterator[House]:
    """A second node on the same store."""
    async with open_house(house.store, Limits(), name="node-2") as others:
        yield others


@pytest.mark.parametrize("cut", [0, 1, 7, 19])
async def test_a_client_that_comes_back_gets_what_it_missed_and_then_what_is_new(house: House, cut: int) -> None:
    session, first = await house.open(RESUMABLE)
    ask(session, "[pace 300] [tokens 20]")
    await first.until(DELTA, cut) if cut else await first.until("response.created")

    drop(house, first)
    seen = first.events[-1]["sequence_number"]
    await turns(50)
    _, second = await house.resume(session, after=seen)
    # On a busy machine the end may have come before the cut.
    done = await (first if "response.done" in kinds(first.events) else second).until("response.done")

    assert second.events[0]["session"]["resumption"] == {"enabled": True, "resumed": True, "gap": False}
    assert second.events[0]["sequence_number"] == seen
    assert numbers(first.events + second.events[1:]) == list(range(1, len(first.events + second.events)))
    assert done["response"]["status"] == "completed"
    assert text_of(first, second) == done["response"]["output"][0]["content"][0]["text"]


async def test_missed_events_come_unchanged(house: House) -> None:
    session, first = await house.open(RESUMABLE)
    ask(session, "[tokens 20]")
    await first.until("response.done")

    _, second = await house.resume(session, after=3)
    await second.until("response.done")

    assert second.payloads[1:] == first.payloads[3:]


async def test_whoever_was_there_before_is_closed(house: House) -> None:
    session, first = await house.open(RESUMABLE)

    _, second = await house.resume(session, after=1)
    ask(session, "[echo hi]")
    await second.until("response.done")

    assert first.closed == (4001, "superseded by another connection")
    assert second.closed is None
    assert kinds(first.events) == ["session.created"]


async def test_the_end_of_a_superseded_connection_does_not_end_the_session(house: House) -> None:
    session, first = await house.open(RESUMABLE)
    _, second = await house.resume(session, after=1)

    session.lost(first, by_choice=True)
    ask(session, "[echo hi]")

    assert (await second.until("response.done"))["response"]["status"] == "completed"


@pytest.mark.parametrize("after", [4711, 99])
async def test_a_number_that_was_never_given_is_a_gap_and_the_history_comes_as_items(house: House, after: int) -> None:
    session, first = await house.open(RESUMABLE)
    ask(session, "[echo hi]")
    await first.until("response.done")
    last = first.events[-1]["sequence_number"]

    _, second = await house.resume(session, after=after)
    ask(session, "[echo again]")
    await second.until("response.done")

    greeting = second.events[: kinds(second.events).index("conversation.item.added", 5)]
    assert greeting[0]["session"]["resumption"] == {"enabled": True, "resumed": False, "gap": True}
    assert kinds(greeting[1:5]) == ["conversation.item.added", "conversation.item.done"] * 2
    assert set(numbers(greeting)) == {last}
    assert [event["item"]["role"] for event in greeting[1:5:2]] == ["user", "assistant"]
    assert numbers(second.events[5:]) == list(range(last + 1, last + 1 + len(second.events[5:])))


async def test_nobody_else_may_come_back(house: House) -> None:
    session, _ = await house.open(RESUMABLE)

    for user_id, client_id in (("other", "kiosk"), ("한나", "other")):
        with pytest.raises(SessionNotFound):
            await house.node.resume(session.session_id, user_id=user_id, client_id=client_id)
    with pytest.raises(SessionNotFound):
        await house.node.resume("sess_unknown", user_id="한나", client_id="kiosk")

    assert session in house.node


async def test_a_token_of_another_person_or_for_another_digital_human_takes_no_session_from_its_node(
    tmp_path: Path,
) -> None:
    """P7."""
    async with (
        open_house(tmp_path / "sessions.db", Limits(lease_s=600)) as house,
        open_house(house.store, Limits(lease_s=600), name="node-2") as others,
    ):
        session, first = await house.open(RESUMABLE)

        for user_id, client_id in (("eve", "kiosk"), ("한나", "other")):
            with pytest.raises(SessionNotFound):
                await others.node.resume(session.session_id, user_id=user_id, client_id=client_id)
        epoch = await house.store.epoch(session.session_id)
        ask(session, "[echo still here]")
        done = await first.until("response.done")

        assert (epoch, others.node.num_sessions) == (session.epoch, 0)
        assert (done["response"]["status"], first.closed) == ("completed", None)


async def test_a_strangers_claim_is_no_answer_to_the_sessions_own_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P4, P7: they come at once, to a node where the session does not live."""
    async with (
        open_house(tmp_path / "sessions.db", Limits(lease_s=600)) as house,
        open_house(house.store, Limits(lease_s=600), name="node-2") as others,
    ):
        session, _ = await house.open(RESUMABLE)
        claim, gate = house.store.claim, asyncio.Event()

        async def claim_later(session_id: str, owner: str, **whose: str) -> LoadedSession:
            await gate.wait()
            return await claim(session_id, owner, **whose)

        async def resume(session_id: str, user_id: str, client_id: str) -> LiveSession | SessionNotFound:
            try:
                return await others.node.resume(session_id, user_id=user_id, client_id=client_id)
            except SessionNotFound as error:
                return error

        monkeypatch.setattr(house.store, "claim", claim_later)
        comers = [(session.session_id, "eve", "kiosk"), (session.session_id, "한나", "other")]
        comers += [(session.session_id, "한나", "kiosk")] * 2 + [("sess_unknown", "eve", "kiosk")]
        resuming = [asyncio.create_task(resume(*comer)) for comer in comers]
        await turns(1)
        gate.set()
        eve, other, own, own_again, unknown = await asyncio.gather(*resuming)
        back, screen = await others.resume(session, after=1)
        ask(back, "[echo back]")

        assert [type(refused) for refused in (eve, other, unknown)] == [SessionNotFound] * 3
        assert (own, own_again, back.epoch) == (back, back, "2.node-2")
        assert (await screen.until("response.done"))["response"]["status"] == "completed"


async def test_a_strangers_claim_does_not_make_a_node_forget_a_session_that_it_gave_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P6, P7: no other node would adopt it."""
    async with open_house(tmp_path / "sessions.db", Limits(lease_s=600), patience_s=0.1) as house:
        session, first = await house.open(RESUMABLE)
        house.engine.hold(after=3)
        ask(session, "[pace 300] [tokens 30]")
        await first.until(DELTA, 3)
        with house.store.away():
            house.engine.release()
            await first.until_closed()
        claim, gate = house.store.claim, asyncio.Event()

        async def claim_later(session_id: str, owner: str, **whose: str) -> LoadedSession:
            if whose:
                await gate.wait()
            return await claim(session_id, owner, **whose)

        monkeypatch.setattr(house.store, "claim", claim_later)
        eve = asyncio.create_task(house.node.resume(session.session_id, user_id="eve", client_id="kiosk"))
        await turns(1)
        await house.node._take_over()
        gate.set()
        [refused] = await asyncio.gather(eve, return_exceptions=True)

        assert isinstance(refused, SessionNotFound)
        assert house.node.find(session.session_id) is not None
        assert (await response_done(house, session))["status"] == "completed"


async def test_a_client_that_says_goodbye_ends_its_answer_at_once(house: House) -> None:
    session, first = await house.open(RESUMABLE)
    ask(session, "[slow]")
    await first.until(DELTA)

    session.lost(first, by_choice=True)
    await house.journal.flush()

    assert session not in house.node
    predictions = [record for record in await house.records() if isinstance(record, PredictionRecord)]
    assert [(record.status, record.status_reason) for record in predictions] == [("cancelled", "client_closed")]


async def test_the_grace_ends_the_answer_and_the_session_can_still_be_resumed(tmp_path: Path) -> None:
    async with open_house(tmp_path / "sessions.db", Limits(resume_grace_s=0.05)) as house:
        session, first = await house.open(RESUMABLE)
        ask(session, "[slow]")
        await first.until(DELTA)

        drop(house, first)
        await until(lambda: session not in house.node)
        await house.journal.flush()
        resumed, second = await house.resume(session, after=first.events[-1]["sequence_number"])
        done = await second.until("response.done")
        ask(resumed, "[echo again]")
        again = await second.until("response.done", 2)

    assert (done["response"]["status"], again["response"]["status"]) == ("cancelled", "completed")
    assert numbers(first.events + second.events[1:]) == list(range(1, len(first.events + second.events)))


async def test_without_resumption_a_session_ends_with_its_connection(house: House) -> None:
    """P1."""
    session, screen = await house.open()

    drop(house, screen)
    await house.journal.flush()

    assert session not in house.node
    records = [record for record in await house.records() if isinstance(record, SessionRecord)]
    assert records[-1].status == "ended"


@pytest.mark.parametrize("cut", [1, 8, 19])
async def test_another_node_goes_on_with_the_answer_where_it_was(house: House, others: House, cut: int) -> None:
    """The first node is stuck; it may write no more."""
    session, first = await house.open(RESUMABLE)
    undisturbed, plain = await house.open()
    ask(session, "[pace 300] [tokens 20]")
    ask(undisturbed, "[pace 300] [tokens 20]")
    seen_last = await first.until(DELTA, cut)

    # Not after the last event: on a busy machine the end may have come with the cut.
    _, second = await others.resume(session, after=seen_last["sequence_number"])
    done = await second.until("response.done")
    expected = await plain.until("response.done")

    assert await first.until_closed() == (4001, "superseded by another connection")
    del first.events[second.events[0]["sequence_number"] :]  # what was committed between the two comes again
    seen = {event["sequence_number"]: event["event_id"] for event in first.events + second.events[1:]}
    assert list(seen) == list(range(1, len(seen) + 1)), "a gap or an overlap"
    assert text_of(first, second) == text_of(plain)
    assert done["response"]["id"] == (await first.until("response.created"))["response"]["id"]
    assert done["response"]["usage"] == expected["response"]["usage"]
    assert kinds(first.events + second.events).count("response.output_item.added") == 1
    assert house.engine.capacity().running == 0
    stored = [msgspec.json.decode(event)["event_id"] for event in await others.stored_events(session)]
    assert stored == list(seen.values())


async def test_sessions_of_an_owner_that_is_gone_are_adopted_and_their_answers_go_on(
    house: House, tmp_path: Path
) -> None:
    """With no client at all (P6)."""
    session, first = await house.open(RESUMABLE)
    other, plain = await house.open()
    house.engine.hold(after=3)
    for asked in (session, other):
        ask(asked, "[pace 100] [tokens 20]")
    await asyncio.gather(first.until(DELTA), plain.until(DELTA))
    house.stop_beating()

    async with open_house(house.store, Limits(), name="node-2") as others:
        done = await response_done(others, session)
        failed = await response_done(others, other)
        adopted = others.node.num_sessions

    assert done["status"] == "completed"
    assert failed["status"] == "failed", "nobody can come back to it"
    assert adopted == 1


async def test_sessions_that_were_adopted_as_the_store_went_away_go_on_once_it_is_back(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P6: they are this node's by then, and no other would adopt them."""
    opened = [await house.open(RESUMABLE) for _ in range(3)]
    house.engine.hold(after=3)
    for session, _ in opened:
        ask(session, "[pace 100] [tokens 20]")
    await asyncio.gather(*(screen.until(DELTA) for _, screen in opened))
    house.stop_beating()
    read, num_reads = house.store.journal, 0

    async def read_all_but_first(session_id: str, after: int, limit: int) -> list[JournalEntry]:
        nonlocal num_reads
        num_reads += after > 0
        if after > 0 and num_reads == 1:
            raise StoreUnavailable("the store is away")
        return await read(session_id, after, limit)

    monkeypatch.setattr(house.store, "journal", read_all_but_first)
    async with open_house(house.store, Limits(), name="node-2") as others:
        done = [await response_done(others, session) for session, _ in opened]

    assert [response["status"] for response in done] == ["completed"] * 3
    assert num_reads > 3


async def test_a_node_that_stops_leaves_its_open_answers_to_the_next(house: House, others: House) -> None:
    session, first = await house.open(RESUMABLE)
    house.engine.hold(after=5)
    ask(session, "[pace 200] [tokens 30]")
    await first.until(DELTA, 5)

    house.node.shut_down()
    await house.journal.flush()
    await house.node.surrender()
    _, second = await others.resume(session, after=first.events[-1]["sequence_number"])
    done = await second.until("response.done")

    assert first.closed == (1012, "the server restarts")
    assert done["response"]["status"] == "completed"
    assert numbers(first.events + second.events[1:]) == list(range(1, len(first.events + second.events)))


async def test_a_store_that_came_back_empty_is_given_the_conversation_again(house: House) -> None:
    """P9: the connected client notices nothing; the window before is declared gone to one that comes back."""
    session, first = await house.open(RESUMABLE)
    ask(session, "[echo before]")
    last = (await first.until("response.done"))["sequence_number"]

    await house.store.forget_everything()
    ask(session, "[pace 300] [tokens 20]")
    await first.until("response.done", 2)
    _, second = await house.resume(session, after=2)
    greeting = await second.until("session.created")

    assert numbers(first.events) == list(range(1, len(first.events) + 1))
    assert greeting["session"]["resumption"] == {"enabled": True, "resumed": False, "gap": True}
    assert kinds(second.events)[1:] == ["conversation.item.added", "conversation.item.done"] * 4
    session.end("disconnected")
    await house.journal.flush()
    archive = (await house.records())[-1]
    assert isinstance(archive, ArchiveRecord)
    assert archive.forgotten_sequence == last


async def test_while_the_store_is_away_new_turns_are_refused_and_the_answer_goes_on_later(house: House) -> None:
    """P9."""
    session, screen = await house.open(RESUMABLE)
    house.engine.hold(after=3)
    ask(session, "[pace 300] [tokens 30]")
    await screen.until(DELTA)
    with house.store.away():
        house.engine.release()
        await until(lambda: house.journal.failure() is not None)
        send(session, "conversation.item.create", item=user_item("now?"), event_id="mine")
        refused = await screen.until("error")

    done = await screen.until("response.done")

    assert (refused["error"]["type"], refused["error"]["event_id"]) == ("server_error", "mine")
    assert "sequence_number" not in refused
    assert "again" in refused["error"]["message"]
    assert done["response"]["status"] == "completed"
    ask(session, "[echo there]")
    assert (await screen.until("response.done", 2))["response"]["status"] == "completed"


async def test_a_store_that_stays_away_costs_the_connection_and_not_the_conversation(tmp_path: Path) -> None:
    """P3, P9."""
    async with open_house(tmp_path / "sessions.db", Limits(), patience_s=0.1) as house:
        session, first = await house.open(RESUMABLE)
        house.engine.hold(after=3)
        ask(session, "[pace 300] [tokens 30]")
        await first.until(DELTA, 3)
        with house.store.away():
            house.engine.release()
            closed = await first.until_closed()

        _, second = await house.resume(session, after=first.events[-1]["sequence_number"])
        done = await second.until("response.done")

    assert closed[0] == 1013
    assert done["response"]["status"] == "completed"
    assert numbers(first.events + second.events[1:]) == list(range(1, len(first.events + second.events)))


async def test_a_full_outbox_refuses_new_turns_and_drops_nothing(tmp_path: Path) -> None:
    """P3, P9."""
    async with open_house(tmp_path / "sessions.db", Limits(max_outbox_records=3)) as house:
        session, screen = await house.open(RESUMABLE)
        ask(session, "[echo one]")
        await screen.until("response.done")
        await until(lambda: house.node.refusal is not None)

        ask(session, "[echo two]")
        error = await screen.until("error")

        assert error["error"]["type"] == "server_error"
        assert "sequence_number" in error
        assert len(await house.records()) == 3


async def test_a_session_whose_owner_died_before_its_first_event_is_closed_down(house: House) -> None:
    """P6: nobody knows of it, and it must not stay for ever."""
    meta = SessionMeta("sess_stillborn", "한나", "kiosk", "demo", NOW_MS)
    await house.store.create(meta, "node-that-died")

    async with asyncio.timeout(20):
        while not (records := [r for r in await house.records() if isinstance(r, SessionRecord)]):  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    assert [(record.session_id, record.status) for record in records] == [("sess_stillborn", "ended")]
    assert house.node.num_sessions == 0


async def test_of_two_claims_of_one_session_the_later_lives_whichever_is_heard_of_first(house: House) -> None:
    """P4: a resume and an adoption may meet."""
    # Who has no lease is dead, and the node would adopt the session while the test still makes it.
    await house.store.renew("node-0", 600)
    await house.store.create(SessionMeta("sess_twice", "한나", "kiosk", "demo", NOW_MS), "node-0")
    state = encode_state(DialogueState(RESUMABLE))
    await house.store.append([Append("sess_twice", "1.node-0", 1, NOW_MS, [b"{}"], [], {}, [], state, ends=True)])
    earlier = await house.store.claim("sess_twice", "node-1")
    session = await house.node.resume("sess_twice", user_id="한나", client_id="kiosk")

    await house.node._adopt(earlier)
    screen = Screen()
    session.attach(screen, after=1)
    send(session, "session.update", session={"type": "realtime", "instructions": "still mine"})

    assert session in house.node
    assert (await screen.until("session.updated"))["session"]["instructions"] == "still mine"


async def test_a_client_that_goes_away_and_comes_back_finds_no_stale_session(house: House, others: House) -> None:
    """P4: the first node has not noticed yet that it was left for another."""
    house.stop_beating()
    # Else its lease lapses, and on a slow machine the session is adopted from it once more before its answer is over.
    await house.store.renew(house.node.name, 600)
    session, first = await house.open(RESUMABLE)
    drop(house, first)
    moved, second = await others.resume(session, after=1)
    ask(moved, "[echo elsewhere]")
    done = await second.until("response.done")
    moved.lost(second, by_choice=False)

    back, third = await house.resume(session, after=done["sequence_number"])
    ask(back, "[echo back]")
    await third.until("response.done")

    assert third.events[0]["session"]["resumption"] == {"enabled": True, "resumed": True, "gap": False}
    assert numbers(first.events + second.events[1:] + third.events[1:]) == list(
        range(1, len(first.events + second.events + third.events) - 1)
    )
    assert back is not session


async def test_a_window_that_was_forgotten_meanwhile_is_declared_to_whoever_resumes_next(house: House) -> None:
    """P4: a late writer trims what it archived after the session was resumed."""
    session, first = await house.open(RESUMABLE)
    ask(session, "[echo hi]")
    last = (await first.until("response.done"))["sequence_number"]
    await house.store.trim(session.session_id, last, final=False)

    resumed = await house.node.resume(session.session_id, user_id="한나", client_id="kiosk")
    second = Screen()
    resumed.attach(second, after=2)
    closed = await second.until_closed()
    _, third = await house.resume(session, after=2)

    assert closed[0] == 1013
    assert third.events[0]["session"]["resumption"] == {"enabled": True, "resumed": False, "gap": True}


async def test_a_session_that_was_given_up_is_not_taken_from_the_node_where_its_client_went_on(
    tmp_path: Path,
) -> None:
    """P4, P9."""
    async with (
        # No lease lapses of itself, however slow the machine: node-2 lives, and only a claim takes a session from another.
        open_house(tmp_path / "sessions.db", Limits(lease_s=600), patience_s=0.1) as house,
        open_house(house.store, Limits(lease_s=600), name="node-2") as others,
    ):
        session, first = await house.open(RESUMABLE)
        house.stop_beating()
        with house.store.away():
            ask(session, "[echo lost]")
            await first.until_closed()
        moved, second = await others.resume(session, after=1)

        await house.node._take_over()
        ask(moved, "[echo still here]")
        await second.until("response.done")

    assert second.closed is None
    assert session not in house.node


async def test_a_session_that_cannot_be_read_costs_nobody_else_anything(house: House) -> None:
    """P7."""
    bystander, screen = await house.open()
    await house.store.create(SessionMeta("sess_torn", "한나", "kiosk", "demo", NOW_MS), "node-1")
    await house.store.append([Append("sess_torn", "1.node-1", 1, NOW_MS, [b"{}"], [], {}, [], b"{torn", ends=True)])

    with capture_logs() as logs, pytest.raises(SessionNotFound):
        await house.node.resume("sess_torn", user_id="한나", client_id="kiosk")
    ask(bystander, "[echo hi]")

    assert (await screen.until("response.done"))["response"]["status"] == "completed"
    assert "session.not_resumed" in [entry["event"] for entry in logs]


async def test_who_comes_back_by_a_number_gets_numbers(house: House) -> None:
    """P4: also in a session that had not asked for them."""
    session, first = await house.open()
    session.lost(first, by_choice=False)
    await house.journal.flush()

    back, second = await house.resume(session, after=1)
    ask(back, "[echo hi]")
    await second.until("response.done")

    assert numbers(second.events) == list(range(1, len(second.events) + 1))


async def test_a_session_that_came_back_while_a_node_heard_that_it_had_left_stays(
    house: House, others: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P4: the lease's reply is older than the claim, and the client would be told never to come back."""
    session, _ = await house.open(RESUMABLE)
    renew = house.store.renew
    back: list[tuple[LiveSession, Screen]] = []
    beaten = asyncio.Semaphore(0)

    async def renew_slowly(owner: str, lease_s: float) -> list[str]:
        taken = await renew(owner, lease_s)
        if session.session_id in taken and owner == house.node.name:
            back.append(await house.resume(session, after=1))
        if back:
            beaten.release()
        return taken

    async def adopt_none(owner: str, limit: int) -> list[LoadedSession]:
        return []  # a lease may lapse on a busy machine, and what is lost by that is lost rightly

    monkeypatch.setattr(house.store, "adopt", adopt_none)
    monkeypatch.setattr(house.store, "renew", renew_slowly)
    await others.resume(session, after=1)
    for _ in range(4):  # of either node: by the third the first of these has acted upon what it heard
        await beaten.acquire()
    [(resumed, screen)] = back
    ask(resumed, "[echo still here]")

    assert (await screen.until("response.done"))["response"]["status"] == "completed"
    assert screen.closed is None
    assert house.node.find(session.session_id) is resumed
