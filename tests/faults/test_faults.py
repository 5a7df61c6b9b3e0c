"""Two hundred faults in real processes while clients talk: nothing acknowledged is lost or doubled, nothing diverges, nobody is stuck."""

import time
from pathlib import Path

import pytest

from tests.faults.__main__ import tell
from tests.faults.campaign import run_round

NUM_FAULTS = 200


@pytest.mark.timeout(420)
async def test_whatever_fails_nothing_acknowledged_is_lost_or_doubled(seed: int, tmp_path: Path) -> None:
    """P2, P3, P4, P6, P9."""
    begin_s = time.monotonic()
    result = await run_round(tmp_path, seed, NUM_FAULTS)

    tell(result, time.monotonic() - begin_s)
    figures = result.figures
    assert figures.acknowledged > NUM_FAULTS, "there was no load"
    assert result.struck.total() > NUM_FAULTS * 0.7, "most faults did not strike"
    assert (figures.lost, figures.doubled, figures.diverged, figures.stuck) == (0, 0, 0, 0)
