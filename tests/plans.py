"""What a database does to answer: the statements it is given, and the steps of its plan for each."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from msgspec import Struct
from sqlalchemy import Row, event

from persistence.database import Database


class Statement(Struct, frozen=True):
    """A statement as the driver got it."""

    sql: str
    parameters: Any


async def statements_of(database: Database, ask: Callable[[], Awaitable[object]]) -> list[Statement]:
    """What the driver is given while `ask` runs."""
    seen: list[Statement] = []

    def note(_connection: Any, _cursor: Any, sql: str, parameters: Any, *_: Any) -> None:
        seen.append(Statement(sql, parameters))

    event.listen(database.engine.sync_engine, "before_cursor_execute", note)
    try:
        await ask()
    finally:
        event.remove(database.engine.sync_engine, "before_cursor_execute", note)
    return [statement for statement in seen if "SELECT" in statement.sql]


async def unbounded_steps(database: Database, statement: Statement) -> Sequence[str]:
    """The steps that read a whole table or index, or that sort more than what was merged of pages."""
    async with database.snapshot() as connection:
        if not database.is_mysql:
            plan = await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement.sql}", statement.parameters)
            return _unbounded_on_sqlite(plan.all(), merges="UNION ALL" in statement.sql)
        # The bound on its time is not part of a statement that is explained.
        limit, found, select = statement.sql.partition(" FOR SELECT")
        sql = f"SELECT{select}" if found and limit.startswith("SET STATEMENT") else statement.sql
        plan = await connection.exec_driver_sql(f"EXPLAIN {sql}", statement.parameters)
        return [str(dict(step)) for step in plan.mappings() if not _is_bounded_on_mysql(dict(step))]


def _is_bounded_on_mysql(step: dict[str, Any]) -> bool:
    if step["select_type"] == "UNION RESULT" or (step["table"] or "").startswith("<"):
        return True
    extra = step["Extra"] or ""
    return step["type"] not in ("ALL", "index") and "filesort" not in extra and "temporary" not in extra


def _unbounded_on_sqlite(plan: Sequence[Row[Any]], *, merges: bool) -> list[str]:
    # A page to be merged is made in a subquery, `w0`, `w1` …; what is sorted outside of them are the pages.
    pages = {row.id for row in plan if row.detail.startswith(("CO-ROUTINE w", "MATERIALIZE w"))}
    unbounded = []
    for row in plan:
        scans = row.detail.startswith("SCAN") and not row.detail.startswith(("SCAN w", "SCAN CONSTANT ROW"))
        sorts = "TEMP B-TREE FOR ORDER" in row.detail and (not merges or row.parent in pages)
        if scans or sorts:
            unbounded.append(row.detail)
    return unbounded
