"""The waterfall is true to the whole, whatever was noted on the way and by whichever clock."""

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from persistence.database import Database
from persistence.history import load_dialogue
from persistence.rows import RowRecord, write_rows
from persistence.waterfall import Moments, Step, steps, waterfall
from tests.persistence.builders import (
    CREATED_MS,
    make_heard,
    make_prediction,
    make_session,
    make_trace,
    make_turn,
    new_id,
)

ORDER = ("queue", "prefill", "first_token", "decode", "delivery", "heard")
ENDS = {
    "queue": "queued_ms",
    "prefill": "engine_first_token_ms",
    "first_token": "first_token_ms",
    "decode": "last_token_ms",
    "delivery": "done_ms",
    "heard": "heard_ms",
}
GOOD = {
    "queued_ms": 3,
    "engine_first_token_ms": 40,
    "first_token_ms": 42,
    "last_token_ms": 900,
    "done_ms": 905,
    "heard_ms": 2000,
}


def shown(way: list[Step]) -> list[tuple[str, int, int]]:
    return [(step.part, step.start_ms, step.duration_ms) for step in way]


def moments(noted: Mapping[str, int | None], created_ms: int = 0) -> Moments:
    return Moments(created_ms=created_ms, **noted)  # type: ignore[arg-type]


def test_each_part_ends_where_the_next_begins() -> None:
    assert shown(steps(moments(GOOD))) == [
        ("queue", 0, 3),
        ("prefill", 3, 37),
        ("first_token", 40, 2),
        ("decode", 42, 858),
        ("delivery", 900, 5),
        ("heard", 905, 1095),
    ]


def test_what_is_not_known_is_part_of_the_next() -> None:
    way = steps(moments(GOOD | {"queued_ms": None, "engine_first_token_ms": None, "heard_ms": None}))

    assert shown(way) == [("first_token", 0, 42), ("decode", 42, 858), ("delivery", 900, 5)]


def test_an_answer_without_a_token_has_only_its_whole() -> None:
    assert shown(steps(Moments(created_ms=1000, done_ms=1250))) == [("delivery", 0, 250)]


def test_a_listener_who_broke_in_is_no_part_of_its_own() -> None:
    assert shown(steps(moments(GOOD | {"heard_ms": 700})))[-1] == ("heard", 905, 0)


def test_a_run_that_went_on_with_an_answer_is_not_taken_for_its_beginning() -> None:
    way = steps(moments(GOOD | {"queued_ms": 500, "engine_first_token_ms": 520, "heard_ms": None}))

    assert shown(way) == [("first_token", 0, 42), ("decode", 42, 858), ("delivery", 900, 5)]


times = st.integers(min_value=-100_000, max_value=100_000)


@given(
    created_ms=times,
    done_ms=times,
    others=st.fixed_dictionaries({name: st.none() | times for name in GOOD if name != "done_ms"}),
)
def test_the_parts_sum_to_the_whole_whatever_the_clocks_say(
    created_ms: int, done_ms: int, others: dict[str, int | None]
) -> None:
    """Each part once and in order, none negative, without a gap, and together exactly the time that the server saw pass."""
    known = others | {"done_ms": done_ms}

    way = steps(moments(known, created_ms))

    parts = [step.part for step in way]
    assert parts == [part for part in ORDER if part in parts]
    assert all(known[ENDS[part]] is not None for part in parts)
    assert {part for part in ORDER[2:] if known[ENDS[part]] is not None} <= set(parts)
    reached = 0
    for step in way:
        assert step.start_ms == reached
        assert step.duration_ms >= 0
        reached += step.duration_ms
    heard_ms = others["heard_ms"]
    end_ms = done_ms if heard_ms is None else max(done_ms, heard_ms)
    assert reached == max(0, end_ms - created_ms)


@given(
    gaps=st.lists(st.integers(min_value=0, max_value=10_000), min_size=6, max_size=6), created_ms=times, data=st.data()
)
def test_with_clocks_that_agree_every_part_is_as_long_as_it_was(
    gaps: list[int], created_ms: int, data: st.DataObject
) -> None:
    ends: dict[str, int | None] = {}
    reached = created_ms
    for part, gap in zip(ORDER, gaps, strict=True):
        reached += gap
        ends[ENDS[part]] = reached
    hidden = data.draw(st.sets(st.sampled_from([name for name in GOOD if name != "done_ms"])))

    way = steps(moments(ends | dict.fromkeys(hidden), created_ms))

    expected, held = [], 0
    for part, gap in zip(ORDER, gaps, strict=True):
        held += gap
        if ENDS[part] not in hidden:
            expected.append((part, held))
            held = 0
    assert [(step.part, step.duration_ms) for step in way] == expected


async def test_a_stored_answer_has_all_its_parts(database: Database) -> None:
    session_id, turn_id, response_id = new_id("sess"), new_id("turn"), new_id("resp")
    trace = make_trace(queued_ms=CREATED_MS + 3, engine_first_token_ms=CREATED_MS + 40, last_token_ms=CREATED_MS + 900)
    prediction = make_prediction(
        session_id,
        turn_id,
        response_id=response_id,
        created_ms=CREATED_MS,
        first_token_ms=CREATED_MS + 42,
        done_ms=CREATED_MS + 905,
        trace=trace,
    )
    records: list[RowRecord] = [
        make_session(session_id),
        make_turn(session_id, 1, turn_id=turn_id),
        prediction,
        make_heard(session_id, response_id, at_ms=CREATED_MS + 2000),
    ]
    async with database.transaction() as connection:
        await write_rows(connection, records, is_mysql=database.is_mysql)

    dialogue = await load_dialogue(database, session_id)

    assert dialogue is not None
    assert waterfall(dialogue.predictions[0]) == steps(moments(GOOD))
