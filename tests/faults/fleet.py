"""A whole installation of real processes that may be hurt: two nodes, two writers, Redis, MariaDB, S3, with a proxy on each road.

Whatever ends, by a fault or by itself, is started again after a random short time, until `mend` has brought everything back for good.
"""

import asyncio
import os
import random
import resource
import signal
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlencode

from server.settings import Settings
from tests import services
from tests.end_to_end.processes import SECRET, FluemanProcess, run_command
from tests.faults.clock import make_clock, step_clock
from tests.faults.proxy import Proxy, open_proxy
from tests.faults.runner import BUG, CLOCK
from tests.services import Service

LEASE_S = 1.0
GRACE_S = 8.0
UP_AGAIN_S = 60.0
_WATCH_S = 0.05
_LONGEST_DOWN_S = 1.0

_SETTINGS = {
    "FLUEMAN_ENGINE": "scripted",
    "FLUEMAN_SCRIPTED_TOKENS_PER_S": "0",
    "FLUEMAN_JWT_SECRET": SECRET,
    "FLUEMAN_WRITER": "none",
    "FLUEMAN_LEASE_S": str(LEASE_S),
    "FLUEMAN_RESUME_GRACE_S": str(GRACE_S),
    "FLUEMAN_STORE_PATIENCE_S": "30",
    "FLUEMAN_STORE_TIMEOUT_S": "2",
    "FLUEMAN_DATABASE_TIMEOUT_S": "2",
    "FLUEMAN_STOP_GRACE_S": "2",
    "AWS_ACCESS_KEY_ID": services.S3_ACCESS_KEY,
    "AWS_SECRET_ACCESS_KEY": services.S3_SECRET_KEY,
    "AWS_EC2_METADATA_DISABLED": "true",
}


class Process(FluemanProcess):
    """A `flueman` command run by `tests.faults.runner`, on a clock of its own."""

    def __init__(self, directory: Path, settings: Mapping[str, str], command: str, *, bug: str | None = None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.clock_path = directory / "clock"
        make_clock(self.clock_path)
        own = {CLOCK: str(self.clock_path), **({} if bug is None else {BUG: bug})}
        super().__init__(directory, {**settings, **own}, command)

    def _command_line(self, port: int) -> Sequence[str]:
        line = list(super()._command_line(port))
        line[line.index("server")] = "tests.faults.runner"
        return line


class Member:
    """One process of the fleet, and the proxies on the roads that lead to it or from it."""

    def __init__(self, name: str, service: Service, fleet: "Fleet") -> None:
        self.name = name
        self.service = service
        self.roads: dict[str, Proxy] = {}
        self._fleet = fleet
        self._num_pauses = 0

    @property
    def is_node(self) -> bool:
        """Whether clients connect to it."""
        return self.name.startswith("node")

    @property
    def is_up(self) -> bool:
        """Whether there is a process to hurt."""
        return not self.service.has_ended()

    def kill(self) -> None:
        """`kill -9`."""
        self.service.kill()

    def terminate(self) -> None:
        """SIGTERM; it ends when it wants to."""
        if self.is_up:
            os.kill(self.service.pid, signal.SIGTERM)

    def pause(self) -> None:
        """SIGSTOP."""
        self._num_pauses += 1
        if self.is_up:
            self.service.pause()

    def go_on(self) -> None:
        """SIGCONT, once nobody else wants it paused."""
        self._num_pauses -= 1
        if self._num_pauses == 0 and self.is_up:
            self.service.resume()

    def limit_files(self, num_bytes: int | None) -> None:
        """As if the disk were full once a file of its has so many bytes; None as much as it likes."""
        limit = resource.RLIM_INFINITY if num_bytes is None else num_bytes
        with suppress(OSError):
            resource.prlimit(self.service.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    def step_clock(self, offset_ms: int) -> None:
        """Its wall clock is wrong by so much from now on."""
        assert isinstance(self.service, Process)
        step_clock(self.service.clock_path, offset_ms)

    async def tend(self, chance: random.Random) -> None:
        """Start it again whenever it has ended, for ever."""
        while True:
            while not self.service.has_ended():  # noqa: ASYNC110
                await asyncio.sleep(_WATCH_S)
            if not self._fleet.is_mending:
                await asyncio.sleep(chance.uniform(0.0, _LONGEST_DOWN_S))
            self.service.spawn()
            for proxy in self._fleet.roads_to(self):
                proxy.target_port = self.service.port
            self._fleet.num_starts += 1


class Fleet:
    """`nodes` and `writers` by name; `stores` are Redis, MariaDB and S3."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.members: dict[str, Member] = {}
        self.proxies: dict[str, Proxy] = {}
        self.settings: dict[str, str] = {}
        self.bucket: Path = directory
        self.is_mending = False
        self.num_starts = 0
        self._targets: dict[str, list[Proxy]] = {}

    @property
    def ports(self) -> list[int]:
        """Where clients connect."""
        return [proxy.port for name, proxy in self.proxies.items() if name.startswith("client-")]

    def roads_to(self, member: Member) -> list[Proxy]:
        """The proxies before that member."""
        return self._targets.get(member.name, [])

    def named(self, *kinds: str) -> list[Member]:
        """The members whose name begins with one of these."""
        return [member for member in self.members.values() if member.name.startswith(kinds)]

    def add(self, name: str, service: Service) -> Member:
        """A member that runs already or will be started."""
        member = self.members[name] = Member(name, service, self)
        return member

    def mend(self) -> None:
        """From here on nothing is hurt any more: what was done to roads, clocks and processes is undone."""
        self.is_mending = True
        for proxy in self.proxies.values():
            proxy.mend()
        for member in self.members.values():
            if member.is_up:
                member.limit_files(None)
                member.service.resume()

    async def until_up(self) -> None:
        """Wait until every member answers."""
        async with asyncio.timeout(UP_AGAIN_S):
            for member in self.members.values():
                while not await asyncio.to_thread(member.service.is_answering):  # noqa: ASYNC110
                    await asyncio.sleep(_WATCH_S)

    def log_lines(self, *marks: str) -> list[str]:
        """Lines of the processes' logs that hold one of these."""
        found: list[str] = []
        for member in self.named("node", "writer"):
            if member.service.log_path.exists():
                lines = member.service.log_path.read_text(errors="replace").splitlines()
                found += [f"{member.name}: {line}" for line in lines if any(mark in line for mark in marks)]
        return found

    async def open_road(self, stack: AsyncExitStack, owner: str, target: Member, kind: str) -> Proxy:
        """A proxy before `target`."""
        proxy = await stack.enter_async_context(open_proxy(f"{kind}-{owner}", target.service.port))
        self.proxies[proxy.name] = proxy
        self._targets.setdefault(target.name, []).append(proxy)
        return proxy


@asynccontextmanager
async def open_fleet(
    directory: Path,
    chance: random.Random,
    *,
    num_nodes: int = 2,
    num_writers: int = 2,
    bugs: Mapping[str, str] | None = None,
    changes: Mapping[str, str] | None = None,
) -> AsyncIterator[Fleet]:
    """A fleet that runs and is tended; everything of it is stopped at the end. `bugs` are planted by member, or by kind of member."""
    fleet = Fleet(directory)
    async with AsyncExitStack() as stack:
        redis = fleet.add("redis", stack.enter_context(services.redis_server(_folder(directory, "redis"))))
        mariadb_service = stack.enter_context(services.mariadb_server(_folder(directory, "mariadb")))
        mariadb = fleet.add("mariadb", mariadb_service)
        s3_service = stack.enter_context(services.durable_s3_server(_folder(directory, "s3")))
        s3 = fleet.add("s3", s3_service)
        mariadb_service.execute("CREATE DATABASE flueman CHARACTER SET utf8mb4")
        bucket = s3_service.new_bucket()
        fleet.bucket = s3_service.directory / "buckets" / bucket

        async def roads(owner: str) -> dict[str, Proxy]:
            targets = {"redis": redis, "mariadb": mariadb, "s3": s3}
            return {kind: await fleet.open_road(stack, owner, target, kind) for kind, target in targets.items()}

        names = [f"node{number}" for number in range(1, num_nodes + 1)]
        names += [f"writer{number}" for number in range(1, num_writers + 1)]
        for name in names:
            of_member = await roads(name)
            fleet.settings = _SETTINGS | {
                "FLUEMAN_DATA_DIR": str(directory / "var"),
                "FLUEMAN_REDIS_URL": f"redis://127.0.0.1:{of_member['redis'].port}/0",
                "FLUEMAN_DATABASE_URL": f"mysql+aiomysql://flueman:flueman@127.0.0.1:{of_member['mariadb'].port}/flueman?charset=utf8mb4",
                "FLUEMAN_ARCHIVE_URL": f"s3://{bucket}/flueman?"
                + urlencode({"endpoint": f"http://127.0.0.1:{of_member['s3'].port}", "region": services.S3_REGION}),
                **(changes or {}),
            }
            kind = name.rstrip("0123456789")
            bug = (bugs or {}).get(name, (bugs or {}).get(kind))
            command = "serve" if kind == "node" else "write"
            process = Process(directory / name, _known(fleet.settings), command, bug=bug)
            member = fleet.add(name, process)
            member.roads = of_member
        migrated = await asyncio.to_thread(run_command, directory, _known(fleet.settings), "migrate")
        assert migrated.returncode == 0, migrated.stderr
        stack.callback(_stop, [fleet.members[name].service for name in names])
        for name in names:
            member = fleet.members[name]
            member.service.spawn()
            if member.is_node:
                member.roads["client"] = await fleet.open_road(stack, name, member, "client")
        await fleet.until_up()
        tenders = [asyncio.create_task(member.tend(chance)) for member in fleet.members.values()]
        stack.push_async_callback(_cancel, tenders)
        yield fleet


async def _cancel(tasks: Iterable[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _stop(stopped: Iterable[Service]) -> None:
    for service in stopped:
        if not service.has_ended():
            service.resume()
        service.kill()


def _folder(directory: Path, name: str) -> Path:
    folder = directory / name
    folder.mkdir()
    return folder


def _known(settings: Mapping[str, str]) -> dict[str, str]:
    """Without settings that this release does not have yet."""
    fields = {f"FLUEMAN_{name.upper()}" for name in Settings.model_fields}
    return {name: value for name, value in settings.items() if not name.startswith("FLUEMAN_") or name in fields}
