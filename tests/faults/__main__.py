"""`make chaos`: as many faults as you like, in rounds; prints the figures. `python -m tests.faults --faults 2000 --seed 7`."""

import argparse
import asyncio
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.faults.campaign import NUM_TALKERS, Round, run_round
from tests.faults.checker import Figures

_FAULTS_A_ROUND = 250
_MOST_LINES = 60


def main() -> int:
    """0 when nothing was lost, doubled, diverged or stuck."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--faults", type=int, default=2000, help="how many; default 2000")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="of the first round; default any")
    parser.add_argument("--talkers", type=int, default=NUM_TALKERS, help=f"clients; default {NUM_TALKERS}")
    parser.add_argument("--keep", type=Path, help="folder for the logs")
    arguments = parser.parse_args()
    total = Figures()
    moved_s: list[float] = []
    num_left, seed = arguments.faults, arguments.seed
    while num_left > 0:
        num_faults = min(num_left, _FAULTS_A_ROUND)
        begin_s = time.monotonic()
        result = _round(seed, num_faults, arguments.talkers, arguments.keep)
        tell(result, time.monotonic() - begin_s)
        total += result.figures
        moved_s += result.moved_s
        num_left, seed = num_left - num_faults, seed + 1
    print(f"{arguments.faults} faults: {total}; {_moves(moved_s)}", flush=True)
    return 0 if total.is_clean else 1


def tell(result: Round, took_s: float) -> None:
    """Print one round."""
    struck, missed = result.struck.total(), result.missed.total()
    print(
        f"seed {result.seed}: {result.num_faults} faults ({struck} struck, {missed} missed) in {took_s:.0f} s,", end=" "
    )
    print(f"{result.num_starts} starts: {result.figures}; {_moves(result.moved_s)}")
    for line in summary(result)[:_MOST_LINES]:
        print(f"  {line[:900]}")
    sys.stdout.flush()


def summary(result: Round) -> list[str]:
    """What was wrong: of each kind the first for each session, and what the processes' logs say, each once."""
    groups: dict[tuple[str, str], list[str]] = {}
    for complaint in result.verdict.complaints:
        groups.setdefault((complaint.kind, complaint.session_id), []).append(complaint.text)
    lines = [
        f"{kind} {session_id}: {texts[0]}" + (f" (and {len(texts) - 1} more)" if texts[1:] else "")
        for (kind, session_id), texts in groups.items()
    ]
    crashes = Counter(result.crashes)
    return lines + [f"{number} x {line}" for line, number in crashes.items()]


def _moves(moved_s: list[float]) -> str:
    if len(moved_s) < 2:
        return "nobody resumed"
    cuts = statistics.quantiles(moved_s, n=100)
    return f"resumed within {cuts[49] * 1000:.0f} ms p50, {cuts[98] * 1000:.0f} ms p99, {max(moved_s):.1f} s at most"


def _round(seed: int, num_faults: int, num_talkers: int, keep: Path | None) -> Round:
    directory = Path(tempfile.mkdtemp(prefix="flueman-faults-"))
    try:
        result = asyncio.run(run_round(directory, seed, num_faults, num_talkers=num_talkers))
        if keep is not None:
            _keep_logs(directory, keep / f"seed-{seed}")
            lines = [f"{entry.kind} {entry.session_id}: {entry.text}" for entry in result.verdict.complaints]
            (keep / f"seed-{seed}" / "complaints.txt").write_text("\n".join(lines))
        return result
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _keep_logs(directory: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in directory.glob("**/*.log"):
        shutil.copy(path, folder / "-".join(path.relative_to(directory).parts))


if __name__ == "__main__":
    sys.exit(main())
