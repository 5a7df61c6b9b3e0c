"""A million sessions in a private MariaDB: every question of the console is answered from an index, and how fast.

`python -m tests.benchmarks.million [--sessions N] [--queries N] [--dry]`. The questions are asked over HTTP, one after the other, of a
server in a process of its own, while a writer stores its audit trail. Takes about 8 GiB under TMPDIR and 3 GiB of memory for a million;
`--folder` keeps the data and finds it again.
"""

import argparse
import asyncio
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import httpx
import msgspec
import pymysql.cursors  # type: ignore[import-untyped]
from msgspec import Struct

from migrations import upgrade_database
from tests import services
from tests.benchmarks import results
from tests.benchmarks.million_load import COLUMNS, Loaded, load
from tests.benchmarks.million_queries import CLIENTS, Call, Question, questions
from tests.end_to_end.processes import SECRET, FluemanProcess, running, token_of

_SEED: Final = 7
_NUM_PLANS: Final = 5
_BOUND_MS: Final = 50
# Rows that a page needs: so many are sorted, or read of an index that is walked from its end, and no more.
_MAX_OF_A_PAGE: Final = 1000
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
    """Of one kind of question: times of whole calls, what share was answered in full, rows that the database read for each.

    `cpu_…`: the processor time of the server and its database together, which is what a call takes where nobody else works.
    """

    name: str
    p50_ms: float
    p99_ms: float
    cpu_p50_ms: float
    cpu_p99_ms: float
    whole: float
    num_rows: float


def main() -> None:
    """Load what is not loaded yet, measure, look at the plans, and keep the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sessions", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--only", help="questions whose name has this in it")
    parser.add_argument("--dry", action="store_true", help="keep no figures")
    options = parser.parse_args()
    with ExitStack() as stack:
        temporary = stack.enter_context(tempfile.TemporaryDirectory(prefix="million-", ignore_cleanup_errors=True))
        folder: Path = options.folder or Path(temporary)
        mariadb = stack.enter_context(services.mariadb_server(folder, options=_OPTIONS))
        loaded = load_once(mariadb, folder, options.sessions)
        asked = {name: ask for name, ask in questions(loaded).items() if (options.only or "") in name}
        with running_house(Path(temporary), mariadb) as house:
            figures = [house.measure(name, ask, options.queries) for name, ask in asked.items()]
            num_statements = sum(house.check_plans(name, ask) for name, ask in asked.items())
        lines = _lines(figures, num_statements, loaded, folder, options.sessions)
        results.keep("make bench-million", lines, dry=options.dry)
    late = [each.name for each in figures if each.p99_ms > _BOUND_MS]
    if late:
        raise SystemExit(f"over {_BOUND_MS} ms: {', '.join(late)}")


def load_once(server: services.MariadbServer, folder: Path, num_sessions: int) -> Loaded:
    """What was loaded: now, unless the folder has it."""
    kept = folder / "loaded.json"
    if not kept.exists():
        started_s = time.monotonic()
        server.execute("DROP DATABASE IF EXISTS million")
        server.execute("CREATE DATABASE million CHARACTER SET utf8mb4")
        asyncio.run(upgrade_database(_url(server)))
        with _connected(server) as connection:
            loaded = load(folder, connection, num_sessions, seed=_SEED)
        # What a server learns by itself as tables grow.
        server.execute(f"ANALYZE TABLE {', '.join(f'million.{table}' for table in COLUMNS)}")
        kept.write_bytes(msgspec.json.encode(loaded))
        print(f"loaded in {time.monotonic() - started_s:.0f} s", flush=True)
    return msgspec.json.decode(kept.read_bytes(), type=Loaded)


def _url(server: services.MariadbServer) -> str:
    return f"{server.url}/million?charset=utf8mb4"


def _connected(server: services.MariadbServer) -> Any:
    return pymysql.connect(
        host="127.0.0.1",
        port=server.port,
        user="flueman",
        password="flueman",
        database="million",
        charset="utf8mb4",
        autocommit=True,
    )


class House:
    """A server with all that belongs to it, and what is asked of it."""

    def __init__(self, mariadb: services.MariadbServer, node: FluemanProcess, writer: FluemanProcess) -> None:
        self._mariadb = mariadb
        self._node = node
        self._writer = writer
        self._connection = _connected(mariadb)
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{node.port}", timeout=10)
        self._num_calls = 0

    def close(self) -> None:
        """Forget both connections."""
        self._client.close()
        self._connection.close()

    def measure(self, name: str, ask: Question, num_queries: int) -> Figures:
        """Ask so often, one after the other."""
        random_numbers = random.Random(f"measure {name}")
        times_ms: list[float] = []
        cpu_ms: list[float] = []
        num_whole = 0
        rows_before = self._rows_read()
        for _ in range(num_queries):
            call = ask(random_numbers)
            headers = self._headers(call)
            cpu_before_s, started_s = self._cpu_s(), time.perf_counter()
            body = self._get(call, headers)
            times_ms.append((time.perf_counter() - started_s) * 1000)
            cpu_ms.append((self._cpu_s() - cpu_before_s) * 1000)
            num_whole += _is_whole(body)
        num_rows = (self._rows_read() - rows_before) / num_queries
        figures = Figures(name, *_quantiles(times_ms), *_quantiles(cpu_ms), num_whole / num_queries, num_rows)
        print(_row(figures), flush=True)
        return figures

    def check_plans(self, name: str, ask: Question) -> int:
        """How many statements were looked at: all that the server gives its database for a question, as they are done.

        Each walks an index. No table and no index is read whole, and nothing is sorted but a page or two, or what is one session's.
        """
        random_numbers = random.Random(name)
        self._writer.stop()  # what it asks for itself is not the question's
        statements: list[str] = []
        for _ in range(_NUM_PLANS):
            call = ask(random_numbers)
            self._execute("TRUNCATE TABLE mysql.general_log")
            self._execute("SET GLOBAL log_output = 'TABLE', general_log = ON")
            self._get(call, self._headers(call))
            self._execute("SET GLOBAL general_log = OFF")
            statements += self._logged()
        for sql in statements:
            # The bound on its time is not part of a statement that is analysed.
            _, found, select = sql.partition(" FOR SELECT")
            for step in self._rows(f"ANALYZE SELECT{select}" if found else f"ANALYZE {sql}"):
                assert _is_bounded(step), f"{name}: {step} of {sql}"
        assert statements, name
        return len(statements)

    def _logged(self) -> list[str]:
        """The statements that read a table."""
        logged = self._execute(
            "SELECT CONVERT(argument USING utf8mb4) FROM mysql.general_log WHERE command_type = 'Query'"
        )
        return [sql for (sql,) in logged if "SELECT" in sql and "FROM" in sql and "general_log" not in sql]

    def _get(self, call: Call, headers: Mapping[str, str]) -> dict[str, Any]:
        query = {key: "true" if value is True else value for key, value in call.query.items()}
        answer = self._client.get(call.path, params=query, headers=headers)
        assert answer.status_code == 200, f"{call}: {answer.text}"
        body: dict[str, Any] = msgspec.json.decode(answer.content)
        return body

    def _headers(self, call: Call) -> dict[str, str]:
        """One of twenty callers: none may ask as fast as this does."""
        self._num_calls += 1
        subject = call.user_id or f"ann-{self._num_calls % 20}"
        token = token_of(subject, role=call.role, client_id=call.client_id, scopes=call.scopes)
        return {"authorization": f"Bearer {token}"}

    def _execute(self, statement: str) -> Sequence[tuple[Any, ...]]:
        with self._connection.cursor() as cursor:
            cursor.execute(statement)
            rows: Sequence[tuple[Any, ...]] = cursor.fetchall()
        return rows

    def _rows(self, statement: str) -> Sequence[Mapping[str, Any]]:
        with self._connection.cursor(pymysql.cursors.DictCursor) as cursor:
            cursor.execute(statement)
            rows: Sequence[Mapping[str, Any]] = cursor.fetchall()
        return rows

    def _rows_read(self) -> int:
        return sum(int(value) for _, value in self._execute("SHOW GLOBAL STATUS LIKE 'Handler_read_%'"))

    def _cpu_s(self) -> float:
        """Processor time of the server and its database, to the nanosecond: other clocks of other processes count hundredths."""
        stats = [
            path
            for pid in (self._mariadb.pid, self._node.pid)
            for path in Path(f"/proc/{pid}/task").glob("*/schedstat")
        ]
        return sum(int(path.read_text().split()[0]) for path in stats) / 1e9


@contextmanager
def running_house(folder: Path, mariadb: services.MariadbServer) -> Iterator[House]:
    """A node and a writer on that database, with Redis and S3 of their own."""
    with ExitStack() as stack:
        for name in ("redis", "rclone"):
            (folder / name).mkdir()
        redis = stack.enter_context(services.redis_server(folder / "redis"))
        s3 = stack.enter_context(services.durable_s3_server(folder / "rclone"))
        query = urlencode({"endpoint": s3.url, "region": services.S3_REGION})
        settings = {
            "AWS_ACCESS_KEY_ID": services.S3_ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": services.S3_SECRET_KEY,
            "AWS_EC2_METADATA_DISABLED": "true",
            "FLUEMAN_ENGINE": "scripted",
            "FLUEMAN_JWT_SECRET": SECRET,
            "FLUEMAN_DATA_DIR": str(folder / "var"),
            "FLUEMAN_REDIS_URL": redis.url,
            "FLUEMAN_DATABASE_URL": _url(mariadb),
            "FLUEMAN_ARCHIVE_URL": f"s3://{s3.new_bucket()}/flueman?{query}",
            "FLUEMAN_WRITER": "none",
            "FLUEMAN_LOG_LEVEL": "warning",
            "FLUEMAN_PRIVATE_CLIENTS": ",".join(CLIENTS),
            "FLUEMAN_MASK_PERSONAL_DATA": "true",
        }
        node = FluemanProcess(folder / "node", settings, "serve")
        writer = FluemanProcess(folder / "writer", settings, "write")
        stack.enter_context(running(writer, node))
        house = House(mariadb, node, writer)
        stack.callback(house.close)
        yield house


def _is_bounded(step: Mapping[str, Any]) -> bool:
    """Whether a step of a plan read only what an index led to; what was merged is in memory."""
    if step["select_type"] == "UNION RESULT" or (step["table"] or "").startswith("<"):
        return True
    extra, num_rows = step["Extra"] or "", float(step["r_rows"] or 0)
    reads_all = step["type"] == "index" or "filesort" in extra or "temporary" in extra
    return step["type"] != "ALL" and (not reads_all or num_rows <= _MAX_OF_A_PAGE)


def _is_whole(body: Mapping[str, Any]) -> bool:
    """Whether what came is all there is, or a full page, and not the part that there was time for."""
    return body.get("searched_to_ms") is None


def _quantiles(values: Sequence[float]) -> tuple[float, float]:
    return statistics.median(values), statistics.quantiles(values, n=100, method="inclusive")[98]


def _lines(
    figures: Sequence[Figures], num_statements: int, loaded: Loaded, folder: Path, num_sessions: int
) -> list[str]:
    num_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    load_average, *_ = os.getloadavg()
    return [
        f"{num_sessions} sessions, {3 * num_sessions} turns and as many answers, {loaded.num_postings} postings,"
        f" {loaded.num_ratings} ratings: {num_bytes / 2**30:.1f} GiB on disk; buffer pool 1.5 GiB; load {load_average:.1f} on"
        f" {os.cpu_count()} cores. Over HTTP. Whole: pages that were full or the last, within the time given."
        f" Plans: all of {num_statements} statements by an index.",
        "",
        "| asked for | p50 ms | p99 ms | CPU p50 ms | CPU p99 ms | whole | rows read |",
        "|---|---|---|---|---|---|---|",
        *map(_row, figures),
    ]


def _row(each: Figures) -> str:
    times = f"{each.p50_ms:.1f} | {each.p99_ms:.1f} | {each.cpu_p50_ms:.1f} | {each.cpu_p99_ms:.1f}"
    return f"| {each.name} | {times} | {each.whole:.0%} | {each.num_rows:.0f} |"


if __name__ == "__main__":
    main()
