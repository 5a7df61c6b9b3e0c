"""Replaces all that is derived of sessions, in a transaction of the caller's, who holds the sessions' marks."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec
from msgspec import Struct
from sqlalchemy import delete, insert, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from persistence.places import place_of
from persistence.rollup_writes import add_shares
from persistence.search_tables import indexed, postings, summaries
from persistence.snippets import pack_text, unpack_text
from persistence.summaries import Digest, Share, Summary
from persistence.times import utc_time

_NUM_TERMS_DELETED: Final = 500
# In one statement for many rows: see `upsert`.
_INSERT_POSTING: Final = "INSERT INTO postings (term, place) VALUES (:term, :place)"
_ON_MYSQL: Final = f"{_INSERT_POSTING} ON DUPLICATE KEY UPDATE place = VALUES(place)"
_ON_SQLITE: Final = f"{_INSERT_POSTING} ON CONFLICT DO NOTHING"


class _Old(Struct, frozen=True):
    """What is stored of a session now."""

    place: int
    terms: frozenset[str]
    shares: list[Share]


async def replace_derived(connection: AsyncConnection, digests: Mapping[str, Digest | None], *, is_mysql: bool) -> None:
    """Store what is new of each session instead of what there is; None takes everything of it away."""
    old = await _stored(connection, digests)
    places = {session_id: found.place for session_id, found in old.items()}
    new = {session_id: found for session_id, found in digests.items() if found is not None}
    places |= await _free_places(connection, [found.summary for name, found in new.items() if name not in old])
    for table in (summaries, indexed):
        await connection.execute(delete(table).where(table.c.place.in_(sorted(places[name] for name in old))))
    if new:
        rows = sorted(new.items(), key=lambda each: places[each[0]])
        await connection.execute(insert(summaries), [_summary_row(places[name], found.summary) for name, found in rows])
        await connection.execute(insert(indexed), [_indexed_row(places[name], found) for name, found in rows])
    added: list[dict[str, str | int]] = []
    for session_id in sorted(digests):
        before = old[session_id].terms if session_id in old else frozenset()
        after = new[session_id].terms if session_id in new else frozenset()
        added += [{"term": term, "place": places[session_id]} for term in after - before]
        await _delete_postings(connection, sorted(before - after), places.get(session_id))
    await _insert_postings(connection, added, is_mysql=is_mysql)
    # Last, for all sessions of a day have the same rows there.
    await add_shares(
        connection,
        [share for found in new.values() for share in found.shares],
        [share for found in old.values() for share in found.shares],
        is_mysql=is_mysql,
    )


async def _stored(connection: AsyncConnection, session_ids: Iterable[str]) -> dict[str, _Old]:
    rows = await connection.execute(
        select(summaries.c.session_id, indexed.c.place, indexed.c.terms, indexed.c.shares)
        .join(indexed, indexed.c.place == summaries.c.place)
        .where(summaries.c.session_id.in_(sorted(session_ids)))
    )
    return {
        session_id: _Old(
            place, frozenset(unpack_text(terms).split("\n")), msgspec.json.decode(shares, type=list[Share])
        )
        for session_id, place, terms, shares in rows
    }


async def _free_places(connection: AsyncConnection, found: Sequence[Summary]) -> dict[str, int]:
    """A place for each, next to the one it should have where another session stands there."""
    wanted = {summary.session_id: place_of(summary.session_id, summary.created_ms) for summary in found}
    given: dict[str, int] = {}
    while wanted:
        rows = await connection.execute(select(summaries.c.place).where(summaries.c.place.in_(sorted(wanted.values()))))
        taken = {*rows.scalars(), *given.values()}
        for session_id, place in sorted(wanted.items()):
            if place in taken:
                wanted[session_id] = place + 1
            else:
                taken.add(place)
                given[session_id] = wanted.pop(session_id)
    return given


async def _insert_postings(connection: AsyncConnection, rows: list[dict[str, str | int]], *, is_mysql: bool) -> None:
    if rows:
        rows.sort(key=lambda row: (row["term"], row["place"]))
        await connection.execute(text(_ON_MYSQL if is_mysql else _ON_SQLITE), rows)


async def _delete_postings(connection: AsyncConnection, terms: Sequence[str], place: int | None) -> None:
    for start in range(0, len(terms), _NUM_TERMS_DELETED):
        some = terms[start : start + _NUM_TERMS_DELETED]
        await connection.execute(delete(postings).where(postings.c.term.in_(some), postings.c.place == place))


def _summary_row(place: int, summary: Summary) -> dict[str, object]:
    return {
        "place": place,
        "session_id": summary.session_id,
        "user_id": summary.user_id,
        "client_id": summary.client_id,
        "model": summary.model,
        "status": summary.status,
        "created_at": utc_time(summary.created_ms),
        "updated_at": utc_time(summary.updated_ms),
        "ended_at": None if summary.ended_ms is None else utc_time(summary.ended_ms),
        "num_turns": summary.num_turns,
        "num_answers": summary.num_answers,
        "num_errors": summary.num_errors,
        "num_interruptions": summary.num_interruptions,
        "num_up": summary.num_up,
        "num_down": summary.num_down,
        "max_first_token_ms": summary.max_first_token_ms,
        "first_text": summary.first_text,
    }


def _indexed_row(place: int, found: Digest) -> dict[str, object]:
    return {
        "place": place,
        "terms": pack_text("\n".join(sorted(found.terms))),
        "text": pack_text(found.text),
        "shares": msgspec.json.encode(found.shares).decode(),
    }
