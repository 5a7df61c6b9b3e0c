"""Revocations in SQLite: what `sqlite_store` does with them in one transaction each."""

import sqlite3

from sessions.revocation import Heard, Revocation, decode_revocations, encode_revocation

_NUM_ROWS = 1000


def revoke(database: sqlite3.Connection, revocation: Revocation, now_us: int) -> None:
    """Keep it; those that are due go."""
    database.execute("DELETE FROM revocations WHERE kept_until_s < ?", (now_us // 1_000_000,))
    # Not counted from 1: in a file that came back empty, the number that a reader saw last would soon be another's.
    database.execute(
        "INSERT INTO revocations SELECT max(?, ifnull(max(id), 0) + 1), ?, ? FROM revocations",
        (now_us, revocation.kept_until_s, encode_revocation(revocation)),
    )


def revocations(database: sqlite3.Connection, after: str) -> Heard:
    """Those that were added after that mark."""
    mark = int(after or 0)
    is_anew = not database.execute("SELECT 1 FROM revocations WHERE id = ?", (mark,)).fetchone()
    rows = database.execute(
        "SELECT id, revocation FROM revocations WHERE id > ? ORDER BY id LIMIT ?", (0 if is_anew else mark, _NUM_ROWS)
    ).fetchall()
    last = rows[-1][0] if rows else 0 if is_anew else mark
    return Heard(decode_revocations(data for _, data in rows), str(last), is_anew)
