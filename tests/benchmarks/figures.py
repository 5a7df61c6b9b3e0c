"""What a benchmark measures of one run, and how its answers become figures."""

import statistics
from collections.abc import Sequence

import psutil
from msgspec import Struct

QUESTIONS = (
    "Tell me a long story.",
    "Please tell me a longer story.",
    "I would like to hear a long story.",
    "Can you tell me a really long story?",
)


class Answer(Struct):
    """What one answer looked like from outside; times in seconds of one clock."""

    asked_s: float
    first_s: float
    done_s: float
    num_tokens: int
    num_deltas: int
    arrivals_s: list[float]


class Figures(Struct, frozen=True):
    """One run: `cpu_us` is the serving process's processor time a token, `deltas` messages a token."""

    streams: int
    tokens_per_s: float
    first_p50_ms: float
    first_p99_ms: float
    gap_p50_ms: float
    gap_p99_ms: float
    cpu_us: float
    deltas: float


def figures(answers: Sequence[Answer], *, streams: int, wall_s: float, cpu_s: float) -> Figures:
    """The run's figures; gaps are between an answer's consecutive deltas."""
    num_tokens = sum(answer.num_tokens for answer in answers)
    firsts = [1000 * (answer.first_s - answer.asked_s) for answer in answers]
    gaps = [
        1000 * (after - before)
        for answer in answers
        for before, after in zip(answer.arrivals_s, answer.arrivals_s[1:], strict=False)
    ]
    return Figures(
        streams=streams,
        tokens_per_s=num_tokens / wall_s,
        first_p50_ms=percentile(firsts, 50),
        first_p99_ms=percentile(firsts, 99),
        gap_p50_ms=percentile(gaps, 50),
        gap_p99_ms=percentile(gaps, 99),
        cpu_us=1e6 * cpu_s / num_tokens,
        deltas=sum(answer.num_deltas for answer in answers) / num_tokens,
    )


def percentile(values: Sequence[float], percent: int) -> float:
    """The value below which `percent` of the values lie; 0.0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] if ordered else 0.0


def median_of(runs: Sequence[Figures]) -> Figures:
    """Field by field the median of several runs of the same kind."""
    return Figures(
        **{name: statistics.median(getattr(run, name) for run in runs) for name in Figures.__struct_fields__}
    )


def cpu_s(pid: int) -> float:
    """Processor seconds of that process alone, user and system."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)
