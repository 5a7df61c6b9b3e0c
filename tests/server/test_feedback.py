"""Ratings in a live session: acknowledged after the commit, while an answer streams, after a return, on another node. P2, P3, P4, P9."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from server.live import LiveSession
from sessions.config import ResumptionOptions, SessionConfig
from sessions.feedback import Feedback, feedback_id
from sessions.records import FeedbackRecord
from sessions.wire_errors import BadEvent
from tests.server.house import House, Limits, Screen, ask, open_house, send, turns, until
from tests.sessions.builders import NOW_MS, Json, kinds

RESUMABLE = SessionConfig(model="demo", resumption=ResumptionOptions(enabled=True))
CREATED = "avatar.feedback.created"
DELETED = "avatar.feedback.deleted"
DELTA = "response.output_text.delta"


@pytest.fixture
async def others(tmp_path: Path, house: House) -> AsyncIterator[House]:
    """A second node on the same store."""
    async with open_house(house.store, Limits(), name="node-2") as others:
        yield others


async def answered(house: House, text: str = "[echo hi]") -> tuple[LiveSession, Screen, str]:
    """A session, its screen, and the id of its answer's item."""
    session, screen = await house.open(RESUMABLE)
    ask(session, text)
    done = await screen.until("response.done")
    return session, screen, done["response"]["output"][0]["id"]


def rate(session: LiveSession, item_id: str, rating: str = "up", **feedback: object) -> None:
    send(session, "avatar.feedback.create", item_id=item_id, feedback={"rating": rating, **feedback})


async def recorded(house: House) -> list[FeedbackRecord]:
    return [record for record in await house.records() if isinstance(record, FeedbackRecord)]


async def test_a_rating_is_acknowledged_only_once_it_and_its_record_are_committed(house: House) -> None:
    """P2, P3."""
    session, screen, item_id = await answered(house)

    with house.store.stalled():
        rate(session, item_id, "down", reason="other", comment="hm")
        await turns(50)
        told_before = kinds(screen.events)
        waiting = await recorded(house)
    event = await screen.until(CREATED)

    assert CREATED not in told_before
    assert waiting == []
    assert [(record.rating, record.reason, record.comment) for record in await recorded(house)] == [
        ("down", "other", "hm")
    ]
    assert event["feedback"]["id"] == feedback_id(session.session_id, item_id, "한나")


async def test_an_answer_is_rated_while_it_streams(house: House) -> None:
    session, screen = await house.open(RESUMABLE)
    house.engine.hold(after=5)
    ask(session, "[pace 100] [tokens 40]")
    delta = await screen.until(DELTA, 3)

    rate(session, delta["item_id"], "down", start=0, end=1)
    await screen.until(CREATED)
    done_by_then = "response.done" in kinds(screen.events)
    house.engine.release()
    done = await screen.until("response.done")

    assert not done_by_then
    assert done["response"]["status"] == "completed"
    assert kinds(screen.events).count(DELTA) == 40


async def test_a_rating_that_was_missed_comes_with_the_journal(house: House) -> None:
    """P4: its acknowledgement was lost with the connection."""
    session, first, item_id = await answered(house)
    rate(session, item_id)
    await first.until(CREATED)

    _, second = await house.resume(session, after=len(first.events) - 1)

    assert (await second.until(CREATED))["feedback"]["item_id"] == item_id


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_over_a_gap_a_client_is_told_the_ratings_that_hold(house: House, others: House, elsewhere: bool) -> None:
    """P4: on this node and on another, which knows them from the store."""
    session, screen, item_id = await answered(house)
    rate(session, item_id, "up")
    await screen.until(CREATED)
    rate(session, item_id, "down", reason="inaccurate", comment="no")
    newest = (await screen.until(CREATED, 2))["feedback"]
    session.lost(screen, by_choice=False)

    resumed, second = await (others if elsewhere else house).resume(session, after=4711)
    told = [event["feedback"] for event in second.events if event["type"] == CREATED]
    send(resumed, "avatar.feedback.delete", feedback_id=newest["id"])
    await second.until(DELETED)
    resumed.lost(second, by_choice=False)
    _, third = await (house if elsewhere else others).resume(session, after=4711)

    assert told == [newest]
    assert CREATED not in kinds(third.events)


async def test_a_rating_sent_again_to_another_node_is_answered_again_and_recorded_once(
    house: House, others: House
) -> None:
    """P3, P4: the client never heard of the first."""
    session, screen, item_id = await answered(house)
    rate(session, item_id, rated_at_ms=NOW_MS - 5)
    first = await screen.until(CREATED)
    session.lost(screen, by_choice=False)

    resumed, second = await others.resume(session, after=len(screen.events))
    rate(resumed, item_id, rated_at_ms=NOW_MS - 5)
    rate(resumed, item_id, "down", rated_at_ms=NOW_MS - 6)

    assert [(await second.until(CREATED, count))["feedback"] for count in (1, 2)] == [first["feedback"]] * 2
    assert len(await recorded(house)) == 1


async def test_while_nothing_can_be_stored_a_rating_is_refused_at_once(house: House) -> None:
    """P9: a page then keeps it, to send it again."""
    session, screen, item_id = await answered(house)
    with house.store.away():
        send(session, "conversation.item.retrieve", item_id=item_id)
        await until(lambda: house.journal.failure() is not None)
        rate(session, item_id)
        error = (await screen.until("error"))["error"]
    await screen.until("conversation.item.retrieved")
    await until(lambda: house.journal.failure() is None)
    rate(session, item_id)
    await screen.until(CREATED)

    assert (error["type"], error["code"]) == ("server_error", "server_error")
    assert len(await recorded(house)) == 1


async def test_while_the_outbox_is_full_a_rating_is_refused(house: House) -> None:
    """P9."""
    session, screen, item_id = await answered(house)
    house.node.refusal = "What was said cannot be stored for good now; try again in a minute."

    rate(session, item_id)
    error = (await screen.until("error"))["error"]

    assert (error["type"], error["message"]) == ("server_error", house.node.refusal)
    assert await recorded(house) == []


async def test_the_reasons_are_those_of_the_settings(house: House) -> None:
    session, screen, item_id = await answered(house)

    rate(session, item_id, reason="unsafe")

    error = (await screen.until("error"))["error"]
    assert (error["code"], error["param"]) == ("invalid_value", "feedback.reason")


async def test_a_choice_by_another_way_reaches_the_connection_once_it_knows_of_ratings(house: House) -> None:
    """P1."""
    session, screen, item_id = await answered(house)

    untold = session.rate(item_id, Feedback(rating="up", rated_ms=1))
    send(session, "session.update", session={"type": "realtime", "avatar": {}})
    await screen.until("session.updated")
    told = session.rate(item_id, Feedback(rating="down", rated_ms=2))
    with pytest.raises(BadEvent, match="not found"):
        session.check_rating("item_none", told)
    event: Json = (await screen.until(CREATED))["feedback"]

    assert (untold.rating, told.rating, event["rating"]) == ("up", "down", "down")
    assert kinds(screen.events).count(CREATED) == 1
    assert [record.rating for record in await recorded(house)] == ["up", "down"]


async def test_a_session_is_found_where_it_lives(house: House, others: House) -> None:
    session, _, _ = await answered(house)

    assert house.node.find(session.session_id) is session
    assert others.node.find(session.session_id) is None
