"""Runs one `flueman` command as a fault suite needs it: `python -m tests.faults.runner serve`.

On a clock that can be stepped, with writers that soon take over from dead ones, and, to prove the checker, with a bug planted.
"""

import os
import sys
from pathlib import Path

from tests.faults.clock import install_clock

CLOCK = "FLUEMAN_TEST_CLOCK"
BUG = "FLUEMAN_TEST_BUG"
_TAKEN_FOR_DEAD_S = 3.0


def main() -> int:
    """The command's exit status."""
    if (clock := os.environ.get(CLOCK)) is not None:
        install_clock(Path(clock))
    from server.__main__ import main as command

    _hurry_writers()
    if (bug := os.environ.get(BUG)) is not None:
        from tests.faults.bugs import BUGS

        BUGS[bug]()
    return command(sys.argv[1:])


def _hurry_writers() -> None:
    from persistence import writer

    options = writer.WriterOptions(min_idle_s=_TAKEN_FOR_DEAD_S, reclaim_every_s=1.0, wait_s=0.5, max_delay_s=1.0)

    class HurriedWriter(writer.Writer):
        def __init__(self, *arguments: object, **named: object) -> None:
            super().__init__(*arguments, **{"options": options, **named})  # type: ignore[arg-type]

    writer.Writer = HurriedWriter  # type: ignore[misc]


if __name__ == "__main__":
    sys.exit(main())
