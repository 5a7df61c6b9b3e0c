"""What SQLite does in one transaction each: functions of an open database, called by `sqlite_store` in its thread.

A lease runs by the clock that is passed in. Only `sqlite_store` begins and commits.
"""

import sqlite3
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec
import structlog

from sessions.feedback import Feedback
from sessions.store import (
    MAX_PART_BYTES,
    UNREADABLE,
    Append,
    AppendStatus,
    DeadLetter,
    Delivery,
    Glimpse,
    JournalEntry,
    LoadedSession,
    OutboxLag,
    PlacedItem,
    SessionMeta,
    decode_placed,
    encode_placed,
    epoch_number,
    rated,
)

_log = structlog.get_logger(__name__)

# An owner that comes back after this still finds out what was taken from it, at its next append.
_TAKEN_MS = 3_600_000

_encode_meta = msgspec.json.Encoder().encode
_decode_meta = msgspec.json.Decoder(SessionMeta).decode


class Claimer(NamedTuple):
    """Who claims now, and how long it is known to live from now on: not at all before it renewed its lease."""

    owner: str
    lease_ms: int
    now_ms: int


def ping(database: sqlite3.Connection) -> None:
    """Return when the database can be read."""
    database.execute("SELECT 1 FROM sessions LIMIT 1")


def begin_alone(database: sqlite3.Connection, now_ms: int) -> None:
    """Forget who used the store before: the file's lock says that they are gone, and waiting for them would only delay what they had."""
    forget_expired(database, now_ms)
    database.execute("UPDATE outbox SET consumer = NULL, taken_ms = NULL WHERE consumer IS NOT NULL")
    database.execute("DELETE FROM owners")
    database.execute("DELETE FROM taken")


def forget_expired(database: sqlite3.Connection, now_ms: int) -> None:
    """Forget the sessions whose retention is over."""
    database.execute("DELETE FROM sessions WHERE expires_ms <= ?", (now_ms,))


def create(database: sqlite3.Connection, meta: SessionMeta, claimer: Claimer) -> str | None:
    """The session's epoch, or None when it belongs to another or has begun already. A retry finds its own work."""
    forget_expired(database, claimer.now_ms)
    encoded, epoch = _encode_meta(meta), f"1.{claimer.owner}"
    row = database.execute(
        "SELECT epoch, next_sequence, meta FROM sessions WHERE session_id = ?", (meta.session_id,)
    ).fetchone()
    if row is not None:
        return epoch if row == (epoch, 1, encoded) else None
    database.execute(
        "INSERT INTO sessions VALUES (?, ?, ?, ?, 1, 0, x'', NULL, NULL)",
        (meta.session_id, encoded, claimer.owner, epoch),
    )
    _extend_lease(database, claimer)
    return epoch


def claim(
    database: sqlite3.Connection,
    session_id: str,
    claimer: Claimer,
    whose: tuple[str | None, str | None],
    retention_ms: int,
) -> LoadedSession | None:
    """The session under its next epoch, or None when there is none, or not of that user and client; either is None where any will do."""
    forget_expired(database, claimer.now_ms)
    row = database.execute("SELECT meta FROM sessions WHERE session_id = ?", (session_id,)).fetchone()
    if row is None:
        return None
    meta = _decode_meta(row[0])
    if any(wanted not in (None, found) for wanted, found in zip(whose, (meta.user_id, meta.client_id), strict=True)):
        return None
    return _claim(database, session_id, claimer, retention_ms, adopts=whose == (None, None))


def adopt(
    database: sqlite3.Connection, owner_of: Mapping[str, str], claimer: Claimer, retention_ms: int
) -> list[LoadedSession]:
    """Claim each session that is still its owner's, whose lease must be over unless it is the claimer."""
    forget_expired(database, claimer.now_ms)
    adopted = []
    for session_id, former in owner_of.items():
        owned = "SELECT 1 FROM sessions WHERE session_id = ? AND owner = ?"
        if database.execute(owned, (session_id, former)).fetchone() and not _has_lease(database, former, claimer):
            try:
                adopted.append(_claim(database, session_id, claimer, retention_ms, adopts=True))
            except UNREADABLE:
                _log.exception("session.not_adopted", session_id=session_id)
    return adopted


def lapsed(database: sqlite3.Connection, owner: str, limit: int, now_ms: int) -> dict[str, str]:
    """Sessions that others have without a lease, and who."""
    forget_expired(database, now_ms)
    database.execute("DELETE FROM owners WHERE lease_end_ms <= ?", (now_ms,))
    rows = database.execute(
        "SELECT session_id, owner FROM sessions WHERE owner IS NOT NULL AND owner <> ?"
        " AND owner NOT IN (SELECT owner FROM owners) LIMIT ?",
        (owner, limit),
    )
    return dict(rows.fetchall())


def epoch(database: sqlite3.Connection, session_id: str) -> str | None:
    """As `Store.epoch`."""
    row = database.execute("SELECT epoch FROM sessions WHERE session_id = ?", (session_id,)).fetchone()
    return None if row is None else str(row[0])


def is_adopted(database: sqlite3.Connection, session_id: str, since: str) -> bool:
    """As `Store.is_adopted`."""
    row = database.execute(
        "SELECT 1 FROM adoptions JOIN sessions USING (session_id) WHERE session_id = ? AND last_epoch = epoch AND since <= ?",
        (session_id, epoch_number(since)),
    ).fetchone()
    return row is not None


def peek(database: sqlite3.Connection, session_id: str, now_ms: int) -> Glimpse | None:
    """As `Store.peek`."""
    row = database.execute(
        "SELECT meta, next_sequence, archived_sequence, owner IS NOT NULL FROM sessions"
        " WHERE session_id = ? AND (expires_ms IS NULL OR expires_ms > ?)",
        (session_id, now_ms),
    ).fetchone()
    if row is None:
        return None
    meta, next_sequence, archived_sequence, has_owner = row
    return Glimpse(_decode_meta(meta), next_sequence, archived_sequence, has_owner=bool(has_owner))


def item(database: sqlite3.Connection, session_id: str, item_id: str, now_ms: int) -> PlacedItem | None:
    """As `Store.item`."""
    row = database.execute(
        "SELECT placed FROM items JOIN sessions USING (session_id)"
        " WHERE session_id = ? AND item_id = ? AND (expires_ms IS NULL OR expires_ms > ?)",
        (session_id, item_id, now_ms),
    ).fetchone()
    return None if row is None else decode_placed(row[0])


def rate(database: sqlite3.Connection, session_id: str, item_id: str, feedback: Feedback, now_ms: int) -> None:
    """As `Store.rate`."""
    placed = item(database, session_id, item_id, now_ms)
    changed = None if placed is None else rated(placed, feedback)
    if changed is not None:
        database.execute(
            "UPDATE items SET placed = ? WHERE session_id = ? AND item_id = ?",
            (encode_placed(changed), session_id, item_id),
        )


def renew(database: sqlite3.Connection, claimer: Claimer) -> dict[str, str]:
    """Ids of the owner's sessions that others claimed, and their epochs then."""
    _extend_lease(database, claimer)
    database.execute("DELETE FROM taken WHERE taken_ms <= ?", (claimer.now_ms - _TAKEN_MS,))
    rows = database.execute("SELECT session_id, epoch FROM taken WHERE owner = ?", (claimer.owner,))
    return dict(rows.fetchall())


def forget_taken(database: sqlite3.Connection, owner: str, taken: Mapping[str, str]) -> None:
    """The owner was told. What was claimed once more since then is told once more."""
    database.executemany(
        "DELETE FROM taken WHERE owner = ? AND session_id = ? AND epoch = ?",
        [(owner, session_id, epoch) for session_id, epoch in taken.items()],
    )


def surrender(database: sqlite3.Connection, owner: str) -> None:
    """The owner has no lease any more and hears of nothing."""
    database.execute("DELETE FROM owners WHERE owner = ?", (owner,))
    database.execute("DELETE FROM taken WHERE owner = ?", (owner,))


def restore(
    database: sqlite3.Connection,
    meta: SessionMeta,
    claimer: Claimer,
    epoch: str,
    next_sequence: int,
    config: bytes,
    items: Sequence[PlacedItem],
) -> str | None:
    """The new epoch, or None when a later one is there. A restore whose reply was lost is not a later one."""
    session_id, latest = meta.session_id, epoch_number(epoch)
    row = database.execute(
        "SELECT epoch, next_sequence, restored FROM sessions WHERE session_id = ?", (session_id,)
    ).fetchone()
    if row is not None and row[0] != epoch:
        stored, sequence, restored = row
        if epoch_number(stored) >= latest and (sequence, restored) != (next_sequence, f"{epoch} {stored}"):
            return None
        latest = max(latest, epoch_number(stored))
    new_epoch = f"{latest + 1}.{claimer.owner}"
    _take(database, session_id, claimer, new_epoch)
    database.execute("DELETE FROM sessions WHERE session_id = ?", (session_id,))
    state = (_encode_meta(meta), claimer.owner, new_epoch, next_sequence, next_sequence - 1, config)
    database.execute(
        "INSERT INTO sessions VALUES (?, ?, ?, ?, ?, ?, ?, NULL, ?)", (session_id, *state, f"{epoch} {new_epoch}")
    )
    database.executemany(
        "INSERT INTO items VALUES (?, ?, ?)",
        [(session_id, placed.item.id, encode_placed(placed)) for placed in items],
    )
    return new_epoch


def _claim(
    database: sqlite3.Connection, session_id: str, claimer: Claimer, retention_ms: int, *, adopts: bool
) -> LoadedSession:
    (stored,) = database.execute("SELECT epoch FROM sessions WHERE session_id = ?", (session_id,)).fetchone()
    epoch = f"{epoch_number(stored) + 1}.{claimer.owner}"
    _take(database, session_id, claimer, epoch)
    if adopts:
        database.execute(
            "INSERT INTO adoptions VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET"
            " since = iif(last_epoch = ?, since, excluded.since), last_epoch = excluded.last_epoch",
            (session_id, epoch_number(stored), epoch, stored),
        )
    else:
        database.execute("DELETE FROM adoptions WHERE session_id = ?", (session_id,))
    meta, next_sequence, archived_sequence, config = database.execute(
        "UPDATE sessions SET epoch = ?, owner = ?, expires_ms = iif(expires_ms IS NULL, NULL, ?) WHERE session_id = ?"
        " RETURNING meta, next_sequence, archived_sequence, config",
        (epoch, claimer.owner, claimer.now_ms + retention_ms, session_id),
    ).fetchone()
    items = [
        decode_placed(placed)
        for (placed,) in database.execute("SELECT placed FROM items WHERE session_id = ?", (session_id,))
    ]
    items.sort(key=lambda placed: (placed.rank, placed.item.id))
    return LoadedSession(_decode_meta(meta), epoch, next_sequence, archived_sequence, config, tuple(items))


def _take(database: sqlite3.Connection, session_id: str, claimer: Claimer, epoch: str) -> None:
    """Note for the owner of now, if it is another, that the session is the claimer's."""
    database.execute(
        "INSERT OR REPLACE INTO taken SELECT owner, session_id, ?, ? FROM sessions WHERE session_id = ? AND owner <> ?",
        (epoch, claimer.now_ms, session_id, claimer.owner),
    )
    database.execute("DELETE FROM taken WHERE owner = ? AND session_id = ?", (claimer.owner, session_id))
    _extend_lease(database, claimer)


def _extend_lease(database: sqlite3.Connection, claimer: Claimer) -> None:
    if claimer.lease_ms:
        lease_end_ms = claimer.now_ms + claimer.lease_ms
        database.execute("INSERT OR REPLACE INTO owners VALUES (?, ?)", (claimer.owner, lease_end_ms))


def _has_lease(database: sqlite3.Connection, owner: str, claimer: Claimer) -> bool:
    lasting = "SELECT 1 FROM owners WHERE owner = ? AND lease_end_ms > ?"
    return owner != claimer.owner and database.execute(lasting, (owner, claimer.now_ms)).fetchone() is not None


def append(database: sqlite3.Connection, batch: Sequence[Append], now_ms: int, retention_ms: int) -> list[AppendStatus]:
    """Commit each part that may be; the status of each."""
    forget_expired(database, now_ms)
    return [_append_part(database, part, now_ms, retention_ms) for part in batch]


def _append_part(database: sqlite3.Connection, part: Append, now_ms: int, retention_ms: int) -> AppendStatus:
    session_id, first = part.session_id, part.first_sequence
    last = first + len(part.events) - 1
    refusal = _refusal(database, part, last)
    if refusal is not None:
        return refusal
    if part.events:
        database.execute(
            "INSERT INTO journal VALUES (?, ?, ?, ?, ?)", (session_id, last, first, part.at_ms, b"\n".join(part.events))
        )
    database.execute(
        "UPDATE sessions SET next_sequence = ?, config = ifnull(?, config), expires_ms = iif(expires_ms IS NULL, NULL, ?),"
        " owner = iif(?, NULL, owner) WHERE session_id = ?",
        (last + 1, part.config, now_ms + retention_ms, part.ends, session_id),
    )
    enqueue(database, part.records, now_ms)
    database.executemany(
        "DELETE FROM items WHERE session_id = ? AND item_id = ?",
        [(session_id, item_id) for item_id in part.dropped_items],
    )
    database.executemany(
        "INSERT OR REPLACE INTO items VALUES (?, ?, ?)",
        [(session_id, item_id, placed) for item_id, placed in part.saved_items.items()],
    )
    return "ok"


def _refusal(database: sqlite3.Connection, part: Append, last: int) -> AppendStatus | None:
    row = database.execute(
        "SELECT epoch, next_sequence, owner FROM sessions WHERE session_id = ?", (part.session_id,)
    ).fetchone()
    if _num_bytes(part) > MAX_PART_BYTES:
        return "too_large"
    if row is None:
        return "gone"
    epoch, next_sequence, owner = row
    if epoch != part.epoch:
        return "fenced" if epoch_number(epoch) >= epoch_number(part.epoch) else "gone"
    if next_sequence != part.first_sequence:
        return "dup" if part.first_sequence <= last < next_sequence else "gap"
    # An end without events has no sequence number to be known again by, but it leaves no owner.
    return "dup" if part.ends and not part.events and owner is None else None


def _num_bytes(part: Append) -> int:
    config = b"" if part.config is None else part.config
    return sum(map(len, (*part.events, *part.records, *part.saved_items.values(), config)))


def journal(database: sqlite3.Connection, session_id: str, after: int, limit: int) -> list[JournalEntry]:
    """As `Store.journal`."""
    rows = database.execute(
        "SELECT first_sequence, at_ms, events FROM journal WHERE session_id = ? AND last_sequence > ?"
        " ORDER BY last_sequence LIMIT ?",
        (session_id, after, limit),
    )
    return [JournalEntry(first, at_ms, tuple(events.split(b"\n"))) for first, at_ms, events in rows]


def trim(
    database: sqlite3.Connection, session_id: str, archived_sequence: int, now_ms: int, retention_ms: int | None
) -> None:
    """As `Store.trim`; `retention_ms` when this was the last."""
    forget_expired(database, now_ms)
    database.execute("DELETE FROM journal WHERE session_id = ? AND last_sequence <= ?", (session_id, archived_sequence))
    database.execute(
        "UPDATE sessions SET archived_sequence = max(archived_sequence, ?), expires_ms = ifnull(?, expires_ms)"
        " WHERE session_id = ?",
        (archived_sequence, None if retention_ms is None else now_ms + retention_ms, session_id),
    )


def enqueue(database: sqlite3.Connection, records: Sequence[bytes], now_ms: int) -> None:
    """Add these records to the outbox."""
    database.executemany(
        "INSERT INTO outbox (record, added_ms) VALUES (?, ?)", [(record, now_ms) for record in records]
    )


def take(database: sqlite3.Connection, consumer: str, limit: int, now_ms: int) -> list[Delivery]:
    """Deliver new records to this consumer."""
    rows = database.execute(
        "SELECT id, record, num_deliveries FROM outbox WHERE consumer IS NULL ORDER BY id LIMIT ?", (limit,)
    )
    return _deliver(database, rows.fetchall(), consumer, now_ms)


def reclaim(database: sqlite3.Connection, consumer: str, limit: int, now_ms: int, min_idle_ms: int) -> list[Delivery]:
    """Deliver what was taken long ago to this consumer."""
    rows = database.execute(
        "SELECT id, record, num_deliveries FROM outbox WHERE taken_ms <= ? ORDER BY id LIMIT ?",
        (now_ms - min_idle_ms, limit),
    )
    return _deliver(database, rows.fetchall(), consumer, now_ms)


def _deliver(
    database: sqlite3.Connection, rows: list[tuple[int, bytes, int]], consumer: str, now_ms: int
) -> list[Delivery]:
    database.executemany(
        "UPDATE outbox SET consumer = ?, taken_ms = ?, num_deliveries = num_deliveries + 1 WHERE id = ?",
        [(consumer, now_ms, row[0]) for row in rows],
    )
    return [Delivery(str(row_id), record, num_deliveries + 1) for row_id, record, num_deliveries in rows]


def acknowledge(database: sqlite3.Connection, receipts: Sequence[str]) -> None:
    """Remove these records from the outbox."""
    database.executemany("DELETE FROM outbox WHERE id = ?", [(int(receipt),) for receipt in receipts])


def bury(database: sqlite3.Connection, delivery: Delivery, error: str, now_ms: int) -> None:
    """Move a record to the dead letters."""
    # Only who takes it out of the outbox buries it, so that a retry buries it once.
    if database.execute("DELETE FROM outbox WHERE id = ?", (int(delivery.receipt),)).rowcount == 1:
        database.execute(
            "INSERT INTO dead_letters VALUES (?, ?, ?, ?, ?)",
            (int(delivery.receipt), delivery.record, error, delivery.num_deliveries, now_ms),
        )


def dead(database: sqlite3.Connection, limit: int) -> list[DeadLetter]:
    """The oldest dead letters."""
    rows = database.execute(
        "SELECT record, error, num_deliveries FROM dead_letters ORDER BY buried_ms, id LIMIT ?", (limit,)
    )
    return [DeadLetter(*row) for row in rows]


def revive(database: sqlite3.Connection, limit: int, now_ms: int) -> int:
    """Put the oldest dead letters back into the outbox; how many."""
    rows = database.execute("SELECT id, record FROM dead_letters ORDER BY buried_ms, id LIMIT ?", (limit,)).fetchall()
    enqueue(database, [record for _, record in rows], now_ms)
    database.executemany("DELETE FROM dead_letters WHERE id = ?", [(row_id,) for row_id, _ in rows])
    return len(rows)


def lag(database: sqlite3.Connection, now_ms: int) -> OutboxLag:
    """As `Store.lag`."""
    (pending,) = database.execute("SELECT count(*) FROM outbox").fetchone()
    (oldest_ms,) = database.execute(
        "SELECT min(added_ms) FROM (SELECT added_ms FROM outbox ORDER BY id LIMIT 1)"
    ).fetchone()
    (dead,) = database.execute("SELECT count(*) FROM dead_letters").fetchone()
    return OutboxLag(pending, 0.0 if oldest_ms is None else max(0, now_ms - oldest_ms) / 1000, dead)
