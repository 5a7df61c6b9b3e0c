"""Revocations in SQLite: what `sqlite_store` does with them in one transaction each."""

import sqlite3

from sessions.revocation import Revocation, decode_revocations, encode_revocation

_NUM_ROWS = 1000


def revoke(database: sqlite3.Connection, revocation: Revocation, now_us: int) -> None:
    """Keep it; those that are due go."""
    database.execute("DELETE FROM revocations WHERE kept_until_s < ?", (now_us // 1_000_000,))
    # Not counted from 1: in a file that came back empty, the number that a reader saw last would soon be another's.
    database.execute(
        "INSERT INTO revocations SELECT max(?, ifnull(max(id), 0) + 1), ?, ? FROM revocations",
        (now_us, revocation.kept_until_s, encode_revocation(revocation)),
    )


def revocations(database: sqlite3.Connection, after: str) -> tuple[list[Revocation], str]:
    """Those that were added after that mark, and the new mark."""
    mark = database.execute("SELECT id FROM revocations WHERE id = ?", (int(after or 0),)).fetchone()
    rows = database.execute(
        "SELECT id, revocation FROM revocations WHERE id > ? ORDER BY id LIMIT ?", (mark[0] if mark else 0, _NUM_ROWS)
    ).fetchall()
    last = rows[-1][0] if rows else mark[0] if mark else 0
    return decode_revocations(data for _, data in rows), str(last)
