"""The tables from which sessions are found and counted. All of them are derived: `summarizer` makes them from the others, and can again.

A session's `place` is where it stands in every list, newest first: `places` makes it, and no two sessions share one.
"""

from sqlalchemy import BigInteger, Column, Index, Integer, LargeBinary, String, UniqueConstraint
from sqlalchemy.dialects import mysql
from sqlalchemy.types import TypeEngine

from persistence.schema import UtcTime, ascii_text, long_text, make_table

MAX_TERM_CHARS = 64
MAX_FIRST_TEXT_CHARS = 200


def _long_bytes() -> TypeEngine[bytes]:
    return LargeBinary().with_variant(mysql.MEDIUMBLOB(), "mysql", "mariadb")


# What a list of sessions shows. One key for all orders keeps a page's rows side by side on disk.
summaries = make_table(
    "summaries",
    Column("place", BigInteger, primary_key=True, autoincrement=False),
    Column("session_id", ascii_text(64), nullable=False),
    Column("user_id", String(255), nullable=False),
    Column("client_id", String(255), nullable=False),
    Column("model", String(255), nullable=False),
    Column("status", ascii_text(16), nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("updated_at", UtcTime, nullable=False),
    Column("ended_at", UtcTime),
    Column("num_turns", Integer, nullable=False),
    Column("num_answers", Integer, nullable=False),
    Column("num_errors", Integer, nullable=False),
    Column("num_interruptions", Integer, nullable=False),
    Column("num_up", Integer, nullable=False),
    Column("num_down", Integer, nullable=False),
    Column("max_first_token_ms", BigInteger),
    Column("first_text", String(MAX_FIRST_TEXT_CHARS)),
    UniqueConstraint("session_id"),
)

# Not the databases' own full text: MariaDB's reads and sorts all that has a common word, leaves out short words, and finds no part of a
# Korean one. Which sessions a term belongs to, in order: a word that was said there, or a label such as `=client@kiosk` to filter by.
postings = make_table(
    "postings",
    Column("term", String(MAX_TERM_CHARS), primary_key=True),
    Column("place", BigInteger, primary_key=True, autoincrement=False),
)
postings.dialect_options["sqlite"]["with_rowid"] = False

# What of a session stands in `postings` and `rollups`, so that exactly that is taken out again, and the beginning of its text as indexed.
# Compressed by zstandard.
indexed = make_table(
    "indexed",
    Column("place", BigInteger, primary_key=True, autoincrement=False),
    Column("terms", _long_bytes(), nullable=False),
    Column("text", _long_bytes(), nullable=False),
    Column("shares", long_text(), nullable=False),
)

# Sessions whose rows changed since they were summarized. `mark` differs with each change; `due_at` is when to look, or to look again.
stale_sessions = make_table(
    "stale_sessions",
    Column("session_id", ascii_text(64), primary_key=True),
    Column("mark", BigInteger, nullable=False),
    Column("due_at", UtcTime, nullable=False),
    Index(None, "due_at"),
)

# Sums over the answers of a day (UTC), the one on which each began. `first_tokens` is a JSON object: bucket of `histogram` to count.
rollups = make_table(
    "rollups",
    # `*`: of all together.
    Column("client_id", String(255), primary_key=True),
    Column("day", ascii_text(10), primary_key=True),
    Column("model", String(255), primary_key=True),
    Column("num_sessions", Integer, nullable=False),
    Column("num_answers", Integer, nullable=False),
    Column("num_errors", Integer, nullable=False),
    Column("num_interruptions", Integer, nullable=False),
    Column("num_up", Integer, nullable=False),
    Column("num_down", Integer, nullable=False),
    Column("first_tokens", long_text(), nullable=False),
)
