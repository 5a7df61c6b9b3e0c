"""One round of faults: a fleet, talkers that talk, faults that strike, then peace, and the check of what is left."""

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from msgspec import Struct

from tests.faults.checker import Figures, Verdict, check
from tests.faults.evidence import Evidence, gather
from tests.faults.faults import Fault, deal
from tests.faults.fleet import GRACE_S, Fleet, open_fleet
from tests.faults.stream import Complaint
from tests.faults.talker import Habits, Talker

NUM_TALKERS = 12
_PAUSE_S = (0.2, 1.6)
_MOST_AT_ONCE = 2
_TURN_IS_OVER_S = 120.0
_SETTLED_S = GRACE_S + 60.0
_POLL_S = 0.25


class Round(Struct):
    """What became of one round."""

    seed: int
    verdict: Verdict
    struck: Counter[str]
    missed: Counter[str]
    num_starts: int
    moved_s: list[float]
    crashes: list[str]

    @property
    def figures(self) -> Figures:
        """Those of the verdict."""
        return self.verdict.figures

    @property
    def num_faults(self) -> int:
        """Faults that struck."""
        return self.struck.total() + self.missed.total()


async def run_round(
    directory: Path, seed: int, num_faults: int, *, num_talkers: int = NUM_TALKERS, habits: Habits | None = None
) -> Round:
    """So many faults in one fleet."""
    chance = random.Random(seed)
    struck: Counter[str] = Counter()
    missed: Counter[str] = Counter()
    async with open_fleet(directory, chance) as fleet:
        talkers = make_talkers(fleet, num_talkers, chance, habits)
        async with asyncio.TaskGroup() as tasks:
            talking = [tasks.create_task(talker.talk()) for talker in talkers]
            await _hurt(fleet, num_faults, chance, struck, missed)
            fleet.mend()
            late = await end_talk(talkers, talking)
        diary = sorted(line for talker in talkers for line in talker.diary)
        (directory / "talkers.log").write_text("\n".join(diary))
        await fleet.until_up()
        verdict = await settle(fleet, talkers)
        verdict.complaints += late
        verdict.figures.stuck += len(late)
        return Round(
            seed=seed,
            verdict=verdict,
            struck=struck,
            missed=missed,
            num_starts=fleet.num_starts,
            moved_s=[moved_s for talker in talkers for moved_s in talker.moved_s],
            crashes=fleet.crashes(),
        )


def make_talkers(fleet: Fleet, num_talkers: int, chance: random.Random, habits: Habits | None = None) -> list[Talker]:
    """Talkers that know every node, each with a chance of its own."""
    return [
        Talker(f"user{number}", fleet.ports, random.Random(chance.randrange(2**32)), habits)
        for number in range(num_talkers)
    ]


async def end_talk(talkers: Sequence[Talker], talking: Sequence[asyncio.Task[None]]) -> list[Complaint]:
    """Let everybody finish; those who cannot are stuck."""
    for talker in talkers:
        talker.stop()
    _, late = await asyncio.wait(talking, timeout=_TURN_IS_OVER_S)
    complaints: list[Complaint] = []
    for talker, task in zip(talkers, talking, strict=True):
        if task in late:
            task.cancel()
            complaints.append(Complaint("stuck", talker.ledger.session_id, "the talk does not come to its end"))
    return complaints


async def settle(fleet: Fleet, talkers: Sequence[Talker], *, within_s: float = _SETTLED_S) -> Verdict:
    """Wait until everything is stored, or will not be any more, and judge."""
    ledgers = [ledger for talker in talkers for ledger in talker.ledgers]
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + within_s
    while True:
        evidence = await asyncio.to_thread(gather, fleet)
        if is_settled(evidence) or loop.time() > deadline_s:
            return check(ledgers, evidence)
        await asyncio.sleep(_POLL_S)


def is_settled(evidence: Evidence) -> bool:
    """Whether all that was to be stored is stored, and nothing goes on any more."""
    are_over = all(status in ("ended", "idle") for status in evidence.sessions.values())
    return are_over and evidence.num_waiting == 0 and not evidence.leaked_keys


async def _hurt(
    fleet: Fleet, num_faults: int, chance: random.Random, struck: Counter[str], missed: Counter[str]
) -> None:
    """Fault upon fault, each as long as it takes: the next does not wait for its end, but for that of the one before it."""
    room = asyncio.Semaphore(_MOST_AT_ONCE)

    async def strike(hand: Sequence[Fault]) -> None:
        try:
            await asyncio.gather(*(_strike(fault, fleet, chance, struck, missed) for fault in hand))
        finally:
            room.release()

    async with asyncio.TaskGroup() as strikes:
        for hand in deal(fleet, num_faults, chance):
            await room.acquire()
            strikes.create_task(strike(hand))
            await asyncio.sleep(chance.uniform(*_PAUSE_S))


async def _strike(
    fault: Fault, fleet: Fleet, chance: random.Random, struck: Counter[str], missed: Counter[str]
) -> None:
    begin = _now()
    has_struck = await fault.do(fleet, chance)
    (struck if has_struck else missed)[fault.name.partition(":")[0]] += 1
    with (fleet.directory / "faults.log").open("a") as log:
        log.write(f"{begin} to {_now()} {fault.name}{'' if has_struck else ' (missed)'}\n")


def _now() -> str:
    """The time of day as the processes log it."""
    return datetime.now(UTC).strftime("%H:%M:%S.%f")[:-3]
