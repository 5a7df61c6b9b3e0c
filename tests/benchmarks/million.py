"""A million sessions in a private MariaDB: every question of the console is answered from an index, and how fast.

`python -m tests.benchmarks.million [--sessions N] [--queries N] [--dry]`. Takes about 8 GiB under TMPDIR and 3 GiB of memory for a
million; `--folder` keeps the data and finds it again.
"""

import argparse
import asyncio
import os
import random
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
import pymysql  # type: ignore[import-untyped]
from msgspec import Struct

from migrations import upgrade_database
from persistence.database import Database, open_database
from tests import services
from tests.benchmarks import results
from tests.benchmarks.million_load import TABLES, Loaded, load
from tests.benchmarks.million_queries import Question, questions
from tests.plans import statements_of, unbounded_steps

_SEED: Final = 7
_NUM_PLANS: Final = 5
_BOUND_MS: Final = 50
_OPTIONS: Final = (
    "--innodb-buffer-pool-size=1500M",
    "--innodb-log-file-size=512M",
    "--innodb-flush-log-at-trx-commit=2",
    "--innodb-doublewrite=0",
    "--innodb-sort-buffer-size=64M",
    "--bulk-insert-buffer-size=64M",
    "--max-allowed-packet=64M",
)


class Figures(Struct):
    """Of one kind of question: times of whole calls, what share was answered in full, rows that the server read for each.

    `cpu_…`: the processor time of the asking process and the server together, which is what a call takes where nobody else works.
    """

    name: str
    p50_ms: float
    p99_ms: float
    cpu_p50_ms: float
    cpu_p99_ms: float
    whole: float
    num_rows: float


async def main() -> None:
    """Load what is not loaded yet, look at the plans, measure, and keep the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sessions", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--tables", choices=TABLES, default="all")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--only", help="questions whose name has this in it")
    parser.add_argument("--dry", action="store_true", help="keep no figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="million-", ignore_cleanup_errors=True) as temporary:
        folder: Path = options.folder or Path(temporary)
        with services.mariadb_server(folder, options=_OPTIONS) as server:
            async with open_loaded(server, folder, options.sessions, options.tables) as (database, loaded):
                asked = {name: ask for name, ask in questions(loaded).items() if (options.only or "") in name}
                await check_plans(database, asked)
                figures = [await measure(database, server, name, ask, options.queries) for name, ask in asked.items()]
        results.keep("make bench-million", _lines(figures, loaded, folder, options.sessions), dry=options.dry)
    late = [each.name for each in figures if each.p99_ms > _BOUND_MS]
    if late:
        raise SystemExit(f"over {_BOUND_MS} ms: {', '.join(late)}")


@asynccontextmanager
async def open_loaded(
    server: services.MariadbServer, folder: Path, num_sessions: int, tables: str
) -> AsyncIterator[tuple[Database, Loaded]]:
    """The database with so many sessions, loaded now unless the folder has them."""
    url = f"{server.url}/million?charset=utf8mb4"
    kept = folder / "loaded.json"
    if not kept.exists():
        started_s = time.monotonic()
        server.execute("DROP DATABASE IF EXISTS million")
        server.execute("CREATE DATABASE million CHARACTER SET utf8mb4")
        await upgrade_database(url)
        connection = pymysql.connect(
            host="127.0.0.1",
            port=server.port,
            user="flueman",
            password="flueman",
            database="million",
            charset="utf8mb4",
        )
        with connection:
            loaded = await asyncio.to_thread(load, folder, connection, num_sessions, seed=_SEED, tables=TABLES[tables])
        # What a server learns by itself as tables grow.
        server.execute(
            f"ANALYZE TABLE {', '.join(f'million.{table}' for table in ('summaries', 'postings', 'rollups'))}"
        )
        kept.write_bytes(msgspec.json.encode(loaded))
        print(f"loaded in {time.monotonic() - started_s:.0f} s", flush=True)
    async with open_database(url) as database:
        yield database, msgspec.json.decode(kept.read_bytes(), type=Loaded)


async def check_plans(database: Database, asked: dict[str, Question]) -> None:
    """Every statement of every question walks an index: no table and no index is read whole, and nothing but a page or two is sorted."""
    for name, ask in asked.items():
        random_numbers = random.Random(name)
        for _ in range(_NUM_PLANS):
            for statement in await statements_of(database, partial(ask, database, random_numbers)):
                assert not (steps := await unbounded_steps(database, statement)), f"{name}: {steps} of {statement.sql}"


async def measure(
    database: Database, server: services.MariadbServer, name: str, ask: Question, num_queries: int
) -> Figures:
    """Ask so often, one after the other."""
    random_numbers = random.Random(f"measure {name}")
    times_ms: list[float] = []
    cpu_ms: list[float] = []
    num_whole = 0
    rows_before = await _rows_read(database)
    for _ in range(num_queries):
        started_s, cpu_before_s = time.perf_counter(), cpu_s(server)
        num_whole += await ask(database, random_numbers)
        times_ms.append((time.perf_counter() - started_s) * 1000)
        cpu_ms.append((cpu_s(server) - cpu_before_s) * 1000)
    num_rows = (await _rows_read(database) - rows_before) / num_queries
    figures = Figures(
        name, *_quantiles(times_ms), *_quantiles(cpu_ms), whole=num_whole / num_queries, num_rows=num_rows
    )
    print(_row(figures), flush=True)
    return figures


def _quantiles(values: Sequence[float]) -> tuple[float, float]:
    return statistics.median(values), statistics.quantiles(values, n=100, method="inclusive")[98]


def cpu_s(server: services.MariadbServer) -> float:
    """Processor time of this process and the server's, to the nanosecond: other clocks of other processes count hundredths."""
    stats = Path(f"/proc/{server.pid}/task").glob("*/schedstat")
    return time.process_time() + sum(int(path.read_text().split()[0]) for path in stats) / 1e9


async def _rows_read(database: Database) -> int:
    async with database.snapshot() as connection:
        rows = await connection.exec_driver_sql("SHOW GLOBAL STATUS LIKE 'Handler_read_%%'")
        return sum(int(value) for value in rows.scalars(1))


def _lines(figures: Sequence[Figures], loaded: Loaded, folder: Path, num_sessions: int) -> list[str]:
    num_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    load_average, *_ = os.getloadavg()
    return [
        f"{num_sessions} sessions, {3 * num_sessions} turns and as many answers, {loaded.num_postings} postings,"
        f" {loaded.num_ratings} ratings: {num_bytes / 2**30:.1f} GiB on disk; buffer pool 1.5 GiB; load {load_average:.1f} on"
        f" {os.cpu_count()} cores. Whole: pages that were full or the last, within the time given. Plans: all by an index.",
        "",
        "| asked for | p50 ms | p99 ms | CPU p50 ms | CPU p99 ms | whole | rows read |",
        "|---|---|---|---|---|---|---|",
        *map(_row, figures),
    ]


def _row(each: Figures) -> str:
    times = f"{each.p50_ms:.1f} | {each.p99_ms:.1f} | {each.cpu_p50_ms:.1f} | {each.cpu_p99_ms:.1f}"
    return f"| {each.name} | {times} | {each.whole:.0%} | {each.num_rows:.0f} |"


if __name__ == "__main__":
    asyncio.run(main())
