"""Where an answer's time went, from the moments that were noted on its way. Pure; it invents no moment that nobody noted."""

from typing import Literal

from msgspec import Struct

from persistence.history import StoredPrediction

Part = Literal["queue", "prefill", "first_token", "decode", "delivery", "heard"]


class Step(Struct, frozen=True):
    """One part of the way, in milliseconds from when the answer was asked for."""

    part: Part
    start_ms: int
    duration_ms: int


class Moments(Struct, frozen=True, kw_only=True):
    """When each part ended, in milliseconds since the epoch: the engine took the request up and had its first token by its own clock;
    the first delta was made and the last token came; the answer was done; its listener's client said how much was heard.
    """

    created_ms: int
    queued_ms: int | None = None
    engine_first_token_ms: int | None = None
    first_token_ms: int | None = None
    last_token_ms: int | None = None
    done_ms: int
    heard_ms: int | None = None


def waterfall(prediction: StoredPrediction) -> list[Step]:
    """The parts of a stored answer; one that a release before traces stored has fewer."""
    trace = prediction.trace
    return steps(
        Moments(
            created_ms=prediction.created_ms,
            queued_ms=trace.queued_ms if trace else None,
            engine_first_token_ms=trace.engine_first_token_ms if trace else None,
            first_token_ms=prediction.first_token_ms,
            last_token_ms=trace.last_token_ms if trace else None,
            done_ms=prediction.done_ms,
            heard_ms=prediction.heard_ms,
        )
    )


def steps(moments: Moments) -> list[Step]:
    """The parts in their order, each beginning where the one before it ends: they sum to the time from first to last moment.

    A part whose end is not known is part of the next. Clocks of two machines may disagree: no part is negative, and the whole is told by
    the clock of the server, which made the first and the last moment.
    """
    first_delta_ms = moments.done_ms if moments.first_token_ms is None else moments.first_token_ms
    ends: list[tuple[Part, int | None]] = [
        ("queue", _before(moments.queued_ms, first_delta_ms)),
        ("prefill", _before(moments.engine_first_token_ms, first_delta_ms)),
        ("first_token", moments.first_token_ms),
        ("decode", moments.last_token_ms),
        ("delivery", moments.done_ms),
        # A listener who breaks in tells it before the answer is done.
        ("heard", None if moments.heard_ms is None else max(moments.heard_ms, moments.done_ms)),
    ]
    known = [(part, end_ms) for part, end_ms in ends if end_ms is not None]
    latest = known[-1][1]
    starts: list[tuple[Part, int]] = []
    for part, end_ms in reversed(known):
        latest = min(latest, end_ms)
        starts.append((part, max(latest - moments.created_ms, 0)))
    way, reached = [], 0
    for part, offset_ms in reversed(starts):
        way.append(Step(part, reached, offset_ms - reached))
        reached = offset_ms
    return way


def _before(engine_ms: int | None, first_delta_ms: int) -> int | None:
    """The engine's time, unless it comes after its own effect.

    Then it is of another run, by which an answer was gone on with, or of a clock that is wrong: it would say of the wrong part that it
    took all of the time.
    """
    return engine_ms if engine_ms is not None and engine_ms <= first_delta_ms else None
