"""The checker is proven: with nothing wrong it says nothing, and each wrong that is planted it finds."""

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from tests.faults.builders import SESSION, Script, make_evidence, make_ledger
from tests.faults.checker import check
from tests.faults.evidence import Evidence, Part
from tests.faults.ledger import Ledger


def ledger_of(script: Script) -> Ledger:
    """A client that received everything."""
    return make_ledger(enumerate(script.frames, 1))


def found(evidence: Evidence, script: Script | None = None) -> set[str]:
    """The kinds of complaints about what is stored, with a client that received everything."""
    verdict = check([ledger_of(script or Script())], evidence)
    assert verdict.figures.is_clean == (not verdict.complaints)
    return {complaint.kind for complaint in verdict.complaints}


def test_nothing_wrong_is_nothing_found() -> None:
    verdict = check([ledger_of(Script())], make_evidence(Script()))

    assert verdict.complaints == []
    assert (verdict.figures.acknowledged, verdict.figures.completed, verdict.figures.sessions) == (4, 2, 1)


def without_turn(evidence: Evidence) -> None:
    del evidence.turns[0]


def without_prediction(evidence: Evidence) -> None:
    del evidence.predictions[1]


def without_object(evidence: Evidence) -> None:
    del evidence.parts[1]


def without_tail(evidence: Evidence) -> None:
    # As if the archive had been asked for too early: object and row agree, and both end too soon.
    tail = evidence.parts[1]
    evidence.parts[1] = replace(tail, last_sequence=tail.last_sequence - 1, events=tail.events[:-1])
    evidence.archived[SESSION][1] = (tail.first_sequence, tail.last_sequence - 1)


def with_dead_letter(evidence: Evidence) -> None:
    evidence.dead = ("PoisonRecord",)


@pytest.mark.parametrize("harm", [without_turn, without_prediction, without_object, without_tail, with_dead_letter])
def test_what_is_missing_is_lost(harm: Callable[[Evidence], None]) -> None:
    """P3."""
    evidence = make_evidence(Script())

    harm(evidence)

    assert "lost" in found(evidence)


def with_turn_twice(evidence: Evidence) -> None:
    evidence.turns.append(evidence.turns[0])


def with_events_twice(evidence: Evidence) -> None:
    first = evidence.parts[0]
    evidence.parts.append(Part(SESSION, 2, 3, first.events[1:3]))
    evidence.archived[SESSION].append((2, 3))


@pytest.mark.parametrize("harm", [with_turn_twice, with_events_twice])
def test_what_is_there_twice_is_doubled(harm: Callable[[Evidence], None]) -> None:
    """P3."""
    evidence = make_evidence(Script())

    harm(evidence)

    assert "doubled" in found(evidence)


def with_other_bytes(evidence: Evidence) -> None:
    part = evidence.parts[0]
    events = ((1, part.events[0][1].replace(b"session", b"sessiom")), *part.events[1:])
    evidence.parts[0] = replace(part, events=events)


def with_other_text(evidence: Evidence) -> None:
    evidence.predictions[0] = replace(evidence.predictions[0], text="something else")


def with_other_status(evidence: Evidence) -> None:
    evidence.predictions[0] = replace(evidence.predictions[0], status="cancelled")


def with_unknown_prediction(evidence: Evidence) -> None:
    evidence.predictions.append(replace(evidence.predictions[0], response_id="resp_nobody"))


def with_unknown_object(evidence: Evidence) -> None:
    evidence.archived[SESSION].pop()


@pytest.mark.parametrize(
    "harm", [with_other_bytes, with_other_text, with_other_status, with_unknown_prediction, with_unknown_object]
)
def test_what_is_stored_as_another_has_diverged(harm: Callable[[Evidence], None]) -> None:
    """P3."""
    evidence = make_evidence(Script())

    harm(evidence)

    assert "diverged" in found(evidence)


def still_active(evidence: Evidence) -> None:
    evidence.sessions[SESSION] = "active"


def still_waiting(evidence: Evidence) -> None:
    evidence.num_waiting = 1


def with_leaked_key(evidence: Evidence) -> None:
    evidence.leaked_keys = ("fl:{0}:owned:node",)


@pytest.mark.parametrize("harm", [still_active, still_waiting, with_leaked_key])
def test_what_does_not_come_to_its_end_is_stuck(harm: Callable[[Evidence], None]) -> None:
    evidence = make_evidence(Script())

    harm(evidence)

    assert found(evidence) == {"stuck"}


def test_an_answer_that_never_ends_is_stuck_also_where_no_client_saw_it() -> None:
    """P6."""
    script = Script()
    ledger = make_ledger(list(enumerate(script.frames, 1))[:4])
    del script.events[-1]
    evidence = make_evidence(script)
    del evidence.predictions[1]

    verdict = check([ledger], evidence)

    assert [complaint.kind for complaint in verdict.complaints] == ["stuck"]


def test_a_session_that_is_nowhere_is_lost() -> None:
    evidence = Evidence({}, [], [], {}, [])

    assert "lost" in found(evidence)
