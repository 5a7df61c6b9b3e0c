"""`make bench-replay`: archived sessions are watched over the wire, from MariaDB, Redis and S3, in processes of their own.

What counts: how far the spacing of events, as they arrive at the viewers, is from that of their commits, at 1x; and the time from the
begin of the connection to the first recorded event, of sessions of a hundred and of a hundred thousand events, not looked at before.
"""

import argparse
import asyncio
import os
import random
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Final
from urllib.parse import urlencode

import uvloop
from msgspec import Struct
from websockets.asyncio.client import ClientConnection, connect

from server.identifiers import new_id
from sessions.records import ArchiveRecord, Record, SessionRecord, encode_record
from sessions.redis_store import RedisStore
from sessions.store import Append, SessionMeta, Store
from tests import services
from tests.benchmarks.figures import percentile
from tests.benchmarks.results import keep
from tests.end_to_end.processes import SECRET, FluemanProcess, running, token_of

EVENT = (
    b'{"type":"response.output_text.delta","event_id":"event_%010d","response_id":"resp_1","item_id":"item_1","output_index":0,'
    b'"content_index":0,"delta":"%b "}'
)
WORDS = [b"replay", b"of", b"what", b"was", b"said", b"once", b"and", b"never", b"again"]
OWNER = "bench"
_SPACING_WITHIN_MS: Final = 20
_FIRST_WITHIN_MS: Final = 150


class Recorded(Struct, frozen=True):
    """A session and when each of its events was committed, in milliseconds."""

    session_id: str
    times_ms: list[int]


async def record(store: Store, rng: random.Random, *, num_events: int, mean_gap_ms: float) -> Recorded:
    """A session that has ended, whose events came at random; several now and then in one commit."""
    session_id, now_ms = new_id("sess_"), int(time.time() * 1000)
    epoch = await store.create(SessionMeta(session_id, "anna", "kiosk", "demo", now_ms), OWNER)
    times_ms: list[int] = []
    at_ms = float(now_ms)
    while len(times_ms) < num_events:
        first = len(times_ms) + 1
        size = 250 if num_events > 10_000 else rng.choice([1, 1, 1, 2, 3])
        events = [EVENT % (first + n, rng.choice(WORDS)) for n in range(min(size, num_events - len(times_ms)))]
        times_ms += [int(at_ms)] * len(events)
        at_ms += rng.expovariate(1 / mean_gap_ms)
        await store.append([Append(session_id, epoch, first, times_ms[-1], events, [], {}, [])])
    records: list[Record] = [
        SessionRecord(session_id, num_events, "anna", "kiosk", "demo", "ended", now_ms, times_ms[-1], times_ms[-1]),
        ArchiveRecord(session_id, num_events, now_ms, last_sequence=num_events, final=True),
    ]
    encoded = [encode_record(record) for record in records]
    end = Append(session_id, epoch, num_events + 1, times_ms[-1], [], encoded, {}, [], ends=True)
    assert await store.append([end]) == ["ok"]
    return Recorded(session_id, times_ms)


class Figures(Struct, frozen=True):
    """How far each spacing was off, and how long each first event took by the kind of session; milliseconds."""

    spacings_ms: list[float]
    firsts_ms: dict[str, list[float]]


class Watch(Struct, frozen=True):
    """What a viewer saw: when it began, and when each recorded event arrived."""

    began_s: float
    arrivals_s: list[float]


async def watch(port: int, session_id: str, num_events: int) -> Watch:
    """Watch the first events of a session."""
    url = f"ws://127.0.0.1:{port}/v1/realtime?{urlencode({'replay': session_id})}"
    headers = {"authorization": f"Bearer {token_of('ann', role='support')}"}
    began_s = time.perf_counter()
    async with connect(url, additional_headers=headers, compression=None, proxy=None, ping_interval=None) as socket:
        return Watch(began_s, await _arrivals(socket, num_events))


async def _arrivals(socket: ClientConnection, num_events: int) -> list[float]:
    arrivals: list[float] = []
    while len(arrivals) < num_events:
        frame = await socket.recv(decode=False)
        assert b'"avatar.replay.gap"' not in frame, frame
        if b'"sequence_number":' in frame[-40:]:
            arrivals.append(time.perf_counter())
    return arrivals


def spacing_errors_ms(recorded: Recorded, watch: Watch) -> list[float]:
    """How far each gap between two arrivals is from the gap between the two commits."""
    times_ms, arrivals_s = recorded.times_ms, watch.arrivals_s
    return [
        abs(1000 * (arrivals_s[n] - arrivals_s[n - 1]) - (times_ms[n] - times_ms[n - 1]))
        for n in range(1, len(times_ms))
    ]


async def run(port: int, redis_url: str, options: argparse.Namespace) -> Figures:
    """Record, archive, watch."""
    rng = random.Random(options.seed)
    gap_ms = 1000 * options.seconds / options.events
    async with RedisStore(redis_url, timeout_s=10) as store:
        await store.renew(OWNER, lease_s=3600)
        watched = [
            await record(store, rng, num_events=options.events, mean_gap_ms=gap_ms * 1.6)
            for _ in range(options.viewers)
        ]
        small = [await record(store, rng, num_events=100, mean_gap_ms=30) for _ in range(options.sessions)]
        large = [await record(store, rng, num_events=100_000, mean_gap_ms=200) for _ in range(options.large)]
        while (await store.lag()).pending:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    firsts = {}
    for name, sessions in (("of 100 events", small), ("of 100,000 events", large)):
        watches = [await watch(port, session.session_id, 1) for session in sessions]
        firsts[name] = [1000 * (one.arrivals_s[0] - one.began_s) for one in watches]
    watches = await asyncio.gather(*(watch(port, one.session_id, len(one.times_ms)) for one in watched))
    errors = [error for one, seen in zip(watched, watches, strict=True) for error in spacing_errors_ms(one, seen)]
    return Figures(errors, firsts)


def lines_of(figures: Figures, options: argparse.Namespace) -> list[str]:
    """As Markdown."""
    errors = figures.spacings_ms
    return [
        f"{options.viewers} viewers at 1x, each of a session of {options.events} events in some {options.seconds} s: the spacing of "
        f"{len(errors):,} pairs is off by p50 {percentile(errors, 50):.1f} ms, p99 {percentile(errors, 99):.1f} ms, "
        f"at most {max(errors):.1f} ms.",
        "",
        "| first event of an archived session, from the begin of the connection | sessions | p50 ms | p99 ms | most ms |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {len(times)} | {percentile(times, 50):.0f} | {percentile(times, 99):.0f} | {max(times):.0f} |"
            for name, times in figures.firsts_ms.items()
            if times
        ),
    ]


def misses_of(figures: Figures) -> list[str]:
    """What took longer than it may."""
    misses = []
    if (off_ms := percentile(figures.spacings_ms, 99)) > _SPACING_WITHIN_MS:
        misses.append(f"the spacing is off by {off_ms:.1f} ms at the 99th percentile, over {_SPACING_WITHIN_MS} ms")
    for name, times in figures.firsts_ms.items():
        if times and (first_ms := percentile(times, 99)) > _FIRST_WITHIN_MS:
            misses.append(
                f"the first event {name} takes {first_ms:.0f} ms at the 99th percentile, over {_FIRST_WITHIN_MS} ms"
            )
    return misses


def measure(options: argparse.Namespace) -> Figures:
    """Everything in processes of its own, for one run."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name in ("redis", "mariadb", "rclone"):
            (folder / name).mkdir()
        redis = stack.enter_context(services.redis_server(folder / "redis"))
        mariadb = stack.enter_context(services.mariadb_server(folder / "mariadb"))
        s3 = stack.enter_context(services.durable_s3_server(folder / "rclone"))
        credentials = {
            "AWS_ACCESS_KEY_ID": services.S3_ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": services.S3_SECRET_KEY,
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        os.environ.update(credentials)
        query = urlencode({"endpoint": s3.url, "region": services.S3_REGION})
        settings = credentials | {
            "FLUEMAN_ENGINE": "scripted",
            "FLUEMAN_JWT_SECRET": SECRET,
            "FLUEMAN_DATA_DIR": str(folder / "var"),
            "FLUEMAN_REDIS_URL": redis.url,
            "FLUEMAN_DATABASE_URL": stack.enter_context(mariadb.fresh_database()),
            "FLUEMAN_ARCHIVE_URL": f"s3://{s3.new_bucket()}/flueman?{query}",
            "FLUEMAN_LOG_LEVEL": "warning",
            "FLUEMAN_MAX_CONNECTIONS_PER_USER": "10000",
            "FLUEMAN_MAX_CONNECTIONS_PER_ADDRESS": "0",
        }
        node = FluemanProcess(folder / "node", settings, "serve")
        stack.enter_context(running(node))
        figures: Figures = uvloop.run(run(node.port, redis.url, options))
    return figures


def main() -> None:
    """Run what was asked, append it to the results, and fail if it took longer than it may."""
    parser = argparse.ArgumentParser(prog="make bench-replay", description=__doc__)
    parser.add_argument("--viewers", type=int, default=50, help="who watch at once at 1x")
    parser.add_argument("--events", type=int, default=600, help="of each session that is watched at 1x")
    parser.add_argument("--seconds", type=int, default=30, help="that each of those lasts, about")
    parser.add_argument("--sessions", type=int, default=100, help="small ones, whose first event is waited for")
    parser.add_argument("--large", type=int, default=5, help="sessions of 100,000 events")
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--dry", action="store_true", help="print, keep nothing")
    options = parser.parse_args()
    figures = measure(options)
    keep("make bench-replay", lines_of(figures, options), dry=options.dry)
    if misses := misses_of(figures):
        raise SystemExit("; ".join(misses))


if __name__ == "__main__":
    main()
