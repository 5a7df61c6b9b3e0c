"""`make bench-replay` keeps what it measured, and fails when that is longer than it may be."""

import sys

import pytest

from tests.benchmarks import replay
from tests.benchmarks.replay import Figures

SMALL, LARGE = "of 100 events", "of 100,000 events"


@pytest.mark.parametrize(
    ("spacings_ms", "firsts_ms", "misses"),
    [
        ([20.0] * 100, {SMALL: [150.0] * 100, LARGE: []}, []),
        ([1.0] * 90 + [20.1] * 10, {SMALL: [1.0]}, ["the spacing is off by 20.1 ms"]),
        ([1.0], {SMALL: [1.0], LARGE: [1.0, 151.0]}, [f"the first event {LARGE} takes"]),
        (
            [30.0],
            {SMALL: [200.0], LARGE: [9.0]},
            ["the spacing is off by 30.0 ms", f"the first event {SMALL} takes 200 ms"],
        ),
    ],
    ids=["within", "spacing", "first", "both"],
)
def test_it_fails_by_what_took_longer_than_it_may_once_the_figures_are_kept(
    spacings_ms: list[float],
    firsts_ms: dict[str, list[float]],
    misses: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(replay, "measure", lambda _: Figures(spacings_ms, firsts_ms))
    monkeypatch.setattr(sys, "argv", ["replay", "--dry"])

    said = ""
    try:
        replay.main()
    except SystemExit as failure:
        said = str(failure.code)

    assert f"| {SMALL} |" in capsys.readouterr().out
    assert len(said.split("; ")) == max(1, len(misses))
    assert bool(said) == bool(misses)
    assert all(miss in said for miss in misses)
