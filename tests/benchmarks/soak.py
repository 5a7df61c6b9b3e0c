"""`make soak`: sessions come and go for a long time at two nodes, a writer, Redis, MariaDB and S3; what should stay flat is watched.

Clients connect, talk, cancel, drop, resume at either node, leave or just vanish. Every few seconds each process's memory and open files,
the nodes' tasks, and Redis's keys and outbox are sampled. At the end all clients leave, and once the short retention is over everything
must be back where it was after a first burst of the same sessions. The writer's tasks are not watched: nothing can look into it.
"""

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import cast
from urllib.parse import urlencode

import psutil
import redis
import uvloop
from msgspec import Struct

from tests import services
from tests.benchmarks.probed import ProbedProcess
from tests.benchmarks.results import keep
from tests.end_to_end.processes import SECRET, FluemanProcess, run_command, running
from tests.faults.talker import Given, Habits, Talker
from tests.services import Service

MIB = 1 << 20
GRACE_S = 2.0
RETENTION_S = 5.0
WARM_UP_S = 30.0
# After the last client has left: the grace, the archiving of what it leaves, the retention, and Redis's own pace in deleting keys.
BACK_WITHIN_S = 120.0
# Nodes and writer; some 500 bytes a session at the usual rate. Shorter runs than this cannot tell it from noise.
MAX_GROWTH_MIB_PER_H = 16.0
SHORTEST_TO_JUDGE_S = 600.0
# Connections that a pool opened in some rush, and keeps.
SPARE_FILES = 4
MOST_TURNS = 6
LONGEST_PAUSE_S = 2.0
HABITS = Habits(most_turns=MOST_TURNS, drops=0.15, abandons=0.1)

# One value of each thing that is watched, by "<process> <what>".
Sample = dict[str, float]
RSS, FILES, TASKS, KEYS = "RSS MiB", "open files", "tasks", "redis keys"


class House:
    """Everything that runs: `ours` are Flueman's processes, `theirs` what they stand on."""

    def __init__(self, nodes: Sequence[ProbedProcess], writer: FluemanProcess, stores: Sequence[Service]) -> None:
        self.nodes = nodes
        self.ours: Sequence[FluemanProcess] = [*nodes, writer]
        self._names = {id(process): f"node {number}" for number, process in enumerate(nodes, 1)} | {
            id(writer): "writer"
        }
        self._stores = stores
        self._redis_url = next(store.unix_url for store in stores if isinstance(store, services.RedisServer))

    def sample(self) -> Sample:
        """What everything holds now."""
        found: Sample = {}
        for process in (*self.ours, *self._stores):
            name = self._names.get(id(process), process.name)
            seen = psutil.Process(process.pid)
            found[f"{name} {RSS}"] = seen.memory_info().rss / MIB
            found[f"{name} {FILES}"] = seen.num_fds()
        for node in self.nodes:
            found[f"{self._names[id(node)]} {TASKS}"] = node.probe().num_tasks
        with redis.Redis.from_url(self._redis_url) as connection:
            found[KEYS] = cast("int", connection.dbsize())
            found["redis outbox"] = cast("int", connection.xlen("fl:{0}:outbox"))
            found["redis data MiB"] = cast("dict[str, int]", connection.info("memory"))["used_memory"] / MIB
        return found

    def is_at_rest(self) -> bool:
        """Whether no session is left, neither at a node nor in Redis, and nothing waits to be stored."""
        if any(node.probe().num_sessions for node in self.nodes):
            return False
        with redis.Redis.from_url(self._redis_url) as connection:
            return not connection.xlen("fl:{0}:outbox") and not any(connection.scan_iter("fl:*:sess_*", count=1000))

    def errors(self) -> list[str]:
        """What the processes logged and somebody must act on."""
        return [error for process in self.ours for error in process.errors()]


@contextmanager
def open_house(folder: Path) -> Iterator[House]:
    """Two nodes and a writer as in production, on stores of their own; all stopped at the end."""
    with ExitStack() as stack:

        def place(name: str) -> Path:
            (folder / name).mkdir()
            return folder / name

        redis_service = stack.enter_context(services.redis_server(place("redis"), unix_socket=True))
        mariadb = stack.enter_context(services.mariadb_server(place("mariadb")))
        s3 = stack.enter_context(services.durable_s3_server(place("s3")))
        query = urlencode({"endpoint": s3.url, "region": services.S3_REGION})
        settings = {
            "FLUEMAN_ENVIRONMENT": "production",
            "FLUEMAN_ENGINE": "scripted",
            "FLUEMAN_JWT_SECRET": SECRET,
            "FLUEMAN_WRITER": "none",
            "FLUEMAN_REDIS_URL": redis_service.unix_url,
            "FLUEMAN_DATABASE_URL": stack.enter_context(mariadb.fresh_database()),
            "FLUEMAN_ARCHIVE_URL": f"s3://{s3.new_bucket()}/flueman?{query}",
            "FLUEMAN_RESUME_GRACE_S": str(GRACE_S),
            "FLUEMAN_RETENTION_S": str(RETENTION_S),
            "FLUEMAN_LOG_LEVEL": "warning",
            "AWS_ACCESS_KEY_ID": services.S3_ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": services.S3_SECRET_KEY,
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        migrated = run_command(folder, settings, "migrate")
        if migrated.returncode:
            raise RuntimeError(migrated.stderr)
        nodes = [ProbedProcess(folder / f"node-{number}", settings, "serve") for number in (1, 2)]
        writer = FluemanProcess(folder / "writer", settings, "write")
        stack.enter_context(running(writer, *nodes))
        yield House(nodes, writer, [redis_service, mariadb, s3])


class Visits(Struct):
    """What the clients did, and what they have to complain of."""

    num_sessions: int = 0
    num_resumed: int = 0
    num_gaps: int = 0
    complaints: list[str] = []

    def __add__(self, other: "Visits") -> "Visits":
        return Visits(*(getattr(self, name) + getattr(other, name) for name in self.__struct_fields__))


class Visitor:
    """A client with session after session, and pauses between them."""

    def __init__(self, name: str, ports: Sequence[int], chance: random.Random) -> None:
        self.visits = Visits()
        self._chance = chance
        self._talker = Talker(name, ports, chance, HABITS)
        self._is_leaving = asyncio.Event()

    async def come_and_go(self) -> None:
        """Until `leave`."""
        talker = self._talker
        while not self._is_leaving.is_set():
            try:
                await talker.converse(self._chance.randint(1, MOST_TURNS))
                await talker.leave()
            except Given:
                talker.drop()
            self._account()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._chance.uniform(0, LONGEST_PAUSE_S)):
                    await self._is_leaving.wait()

    def leave(self) -> None:
        """Begin no further turn."""
        self._is_leaving.set()
        self._talker.stop()

    def _account(self) -> None:
        # Ledgers keep every frame; so they are let go with their sessions.
        for ledger in self._talker.ledgers:
            self.visits.num_sessions += 1
            self.visits.num_resumed += ledger.num_resumed
            self.visits.num_gaps += len(ledger.gaps)
            self.visits.complaints += [f"{said.kind}: {said.session_id} {said.text}" for said in ledger.complaints]
        self._talker.ledgers.clear()
        self._talker.moved_s.clear()


@asynccontextmanager
async def visited(house: House, num_sessions: int, chance: random.Random) -> AsyncIterator[list[Visitor]]:
    """So many clients that come and go during the block; after it the last one has left."""
    ports = [node.port for node in house.nodes]
    # Other names each time: what a client says is named after it.
    visitors = [
        Visitor(f"v{chance.randrange(1 << 32):x}", ports, random.Random(chance.random())) for _ in range(num_sessions)
    ]
    async with asyncio.TaskGroup() as tasks:
        for visitor in visitors:
            tasks.create_task(visitor.come_and_go())
        try:
            yield visitors
        finally:
            for visitor in visitors:
                visitor.leave()


async def watch(house: House, *, seconds: float, interval_s: float) -> list[tuple[float, Sample]]:
    """Samples with their times, in seconds of one clock."""
    samples: list[tuple[float, Sample]] = []
    begin_s = time.monotonic()
    while (now_s := time.monotonic()) < begin_s + seconds:
        sample = await asyncio.to_thread(house.sample)
        samples.append((now_s, sample))
        print(f"{now_s - begin_s:6.0f} s  " + _brief(sample), flush=True)
        await asyncio.sleep(max(0.0, min(now_s + interval_s, begin_s + seconds) - time.monotonic()))
    return samples


def _brief(sample: Mapping[str, float]) -> str:
    shown = [name for name in sample if name.startswith(("node", "writer"))] + [KEYS, "redis outbox"]
    return ", ".join(f"{name} {sample[name]:.0f}" for name in shown)


async def until_at_rest(house: House) -> None:
    """Wait until the last session is over and its retention too; what is not over in time shows in the comparison."""
    deadline_s = time.monotonic() + BACK_WITHIN_S
    while time.monotonic() < deadline_s:
        if await asyncio.to_thread(house.is_at_rest):
            return
        await asyncio.sleep(0.5)


class Run(Struct, frozen=True):
    """What was seen: samples under load, those at rest before and after, and what the clients say."""

    samples: list[tuple[float, Sample]]
    before: Sample
    after: Sample
    visits: Visits
    errors: list[str]

    @property
    def seconds(self) -> float:
        """How long it was."""
        return self.samples[-1][0] - self.samples[0][0]

    def slopes(self) -> dict[str, float]:
        """Growth per hour of each thing that is watched, by least squares, without the first fifth."""
        counted = self.samples[len(self.samples) // 5 :]
        times_h = [at_s / 3600 for at_s, _ in counted]
        return {
            name: statistics.linear_regression(times_h, [sample[name] for _, sample in counted]).slope
            for name in self.before
        }

    def failures(self) -> list[str]:
        """What did not stay flat or did not come back, in words."""
        found = [f"a client: {complaint}" for complaint in self.visits.complaints]
        found += [f"a log: {error}" for error in self.errors]
        for name, slope in self.slopes().items():
            is_ours = name.startswith(("node", "writer")) and name.endswith(RSS)
            if is_ours and slope > MAX_GROWTH_MIB_PER_H and self.seconds >= SHORTEST_TO_JUDGE_S:
                found.append(f"{name} grows by {slope:.1f} an hour, more than {MAX_GROWTH_MIB_PER_H:g}")
        for name, before in self.before.items():
            if (spare := _spare(name)) is not None and self.after[name] > before + spare:
                found.append(f"{name} was {before:.0f} before and is {self.after[name]:.0f} after")
        return found


def _spare(name: str) -> int | None:
    """How much more than before there may be after; None where it is not judged."""
    if not name.startswith(("node", "writer", "redis")):
        return None
    if name.endswith(FILES):
        return SPARE_FILES
    return 0 if name.endswith((TASKS, KEYS, "outbox")) else None


async def soak(house: House, *, num_sessions: int, seconds: float, interval_s: float, seed: int) -> Run:
    """A first burst, a rest, the long run, a rest."""
    chance = random.Random(seed)
    async with visited(house, num_sessions, chance):
        await asyncio.sleep(min(WARM_UP_S, seconds))
    await until_at_rest(house)
    before = await asyncio.to_thread(house.sample)
    print("  before  " + _brief(before), flush=True)
    async with visited(house, num_sessions, chance) as visitors:
        samples = await watch(house, seconds=seconds, interval_s=interval_s)
    await until_at_rest(house)
    after = await asyncio.to_thread(house.sample)
    print("   after  " + _brief(after), flush=True)
    visits = sum((visitor.visits for visitor in visitors), Visits())
    return Run(samples, before, after, visits, house.errors())


def report(run: Run, num_sessions: int) -> list[str]:
    """Lines of Markdown."""
    visits, slopes, failures = run.visits, run.slopes(), run.failures()
    first = run.samples[len(run.samples) // 5][1]
    last = run.samples[-1][1]
    rows = [
        f"| {name} | {run.before[name]:.1f} | {first[name]:.1f} | {last[name]:.1f} | {slopes[name]:+.1f} | {run.after[name]:.1f} |"
        for name in run.before
    ]
    return [
        f"{run.seconds / 60:.1f} minutes, {num_sessions} clients at two nodes: {visits.num_sessions:,} sessions, "
        f"{visits.num_resumed:,} of their connections resumed, {visits.num_gaps} declared gaps, {len(visits.complaints)} complaints.",
        "",
        "| | at rest before | after the first fifth | at the end | slope per hour | at rest after |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
        f"Bounds: memory of nodes and writer {MAX_GROWTH_MIB_PER_H:g} MiB an hour; at rest no task, key or record more than before, "
        f"and no more than {SPARE_FILES} open files. "
        + ("Kept." if not failures else f"Broken: {'; '.join(failures[:10])}"),
    ]


def main() -> int:
    """Run what was asked and append it to the results; 1 when something grew or did not come back."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--sessions", type=int, default=20, help="clients at a time")
    parser.add_argument("--interval", type=float, default=10.0, help="seconds between samples")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dry", action="store_true", help="print, keep nothing")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, open_house(Path(folder)) as house:
        run: Run = uvloop.run(
            soak(
                house,
                num_sessions=options.sessions,
                seconds=60 * options.minutes,
                interval_s=options.interval,
                seed=options.seed,
            )
        )
    keep("make soak", report(run, options.sessions), dry=options.dry)
    return 1 if run.failures() else 0


if __name__ == "__main__":
    sys.exit(main())
