"""Finds sessions, newest first, among any number of them. Reads only what `summarizer` keeps.

A search walks down the shortest of the lists that its filters name and looks each session up in the others. It walks in rounds of
bounded length and stops when the page is full, all is seen, or its time is over; then it says how far back it has looked.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from msgspec import Struct
from sqlalchemy import Executable, Row, select
from sqlalchemy.ext.asyncio import AsyncConnection

from persistence.database import Database
from persistence.places import created_ms_of, first_place
from persistence.search_plan import Plan, make_plan
from persistence.search_plan import SessionFilter as SessionFilter
from persistence.search_tables import indexed, summaries
from persistence.snippets import snippet, unpack_text
from persistence.summaries import Summary
from persistence.terms import query_words
from persistence.timed import timed
from persistence.times import milliseconds

# No search is paid for with much more than this, however little it found.
_BUDGET_S: Final = 0.015
_FIRST_DEPTH: Final = 250
_MAX_DEPTH: Final = 4000
_NO_END: Final = (1 << 63) - 1


class SessionPage(Struct, frozen=True):
    """Sessions, newest first. `next`: what to pass as `after` for those that follow; None where there are none.

    `searched_to_ms`: where the search ended before the page was full, everything created since then was looked at; older ones were not.
    Such a page may be short, even empty, and has a `next`.
    """

    data: list[Summary]
    next: int | None
    searched_to_ms: int | None


async def find_sessions(
    database: Database,
    wanted: SessionFilter,
    *,
    after: int | None = None,
    limit: int = 50,
    clock_s: Callable[[], float] = time.monotonic,
) -> SessionPage:
    """The newest `limit` sessions that are `wanted`, after the page whose `next` was `after`.

    `clock_s` tells when to stop looking. `DatabaseUnavailable` where the database does not answer in time.
    """
    words = query_words(wanted.text) if wanted.text is not None else []
    plan = make_plan(wanted, words)
    if plan is None:
        return SessionPage([], None, None)
    least = first_place(wanted.from_ms or 0)
    upper = min(_NO_END if after is None else after, _NO_END if wanted.to_ms is None else first_place(wanted.to_ms))
    began_s = clock_s()
    async with database.snapshot() as connection:
        walk = _Walk(database, connection, plan, least=least)
        rows, stopped_at = await walk.down(upper, limit + 1, clock_s, began_s=began_s)
        snippets = await _snippets(connection, [row.place for row in rows[:limit]], wanted.text)
    data = [_summary(row, snippets.get(row.place)) for row in rows[:limit]]
    if len(rows) > limit:
        return SessionPage(data, rows[limit - 1].place, None)
    return SessionPage(data, stopped_at, None if stopped_at is None else created_ms_of(stopped_at))


class _Walk:
    """One search on one connection."""

    def __init__(self, database: Database, connection: AsyncConnection, plan: Plan, *, least: int) -> None:
        self._database = database
        self._connection = connection
        self._plan = plan
        self._least = least

    async def down(
        self, upper: int, num_rows: int, clock_s: Callable[[], float], *, began_s: float
    ) -> tuple[list[Row[Any]], int | None]:
        """Up to `num_rows` rows below `upper`, and the place from which the search would go on, None once it has seen all.

        `began_s`: since when its time runs; waiting for a connection is part of it.
        """
        now_s = clock_s()
        end_s = began_s + _BUDGET_S
        rows: list[Row[Any]] = []
        depth = _FIRST_DEPTH
        while upper > self._least:
            number, floor = await self._shortest(upper, depth)
            parameters = {"upper": upper, "floor": floor, "num_rows": num_rows - len(rows)}
            rows += await self._rows(self._plan.query(number, on_mysql=self._database.is_mysql), parameters)
            if len(rows) == num_rows:
                return rows, None
            upper = floor
            began_s, now_s = now_s, clock_s()
            if now_s >= end_s and upper > self._least:
                return rows, upper
            # Longer and longer rounds, but none that would take more than the time that is left.
            affordable = int(depth * (end_s - now_s) / max(now_s - began_s, _BUDGET_S / 1000))
            depth = min(4 * depth, _MAX_DEPTH, max(affordable, _FIRST_DEPTH))
        return rows, None

    async def _shortest(self, upper: int, depth: int) -> tuple[int, int]:
        """The number of the list whose next `depth` sessions reach furthest back, and how far."""
        if self._plan.needs_no_floor:
            return 0, self._least
        parameters = {"upper": upper, "least": self._least, "depth": depth}
        (found,) = await self._execute(timed(self._plan.floors_query(), self._database), parameters)
        floors = [
            max((floor for floor in places if floor is not None), default=self._least)
            for places in self._plan.by_list(tuple(found))
        ]
        number = min(range(len(floors)), key=floors.__getitem__)
        return number, floors[number]

    async def _rows(self, query: str, parameters: Mapping[str, int]) -> Sequence[Row[Any]]:
        return await self._execute(timed(query, self._database).columns(*summaries.columns), parameters)

    async def _execute(self, statement: Executable, parameters: Mapping[str, int]) -> Sequence[Row[Any]]:
        return (await self._connection.execute(statement, {**self._plan.parameters, **parameters})).all()


async def _snippets(connection: AsyncConnection, places: Sequence[int], query: str | None) -> dict[int, str | None]:
    if query is None or not places:
        return {}
    # Of a small table MySQL would rather read all.
    found = select(indexed.c.place, indexed.c.text).with_hint(indexed, "FORCE INDEX (PRIMARY)", "mysql")
    found = found.with_hint(indexed, "FORCE INDEX (PRIMARY)", "mariadb")
    rows = await connection.execute(found.where(indexed.c.place.in_(places)))
    return {place: snippet(unpack_text(packed), query) for place, packed in rows}


def _summary(row: Row[Any], found: str | None) -> Summary:
    return Summary(
        session_id=row.session_id,
        user_id=row.user_id,
        client_id=row.client_id,
        model=row.model,
        status=row.status,
        created_ms=milliseconds(row.created_at),
        updated_ms=milliseconds(row.updated_at),
        ended_ms=None if row.ended_at is None else milliseconds(row.ended_at),
        num_turns=row.num_turns,
        num_answers=row.num_answers,
        num_errors=row.num_errors,
        num_interruptions=row.num_interruptions,
        num_up=row.num_up,
        num_down=row.num_down,
        max_first_token_ms=row.max_first_token_ms,
        first_text=row.first_text,
        snippet=found,
    )
