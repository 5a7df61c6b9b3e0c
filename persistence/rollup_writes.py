"""Adds what sessions come to, to the sums of their days, and takes out what they came to before, in a transaction of the caller's."""

import itertools
from collections.abc import Iterable
from typing import Final

import msgspec
from sqlalchemy import and_, or_, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from persistence.rollups import ALL_CLIENTS, COUNTS, add_counts, decode_counts
from persistence.search_tables import rollups
from persistence.summaries import Share

Key = tuple[str, str, str]

_ZEROS: Final = (
    "INSERT INTO rollups (day, client_id, model, first_tokens,"
    " num_sessions, num_answers, num_errors, num_interruptions, num_up, num_down)"
    " VALUES (:day, :client_id, :model, '{}', 0, 0, 0, 0, 0, 0)"
)
# Not IGNORE: that would lock an existing row for reading, and two that then want to write to it would wait for each other for ever.
_ON_MYSQL: Final = f"{_ZEROS} ON DUPLICATE KEY UPDATE num_sessions = rollups.num_sessions"
_ON_SQLITE: Final = f"{_ZEROS} ON CONFLICT DO NOTHING"


async def add_shares(
    connection: AsyncConnection, added: Iterable[Share], removed: Iterable[Share], *, is_mysql: bool
) -> None:
    """Change the sums by the difference. The rows stay locked until the transaction ends, in one order for all."""
    changes = differences(added, removed)
    if not changes:
        return
    keys = [dict(zip(("day", "client_id", "model"), key, strict=True)) for key in sorted(changes)]
    await connection.execute(text(_ON_MYSQL if is_mysql else _ON_SQLITE), keys)
    is_changed = (and_(*(rollups.c[name] == value for name, value in key.items())) for key in keys)
    rows = await connection.execute(
        select(rollups).where(or_(*is_changed)).order_by(*rollups.primary_key.columns).with_for_update()
    )
    for row in rows.all():
        change = changes[row.day, row.client_id, row.model]
        first_tokens = decode_counts(row.first_tokens)
        add_counts(first_tokens, change.first_tokens)
        await connection.execute(
            update(rollups)
            .where(*(rollups.c[name] == getattr(change, name) for name in ("day", "client_id", "model")))
            .values(
                first_tokens=msgspec.json.encode(first_tokens).decode(),
                **{name: row._mapping[name] + getattr(change, name) for name in COUNTS},
            )
        )


def differences(added: Iterable[Share], removed: Iterable[Share]) -> dict[Key, Share]:
    """By how much each sum changes, of each digital human and of all together; sums that do not change are left out."""
    changes: dict[Key, Share] = {}
    signed = itertools.chain(((share, 1) for share in added), ((share, -1) for share in removed))
    for share, times in signed:
        # In MySQL's keys a name is the same with spaces behind it.
        for client_id in {share.client_id.rstrip(" "), ALL_CLIENTS}:
            key = (share.day, client_id, share.model.rstrip(" "))
            change = changes.setdefault(key, Share(day=key[0], client_id=key[1], model=key[2], num_sessions=0))
            for name in COUNTS:
                setattr(change, name, getattr(change, name) + times * getattr(share, name))
            add_counts(change.first_tokens, share.first_tokens, times=times)
    return {
        key: change
        for key, change in changes.items()
        if change.first_tokens or any(getattr(change, name) for name in COUNTS)
    }
