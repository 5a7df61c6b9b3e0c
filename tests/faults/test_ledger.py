"""The client's own book: every way in which a stream of events can be wrong is noticed as it comes."""

import pytest

from tests.faults.builders import Script, encode, greeting, make_ledger, numbered
from tests.faults.ledger import Ledger


def kinds(ledger: Ledger) -> set[str]:
    """What was complained of."""
    return {complaint.kind for complaint in ledger.complaints}


def all_of(script: Script) -> list[tuple[int, bytes]]:
    """The events with their numbers."""
    return list(enumerate(script.frames, 1))


def test_a_whole_session_gives_no_complaint() -> None:
    script = Script()

    ledger = make_ledger(all_of(script))
    ledger.stream.finish()

    assert ledger.complaints == []
    assert [ledger.frames[number] for number in sorted(ledger.frames)] == script.frames
    assert len(list(ledger.acknowledged())) == 4


def test_a_resumed_session_goes_on_with_the_next_number() -> None:
    """P4."""
    events = all_of(Script())
    ledger = make_ledger(events[:7])

    ledger.resume(greeting(7))
    for number, frame in events[7:]:
        ledger.take(numbered(frame, number))

    assert ledger.complaints == []


def test_a_hole_is_a_loss() -> None:
    events = all_of(Script())

    assert "lost" in kinds(make_ledger(events[:8] + events[9:]))


def test_an_event_that_comes_again_is_doubled() -> None:
    events = all_of(Script())

    assert kinds(make_ledger([*events[:8], events[7], *events[8:]])) == {"doubled"}


def test_an_event_that_comes_again_as_another_has_diverged() -> None:
    events = all_of(Script())
    ledger = make_ledger(events[:8])

    ledger.take(numbered(events[6][1], 8))

    assert "diverged" in kinds(ledger)


def test_two_events_with_one_id_are_doubled() -> None:
    script = Script()
    script.events[7]["event_id"] = script.events[6]["event_id"]

    assert kinds(make_ledger(all_of(script))) == {"doubled"}


@pytest.mark.parametrize("kind", ["response.created", "response.done", "conversation.item.done"])
def test_what_happens_once_happens_once(kind: str) -> None:
    """P3, P6."""
    script = Script()
    number = script.number_of(kind)
    again = script.events[number - 1] | {"event_id": "event_other"}
    script.events.insert(number, again)

    assert "doubled" in kinds(make_ledger(all_of(script)))


def test_two_answers_to_one_question_are_doubled() -> None:
    script = Script()
    created = script.events[script.number_of("response.created", 2) - 1]
    created["response"]["metadata"] = {"ask": "ask-1"}

    assert "doubled" in kinds(make_ledger(all_of(script)))


def test_a_token_that_an_undisturbed_answer_does_not_have_has_diverged() -> None:
    """P4."""
    script = Script()
    script.events[script.number_of("response.output_text.delta", 2) - 1]["delta"] = " twice"

    assert "diverged" in kinds(make_ledger(all_of(script)))


def test_a_token_after_the_end_has_diverged() -> None:
    """P5."""
    script = Script()
    delta = script.events[script.number_of("response.output_text.delta") - 1]
    script.events.append(delta | {"event_id": "event_late"})

    assert kinds(make_ledger(all_of(script))) == {"diverged"}


def test_a_completed_answer_that_is_short_has_diverged() -> None:
    script = Script(1)
    number = script.number_of("response.output_text.delta", 4)
    del script.events[number - 1]
    text = script.events[number - 1]["text"].rsplit(" ", 1)[0]
    script.events[number - 1]["text"] = text
    done = script.events[-1]
    done["response"]["output"][0]["content"][0]["text"] = text

    assert kinds(make_ledger(all_of(script))) == {"diverged"}


def test_an_answer_without_an_end_is_stuck() -> None:
    """P6."""
    script = Script(1)
    ledger = make_ledger(all_of(script)[:-1])

    ledger.stream.finish()

    assert kinds(ledger) == {"stuck"}


def test_a_declared_gap_is_no_loss_and_the_open_answer_is_told_anew() -> None:
    """P4: a window that is gone is declared."""
    script = Script()
    events = all_of(script)
    begin = script.number_of("response.created", 2)
    ledger = make_ledger(events[:5])

    ledger.resume(greeting(begin + 2, resumed=False, gap=True))
    for nth in (1, 2, 3):
        item = script.events[script.number_of("conversation.item.done", nth) - 1] | {"event_id": f"event_h{nth}"}
        ledger.take(numbered(encode(item), begin + 2))
    for number, frame in events[begin - 1 :]:
        ledger.take(numbered(frame, number))

    assert ledger.complaints == []
    assert ledger.gaps == [(6, begin - 1)]
    assert [answer.status for answer in ledger.stream.answers.values()] == ["completed"]


def test_a_gap_that_is_not_declared_is_noticed_at_the_greeting() -> None:
    ledger = make_ledger(all_of(Script())[:5])

    ledger.resume(greeting(9))

    assert kinds(ledger) == {"diverged"}
