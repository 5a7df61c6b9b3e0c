"""What vLLM's core tells of its times, without vLLM: believed when it can be true, noted once a request."""

import time
from types import SimpleNamespace
from typing import Any

import pytest

from engine.base import epoch_ms
from engine.vllm_times import CoreClock, note_times


def test_the_cores_seconds_are_told_as_milliseconds_since_the_epoch() -> None:
    before_ms = epoch_ms()
    clock = CoreClock()

    at_ms = clock.at_ms(time.monotonic())

    assert at_ms is not None
    assert before_ms <= at_ms <= epoch_ms()


@pytest.mark.parametrize(
    "core_s",
    [0.0, 1e-9, time.monotonic() - 60.0, time.monotonic() + 3600.0],
    ids=["never", "start", "a minute ago", "in an hour"],
)
def test_a_time_that_cannot_be_of_this_answer_is_not_believed(core_s: float) -> None:
    """A core that was not asked for its times, or that runs on a machine which was started another day."""
    assert CoreClock().at_ms(core_s) is None


def test_a_clock_that_is_read_a_moment_apart_tells_nothing_from_before_or_after() -> None:
    clock = CoreClock()
    asked_ms = epoch_ms()

    early, late = clock.at_ms(time.monotonic() - 0.03), clock.at_ms(time.monotonic() + 0.03)

    assert early is not None
    assert late is not None
    assert asked_ms - 1 <= early <= late <= epoch_ms()


def make_output(*events: tuple[str, float], finish_reason: str | None = None) -> Any:
    told = [SimpleNamespace(type=SimpleNamespace(name=name), timestamp=at) for name, at in events]
    return SimpleNamespace(events=told or None, finish_reason=finish_reason)


def test_a_request_that_was_put_back_keeps_the_time_when_it_was_first_taken_up() -> None:
    processor = SimpleNamespace()
    note_times(SimpleNamespace(output_processor=processor))
    stats = SimpleNamespace(scheduled_ts=0.0, first_token_ts=0.0, last_token_ts=0.0)
    state = SimpleNamespace(stats=stats, is_prefilling=True)
    note: Any = processor._update_stats_from_output

    note(state, make_output(("QUEUED", 1.0), ("SCHEDULED", 2.0), ("PREEMPTED", 3.0), ("SCHEDULED", 4.0)), 5.0, None)
    state.is_prefilling = False
    note(state, make_output(("PREEMPTED", 6.0), ("SCHEDULED", 7.0)), 8.0, None)
    note(state, make_output(finish_reason="stop"), 9.0, None)

    assert (stats.scheduled_ts, stats.first_token_ts, stats.last_token_ts) == (2.0, 5.0, 9.0)
