"""The tables of `sqlite_store`, and how a file of an older shape gets them: in place, in one transaction, when it is opened."""

import sqlite3
from pathlib import Path

# synchronous=FULL: a commit is on the disk before it is acknowledged.
_PRAGMAS = "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON;"

_VERSION = 1

# `owner` is null when the session has ended. `restored`: the epoch that wrote the session back, and the new one.
_SESSIONS = """
CREATE TABLE IF NOT EXISTS {name} (
  session_id TEXT PRIMARY KEY,
  meta BLOB NOT NULL,
  owner TEXT,
  epoch TEXT NOT NULL,
  next_sequence INTEGER NOT NULL,
  archived_sequence INTEGER NOT NULL,
  config BLOB NOT NULL,
  expires_ms INTEGER,
  restored TEXT
) WITHOUT ROWID;
"""

# An owner that is not in `owners` has no lease. `since`: the number of the epoch after which a session was only adopted.
_SCHEMA = (
    _SESSIONS.format(name="sessions")
    + """
CREATE INDEX IF NOT EXISTS sessions_expiring ON sessions (expires_ms) WHERE expires_ms IS NOT NULL;
CREATE INDEX IF NOT EXISTS sessions_owned ON sessions (owner) WHERE owner IS NOT NULL;
CREATE TABLE IF NOT EXISTS owners (
  owner TEXT PRIMARY KEY,
  lease_end_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS adoptions (
  session_id TEXT PRIMARY KEY REFERENCES sessions ON DELETE CASCADE,
  since INTEGER NOT NULL,
  last_epoch TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS taken (
  owner TEXT NOT NULL,
  session_id TEXT NOT NULL,
  epoch TEXT NOT NULL,
  taken_ms INTEGER NOT NULL,
  PRIMARY KEY (owner, session_id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS items (
  session_id TEXT NOT NULL REFERENCES sessions ON DELETE CASCADE,
  item_id TEXT NOT NULL,
  placed BLOB NOT NULL,
  PRIMARY KEY (session_id, item_id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS journal (
  session_id TEXT NOT NULL REFERENCES sessions ON DELETE CASCADE,
  last_sequence INTEGER NOT NULL,
  first_sequence INTEGER NOT NULL,
  at_ms INTEGER NOT NULL,
  events BLOB NOT NULL,
  PRIMARY KEY (session_id, last_sequence)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS outbox (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  record BLOB NOT NULL,
  added_ms INTEGER NOT NULL,
  consumer TEXT,
  taken_ms INTEGER,
  num_deliveries INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS outbox_new ON outbox (id) WHERE consumer IS NULL;
CREATE INDEX IF NOT EXISTS outbox_taken ON outbox (taken_ms);
CREATE TABLE IF NOT EXISTS dead_letters (
  id INTEGER PRIMARY KEY,
  record BLOB NOT NULL,
  error TEXT NOT NULL,
  num_deliveries INTEGER NOT NULL,
  buried_ms INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS revocations (
  id INTEGER PRIMARY KEY,
  kept_until_s INTEGER NOT NULL,
  revocation BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS revocations_due ON revocations (kept_until_s);
"""
)

# Epochs were numbers. A session that was about to expire had ended.
_FROM_NUMBERS = (
    _SESSIONS.format(name="sessions_next"),
    """
INSERT INTO sessions_next
  SELECT session_id, meta, iif(expires_ms IS NULL, owner, NULL), epoch || '.' || owner, next_sequence, archived_sequence, config,
    expires_ms, NULL
  FROM sessions
""",
    "DROP TABLE sessions",
    "ALTER TABLE sessions_next RENAME TO sessions",
)


def open_database(path: Path) -> sqlite3.Connection:
    """The database in this file, with every table; raises `sqlite3.Error`."""
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        _migrate(database)
        database.executescript(_PRAGMAS)
        database.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;")
    except BaseException:
        database.close()
        raise
    return database


def _migrate(database: sqlite3.Connection) -> None:
    # Before foreign keys are on: dropping a table would take with it what refers to it.
    database.execute("BEGIN IMMEDIATE")
    (version,) = database.execute("PRAGMA user_version").fetchone()
    is_old = database.execute("SELECT 1 FROM sqlite_master WHERE name = 'sessions'").fetchone() is not None
    if version == 0 and is_old:
        for statement in _FROM_NUMBERS:
            database.execute(statement)
        database.execute(f"PRAGMA user_version = {_VERSION}")
    database.execute("COMMIT")
