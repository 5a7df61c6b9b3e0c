"""Summaries, postings and sums: whatever comes when, and whoever is killed when, they end as the records have it."""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Raw
from sqlalchemy import delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from persistence.database import Database
from persistence.errors import DatabaseUnavailable
from persistence.facts import summary_of
from persistence.masking import unmasked
from persistence.places import place_of
from persistence.rollups import add_counts, decode_counts, overview
from persistence.rows import RowRecord, write_rows
from persistence.search_tables import indexed, postings, rollups, stale_sessions, summaries
from persistence.stale import changed_sessions, mark_stale
from persistence.summaries import MAX_TERMS, AnswerFacts, DialogueFacts, Digest, SessionFacts, TurnFacts, digest, labels
from persistence.summarizer import Summarizer
from persistence.times import utc_time
from sessions.feedback import feedback_id
from sessions.records import FeedbackRecord, PredictionRecord, SessionRecord, TurnRecord
from tests.persistence.builders import CREATED_MS, all_rows, make_prediction, make_session, make_turn, new_id

DAY_MS = 24 * 3600 * 1000


class Clock:
    """Every look at it is a minute later: whatever was taken is free again, and everything is due."""

    def __init__(self) -> None:
        self._now_ms = CREATED_MS

    def __call__(self) -> int:
        self._now_ms += 60_000
        return self._now_ms


class Killed(Exception):
    """The summarizer's process ends here."""


class InterruptedDatabase(Database):
    """Something happens before each of its transactions."""

    def __init__(self, database: Database, happen: Callable[[], Any]) -> None:
        super().__init__(database.engine, timeout_s=30.0)
        self._happen = happen

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        await self._happen()
        async with super().transaction() as connection:
            yield connection

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[AsyncConnection]:
        await self._happen()
        async with super().snapshot() as connection:
            yield connection


async def write(database: Database, records: Sequence[RowRecord]) -> None:
    """What the writer does with a batch."""
    async with database.transaction() as connection:
        await mark_stale(connection, changed_sessions(records), now_ms=CREATED_MS, is_mysql=database.is_mysql)
        await write_rows(connection, records, is_mysql=database.is_mysql)


async def summarize_all(database: Database) -> None:
    """Until nothing is marked."""
    summarizer = Summarizer(database, now_ms=Clock())
    while await all_rows(database, stale_sessions):
        await summarizer.summarize_due()


def make_feedback(session_id: str, item_id: str, rating: Any, **changes: Any) -> FeedbackRecord:
    record = FeedbackRecord(
        feedback_id=feedback_id(session_id, item_id, "anna"),
        session_id=session_id,
        item_id=item_id,
        user_id="anna",
        role="user",
        sequence=30,
        rating=rating,
        rated_ms=CREATED_MS + 5000,
        received_ms=CREATED_MS + 5000,
    )
    return msgspec.structs.replace(record, **changes)


def session_life(session_id: str, client_id: str) -> list[RowRecord]:
    """What one session sends to the outbox, in its true order."""
    name = session_id[-8:]
    begun = make_session(session_id, client_id=client_id)
    turn = make_turn(session_id, 1, turn_id=f"turn_{name}", text="물을 주세요")
    answer = make_prediction(
        session_id,
        turn.turn_id,
        response_id=f"resp_{name}",
        output=Raw(b'[{"type":"message","id":"item_1"}]'),
        text="Gern.",
    )
    return [
        begun,
        turn,
        make_feedback(session_id, "item_1", "up"),
        answer,
        make_feedback(session_id, "item_1", "down", sequence=31, rated_ms=CREATED_MS + 6000),
        # A reviewer's rating is none of the user's.
        make_feedback(session_id, "item_1", "up", user_id="rosa", role="support", feedback_id=f"fb_{name}"),
        make_prediction(
            session_id,
            None,
            response_id=f"late_{name}",
            sequence=40,
            status="failed",
            model="other",
            first_token_ms=None,
            created_ms=CREATED_MS + DAY_MS,
            output=Raw(b"[]"),
            text="",
        ),
        msgspec.structs.replace(begun, sequence=40, status="ended", ended_ms=CREATED_MS + 9000),
        msgspec.structs.replace(answer, sequence=41, status="cancelled", text="Gern, und"),
        make_feedback(session_id, "item_1", None, sequence=42, rated_ms=CREATED_MS + 7000),
    ]


def expected_facts(records: Sequence[RowRecord]) -> DialogueFacts | None:
    """What these records, of one session, come to."""
    newest: dict[str, Any] = {}
    for record in sorted(records, key=lambda each: getattr(each, "rated_ms", 0) or each.sequence):  # type: ignore[union-attr]
        match record:
            case SessionRecord():
                newest["session"] = record
            case TurnRecord():
                newest[record.turn_id] = record
            case PredictionRecord():
                newest[record.response_id] = record
            case FeedbackRecord():
                newest[record.feedback_id] = record
    session = newest.pop("session", None)
    if session is None:
        return None
    ratings = Counter(
        (f"resp_{session.session_id[-8:]}", record.rating)
        for record in newest.values()
        if isinstance(record, FeedbackRecord) and record.role == "user"
    )
    answers = [record for record in newest.values() if isinstance(record, PredictionRecord)]
    return DialogueFacts(
        SessionFacts(
            session_id=session.session_id,
            user_id=session.user_id,
            client_id=session.client_id,
            model=session.model,
            status=session.status,
            created_ms=session.created_ms,
            updated_ms=session.updated_ms,
            ended_ms=session.ended_ms,
        ),
        [TurnFacts(record.text, record.created_ms) for record in newest.values() if isinstance(record, TurnRecord)],
        [
            AnswerFacts(
                model=record.model,
                status=record.status,
                text=record.text,
                created_ms=record.created_ms,
                first_token_ms=record.first_token_ms,
                num_up=ratings[record.response_id, "up"],
                num_down=ratings[record.response_id, "down"],
            )
            for record in sorted(answers, key=lambda each: each.created_ms)
        ],
    )


async def assert_derived(database: Database, expected: Sequence[Digest], client_id: str) -> None:
    """Everything that is derived of this digital human's sessions is as expected."""
    rows = [row for row in await all_rows(database, summaries) if row["client_id"] == client_id]
    by_session = {row["session_id"]: row for row in rows}
    assert set(by_session) == {each.summary.session_id for each in expected}
    found_postings = await all_rows(database, postings)
    for each in expected:
        row = by_session[each.summary.session_id]
        assert {name: row[name] for name in ("status", "num_turns", "num_answers", "num_errors", "first_text")} == {
            name: getattr(each.summary, name)
            for name in ("status", "num_turns", "num_answers", "num_errors", "first_text")
        }
        assert row["num_interruptions"] == each.summary.num_interruptions
        assert (row["num_up"], row["num_down"]) == (each.summary.num_up, each.summary.num_down)
        assert row["max_first_token_ms"] == each.summary.max_first_token_ms
        assert {found["term"] for found in found_postings if found["place"] == row["place"]} == each.terms
    sums: dict[tuple[str, str], list[Any]] = {}
    for share in (share for each in expected for share in each.shares):
        counts = sums.setdefault((share.day, share.model), [0, 0, 0, 0, {}])
        for i, name in enumerate(("num_sessions", "num_answers", "num_up", "num_down")):
            counts[i] += getattr(share, name)
        add_counts(counts[-1], share.first_tokens)
    found_sums = {
        (row["day"], row["model"]): [
            row["num_sessions"],
            row["num_answers"],
            row["num_up"],
            row["num_down"],
            decode_counts(str(row["first_tokens"])),
        ]
        for row in await all_rows(database, rollups)
        if row["client_id"] == client_id and row["num_sessions"]
    }
    assert found_sums == sums


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
async def test_any_interleaving_of_records_and_summarizers_ends_as_the_records_have_it(
    database: Database, data: st.DataObject
) -> None:
    """P3: summaries are made from the rows, whoever is killed on the way, and as often as anybody likes."""
    client_id = new_id("client")
    lives = [session_life(new_id("sess"), client_id) for _ in range(2)]
    records = data.draw(st.permutations([record for life in lives for record in life]))
    waiting = deque(records)
    happenings = data.draw(
        st.lists(st.lists(st.sampled_from(["write", "write", "other", "killed"]), max_size=3), max_size=20)
    )
    clock = Clock()

    async def happen() -> None:
        # The last writes come in the middle of a summarizer's work, too: nobody writes for that session again.
        for event in happenings.pop() if happenings else ["write"]:
            match event:
                case "write" if waiting:
                    await write(database, [waiting.popleft() for _ in range(min(2, len(waiting)))])
                case "other":
                    await Summarizer(database, now_ms=clock).summarize_due()
                case "killed":
                    raise Killed
                case _:
                    pass

    while waiting:
        with suppress(Killed):
            await Summarizer(InterruptedDatabase(database, happen), now_ms=clock).summarize_due()
    await summarize_all(database)

    expected = [facts for life in lives if (facts := expected_facts(life)) is not None]
    await assert_derived(database, [digest(facts, unmasked) for facts in expected], client_id)


async def test_who_was_overtaken_does_not_put_back_what_it_had_read_before(database: Database) -> None:
    """P3: a process that hung between reading and writing, while another did its work with what is newer."""
    session_id, client_id = new_id("sess"), new_id("client")
    *early, last = session_life(session_id, client_id)
    await write(database, early)
    steps = iter(("take", "read", "write"))

    async def happen() -> None:
        if next(steps) == "write":
            await write(database, [last])
            await Summarizer(database, now_ms=clock).summarize_due()

    clock = Clock()
    await Summarizer(InterruptedDatabase(database, happen), now_ms=clock).summarize_due()

    facts = expected_facts([*early, last])
    assert facts is not None
    await assert_derived(database, [digest(facts, unmasked)], client_id)


async def test_a_summary_tells_what_became_of_a_session(database: Database) -> None:
    session_id = new_id("sess")
    await write(database, session_life(session_id, "kiosk")[:5])

    await summarize_all(database)

    (row,) = [row for row in await all_rows(database, summaries) if row["session_id"] == session_id]
    assert row["created_at"] == utc_time(CREATED_MS)
    assert (row["user_id"], row["client_id"], row["model"], row["status"]) == ("anna", "kiosk", "demo", "active")
    assert [row[name] for name in ("num_turns", "num_answers", "num_errors", "num_interruptions")] == [1, 1, 0, 0]
    assert [row[name] for name in ("num_up", "num_down", "max_first_token_ms")] == [0, 1, 31]
    assert row["first_text"] == "물을 주세요"
    found = await summary_of(database, session_id, unmasked)
    assert found is not None
    assert (found.num_down, found.created_ms, found.first_text) == (1, CREATED_MS, "물을 주세요")


async def test_what_is_masked_is_neither_found_nor_shown(database: Database) -> None:
    session_id = new_id("sess")
    await write(database, [make_session(session_id), make_turn(session_id, text="Ich bin Anna Blau")])

    await Summarizer(database, mask=lambda text: text.replace("Blau", "█"), now_ms=Clock()).summarize_due()

    terms = {row["term"] for row in await all_rows(database, postings)}
    (row,) = await all_rows(database, summaries)
    assert "anna" in terms
    assert "blau" not in terms
    assert row["first_text"] == "Ich bin Anna █"
    assert all(b"Blau" not in bytes(row["text"]) for row in await all_rows(database, indexed))  # type: ignore[call-overload]


@pytest.mark.parametrize("error", [ValueError, DatabaseUnavailable])
async def test_a_session_that_cannot_be_summarized_holds_up_no_other(
    database: Database, error: type[Exception]
) -> None:
    """A bug that it brings out, or more of it than there is time for in one transaction."""
    good, bad = new_id("sess"), new_id("sess")
    await write(database, [make_session(good), make_turn(good, text="gut")])
    await write(database, [make_session(bad), make_turn(bad, text="schlecht")])

    def mask(text: str) -> str:
        if text == "schlecht":
            raise error
        return text

    summarizer = Summarizer(database, mask=mask, now_ms=lambda: CREATED_MS + DAY_MS)
    await summarizer.summarize_due()

    assert [row["session_id"] for row in await all_rows(database, summaries)] == [good]
    assert [row["session_id"] for row in await all_rows(database, stale_sessions)] == [bad]
    assert await summarizer.summarize_due() == 0
    assert (summarizer.figures.num_summarized, summarizer.figures.num_left) == (1, 1)


def test_what_a_session_is_found_by_is_bounded() -> None:
    """P7: each term is a row. A long text of all the characters there are has one for nearly each pair."""
    syllables = [chr(code) for code in range(0xAC00, 0xD7A4)]
    texts = ["".join(syllables[start::step]) for step in (1, 7, 11, 13) for start in range(step)]
    turns = [make_turn("sess_1", n + 1, text=text) for n, text in enumerate(texts)]
    facts = expected_facts([make_session("sess_1"), *turns])
    assert facts is not None

    found, again = digest(facts, unmasked), digest(facts, unmasked)

    assert len(found.terms) == MAX_TERMS
    assert found.terms >= set(labels(found.summary)) | {"가"}
    assert found.terms == again.terms


async def test_two_sessions_with_one_place_stand_side_by_side(database: Database) -> None:
    session_id = new_id("sess")
    place = place_of(session_id, CREATED_MS)
    await write(database, [make_session("sess_other")])
    await summarize_all(database)
    async with database.transaction() as connection:
        (other,) = (await connection.execute(select(summaries))).mappings()
        await connection.execute(delete(summaries))
        await connection.execute(insert(summaries), {**other, "place": place})

    await write(database, [make_session(session_id)])
    await summarize_all(database)

    assert {row["session_id"]: row["place"] for row in await all_rows(database, summaries)} == {
        "sess_other": place,
        session_id: place + 1,
    }


async def test_of_a_session_that_is_deleted_nothing_is_left(database: Database) -> None:
    session_id = new_id("sess")
    await write(database, [make_session(session_id)])
    await summarize_all(database)
    async with database.transaction() as connection:
        await connection.exec_driver_sql("DELETE FROM sessions")
        await mark_stale(connection, [session_id], now_ms=CREATED_MS, is_mysql=database.is_mysql)

    await summarize_all(database)

    assert [await all_rows(database, table) for table in (summaries, postings, indexed)] == [[], [], []]
    assert await overview(database, from_ms=0, to_ms=CREATED_MS + DAY_MS) == []


async def test_several_summarizers_at_once_share_the_work_and_count_all_once(database: Database) -> None:
    client_id = new_id("client")
    for _ in range(30):
        await write(database, session_life(new_id("sess"), client_id))
    workers = [Summarizer(database, now_ms=lambda: CREATED_MS + DAY_MS) for _ in range(3)]

    async def work(summarizer: Summarizer) -> None:
        while await summarizer.summarize_due():
            pass

    await asyncio.gather(*map(work, workers))

    assert sum(worker.figures.num_summarized for worker in workers) == 30
    figures = await overview(database, from_ms=CREATED_MS, to_ms=CREATED_MS + DAY_MS, client_id=client_id)
    assert [(day.model, day.num_sessions, day.num_answers, day.num_interruptions) for day in figures] == [
        ("demo", 30, 30, 30),
        ("other", 30, 30, 0),
    ]
    assert figures[0].first_token_p50_ms == pytest.approx(31, rel=0.05)
