"""Upserts: any order and any repetition of records ends in the same rows, and nothing goes back in time."""

import secrets
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Raw

from persistence.database import Database, open_database
from persistence.errors import DatabaseUnavailable, PoisonRecord
from persistence.history import load_dialogue
from persistence.notes import notes_of_session
from persistence.rows import RowRecord, write_rows
from persistence.tables import (
    answer_items,
    feedback,
    heard,
    notes,
    predictions,
    requests,
    sent,
    sessions,
    traces,
    turns,
)
from persistence.times import milliseconds, utc_time
from sessions.feedback import feedback_id
from tests.persistence.builders import (
    CREATED_MS,
    all_rows,
    make_feedback,
    make_heard,
    make_note,
    make_prediction,
    make_request,
    make_sent,
    make_session,
    make_trace,
    make_turn,
    new_id,
)


async def write(database: Database, records: Sequence[RowRecord]) -> None:
    async with database.transaction() as connection:
        await write_rows(connection, records, is_mysql=database.is_mysql)


async def rows_of(database: Database, session_id: str) -> list[list[dict[str, object]]]:
    return [
        [row for row in await all_rows(database, table) if row["session_id"] == session_id]
        for table in (sessions, turns, predictions, sent, heard, answer_items, traces, feedback, notes)
    ]


def session_life(session_id: str) -> list[RowRecord]:
    """What one session sends to the outbox, in its true order. Some of its records share a sequence number, as an idle session's do."""
    name = session_id[-8:]
    return [
        make_session(session_id),
        make_turn(session_id, 1, turn_id=f"turn_{name}_1", sequence=10),
        make_prediction(
            session_id, f"turn_{name}_1", response_id=f"resp_{name}_1", sequence=15, sent_chars=3, trace=make_trace()
        ),
        # The listener is back, is given the rest, says what was heard, and corrects itself.
        make_sent(session_id, f"resp_{name}_1", sequence=15),
        # A count of less, from a clock that is ahead.
        make_sent(session_id, f"resp_{name}_1", sequence=14, sent_chars=9, at_ms=CREATED_MS + 60_000),
        make_heard(session_id, f"resp_{name}_1"),
        make_heard(session_id, f"resp_{name}_1", sequence=18, heard_text="Ich", heard_chars=3),
        make_session(session_id, sequence=15, status="idle", updated_ms=CREATED_MS + 3000),
        make_turn(session_id, 2, turn_id=f"turn_{name}_2", sequence=20, text="zwei"),
        make_feedback(session_id, sequence=19),
        make_feedback(session_id, sequence=30, rating="down", rated_ms=CREATED_MS + 7000),
        make_note(session_id, note_id=f"note_{name}"),
        # An answer outside the conversation, and a later word on the first one.
        make_prediction(
            session_id,
            None,
            response_id=f"resp_{name}_2",
            sequence=21,
            first_token_ms=None,
            output=Raw(b'[{"type":"message","id":"item_3"}]'),
        ),
        make_prediction(
            session_id,
            f"turn_{name}_1",
            response_id=f"resp_{name}_1",
            sequence=25,
            status="cancelled",
            text="Ich",
            trace=make_trace(prompt=None, last_token_ms=None),
        ),
        make_session(session_id, sequence=25, status="active", updated_ms=CREATED_MS + 8000),
        make_session(session_id, sequence=25, status="idle", updated_ms=CREATED_MS + 9000),
        # In the same millisecond.
        make_session(session_id, sequence=25, status="ended", updated_ms=CREATED_MS + 9000, ended_ms=CREATED_MS + 9000),
    ]


async def test_a_record_becomes_a_row_that_reads_back_the_same(database: Database) -> None:
    session_id = new_id("sess")
    prediction = make_prediction(session_id)

    await write(database, [make_session(session_id), prediction])

    (session,), _, (row,), *_ = await rows_of(database, session_id)
    assert (session["user_id"], session["status"], session["created_at"]) == ("anna", "active", utc_time(CREATED_MS))
    assert (row["output"], row["request"]) == (bytes(prediction.output).decode(), bytes(prediction.request).decode())
    assert row["first_token_at"] == utc_time(CREATED_MS + 1531)
    assert milliseconds(utc_time(CREATED_MS)) == CREATED_MS


async def test_writing_again_changes_nothing(database: Database) -> None:
    session_id = new_id("sess")
    records = session_life(session_id)
    await write(database, records)
    before = await rows_of(database, session_id)

    await write(database, records)
    await write(database, records[::-1])

    assert await rows_of(database, session_id) == before


@given(data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
async def test_any_order_and_repetition_ends_in_the_same_rows(database: Database, data: st.DataObject) -> None:
    session_id, other_id = (f"sess_{secrets.token_hex(8)}" for _ in range(2))
    life = session_life(session_id)
    await write(database, session_life(other_id))
    extra = data.draw(st.lists(st.sampled_from(range(len(life))), max_size=6))
    order = data.draw(st.permutations([*range(len(life)), *extra]))
    cuts = data.draw(st.lists(st.booleans(), min_size=len(order), max_size=len(order)))

    batch: list[RowRecord] = []
    for index, ends_here in zip(order, cuts, strict=True):
        batch.append(life[index])
        if ends_here:
            await write(database, batch)
            batch = []
    await write(database, batch)

    def nameless(rows: list[list[dict[str, object]]], name: str) -> str:
        rating_id = feedback_id(name, "item_2", "anna")
        return repr(rows).replace(rating_id, "fb_").replace(name, "sess_").replace(name[-8:], "")

    found, expected = await rows_of(database, session_id), await rows_of(database, other_id)
    assert nameless(found, session_id) == nameless(expected, other_id)
    assert (found[0][0]["status"], found[0][0]["ended_at"]) == ("ended", utc_time(CREATED_MS + 9000))
    assert [(row["sent_chars"], row["sent_at"]) for row in found[3]] == [(18, utc_time(CREATED_MS + 2000))]
    assert [row["heard_text"] for row in found[4]] == ["Ich"]
    assert [(row["prompt"], row["sequence"]) for row in found[6]] == [(None, 25)]
    assert [(row["rating"], row["sequence"]) for row in found[7]] == [("down", 30)]


async def test_a_prediction_before_its_session_leaves_stubs_that_are_filled_later(database: Database) -> None:
    session_id = new_id("sess")
    turn = make_turn(session_id, 1, sequence=0)
    await write(database, [make_prediction(session_id, turn.turn_id)])
    (session,), (stub,), *_ = await rows_of(database, session_id)
    assert (session["user_id"], stub["number"], stub["sequence"]) == (None, None, -1)

    await write(database, [turn, make_session(session_id, sequence=0)])

    (session,), (filled,), *_ = await rows_of(database, session_id)
    assert (session["user_id"], filled["number"], filled["text"]) == ("anna", 1, turn.text)


async def test_what_was_generated_sent_and_heard_is_told_apart(database: Database) -> None:
    """P5: also where nobody told, and where the report comes before the answer."""
    session_id = new_id("sess")
    cut = make_prediction(session_id, status="cancelled", sent_chars=14)
    silent = make_prediction(session_id, created_ms=CREATED_MS + 5000)
    await write(database, [make_heard(session_id, cut.response_id)])
    assert await load_dialogue(database, session_id) is None

    await write(database, [silent, cut, make_session(session_id)])

    dialogue = await load_dialogue(database, session_id)
    assert dialogue is not None
    first, second = dialogue.predictions
    assert (first.text, first.sent_chars, first.heard_text, first.heard_chars) == (cut.text, 14, "Ich heiße 🙂", 12)
    assert (second.text, second.sent_chars, second.heard_text, second.heard_chars) == (silent.text, None, None, None)


async def test_how_an_answer_came_to_be_is_read_with_it(database: Database) -> None:
    """Also an answer that a release before traces told of, and a version's name that is too long for its column."""
    session_id = new_id("sess")
    trace = make_trace(prompt_version="v" * 300, queued_ms=None)
    traced = make_prediction(session_id, trace=trace)
    plain = make_prediction(session_id, created_ms=CREATED_MS + 5000)
    await write(database, [make_session(session_id), traced, plain])
    # The same answer told of again by a release that knows no traces.
    await write(database, [make_prediction(session_id, response_id=traced.response_id, sequence=99)])

    dialogue = await load_dialogue(database, session_id)

    assert dialogue is not None
    first, second = (prediction.trace for prediction in dialogue.predictions)
    assert first is not None
    assert (first.prompt, first.prompt_format, first.persona) == (trace.prompt, "text", "kiosk")
    assert (first.sampling, first.prompt_version) == (bytes(trace.sampling).decode(), "v" * 255)
    assert (first.queued_ms, first.engine_first_token_ms) == (None, trace.engine_first_token_ms)
    assert first.last_token_ms == trace.last_token_ms
    assert second is None


async def test_notes_are_kept_beside_a_session_in_the_order_of_their_times(database: Database) -> None:
    session_id = new_id("sess")
    second = make_note(session_id, position_ms=None, text="und dann\n🙂\x00")
    first = make_note(session_id, created_ms=second.created_ms - 1)

    await write(database, [second, first, make_note(new_id("sess"))])
    await write(database, [make_note(session_id, note_id=first.note_id, text="a note never changes")])

    found = await notes_of_session(database, session_id)
    assert [(note.note_id, note.text, note.position_ms, note.created_ms) for note in found] == [
        (first.note_id, first.text, 1720, first.created_ms),
        (second.note_id, second.text, None, second.created_ms),
    ]
    assert found[0].author_id == "sam"


async def test_a_taken_turn_number_is_refused_and_harms_nobody(database: Database) -> None:
    session_id = new_id("sess")
    turn = make_turn(session_id, 1)
    await write(database, [make_session(session_id), turn])
    before = await rows_of(database, session_id)

    with pytest.raises(PoisonRecord):
        await write(database, [make_turn(session_id, 1, sequence=99, text="an impostor")])

    assert await rows_of(database, session_id) == before


async def test_what_does_not_fit_is_refused_by_both_kinds_of_database(database: Database) -> None:
    session_id = new_id("sess")
    misfits: list[RowRecord] = [
        make_session(session_id, user_id="ü" * 256),
        make_session("sess_" + "x" * 60),
        make_session(session_id, created_ms=10**18),
        make_session(session_id, sequence=2**70),
        make_prediction(session_id, output=Raw(b"{")) if database.is_mysql else make_session("s" * 65),
    ]
    for misfit in misfits:
        with pytest.raises((PoisonRecord, ValueError, OverflowError)):
            await write(database, [misfit])

    assert await all_rows(database, sessions) == []


async def test_missing_tables_are_trouble_of_the_database_not_of_the_record(empty_database_url: str) -> None:
    async with open_database(empty_database_url) as unmigrated:
        with pytest.raises(DatabaseUnavailable):
            await write(unmigrated, [make_session(new_id("sess"))])


async def test_a_strangers_long_path_is_cut_and_a_request_is_never_changed(database: Database) -> None:
    request = make_request(path="/ä" * 2000, method="X" * 40, session_id="s" * 100)

    await write(database, [request])
    await write(database, [make_request(request_id=request.request_id, status=500)])

    (row,) = await all_rows(database, requests)
    assert (row["path"], row["method"], row["session_id"]) == ("/ä" * 512, "X" * 16, "s" * 64)
    assert row["status"] == 200
