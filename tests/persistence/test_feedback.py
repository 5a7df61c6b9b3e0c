"""Opinions in the tables: the latest of each person counts, however the records come, and each finds the answer it is about."""

import itertools
import secrets
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Raw
from sqlalchemy import text

from persistence.archive import Archive
from persistence.database import Database
from persistence.errors import PoisonRecord
from persistence.feedback import FeedbackFilter, FeedbackPlace, StoredFeedback, feedback_of_session, find_feedback
from persistence.history import load_dialogue
from persistence.rows import RowRecord, write_rows
from persistence.tables import answer_items, feedback
from persistence.times import utc_time
from sessions.records import FeedbackRecord
from sessions.store import Store
from tests.persistence.builders import (
    CREATED_MS,
    all_rows,
    enqueue,
    make_feedback,
    make_prediction,
    make_session,
    make_trace,
    new_id,
    settle,
)
from tests.plans import statements_of


async def write(database: Database, records: Sequence[RowRecord]) -> None:
    async with database.transaction() as connection:
        await write_rows(connection, records, is_mysql=database.is_mysql)


async def stored(database: Database, record: FeedbackRecord) -> dict[str, object]:
    (row,) = [row for row in await all_rows(database, feedback) if row["feedback_id"] == record.feedback_id]
    return row


async def test_a_rating_is_stored_as_it_was_given(database: Database) -> None:
    session_id = new_id("sess")
    record = make_feedback(session_id, rating="down", reason="unsafe", comment="nein 🙂\x00", start=0, end=7)

    await write(database, [make_session(session_id), record])

    row = await stored(database, record)
    assert (row["rating"], row["reason"], row["comment"]) == ("down", "unsafe", "nein 🙂\x00")
    assert (row["start_chars"], row["end_chars"], row["role"]) == (0, 7, "user")
    assert (row["rated_at"], row["received_at"]) == (utc_time(CREATED_MS + 3000), utc_time(CREATED_MS + 3020))


async def test_who_is_called_like_another_but_for_a_space_sees_only_its_own(database: Database) -> None:
    """P7: for MySQL's collations the two names are one."""
    session_id = new_id("sess")
    other = make_feedback(session_id, item_id="item_2", user_id="anna ", comment="not for anna")
    mine = make_feedback(session_id, item_id="item_4", user_id="anna")
    await write(database, [make_session(session_id), other, mine])

    page = await find_feedback(database, FeedbackFilter(user_id="anna"), limit=10)

    assert [found.feedback_id for found in page.rows] == [mine.feedback_id]


def changes_of_mind(session_id: str) -> list[FeedbackRecord]:
    """One user's, in their true order; the last one was chosen last."""
    later = CREATED_MS + 9000
    return [
        make_feedback(session_id),
        # Chosen before that while offline, and delivered only now.
        make_feedback(session_id, sequence=40, rating="down", rated_ms=CREATED_MS + 1000, received_ms=later + 500),
        make_feedback(session_id, sequence=41, rating=None, rated_ms=later),
        # In one millisecond: the session's order, then the time of arrival.
        make_feedback(session_id, sequence=0, rating="up", rated_ms=later, received_ms=later + 900),
        make_feedback(session_id, sequence=42, rating="up", rated_ms=later, received_ms=later + 1),
        make_feedback(session_id, sequence=42, rating="down", reason="other", rated_ms=later, received_ms=later + 2),
    ]


@given(data=st.data())
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
async def test_in_any_order_and_repetition_what_was_chosen_last_counts(database: Database, data: st.DataObject) -> None:
    """P3: also over several batches."""
    session_id = f"sess_{secrets.token_hex(8)}"
    records = changes_of_mind(session_id)
    extra = data.draw(st.lists(st.sampled_from(range(len(records))), max_size=4))
    order = data.draw(st.permutations([*range(len(records)), *extra]))
    cut = data.draw(st.integers(0, len(order)))

    for batch in (order[:cut], order[cut:]):
        await write(database, [records[index] for index in batch])

    row = await stored(database, records[0])
    assert (row["rating"], row["reason"], row["sequence"]) == ("down", "other", 42)


async def test_a_withdrawn_rating_stays_as_a_row_and_is_nobodys_opinion(database: Database) -> None:
    session_id = new_id("sess")
    record = make_feedback(session_id)
    withdrawn = make_feedback(session_id, rating=None, rated_ms=CREATED_MS + 4000)

    await write(database, [make_session(session_id), withdrawn])
    await write(database, [record])

    assert (await stored(database, record))["rating"] is None
    assert await feedback_of_session(database, session_id) == ()
    assert (await find_feedback(database, FeedbackFilter(), limit=9)).rows == ()


async def test_feedback_whose_session_is_still_on_its_way_waits_for_nobody(
    store: Store, database: Database, folder: Archive
) -> None:
    """P3"""
    session_id = new_id("sess")
    prediction = make_prediction(session_id, trace=make_trace())
    await enqueue(store, [make_feedback(session_id)])
    await settle(store, database, folder, 1)
    (early,) = await feedback_of_session(database, session_id)
    assert await load_dialogue(database, session_id) is None
    assert (early.rating, early.response_id, early.model, early.persona) == ("up", None, None, None)

    await enqueue(store, [prediction, make_session(session_id)])
    await settle(store, database, folder, 2)

    (known,) = await feedback_of_session(database, session_id)
    assert (known.response_id, known.model, known.model_version) == (prediction.response_id, "demo", "1")
    assert (known.prompt_version, known.persona) == ("sha256:0123456789ab", "kiosk")


async def test_user_and_reviewers_rate_the_same_answer_apart(database: Database) -> None:
    session_id = new_id("sess")
    reviewed = make_feedback(session_id, user_id="sam", role="support", sequence=0, rating="down")

    await write(database, [make_session(session_id), make_feedback(session_id), reviewed])

    found = await feedback_of_session(database, session_id)
    assert {(row.user_id, row.role, row.rating) for row in found} == {
        ("anna", "user", "up"),
        ("sam", "support", "down"),
    }


async def test_a_rating_under_another_id_than_its_own_is_refused_by_both_kinds_of_database(database: Database) -> None:
    session_id = new_id("sess")
    await write(database, [make_session(session_id), make_feedback(session_id)])
    before = await all_rows(database, feedback)

    with pytest.raises(PoisonRecord):
        await write(database, [make_feedback(session_id, feedback_id="fb_other", rated_ms=CREATED_MS + 9000)])

    assert await all_rows(database, feedback) == before


async def test_only_messages_of_an_answer_can_be_rated(database: Database) -> None:
    session_id = new_id("sess")
    output = (
        b'[{"type":"function_call","id":"item_1"},{"type":"message","id":"item_2"},{"type":"message","id":"item_3"}]'
    )
    prediction = make_prediction(session_id, output=Raw(output))

    await write(database, [prediction, prediction])

    rows = await all_rows(database, answer_items)
    assert [(row["item_id"], row["response_id"]) for row in rows] == [
        ("item_2", prediction.response_id),
        ("item_3", prediction.response_id),
    ]


async def test_what_is_no_answer_is_not_searched_for_in_all_that_was_said(database: Database) -> None:
    """P7: whoever rates its own messages over and over must not keep the writer busy."""
    session_id = new_id("sess")
    said = [make_prediction(session_id, trace=make_trace()) for _ in range(3)]
    await write(database, [make_session(session_id), *said])

    seen = await statements_of(
        database, lambda: write(database, [make_feedback(session_id, item_id="mine"), make_feedback(session_id)])
    )

    assert [row["item_id"] for row in await all_rows(database, answer_items)] == ["item_2"]
    assert not [statement.sql for statement in seen if "output" in statement.sql]


async def test_an_answer_that_a_release_before_ratings_stored_is_found_when_it_is_rated(database: Database) -> None:
    """Also where its output had to be quoted, and though another item's id begins as its own does."""
    session_id = new_id("sess")
    output = rb'"[{\"type\":\"message\",\"id\":\"item_2\"}]"'
    old, other = (make_prediction(session_id, output=Raw(it)) for it in (output, output.replace(b"_2", b"_22")))
    await write(database, [make_session(session_id), old, other])
    async with database.transaction() as connection:
        await connection.execute(text("DELETE FROM answer_items"))

    await write(database, [make_feedback(session_id), make_feedback(session_id, item_id="item_unknown")])

    found = {row.item_id: row.response_id for row in await feedback_of_session(database, session_id)}
    assert found == {"item_2": old.response_id, "item_unknown": None}


async def rate_many(database: Database, num_sessions: int = 12) -> list[StoredFeedback]:
    """Ratings of every kind, some in the same millisecond; all of them, the newest first."""
    kinds = itertools.cycle(itertools.product(("up", "down"), ("anna", "ben"), ("kiosk", "bank"), ("demo", "large")))
    records: list[RowRecord] = []
    for number, (rating, user_id, client_id, model) in zip(range(num_sessions), kinds, strict=False):
        session_id = new_id("sess")
        at_ms = CREATED_MS + 1000 * (number // 2)
        records += [
            make_session(session_id, client_id=client_id, user_id=user_id),
            make_prediction(session_id, model=model),
            make_feedback(session_id, user_id=user_id, rating=rating, rated_ms=at_ms, reason=f"reason{number % 3}"),
        ]
    await write(database, records)
    found = await find_feedback(database, FeedbackFilter(), limit=100)
    assert found.next is None
    return list(found.rows)


async def test_pages_hold_each_opinion_once_the_newest_first(database: Database) -> None:
    everything = await rate_many(database)
    found: list[StoredFeedback] = []
    place: FeedbackPlace | None = None
    for _ in range(3):
        page = await find_feedback(database, FeedbackFilter(), limit=5, after=place)
        found += page.rows
        place = page.next

    assert place is None
    assert found == everything == sorted(everything, key=lambda row: (row.rated_ms, row.feedback_id), reverse=True)
    assert len({row.feedback_id for row in found}) == 12


@pytest.mark.parametrize(
    ("wanted", "matches"),
    [
        (FeedbackFilter(rating="down"), lambda row: row.rating == "down"),
        (FeedbackFilter(user_id="ben"), lambda row: row.user_id == "ben"),
        (FeedbackFilter(model="large", rating="up"), lambda row: (row.model, row.rating) == ("large", "up")),
        (FeedbackFilter(reason="reason1"), lambda row: row.reason == "reason1"),
        (FeedbackFilter(role="support"), lambda row: False),
        (FeedbackFilter(item_id="item_2", clients=frozenset({"bank"})), lambda row: row.persona == "bank"),
        (FeedbackFilter(hidden_clients=frozenset({"bank"})), lambda row: row.persona == "kiosk"),
        (FeedbackFilter(clients=frozenset()), lambda row: False),
        (
            FeedbackFilter(from_ms=CREATED_MS + 1000, to_ms=CREATED_MS + 3000),
            lambda row: CREATED_MS + 1000 <= row.rated_ms < CREATED_MS + 3000,
        ),
    ],
    ids=lambda value: "" if callable(value) else repr(value)[:60],
)
async def test_a_filter_finds_what_it_says_also_where_there_is_little_time_to_look(
    database: Database, wanted: FeedbackFilter, matches: object
) -> None:
    assert callable(matches)
    expected = [row for row in await rate_many(database) if matches(row)]

    found: list[StoredFeedback] = []
    place: FeedbackPlace | None = None
    num_pages = 0
    while num_pages == 0 or place is not None:
        page = await find_feedback(database, wanted, limit=2, after=place, clock_s=itertools.count().__next__)
        found += page.rows
        place = page.next
        num_pages += 1

    assert found == expected
    assert num_pages <= 8


async def test_feedback_of_a_session_that_is_not_known_yet_is_hidden_with_the_hidden_ones(database: Database) -> None:
    session_id = new_id("sess")
    await write(database, [make_feedback(session_id)])

    hidden = await find_feedback(database, FeedbackFilter(hidden_clients=frozenset({"bank"})), limit=9)
    foreign = await find_feedback(database, FeedbackFilter(clients=frozenset({"kiosk"})), limit=9)
    everything = await find_feedback(database, FeedbackFilter(), limit=9)

    assert (hidden.rows, foreign.rows, len(everything.rows)) == ((), (), 1)
