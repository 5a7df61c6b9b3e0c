"""Ratings over REST: durable before the answer, the latest choice only, in sessions that the caller may see and nowhere else. P3."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from persistence.errors import DatabaseUnavailable
from server.live import LiveSession
from sessions.config import AvatarOptions, ResumptionOptions, SessionConfig
from sessions.errors import StoreUnavailable
from sessions.feedback import Feedback, feedback_id
from sessions.items import InputText, Item, MessageItem, OutputText
from sessions.records import AuditRecord, FeedbackRecord, Record, decode_record
from sessions.store import Append, PlacedItem, encode_placed
from tests.persistence.builders import make_feedback, make_prediction, make_session
from tests.server.console import Console, open_console, token
from tests.server.house import Screen, ask, send
from tests.sessions.builders import Json

SESSION = "sess_01JD0000000000000000000001"
PATH = "/v1/feedback"
ANNA = token("anna", "user")
EVE = token("eve", "user")
ANN = token("ann", "support")
ADMIN = token("root", "admin")
OUTPUT = (
    b'[{"type":"message","id":"item_2","role":"assistant","content":[{"type":"output_text","text":"Hello there"}]}]'
)
CREATED = "avatar.feedback.created"


def said(text: str, item_id: str = "item_2", status: Any = "completed") -> Item:
    return MessageItem(item_id, "assistant", (OutputText(text),) if text else (), status)


def body(session_id: str = SESSION, item_id: str = "item_2", **feedback: object) -> Json:
    return {"session_id": session_id, "item_id": item_id, "feedback": {"rating": "up", **feedback}}


async def rate(console: Console, bearer: str = ANNA, *, item_id: str = "item_2", **feedback: object) -> httpx.Response:
    return await console.post(PATH, bearer, json=body(SESSION, item_id, **feedback))


async def withdraw(
    console: Console, bearer: str = ANNA, *, rating_id: str | None = None, **query: Any
) -> httpx.Response:
    return await console.request("DELETE", f"{PATH}/{rating_id or id_of('anna')}", bearer, params=query)


def id_of(user_id: str, item_id: str = "item_2") -> str:
    return feedback_id(SESSION, item_id, user_id)


def problem(response: httpx.Response) -> tuple[int, str, str | None]:
    error = response.json()["error"]
    return response.status_code, error["code"], error["param"]


async def taken(console: Console) -> list[Record]:
    """What the outbox holds; only where no writer takes it."""
    deliveries = await console.services.store.take("test", 1000, 0)
    await console.services.store.acknowledge([delivery.receipt for delivery in deliveries])
    return [decode_record(delivery.record) for delivery in deliveries]


async def recorded(console: Console) -> list[FeedbackRecord]:
    return [record for record in await taken(console) if isinstance(record, FeedbackRecord)]


@asynccontextmanager
async def open_stored(folder: Path, *items: Item) -> AsyncIterator[Console]:
    """A session of anna's at the kiosk that lives on another node; its answer `item_2` is in the store, with these items."""
    async with open_console(folder, writer="none") as console:
        await console.services.store.renew("node", 60.0)  # or this node would adopt what is of it
        await console.seed(SESSION)
        await keep(console, items or [MessageItem("item_1", "user", (InputText("Hi"),)), said("Hello there")])
        await taken(console)
        yield console


async def keep(console: Console, items: Sequence[Item]) -> None:
    """Put the items into the store, as the session's owner."""
    store = console.services.store
    glimpse, epoch = await store.peek(SESSION), await store.epoch(SESSION)
    assert glimpse is not None
    assert epoch is not None
    placed = {item.id: encode_placed(PlacedItem(float(rank), item)) for rank, item in enumerate(items)}
    part = Append(SESSION, epoch, glimpse.next_sequence, 0, [b"{}"], [], placed, [])
    assert await store.append([part]) == ["ok"]


@asynccontextmanager
async def open_tables(folder: Path) -> AsyncIterator[Console]:
    """The same session, long gone from the store: the tables alone know it."""
    async with open_console(folder) as console:
        prediction = make_prediction(SESSION, output=msgspec.Raw(OUTPUT), text="Hello there")
        await console.enqueue(make_session(SESSION, status="ended"), prediction)
        await console.settled()
        yield console


@asynccontextmanager
async def open_live(folder: Path, config: SessionConfig) -> AsyncIterator[tuple[Console, LiveSession, Screen, str]]:
    """A session of anna's that lives here, its connection, and the id of its answer."""
    async with open_console(folder, writer="none") as console:
        screen = Screen()
        session = await console.services.node.open(user_id="anna", client_id="kiosk", config=config, connection=screen)
        session.begin()
        ask(session, "[echo Hello there]")
        done = await screen.until("response.done")
        await taken(console)
        try:
            yield console, session, screen, done["response"]["output"][0]["id"]
        finally:
            session.end("disconnected")


# Durable before the answer


async def test_a_rating_is_in_the_outbox_before_it_is_acknowledged(tmp_path: Path) -> None:
    """P3."""
    async with open_stored(tmp_path) as console:
        before_ms = console.services.node.now_ms()

        answer = await rate(console, rating="down", reason="too-slow", comment="zäh", start=0, end=5)

        [record] = await recorded(console)
    shown = answer.json()["feedback"]
    assert answer.status_code == 201
    assert answer.headers["cache-control"] == "no-store"
    assert shown == {
        "id": id_of("anna"),
        "object": "avatar.feedback",
        "item_id": "item_2",
        "rating": "down",
        "reason": "too-slow",
        "comment": "zäh",
        "start": 0,
        "end": 5,
        "rated_at_ms": record.rated_ms,
    }
    assert before_ms <= record.rated_ms <= record.received_ms
    assert record == make_feedback(
        SESSION,
        rating="down",
        reason="too-slow",
        comment="zäh",
        start=0,
        end=5,
        sequence=0,
        rated_ms=record.rated_ms,
        received_ms=record.received_ms,
    )


async def test_without_an_outbox_nothing_is_acknowledged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """P3, P9."""

    async def enqueue(records: Sequence[bytes]) -> None:
        raise StoreUnavailable("away")

    async with open_stored(tmp_path) as console:
        monkeypatch.setattr(console.services.store, "enqueue", enqueue)
        answer = await rate(console)

    assert problem(answer) == (503, "unavailable", None)
    assert answer.headers["retry-after"]


async def test_a_full_outbox_takes_no_rating(tmp_path: Path) -> None:
    """P9."""
    async with open_stored(tmp_path) as console:
        console.services.node.refusal = "full"

        assert problem(await rate(console)) == (503, "unavailable", None)
        assert await recorded(console) == []


async def test_without_the_tables_a_rating_of_what_the_store_knows_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P9: with MySQL away conversations go on, and so do opinions of them."""

    async def away(*_: object) -> None:
        raise DatabaseUnavailable("away")

    async with open_stored(tmp_path) as console:
        monkeypatch.setattr("server.late_rating.rated_answer", away)
        monkeypatch.setattr("server.late_rating.answer_text", away)

        known = await rate(console, start=0, end=11)
        unknown = await rate(console, item_id="item_9")

    assert (known.status_code, unknown.status_code) == (201, 503)


# The latest choice


async def test_an_older_choice_is_answered_by_the_one_that_is_stored(tmp_path: Path) -> None:
    """P3."""
    async with open_tables(tmp_path) as console:
        newest = (await rate(console, rating="down", rated_at_ms=2_000)).json()
        await console.settled()

        late = await rate(console, rating="up", rated_at_ms=1_000)
        again = await rate(console, rating="down", rated_at_ms=2_000)
        await console.settled()
        listed = (await console.get(PATH, ANNA)).json()

    assert (late.status_code, late.json(), again.json()) == (201, newest, newest)
    assert [(row["rating"], row["rated_ms"]) for row in listed["data"]] == [("down", 2_000)]


async def test_a_rating_is_withdrawn_as_often_as_one_likes(tmp_path: Path) -> None:
    """P3: by its id alone once the tables have it, before that with what it is of."""
    async with open_tables(tmp_path) as console:
        await rate(console, rated_at_ms=1_000)
        first = await withdraw(console, session_id=SESSION, item_id="item_2", rated_at_ms=1_500)
        await console.settled()
        second = await withdraw(console)
        await console.settled()
        late = await rate(console, rated_at_ms=1_400)
        listed = (await console.get(PATH, ANNA)).json()

    assert [answer.status_code for answer in (first, second, late)] == [200, 200, 201]
    assert [answer.json()["feedback"]["rating"] for answer in (first, second, late)] == [None, None, None]
    assert listed == {"data": [], "has_more": False, "next": None}


# Where the session lives


async def test_a_live_session_is_told_and_its_dialogue_agrees(tmp_path: Path) -> None:
    """P1, P2, P3: the record is durable before the connection hears of it."""
    config = SessionConfig(model="demo", avatar=AvatarOptions())
    async with open_live(tmp_path, config) as (console, session, screen, item_id):
        sent = body(session.session_id, item_id, rating="down", rated_at_ms=2_000)
        answer = await console.post(PATH, ANNA, json=sent)
        event = await screen.until(CREATED)
        send(session, "avatar.feedback.create", item_id=item_id, feedback={"rating": "up", "rated_at_ms": 1_000})
        late = await screen.until(CREATED, 2)
        records = await recorded(console)

    assert answer.json()["feedback"] == event["feedback"] == late["feedback"]
    assert [(record.rating, record.sequence > 0) for record in records] == [("down", False), ("down", True)]


async def test_an_older_choice_does_not_reach_a_live_session(tmp_path: Path) -> None:
    config = SessionConfig(model="demo", avatar=AvatarOptions())
    async with open_live(tmp_path, config) as (console, session, screen, item_id):
        send(session, "avatar.feedback.create", item_id=item_id, feedback={"rating": "up"})
        held = (await screen.until(CREATED))["feedback"]
        answer = await console.post(PATH, ANNA, json=body(session.session_id, item_id, rating="down", rated_at_ms=1))

    assert answer.json()["feedback"] == held
    assert [event["type"] for event in screen.events].count(CREATED) == 1


async def test_a_choice_in_the_same_millisecond_as_one_on_the_wire_is_the_later_one(tmp_path: Path) -> None:
    """P3: of clients whose clocks count seconds; a row would else keep the first."""
    config = SessionConfig(model="demo", avatar=AvatarOptions())
    async with open_live(tmp_path, config) as (console, session, screen, item_id):
        send(session, "avatar.feedback.create", item_id=item_id, feedback={"rating": "up", "rated_at_ms": 2_000})
        await screen.until(CREATED)
        session.end("disconnected")

        sent = body(session.session_id, item_id, rating="down", rated_at_ms=2_000)
        answers = [(await console.post(PATH, ANNA, json=sent)).json()["feedback"] for _ in range(2)]
        records = await recorded(console)

    assert [(answer["rating"], answer["rated_at_ms"]) for answer in answers] == [("down", 2_001)] * 2
    assert {(record.rating, record.rated_ms) for record in records} == {("up", 2_000), ("down", 2_001)}


async def test_a_session_that_ends_while_the_outbox_takes_a_rating_says_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P3: nobody would archive what is journaled after the end."""
    config = SessionConfig(model="demo", avatar=AvatarOptions())
    async with open_live(tmp_path, config) as (console, session, screen, item_id):
        store = console.services.store
        enqueue = store.enqueue

        async def end_meanwhile(records: Sequence[bytes]) -> None:
            monkeypatch.undo()
            await enqueue(records)
            session.lost(screen, by_choice=True)

        monkeypatch.setattr(store, "enqueue", end_meanwhile)
        answer = await console.post(PATH, ANNA, json=body(session.session_id, item_id))
        await console.services.node.journal.flush()
        entries = await store.journal(session.session_id, 0, 1000)
        records = await taken(console)

    assert answer.status_code == 201
    assert CREATED not in [msgspec.json.decode(event)["type"] for entry in entries for event in entry.events]
    [rating] = [record for record in records if isinstance(record, FeedbackRecord)]
    assert (rating.item_id, rating.rating) == (item_id, "up")


async def test_a_session_that_comes_back_while_a_rating_is_checked_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P4: a later return over a gap must not bring back what was there before."""
    config = SessionConfig(model="demo", avatar=AvatarOptions(), resumption=ResumptionOptions(enabled=True))
    async with open_live(tmp_path, config) as (console, session, _, item_id):
        session.end("disconnected")
        node, store = console.services.node, console.services.store
        await node.journal.flush()
        enqueue = store.enqueue
        second = Screen()

        async def resume_meanwhile(records: Sequence[bytes]) -> None:
            monkeypatch.undo()
            resumed = await node.resume(session.session_id, user_id="anna", client_id="kiosk")
            resumed.attach(second, after=4711)
            await enqueue(records)

        monkeypatch.setattr(store, "enqueue", resume_meanwhile)
        answer = await console.post(PATH, ANNA, json=body(session.session_id, item_id))
        told = await second.until(CREATED)
        resumed = node.find(session.session_id)
        assert resumed is not None
        resumed.end("disconnected")

    assert told["feedback"] == answer.json()["feedback"]


RESUMABLE = SessionConfig(model="demo", avatar=AvatarOptions(), resumption=ResumptionOptions(enabled=True))


async def come_back(
    console: Console, session: LiveSession, *, after: int = 0, nth: int = 1
) -> tuple[LiveSession, Screen]:
    """Anna is back for the nth time, and has all that she missed."""
    screen = Screen()
    resumed = await console.services.node.resume(session.session_id, user_id="anna", client_id="kiosk")
    resumed.attach(screen, after=after)
    await screen.until("session.created")
    send(resumed, "session.update", session={"type": "realtime"})
    await screen.until("session.updated", nth)
    return resumed, screen


@pytest.mark.parametrize("after", [0, 4711], ids=["journal", "gap"])
async def test_a_session_that_lives_nowhere_tells_of_its_rating_once_it_is_back(tmp_path: Path, after: int) -> None:
    """P3, P4: told once, in its journal from then on, and withdrawn over the wire."""
    async with open_live(tmp_path, RESUMABLE) as (console, session, _, item_id):
        session.end("disconnected")
        await console.services.node.journal.flush()
        given = await console.post(PATH, ANNA, json=body(session.session_id, item_id, rating="down"))

        resumed, screen = await come_back(console, session, after=after)
        told = [event["feedback"] for event in screen.events if event["type"] == CREATED]
        resumed.end("disconnected")
        resumed, reloaded = await come_back(console, session, nth=2)
        again = [event["feedback"] for event in reloaded.events if event["type"] == CREATED]
        send(resumed, "avatar.feedback.delete", feedback_id=told[0]["id"])
        deleted = await reloaded.until("avatar.feedback.deleted")
        ratings = [record.rating for record in await recorded(console)]
        resumed.end("disconnected")

    assert told == again == [given.json()["feedback"]]
    assert deleted["item_id"] == item_id
    assert ratings == ["down", None]


async def test_a_session_whose_client_knows_nothing_of_ratings_tells_of_none_when_it_is_back(tmp_path: Path) -> None:
    """P1."""
    config = SessionConfig(model="demo", resumption=ResumptionOptions(enabled=True))
    async with open_live(tmp_path, config) as (console, session, _, item_id):
        session.end("disconnected")
        await console.services.node.journal.flush()
        given = await console.post(PATH, ANNA, json=body(session.session_id, item_id))

        resumed, screen = await come_back(console, session)
        resumed.end("disconnected")

    assert given.status_code == 201
    assert not [event for event in screen.events if event["type"].startswith("avatar.")]


async def test_a_rating_that_the_stored_dialogue_cannot_take_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P3: it is durable by then."""

    async def away(*_: object) -> None:
        raise StoreUnavailable("away")

    async with open_stored(tmp_path) as console:
        monkeypatch.setattr(console.services.store, "rate", away)

        answer = await rate(console)

        assert answer.status_code == 201
        assert [record.rating for record in await recorded(console)] == ["up"]


async def test_a_session_that_is_taken_in_while_its_item_is_rated_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P4: whether it was loaded before that or after."""
    async with open_live(tmp_path, RESUMABLE) as (console, session, _, item_id):
        session.end("disconnected")
        await console.services.node.journal.flush()
        store, node, screen = console.services.store, console.services.node, Screen()
        leave = store.rate

        async def resume_meanwhile(session_id: str, item_id: str, feedback: Feedback) -> None:
            resumed = await node.resume(session_id, user_id="anna", client_id="kiosk")
            resumed.attach(screen, after=0)
            await leave(session_id, item_id, feedback)

        monkeypatch.setattr(store, "rate", resume_meanwhile)
        given = await console.post(PATH, ANNA, json=body(session.session_id, item_id))
        told = await screen.until(CREATED)
        resumed = node.find(session.session_id)
        assert resumed is not None
        resumed.end("disconnected")

    assert told["feedback"] == given.json()["feedback"]


async def test_only_the_users_own_rating_is_kept_with_the_item(tmp_path: Path) -> None:
    async with open_stored(tmp_path) as console:
        await rate(console, ANN, rating="down")
        reviewed = await console.services.store.item(SESSION, "item_2")
        await rate(console, rating="up")
        rated = await console.services.store.item(SESSION, "item_2")

    assert reviewed == PlacedItem(1.0, said("Hello there"))
    assert rated is not None
    assert rated.feedback is not None
    assert (rated.item, rated.feedback.rating) == (said("Hello there"), "up")


async def test_a_plain_client_hears_nothing_of_a_rating_over_rest(tmp_path: Path) -> None:
    """P1."""
    async with open_live(tmp_path, SessionConfig(model="demo")) as (console, session, screen, item_id):
        answer = await console.post(PATH, ANNA, json=body(session.session_id, item_id))
        ask(session, "[echo more]")
        await screen.until("response.done", 2)

    assert answer.status_code == 201
    assert not [event for event in screen.events if event["type"].startswith("avatar.")]


async def test_a_reviewer_rates_apart_from_the_user_and_unheard_by_the_dialogue(tmp_path: Path) -> None:
    config = SessionConfig(model="demo", avatar=AvatarOptions())
    async with open_live(tmp_path, config) as (console, session, screen, item_id):
        mine = await console.post(PATH, ANNA, json=body(session.session_id, item_id, rating="up"))
        theirs = await console.post(PATH, ANN, json=body(session.session_id, item_id, rating="down"))
        await screen.until(CREATED)
        records = await taken(console)

    rows = [record for record in records if isinstance(record, FeedbackRecord)]
    trail = [record for record in records if isinstance(record, AuditRecord)]
    assert {row.user_id: (row.role, row.rating) for row in rows} == {"anna": ("user", "up"), "ann": ("support", "down")}
    assert mine.json()["feedback"]["id"] != theirs.json()["feedback"]["id"]
    assert [event["feedback"]["rating"] for event in screen.events if event["type"] == CREATED] == ["up"]
    assert [(entry.action, entry.actor_id, entry.session_id) for entry in trail] == [
        ("feedback.review", "ann", session.session_id)
    ]


# Which answers


async def test_what_the_tables_alone_know_can_be_rated(tmp_path: Path) -> None:
    async with open_tables(tmp_path) as console:
        assert (await rate(console, start=6, end=11)).status_code == 201
        assert problem(await rate(console, start=6, end=12)) == (400, "integer_above_max_value", "feedback.end")
        assert problem(await rate(console, item_id="item_1")) == (404, "not_found", "item_id")


async def test_what_is_no_answer_or_not_there_is_named(tmp_path: Path) -> None:
    async with open_stored(tmp_path) as console:
        assert problem(await rate(console, item_id="item_1")) == (400, "feedback_not_an_answer", "item_id")
        assert problem(await rate(console, item_id="item_none")) == (404, "not_found", "item_id")
        assert problem(await rate(console, start=0, end=12)) == (400, "integer_above_max_value", "feedback.end")
        assert await recorded(console) == []


async def test_an_answer_that_streams_elsewhere_is_rated_by_what_its_client_has_of_it(tmp_path: Path) -> None:
    """How long it is by now only its node knows."""
    async with open_stored(tmp_path, said("", status="in_progress")) as console:
        assert (await rate(console, start=0, end=5)).status_code == 201
        # No column holds it: it would be acknowledged and then buried.
        assert problem(await rate(console, start=0, end=2**31)) == (400, "integer_above_max_value", "feedback.end")


async def test_an_answer_that_was_cut_is_rated_by_what_was_said(tmp_path: Path) -> None:
    async with open_tables(tmp_path) as console:
        await console.services.store.renew("node", 60.0)
        await console.seed(SESSION)
        await keep(console, [said("Hello", status="incomplete")])

        assert (await rate(console, start=6, end=11)).status_code == 201
        assert problem(await rate(console, start=6, end=12)) == (400, "integer_above_max_value", "feedback.end")


MALFORMED: list[tuple[object, str, str | None]] = [
    (b"{", "invalid_json", None),
    ([], "invalid_type", None),
    ({}, "missing_required_parameter", "session_id"),
    (body() | {"user_id": "eve"}, "unknown_parameter", "user_id"),
    (body() | {"role": "admin"}, "unknown_parameter", "role"),
    (body() | {"sequence": 10**9}, "unknown_parameter", "sequence"),
    (body(user_id="eve"), "unknown_parameter", "feedback.user_id"),
    (body(rating="meh"), "invalid_value", "feedback.rating"),
    (body(reason="because"), "invalid_value", "feedback.reason"),
    (body(comment="x" * 2001), "string_above_max_length", "feedback.comment"),
    (body(start=3), "missing_required_parameter", "feedback.end"),
    (body(rated_at_ms=-1), "integer_below_min_value", "feedback.rated_at_ms"),
    (body(start=0, end=2**31), "integer_above_max_value", "feedback.end"),
    (body(item_id="x" * 65), "string_above_max_length", "item_id"),
    (body(item_id=""), "string_below_min_length", "item_id"),
]


async def test_a_malformed_rating_is_refused_by_name(tmp_path: Path) -> None:
    """P7."""
    async with open_stored(tmp_path) as console:
        for sent, code, param in MALFORMED:
            content = sent if isinstance(sent, bytes) else msgspec.json.encode(sent)
            assert problem(await console.post(PATH, ANNA, content=content)) == (400, code, param), sent
        assert await recorded(console) == []


# Whose


async def test_what_is_anothers_is_as_unknown_as_what_never_was(tmp_path: Path) -> None:
    """P7: by user, by digital human, by session, by rating; nothing of it is recorded."""
    stranger = token("ann", "support", client="lobby")
    async with open_stored(tmp_path) as console:
        answers = [await rate(console, bearer) for bearer in (EVE, stranger)]
        answers.append(await console.post(PATH, ANNA, json=body("sess_01JD0000000000000000000009")))
        answers.append(await console.post(PATH, ANNA, json=body("nonsense")))
        named = {"session_id": SESSION, "item_id": "item_2"}
        answers += [await withdraw(console, bearer, rating_id=id_of(who), **named) for bearer, who in ((EVE, "eve"),)]
        foreign = [
            await withdraw(console, EVE, rating_id=id_of("anna"), **named),
            await withdraw(console, EVE, rating_id=id_of("anna")),
            await withdraw(console, ANN, rating_id=id_of("anna"), **named),
            await withdraw(console, ANNA, rating_id="fb_none"),
        ]

        assert {problem(answer) for answer in answers} == {(404, "not_found", None)}
        assert {problem(answer) for answer in foreign} == {(404, "not_found", "feedback_id")}
        assert await taken(console) == []


async def test_another_cannot_withdraw_a_rating_that_is_stored(tmp_path: Path) -> None:
    async with open_tables(tmp_path) as console:
        await rate(console)
        await console.settled()

        for bearer in (EVE, ANN, ADMIN):
            assert problem(await withdraw(console, bearer)) == (404, "not_found", "feedback_id")
        assert len((await console.get(PATH, ANNA)).json()["data"]) == 1


async def test_half_a_name_is_not_enough(tmp_path: Path) -> None:
    async with open_stored(tmp_path) as console:
        assert problem(await withdraw(console, session_id=SESSION)) == (400, "missing_required_parameter", "item_id")
        assert problem(await withdraw(console, item_id="item_2")) == (400, "missing_required_parameter", "session_id")
        assert problem(await withdraw(console, user_id="eve")) == (400, "unknown_parameter", "user_id")


async def test_without_a_token_nothing_is_taken_or_told(tmp_path: Path) -> None:
    async with open_stored(tmp_path) as console:
        answers = [
            await console.post(PATH, json=body()),
            await console.get(PATH),
            await console.request("DELETE", f"{PATH}/{id_of('anna')}"),
        ]

        assert [answer.status_code for answer in answers] == [401, 401, 401]
        assert await taken(console) == []


# What was rated


@asynccontextmanager
async def open_rated(folder: Path) -> AsyncIterator[Console]:
    """Opinions of three people in sessions with three digital humans."""
    async with open_console(folder, private_clients="clinic") as console:
        records: list[Record] = []
        for number, client in enumerate(("kiosk", "lobby", "clinic")):
            session_id = f"sess_{client}"
            records += [
                make_session(session_id, client_id=client, user_id=f"user-{client}"),
                make_prediction(session_id, output=msgspec.Raw(OUTPUT), model=f"model-{client}"),
                make_feedback(session_id, user_id=f"user-{client}", rating="down", rated_ms=1_000 + number),
                make_feedback(session_id, user_id="ann", role="support", rating="up", rated_ms=2_000 + number),
            ]
        await console.enqueue(*records)
        await console.settled()
        yield console


async def listed(console: Console, bearer: str, **query: Any) -> list[tuple[str, str]]:
    """Session and rater of what is told, in its order."""
    answer = await console.get(PATH, bearer, params=query)
    assert answer.status_code == 200, answer.text
    return [(row["session_id"].removeprefix("sess_"), row["user_id"]) for row in answer.json()["data"]]


async def test_each_sees_what_it_may_newest_first(tmp_path: Path) -> None:
    async with open_rated(tmp_path) as console:
        everything = [("clinic", "ann"), ("lobby", "ann"), ("kiosk", "ann")]
        everything += [("clinic", "user-clinic"), ("lobby", "user-lobby"), ("kiosk", "user-kiosk")]

        assert await listed(console, ADMIN) == everything
        assert await listed(console, ANN) == [("kiosk", "ann"), ("kiosk", "user-kiosk")]
        wide = token("ben", "support", scopes=["client:*"])
        assert await listed(console, wide) == [row for row in everything if row[0] != "clinic"]
        named = token("ben", "support", client="none", scopes=["client:clinic"])
        assert await listed(console, named) == [("clinic", "ann"), ("clinic", "user-clinic")]


async def test_a_user_sees_only_what_it_said_itself(tmp_path: Path) -> None:
    """Not even what reviewers think of its own sessions."""
    async with open_rated(tmp_path) as console:
        user = token("user-kiosk", "user")

        assert await listed(console, user) == [("kiosk", "user-kiosk")]
        assert await listed(console, user, user_id="user-kiosk") == [("kiosk", "user-kiosk")]
        assert await listed(console, user, user_id="ann") == []
        assert await listed(console, user, session_id="sess_lobby") == []


NARROWED: list[tuple[dict[str, Any], list[tuple[str, str]]]] = [
    ({"session_id": "sess_lobby"}, [("lobby", "ann"), ("lobby", "user-lobby")]),
    ({"user_id": "user-lobby"}, [("lobby", "user-lobby")]),
    ({"model": "model-lobby", "rating": "up"}, [("lobby", "ann")]),
    ({"role": "user", "from": 1_001, "to": 1_002}, [("lobby", "user-lobby")]),
    ({"item_id": "item_9"}, []),
    ({"reason": "unsafe"}, []),
]


async def test_what_is_told_can_be_narrowed(tmp_path: Path) -> None:
    async with open_rated(tmp_path) as console:
        for query, expected in NARROWED:
            assert await listed(console, ADMIN, **query) == expected, query


async def test_a_long_list_is_told_page_by_page(tmp_path: Path) -> None:
    async with open_rated(tmp_path) as console:
        whole = await listed(console, ADMIN)
        pages: list[tuple[str, str]] = []
        query: dict[str, Any] = {"limit": 4}
        while True:
            page = (await console.get(PATH, ADMIN, params=query)).json()
            pages += [(row["session_id"].removeprefix("sess_"), row["user_id"]) for row in page["data"]]
            assert page["has_more"] == (page["next"] is not None)
            if not page["has_more"]:
                break
            query["after"] = page["next"]

    assert pages == whole


async def test_a_wrong_question_is_named(tmp_path: Path) -> None:
    wrong = [("limit", 0), ("after", "forged"), ("rating", "meh"), ("status", "x"), ("to", 5)]
    async with open_console(tmp_path, writer="none") as console:
        for name, value in wrong:
            answer = await console.get(PATH, ADMIN, params={name: value} | ({"from": 5} if name == "to" else {}))
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)
        assert await console.trail() == []


async def test_what_staff_looks_at_is_on_the_trail_before_it_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_console(tmp_path, writer="none") as console:
        await console.get(PATH, ANN, params={"session_id": SESSION, "rating": "down"})
        await console.get(PATH, ANNA)
        [entry] = await console.trail()

        async def enqueue(records: Sequence[bytes]) -> None:
            raise StoreUnavailable("away")

        monkeypatch.setattr(console.services.store, "enqueue", enqueue)
        untold = await console.get(PATH, ANN)

    assert (entry.action, entry.actor_id, entry.session_id) == ("feedback.list", "ann", SESSION)
    assert msgspec.json.decode(entry.detail)["rating"] == "down"
    assert untold.status_code == 503
