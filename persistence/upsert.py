"""The upsert that refuses to go back in time, spelt for MySQL and MariaDB and for SQLite. Knows the tables' clocks, and no record."""

from collections.abc import Sequence
from typing import Final

from sqlalchemy import Table, TextClause, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

Row = dict[str, object]

# The columns that say which of two records of one id is newer, the weightiest first; in other tables a row never changes. A session may
# change twice in a millisecond without an event: then it is rather over than idle, and rather idle than active.
_CLOCKS: Final[dict[str, tuple[str, ...]]] = {
    "sessions": ("sequence", "updated_at", "status"),
    "turns": ("sequence",),
    "predictions": ("sequence",),
    "sent": ("sent_chars", "sent_at"),
    "heard": ("sequence",),
    "traces": ("sequence",),
    # The rater's own clock first: what was chosen last counts, by whatever way and however late it came.
    "feedback": ("rated_at", "sequence", "received_at"),
}
_COMPARED_AS: Final = {"status": "CASE {} WHEN 'ended' THEN 2 WHEN 'idle' THEN 1 ELSE 0 END"}


async def upsert(connection: AsyncConnection, table: Table, rows: Sequence[Row], *, is_mysql: bool) -> None:
    """Insert the rows; change one that is there only for a newer record of the same, and never in a table without a clock."""
    if not rows:
        return
    keys = [column.name for column in table.primary_key.columns]
    # One order for all writers, so that two of them seldom lock each other's rows crosswise.
    ordered = sorted(rows, key=lambda row: [str(row[key]) for key in keys])
    await connection.execute(_upsert_statement(table, is_mysql=is_mysql), ordered)


def _upsert_statement(table: Table, *, is_mysql: bool) -> TextClause:
    """`INSERT … VALUES (…)` with this dialect's way of meeting an existing id.

    Written by hand because aiomysql joins rows into one statement only for `VALUES (…)` followed by `ON DUPLICATE KEY`: SQLAlchemy's own
    `AS new` on MySQL 8.0.20+ would cost a round trip a row.
    """
    names = [column.name for column in table.columns]
    tail = _mysql_tail(table) if is_mysql else _sqlite_tail(table)
    sql = f"INSERT INTO {table.name} ({', '.join(names)}) VALUES ({', '.join(f':{name}' for name in names)}) {tail}"  # noqa: S608
    return text(sql).bindparams(*(bindparam(column.name, type_=column.type) for column in table.columns))


def _mysql_tail(table: Table) -> str:
    key, *_ = keys = [column.name for column in table.primary_key.columns]
    clock = _CLOCKS.get(table.name, ())
    if not clock:
        return f"ON DUPLICATE KEY UPDATE {key} = {table.name}.{key}"
    # The row met may be another one, by another unique key: then leave it alone. `rows` looks for what is missing afterwards.
    newer = f"VALUES({key}) = {key} AND ({_is_newer(clock, 'VALUES({})', '{}')})"
    # Assignments see those to their left: the clock changes last, its weightiest column last of all.
    plain = [column.name for column in table.columns if column.name not in (*keys, *clock)]
    assigned = [f"{name} = IF({newer}, VALUES({name}), {name})" for name in (*plain, *reversed(clock))]
    return f"ON DUPLICATE KEY UPDATE {', '.join(assigned)}"


def _sqlite_tail(table: Table) -> str:
    keys = [column.name for column in table.primary_key.columns]
    conflict = f"ON CONFLICT ({', '.join(keys)})"
    clock = _CLOCKS.get(table.name, ())
    if not clock:
        return f"{conflict} DO NOTHING"
    assigned = ", ".join(
        f"{column.name} = excluded.{column.name}" for column in table.columns if column.name not in keys
    )
    return f"{conflict} DO UPDATE SET {assigned} WHERE {_is_newer(clock, 'excluded.{}', table.name + '.{}')}"


def _is_newer(clock: Sequence[str], new: str, old: str) -> str:
    """The condition that the new row's clock is ahead. A stub has NULLs in its clock, but never in the weightiest column."""
    column, *lighter = clock
    compared_as = _COMPARED_AS.get(column, "{}")
    ahead, behind = (compared_as.format(row.format(column)) for row in (new, old))
    if not lighter:
        return f"{ahead} > {behind}"
    return f"{ahead} > {behind} OR ({ahead} = {behind} AND ({_is_newer(lighter, new, old)}))"
