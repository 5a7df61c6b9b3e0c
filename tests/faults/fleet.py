"""A whole installation of real processes that may be hurt: two nodes, two writers, Redis, MariaDB, S3, with a proxy on each road.

Whatever ends, by a fault or by itself, is started again after a random short time, until `mend` has brought everything back for good.
"""

import asyncio
import json
import os
import random
import resource
import secrets
import signal
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
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
_STORES = ("redis", "mariadb", "s3")
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
        self.is_serving = True
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
        if not self.is_up:
            return
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
            while not self.service.has_ended():
                if not self.is_serving:
                    self.is_serving = await asyncio.to_thread(self.service.is_answering)
                await asyncio.sleep(_WATCH_S)
            self.is_serving = False
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
        self.database = f"faults_{secrets.token_hex(6)}"
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

    def crashes(self) -> list[str]:
        """What the nodes and writers logged as errors and how each trace ended, without times and ids."""
        found: list[str] = []
        for member in self.named("node", "writer"):
            log = member.service.log_path
            if log.exists():
                found += [f"{member.name}: {line}" for line in crashes_in(log.read_text(errors="replace"))]
        return found

    async def open_road(self, stack: AsyncExitStack, begin: str, target: str) -> Proxy:
        """A proxy for those who come from `begin`."""
        proxy = await stack.enter_async_context(open_proxy(f"{begin}-{target}", self.members[target].service.port))
        self.proxies[proxy.name] = proxy
        self._targets.setdefault(target, []).append(proxy)
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
    mariadb_service: services.MariadbServer | None = None,
) -> AsyncIterator[Fleet]:
    """A fleet that runs and is tended; everything of it is stopped at the end. `bugs` are planted by member, or by kind of member.

    It has servers of its own, but for `mariadb_service`, which is brought back at the end.
    """
    fleet = Fleet(directory)
    names = [f"node{number}" for number in range(1, num_nodes + 1)]
    names += [f"writer{number}" for number in range(1, num_writers + 1)]
    bugs = bugs or {}
    async with AsyncExitStack() as stack:
        bucket = _add_stores(fleet, stack, mariadb_service)
        for name in names:
            kind = name.rstrip("0123456789")
            roads = {store: await fleet.open_road(stack, name, store) for store in _STORES}
            settings = _known(_SETTINGS | _addresses(fleet, roads, bucket) | dict(changes or {}))
            command = "serve" if kind == "node" else "write"
            bug = bugs.get(name, bugs.get(kind))
            fleet.add(name, Process(directory / name, settings, command, bug=bug)).roads = roads
        migrated = await asyncio.to_thread(run_command, directory, settings, "migrate")
        assert migrated.returncode == 0, migrated.stderr
        stack.callback(_stop, [fleet.members[name].service for name in names])
        for member in fleet.named("node", "writer"):
            member.service.spawn()
            if member.is_node:
                member.roads["client"] = await fleet.open_road(stack, "client", member.name)
        await fleet.until_up()
        tenders = [asyncio.create_task(member.tend(chance)) for member in fleet.members.values()]
        stack.push_async_callback(_cancel, tenders)
        yield fleet


def _add_stores(fleet: Fleet, stack: AsyncExitStack, mariadb: services.MariadbServer | None) -> str:
    """Redis, MariaDB and S3 with nothing in them; the bucket's name."""
    fleet.add("redis", stack.enter_context(services.redis_server(_folder(fleet, "redis"))))
    if mariadb is None:
        mariadb = stack.enter_context(services.mariadb_server(_folder(fleet, "mariadb")))
    fleet.add("mariadb", mariadb)
    s3 = stack.enter_context(services.durable_s3_server(_folder(fleet, "s3")))
    fleet.add("s3", s3)
    mariadb.execute(f"CREATE DATABASE {fleet.database} CHARACTER SET utf8mb4")
    stack.callback(mariadb.execute, f"DROP DATABASE {fleet.database}")
    stack.callback(_bring_back, mariadb)
    bucket = s3.new_bucket()
    fleet.bucket = s3.directory / "buckets" / bucket
    return bucket


def _addresses(fleet: Fleet, roads: Mapping[str, Proxy], bucket: str) -> dict[str, str]:
    """The settings that lead a process over its own roads."""
    redis, mariadb, s3 = (f"127.0.0.1:{roads[store].port}" for store in _STORES)
    query = urlencode({"endpoint": f"http://{s3}", "region": services.S3_REGION})
    return {
        "FLUEMAN_DATA_DIR": str(fleet.directory / "var"),
        "FLUEMAN_REDIS_URL": f"redis://{redis}/0",
        "FLUEMAN_DATABASE_URL": f"mysql+aiomysql://flueman:flueman@{mariadb}/{fleet.database}?charset=utf8mb4",
        "FLUEMAN_ARCHIVE_URL": f"s3://{bucket}/flueman?{query}",
    }


def _bring_back(service: Service) -> None:
    if service.has_ended():
        service.start()
    else:
        service.resume()


def crashes_in(log: str) -> Iterator[str]:
    """Of each error its event and the last line of its trace."""
    is_trace = False
    for line in log.splitlines():
        if line.startswith("{"):
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if entry.get("level") == "error":
                trace = str(entry.get("exception", "")).strip().splitlines()
                yield " ".join([entry["event"], *trace[-1:]])
        elif line.startswith("Traceback"):
            is_trace = True
        elif is_trace and line and not line.startswith((" ", "During", "The above")):
            is_trace = False
            yield line


async def _cancel(tasks: Iterable[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _stop(stopped: Iterable[Service]) -> None:
    for service in stopped:
        if not service.has_ended():
            service.resume()
        service.kill()


def _folder(fleet: Fleet, name: str) -> Path:
    folder = fleet.directory / name
    folder.mkdir()
    return folder


def _known(settings: Mapping[str, str]) -> dict[str, str]:
    """Without settings that this release does not have yet."""
    fields = {f"FLUEMAN_{name.upper()}" for name in Settings.model_fields}
    return {name: value for name, value in settings.items() if not name.startswith("FLUEMAN_") or name in fields}
