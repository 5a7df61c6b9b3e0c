"""What can go wrong, each as a named coroutine that does it to a fleet and undoes what does not undo itself.

Random times find much, but hardly ever the moment between two statements: there are traps for those (`commit then send`, …), which a proxy
springs when it sees the statement pass.
"""

import asyncio
import hashlib
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence

from msgspec import Struct

from sessions.redis_scripts import APPEND
from tests.faults.fleet import LEASE_S, Fleet, Member
from tests.faults.proxy import Moment, Proxy

_TRAP_S = 3.0
_KILLED_AT_START = 0.2
_CLOCK_STEPS_MS = (-300_000, -1_500, 1_500, 300_000)
_APPEND = hashlib.sha1(APPEND.encode(), usedforsecurity=False).hexdigest().encode()


class Fault(Struct, frozen=True):
    """`do` hurts the fleet, and returns when the hurting is over; what has ended is started again by the fleet itself."""

    name: str
    do: Callable[[Fleet, random.Random], Awaitable[bool]]


class Point(Struct, frozen=True):
    """A moment between two statements of a process: when `marker` passes on its road to `service`, the process is killed."""

    name: str
    kind: str
    service: str
    marker: bytes
    moment: Moment


POINTS = (
    Point("before the commit", "node", "redis", _APPEND, "request"),
    Point("between commit and send", "node", "redis", _APPEND, "reply"),
    Point("before the rows' commit", "writer", "mariadb", b"\x03COMMIT", "request"),
    Point("between rows and acknowledge", "writer", "mariadb", b"\x03COMMIT", "reply"),
    Point("between write and acknowledge", "writer", "redis", b"XACK", "request"),
    Point("after the acknowledge", "writer", "redis", b"XACK", "reply"),
    Point("between MySQL and S3", "writer", "s3", b"PUT /", "request"),
    Point("between S3 and MySQL", "writer", "s3", b"PUT /", "reply"),
)


def all_faults(fleet: Fleet) -> Iterator[Fault]:
    """Each single fault that this fleet can suffer."""
    for member in fleet.members.values():
        yield from _process_faults(member)
    for proxy in fleet.proxies.values():
        yield from _road_faults(proxy)
    for member in fleet.members.values():
        yield from (_point(member, point) for point in POINTS if member.name.startswith(point.kind))
    for member in fleet.named("node", "writer"):
        yield Fault(f"clock step: {member.name}", _on(member, _step_clock))
    yield Fault("disk full: redis", _on(fleet.members["redis"], _fill_disk))


def deal(fleet: Fleet, num_faults: int, chance: random.Random) -> Iterator[Sequence[Fault]]:
    """`num_faults` faults, one at a time or in pairs: at first each once, in any order, then by chance."""
    faults = list(all_faults(fleet))
    deck: list[Fault] = []
    while num_faults > 0:
        size = min(num_faults, 2 if chance.random() < 0.25 else 1)
        hand: list[Fault] = []
        for _ in range(size):
            if not deck:
                deck = faults.copy()
                chance.shuffle(deck)
            hand.append(deck.pop())
        num_faults -= size
        yield hand


Hurt = Callable[[Member, random.Random], Awaitable[bool]]


def _on(member: Member, hurt: Hurt) -> Callable[[Fleet, random.Random], Awaitable[bool]]:
    async def do(_: Fleet, chance: random.Random) -> bool:
        return await hurt(member, chance)

    return do


def _process_faults(member: Member) -> Iterator[Fault]:
    yield Fault(f"kill: {member.name}", _on(member, _kill))
    yield Fault(f"terminate: {member.name}", _on(member, _terminate))
    yield Fault(f"pause shorter than the lease: {member.name}", _on(member, _pause_briefly))
    yield Fault(f"pause longer than the lease: {member.name}", _on(member, _pause_long))


def _is_due(member: Member, chance: random.Random) -> bool:
    """Whether the process may be ended: one that only begins seldom is, or it would never come to serve."""
    return member.is_up and (member.is_serving or chance.random() < _KILLED_AT_START)


async def _kill(member: Member, chance: random.Random) -> bool:
    if is_due := _is_due(member, chance):
        member.kill()
    return is_due


async def _terminate(member: Member, chance: random.Random) -> bool:
    if is_due := _is_due(member, chance):
        member.terminate()
    return is_due


async def _pause_briefly(member: Member, chance: random.Random) -> bool:
    return await _pause(member, chance.uniform(0.05, 0.6 * LEASE_S))


async def _pause_long(member: Member, chance: random.Random) -> bool:
    return await _pause(member, chance.uniform(1.2 * LEASE_S, 2.5 * LEASE_S))


async def _pause(member: Member, pause_s: float) -> bool:
    is_up = member.is_up
    member.pause()
    try:
        await asyncio.sleep(pause_s)
    finally:
        member.go_on()
    return is_up


async def _step_clock(member: Member, chance: random.Random) -> bool:
    member.step_clock(chance.choice(_CLOCK_STEPS_MS))
    await asyncio.sleep(chance.uniform(0.1, 2.0))
    member.step_clock(0)
    return True


async def _fill_disk(member: Member, chance: random.Random) -> bool:
    """Redis' log of commands cannot grow: with `appendfsync always` it ends itself. There is room again for the next process."""
    is_up = member.is_up
    files = list(member.service.directory.glob("appendonlydir/*.aof"))
    member.limit_files(max((file.stat().st_size for file in files), default=0) + chance.randint(0, 4096))
    await asyncio.sleep(chance.uniform(0.1, 1.0))
    if member.is_up:
        member.limit_files(None)
    return is_up


def _road_faults(proxy: Proxy) -> Iterator[Fault]:
    async def reset(_: Fleet, __: random.Random) -> bool:
        proxy.cut(reset=True)
        return True

    async def close(_: Fleet, __: random.Random) -> bool:
        proxy.cut(reset=False)
        return True

    async def stall(_: Fleet, chance: random.Random) -> bool:
        proxy.stall()
        await asyncio.sleep(chance.uniform(0.1, 2.5))
        if chance.random() < 0.5:
            proxy.cut()
        proxy.flow()
        return True

    async def delay(_: Fleet, chance: random.Random) -> bool:
        proxy.delay_s = chance.uniform(0.002, 0.05)
        await asyncio.sleep(chance.uniform(0.2, 1.5))
        proxy.delay_s = 0.0
        return True

    async def lose(_: Fleet, __: random.Random) -> bool:
        proxy.lose_next_reply()
        return True

    for hurt in (reset, close, stall, delay, lose):
        yield Fault(f"{hurt.__name__}: {proxy.name}", hurt)


def _point(member: Member, point: Point) -> Fault:
    async def kill_there(_: Fleet, __: random.Random) -> bool:
        return await kill_at(member, point, within_s=_TRAP_S)

    return Fault(f"kill {point.name}: {member.name}", kill_there)


async def kill_at(member: Member, point: Point, *, within_s: float) -> bool:
    """Kill that process at that moment; False when the moment did not come."""

    async def kill() -> None:
        member.kill()

    road = member.roads[point.service]
    trap = road.set_trap(point.marker, point.moment, kill)
    try:
        async with asyncio.timeout(within_s):
            await trap.sprung.wait()
    except TimeoutError:
        return False
    finally:
        road.remove_trap(trap)
    return True
