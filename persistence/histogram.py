"""Counts of durations in buckets that grow by an eighth of an octave, so that a quantile is known within five percent. Pure."""

import math
from collections.abc import Mapping
from typing import Final

_BUCKETS_PER_OCTAVE: Final = 8

Histogram = dict[int, int]


def bucket_of(duration_ms: int) -> int:
    """The bucket of a duration; what took no time, or less, counts as a millisecond."""
    return math.floor(math.log2(max(duration_ms, 1)) * _BUCKETS_PER_OCTAVE)


def quantile(counts: Mapping[int, int], share: float) -> int | None:
    """The duration in ms that this share of all is not above, within five percent; None where nothing was counted."""
    rank = math.ceil(share * sum(counts.values()))
    num_below = 0
    for bucket in sorted(counts):
        num_below += counts[bucket]
        if num_below >= rank and counts[bucket] > 0:
            return round(2 ** ((bucket + 0.5) / _BUCKETS_PER_OCTAVE))
    return None
