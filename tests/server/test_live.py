"""Live sessions on the scripted engine and the embedded store: what a client sees, what the engine runs, what the store holds."""

import asyncio
from pathlib import Path

import msgspec
import pytest
from structlog.testing import capture_logs

from server.node import NodeFull
from sessions.config import ResumptionOptions, SessionConfig
from sessions.errors import StoreUnavailable
from sessions.records import ArchiveRecord, PredictionRecord, SessionRecord
from sessions.wire_errors import WireError
from tests.server.house import WAIT_S, House, Limits, ask, open_house, send, turns
from tests.sessions.builders import kinds, user_item

# Delivery


async def test_a_client_sees_what_the_journal_holds_and_nothing_else(house: House) -> None:
    """P2."""
    session, screen = await house.open()

    ask(session, "[tokens 20]")
    done = await screen.until("response.done")

    assert done["response"]["status"] == "completed"
    assert kinds(screen.events).count("response.output_text.delta") == 20
    assert screen.payloads == await house.stored_events(session)
    assert house.engine.capacity().running == 0


async def test_nothing_reaches_a_client_before_the_store_has_it(house: House) -> None:
    """P2."""
    session, screen = await house.open()
    with house.store.stalled():
        ask(session, "[tokens 20]")
        await turns(100)
        seen_early = kinds(screen.events)

    await screen.until("response.done")

    assert seen_early == ["session.created"]


async def test_sessions_do_not_meet(house: House) -> None:
    """P7."""
    one, first = await house.open()
    two, second = await house.open()

    ask(one, "[echo one]")
    ask(two, "[echo two]")
    await asyncio.gather(first.until("response.done"), second.until("response.done"))

    for session, screen, text in ((one, first, "one"), (two, second, "two")):
        assert screen.events[0]["session"]["id"] == session.session_id
        assert (await screen.until("response.output_text.done"))["text"] == text
        assert screen.payloads == await house.stored_events(session)


async def test_a_frame_that_is_no_event_is_answered_and_the_session_goes_on(house: House) -> None:
    session, screen = await house.open()

    session.receive("nope")
    ask(session, "[echo hi]")

    assert (await screen.until("error"))["error"]["code"] == "invalid_json"
    assert (await screen.until("response.done"))["response"]["status"] == "completed"


async def test_sequence_numbers_come_to_those_who_asked_and_have_no_gap(house: House) -> None:
    """P1, P4."""
    session, screen = await house.open(SessionConfig(model="demo", resumption=ResumptionOptions(enabled=True)))
    plain, other = await house.open()

    for asked in (session, plain):
        ask(asked, "[tokens 20]")
    await asyncio.gather(screen.until("response.done"), other.until("response.done"))

    assert [event["sequence_number"] for event in screen.events] == list(range(1, len(screen.events) + 1))
    assert not any("sequence_number" in event for event in other.events)
    unnumbered = [{key: value for key, value in event.items() if key != "sequence_number"} for event in screen.events]
    assert unnumbered == [msgspec.json.decode(event) for event in await house.stored_events(session)]


async def test_sequence_numbers_begin_with_the_update_that_asks_for_them(house: House) -> None:
    session, screen = await house.open()
    send(session, "session.update", session={"type": "realtime", "resumption": {"enabled": True}})

    updated = await screen.until("session.updated")

    assert updated["sequence_number"] == 2


# Barge-in


@pytest.mark.parametrize("text", ["[slow]", "[tokens 5000]", "[pace 500] [tokens 5000]"])
async def test_a_cancel_stops_the_engine_and_nothing_follows_it(house: House, text: str) -> None:
    """P5, P6."""
    session, screen = await house.open()
    ask(session, text)
    await screen.until("response.output_text.delta")

    send(session, "response.cancel")
    done = await screen.until("response.done")

    assert done["response"]["status_details"] == {"type": "cancelled", "reason": "client_cancelled"}
    assert house.engine.capacity().running == 0
    num_chunks = house.engine.num_chunks
    ask(session, "[echo again]")
    await screen.until("response.done", 2)
    cancelled_id = done["response"]["id"]
    after = screen.events[screen.events.index(done) + 1 :]
    assert not any(event.get("response_id") == cancelled_id for event in after)
    assert kinds(after).count("response.done") == 1
    assert house.engine.num_chunks == num_chunks + 1


async def test_a_cancel_before_the_first_token_frees_the_engine(house: House) -> None:
    """P5."""
    session, screen = await house.open()
    ask(session, "[hang]")
    await screen.until("response.created")
    await turns(3)
    assert house.engine.capacity().running == 1

    send(session, "response.cancel")
    await screen.until("response.done")

    assert house.engine.capacity().running == 0


async def test_a_cancel_in_the_same_breath_as_the_question_leaves_nothing_running(house: House) -> None:
    """P5, P6."""
    session, screen = await house.open()

    ask(session, "[tokens 100]")
    send(session, "response.cancel")
    await screen.until("response.done")

    assert house.engine.capacity().running == 0
    assert house.engine.num_chunks == 0
    assert not session.is_answering


async def test_a_cancel_is_heard_while_the_store_stalls(house: House) -> None:
    """P5: the engine stops at once, though the acknowledgement must wait for its commit."""
    session, screen = await house.open()
    ask(session, "[tokens 5000]")
    await screen.until("response.output_text.delta")
    with house.store.stalled():
        await turns(1000)
        send(session, "response.cancel")
        await turns(3)
        running = house.engine.capacity().running

    assert running == 0
    assert (await screen.until("response.done"))["response"]["status"] == "cancelled"


# Backpressure


async def test_an_engine_waits_for_a_store_that_stalls(house: House) -> None:
    """P7, P9."""
    session, screen = await house.open()
    with house.store.stalled():
        ask(session, "[tokens 600]")
        await turns(2000)
        num_chunks_while_stalled = house.engine.num_chunks

    done = await screen.until("response.done")

    assert 48 < num_chunks_while_stalled <= 65
    assert done["response"]["usage"]["output_tokens"] == 600
    assert kinds(screen.events).count("response.output_text.delta") == 600


async def test_a_client_has_no_room_while_the_store_stalls_and_is_told_when_it_has(house: House) -> None:
    """P7."""
    session, screen = await house.open()
    has_room = asyncio.Event()
    session.on_room = has_room.set
    with house.store.stalled():
        for _ in range(64):
            send(session, "input_audio_buffer.clear")
        had_room_at_first = session.has_room
        send(session, "input_audio_buffer.clear")
        await turns(10)
        had_room, was_told = session.has_room, has_room.is_set()

    async with asyncio.timeout(WAIT_S):
        await has_room.wait()

    assert (had_room_at_first, had_room, was_told) == (True, False, False)
    assert session.has_room
    await screen.until("input_audio_buffer.cleared", 65)


async def test_an_answer_waits_for_a_client_that_does_not_read(house: House) -> None:
    """P7: and goes on where it was."""
    session, screen = await house.open()
    ask(session, "[pace 1000] [tokens 300]")
    await screen.until("response.output_text.delta")
    screen.is_congested = True
    await turns(3)
    await house.journal.flush()
    num_chunks = house.engine.num_chunks
    await screen.until("response.output_text.delta", num_chunks)
    await turns(50)
    num_chunks_later = house.engine.num_chunks

    screen.is_congested = False
    session.wake()
    done = await screen.until("response.done")

    assert num_chunks_later <= num_chunks + 1
    assert done["response"]["usage"]["output_tokens"] == 300
    assert kinds(screen.events).count("response.output_text.delta") == 300


async def test_a_cancel_reaches_an_answer_that_waits_for_a_client(house: House) -> None:
    """P5."""
    session, screen = await house.open()
    screen.is_congested = True
    ask(session, "[tokens 300]")
    await screen.until("response.output_text.delta")
    await turns(3)

    send(session, "response.cancel")
    await screen.until("response.done")

    assert house.engine.capacity().running == 0


# Failures of the engine


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("[fail]", "server_error", "The engine is not available; try again soon."),
        ("[fail after 3]", "server_error", "The engine is not available; try again soon."),
        ("[overloaded]", "rate_limit_exceeded", "The engine is busy; try again soon."),
        ("[too long]", "string_above_max_length", "the prompt has 32769 tokens, the context holds 32768"),
        ("[bug]", "server_error", "The answer failed."),
    ],
)
async def test_an_engines_failure_ends_the_answer_and_not_the_session(
    house: House, text: str, code: str, message: str
) -> None:
    """P6, P9."""
    session, screen = await house.open()
    with capture_logs() as logs:
        ask(session, text)
        done = await screen.until("response.done")

    error = {"type": "server_error", "code": code, "message": message}
    assert done["response"]["status"] == "failed"
    assert done["response"]["status_details"] == {"type": "failed", "error": error}
    assert [entry["event"] for entry in logs] == ["answer.crashed" if text == "[bug]" else "answer.failed"]
    send(session, "conversation.item.delete", item_id=screen.events[1]["item"]["id"])
    ask(session, "[echo alive]")
    assert (await screen.until("response.done", 2))["response"]["status"] == "completed"
    assert house.engine.capacity().running == 0


async def test_an_answer_that_the_engine_leaves_unfinished_has_failed(house: House) -> None:
    """P6."""
    session, screen = await house.open()
    ask(session, "[slow]")
    delta = await screen.until("response.output_text.delta")

    await house.engine.abort(delta["response_id"])
    done = await screen.until("response.done")

    assert done["response"]["status_details"]["error"]["message"] == "The engine ended the answer early."


async def test_a_dead_engine_is_said_and_its_return_is_enough(house: House) -> None:
    """P9."""
    session, screen = await house.open()
    house.engine.break_down("no GPU at 10.0.0.1")
    ask(session, "[echo one]")
    failed = await screen.until("response.done")
    house.engine.recover()

    send(session, "response.create")
    completed = await screen.until("response.done", 2)

    assert [failed["response"]["status"], completed["response"]["status"]] == ["failed", "completed"]
    assert b"10.0.0.1" not in b"".join(screen.payloads)


# Closing


async def test_expiry_says_so_before_it_closes(house: House) -> None:
    session, screen = await house.open()

    session.expire_at(asyncio.get_running_loop().time(), code=4401, reason="Your token has expired.")
    closed = await screen.until_closed()

    assert closed == (4401, "Your token has expired.")
    assert screen.events[-1]["error"]["code"] == "session_expired"


async def test_expiry_ends_an_answer_that_would_go_on_for_ever(house: House) -> None:
    """P6: no answer keeps a session open beyond its token."""
    session, screen = await house.open()
    ask(session, "[hang]")
    await screen.until("response.created")

    session.expire_at(asyncio.get_running_loop().time(), code=4401, reason="Your token has expired.")
    await screen.until_closed()

    assert kinds(screen.events)[-2:] == ["response.done", "error"]
    assert house.engine.capacity().running == 0


async def test_a_later_expiry_replaces_the_first(house: House) -> None:
    session, screen = await house.open()
    now_s = asyncio.get_running_loop().time()

    session.expire_at(now_s, code=4401, reason="one")
    session.expire_at(now_s + 0.01, code=1001, reason="two")

    assert await screen.until_closed() == (1001, "two")
    assert kinds(screen.events).count("error") == 1


async def test_an_ended_session_does_not_expire(house: House) -> None:
    session, screen = await house.open()
    session.expire_at(asyncio.get_running_loop().time(), code=4401, reason="x")

    session.end("disconnected")
    house.sessions.clear()
    await turns(10)

    assert screen.closed is None


async def test_finish_waits_for_the_answer(house: House) -> None:
    session, screen = await house.open()
    house.engine.hold(after=3)
    ask(session, "[tokens 10]")
    await screen.until("response.output_text.delta")

    session.finish(code=1012, reason="the server restarts")
    await turns(100)
    closed_early = screen.closed
    house.engine.release()
    closed = await screen.until_closed()

    assert closed_early is None
    assert closed == (1012, "the server restarts")
    assert screen.events[-1]["type"] == "response.done"
    assert screen.events[-1]["response"]["status"] == "completed"


async def test_finish_closes_an_idle_session_at_once(house: House) -> None:
    session, screen = await house.open()

    session.finish(code=1012, reason="the server restarts")

    assert screen.closed == (1012, "the server restarts")


async def test_finish_waits_for_what_is_not_committed(house: House) -> None:
    """P3."""
    session, screen = await house.open()
    with house.store.stalled():
        send(session, "conversation.item.create", item=user_item())
        session.finish(code=1012, reason="the server restarts")
        await turns(10)
        closed_early = screen.closed

    await screen.until_closed()

    assert closed_early is None
    assert screen.events[-1]["type"] == "conversation.item.done"


async def test_a_session_that_closes_begins_no_answer(house: House) -> None:
    """Answer upon answer would hold the server's stop."""
    session, screen = await house.open()
    house.engine.hold(after=3)
    ask(session, "[tokens 10]")
    await screen.until("response.output_text.delta")
    session.finish(code=1012, reason="the server restarts")

    send(session, "response.create", event_id="mine", response={"conversation": "none"})
    house.engine.release()
    await screen.until_closed()

    assert kinds(screen.events).count("response.created") == 1
    error = (await screen.until("error"))["error"]
    assert (error["type"], error["event_id"]) == ("server_error", "mine")


async def test_a_mistake_that_ends_the_connection_is_named_first(house: House) -> None:
    session, screen = await house.open()

    session.reject(WireError("invalid_request_error", "invalid_event", "Binary messages are not served."), 1003)
    closed = await screen.until_closed()

    assert closed == (1003, "Binary messages are not served.")
    assert screen.events[-1]["error"]["code"] == "invalid_event"


async def test_a_client_that_leaves_ends_its_answers_and_its_session(house: House) -> None:
    """P3, P6."""
    session, screen = await house.open()
    ask(session, "[slow]")
    await screen.until("response.output_text.delta")

    session.end("disconnected")
    house.sessions.clear()
    await turns(3)
    running = house.engine.capacity().running
    await house.journal.flush()

    assert (running, house.node.num_sessions, session.is_answering) == (0, 0, False)
    events = [msgspec.json.decode(event) for event in await house.stored_events(session)]
    assert (events[-1]["type"], events[-1]["response"]["status"]) == ("response.done", "cancelled")
    records = await house.records()
    prediction, ended, archive = records[-3:]
    assert isinstance(prediction, PredictionRecord)
    assert (prediction.status_reason, prediction.model_version) == ("disconnected", "v1")
    assert isinstance(ended, SessionRecord)
    assert ended.status == "ended"
    assert isinstance(archive, ArchiveRecord)
    assert (archive.last_sequence, archive.final) == (len(events), True)


# Ownership


async def test_a_session_that_was_taken_over_is_closed_and_answers_no_more(house: House) -> None:
    """P4: two nodes never write one session."""
    session, screen = await house.open()
    ask(session, "[pace 200] [tokens 5000]")
    await screen.until("response.output_text.delta")

    loaded = await house.store.claim(session.session_id, "node-2", user_id="한나")
    closed = await screen.until_closed()
    await turns(3)

    assert closed == (4001, "superseded by another connection")
    assert house.engine.capacity().running == 0
    assert len(screen.events) == loaded.next_sequence - 1
    assert screen.payloads == await house.stored_events(session)


async def test_an_answer_that_waits_for_the_store_ends_when_its_session_is_taken_over(house: House) -> None:
    """P4, P7."""
    session, screen = await house.open()
    await house.store.claim(session.session_id, "node-2", user_id="한나")
    with house.store.stalled():
        ask(session, "[tokens 3000]")
        await turns(1000)

    await screen.until_closed()
    await turns(3)

    assert house.engine.capacity().running == 0
    assert kinds(screen.events) == ["session.created"]


# The node


async def test_a_full_node_says_so_and_has_room_again(tmp_path: Path) -> None:
    """P7."""
    async with open_house(tmp_path / "sessions.db", Limits(max_sessions=2)) as house:
        first, _ = await house.open()
        await house.open()

        with pytest.raises(NodeFull, match="no room"):
            await house.open()
        house.sessions.remove(first)
        first.end("disconnected")
        await house.open()

        assert house.node.num_sessions == 2


async def test_sessions_that_are_being_opened_count(tmp_path: Path) -> None:
    """P7."""
    async with open_house(tmp_path / "sessions.db", Limits(max_sessions=1)) as house:
        with house.store.stalled():
            opening = asyncio.create_task(house.open())
            await turns(1)
            with pytest.raises(NodeFull):
                house.node.check_room()

        await opening

        assert house.node.num_sessions == 1


async def test_a_session_that_the_store_refused_holds_no_place(tmp_path: Path) -> None:
    """P9."""
    async with open_house(tmp_path / "sessions.db", Limits(max_sessions=1)) as house:
        house.store.is_away = True
        with pytest.raises(StoreUnavailable):
            await house.open()
        house.store.is_away = False

        await house.open()

        assert house.node.num_sessions == 1


async def test_a_draining_node_takes_no_sessions_and_keeps_those_it_has(house: House) -> None:
    session, screen = await house.open()

    house.node.drain()
    ask(session, "[echo hi]")

    assert house.node.is_draining
    with pytest.raises(NodeFull, match="stopping"):
        await house.open()
    assert (await screen.until("response.done"))["response"]["status"] == "completed"


async def test_when_the_grace_is_over_answers_end_with_their_sessions(house: House) -> None:
    """P6. Without it a stop would wait for the longest answer, or for one that hangs."""
    session, screen = await house.open()
    ask(session, "[slow]")
    await screen.until("response.output_text.delta")

    house.node.shut_down()
    house.sessions.clear()
    await turns(3)
    running = house.engine.capacity().running
    await house.journal.flush()

    assert screen.closed == (1012, "the server restarts")
    assert (running, house.node.num_sessions) == (0, 0)
    events = [msgspec.json.decode(event) for event in await house.stored_events(session)]
    assert (events[-1]["type"], events[-1]["response"]["status"]) == ("response.done", "cancelled")
