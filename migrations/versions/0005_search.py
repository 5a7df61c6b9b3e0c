"""Summaries, postings and rollups, from which sessions are found and counted; sessions that are there already are marked to be summarized.

Revises: 0004

New tables only. What the previous release stores while it still runs is marked by nothing: it is summarized with the session's next
record, at the latest when that ends.
"""

from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql
from sqlalchemy.schema import SchemaItem
from sqlalchemy.types import TypeEngine

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def _ascii(length: int) -> TypeEngine[str]:
    narrow = mysql.VARCHAR(length, charset="ascii", collation="ascii_bin")
    return sa.String(length).with_variant(narrow, "mysql", "mariadb")


def _long_text() -> TypeEngine[str]:
    return sa.Text().with_variant(mysql.MEDIUMTEXT(), "mysql", "mariadb")


def _long_bytes() -> TypeEngine[bytes]:
    return sa.LargeBinary().with_variant(mysql.MEDIUMBLOB(), "mysql", "mariadb")


def _time() -> TypeEngine[datetime]:
    return sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")


def _place() -> sa.Column[int]:
    return sa.Column("place", sa.BigInteger, autoincrement=False, nullable=False)


def _count(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.Integer, nullable=False)


def _create_table(name: str, *items: SchemaItem, sqlite_with_rowid: bool = True) -> None:
    lengths = {
        item.name: item.type.length
        for item in items
        if isinstance(item, sa.Column)
        and isinstance(item.type, sa.String)
        and not isinstance(item.type, sa.Text)
        and item.type.length is not None
    }
    checks = [
        sa.CheckConstraint(f"length({column}) <= {length}", name=op.f(f"ck_{name}_{column}_length")).ddl_if(
            dialect="sqlite"
        )
        for column, length in lengths.items()
    ]
    op.create_table(
        name,
        *items,
        *checks,
        if_not_exists=True,
        sqlite_with_rowid=sqlite_with_rowid,
        mysql_engine="InnoDB",
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mariadb_engine="InnoDB",
        mariadb_charset="utf8mb4",
        mariadb_collate="utf8mb4_bin",
    )


def upgrade() -> None:
    """Create each table where it is missing: a run that was cut off can be repeated."""
    _create_summaries()
    _create_postings()
    _create_rollups()
    _create_stale_sessions()


def _create_summaries() -> None:
    _create_table(
        "summaries",
        _place(),
        sa.Column("session_id", _ascii(64), nullable=False),
        sa.Column("user_id", sa.String(255), nullable=False),
        sa.Column("client_id", sa.String(255), nullable=False),
        sa.Column("model", sa.String(255), nullable=False),
        sa.Column("status", _ascii(16), nullable=False),
        sa.Column("created_at", _time(), nullable=False),
        sa.Column("updated_at", _time(), nullable=False),
        sa.Column("ended_at", _time()),
        _count("num_turns"),
        _count("num_answers"),
        _count("num_errors"),
        _count("num_interruptions"),
        _count("num_up"),
        _count("num_down"),
        sa.Column("max_first_token_ms", sa.BigInteger),
        sa.Column("first_text", sa.String(200)),
        sa.PrimaryKeyConstraint("place", name=op.f("pk_summaries")),
        sa.UniqueConstraint("session_id", name=op.f("uq_summaries_session_id")),
    )


def _create_postings() -> None:
    _create_table(
        "postings",
        sa.Column("term", sa.String(64), nullable=False),
        _place(),
        sa.PrimaryKeyConstraint("term", "place", name=op.f("pk_postings")),
        sqlite_with_rowid=False,
    )
    _create_table(
        "indexed",
        _place(),
        sa.Column("terms", _long_bytes(), nullable=False),
        sa.Column("text", _long_bytes(), nullable=False),
        sa.Column("shares", _long_text(), nullable=False),
        sa.PrimaryKeyConstraint("place", name=op.f("pk_indexed")),
    )


def _create_rollups() -> None:
    _create_table(
        "rollups",
        sa.Column("client_id", sa.String(255), nullable=False),
        sa.Column("day", _ascii(10), nullable=False),
        sa.Column("model", sa.String(255), nullable=False),
        _count("num_sessions"),
        _count("num_answers"),
        _count("num_errors"),
        _count("num_interruptions"),
        _count("num_up"),
        _count("num_down"),
        sa.Column("first_tokens", _long_text(), nullable=False),
        sa.PrimaryKeyConstraint("client_id", "day", "model", name=op.f("pk_rollups")),
    )


def _create_stale_sessions() -> None:
    _create_table(
        "stale_sessions",
        sa.Column("session_id", _ascii(64), nullable=False),
        sa.Column("mark", sa.BigInteger, nullable=False),
        sa.Column("due_at", _time(), nullable=False),
        sa.PrimaryKeyConstraint("session_id", name=op.f("pk_stale_sessions")),
    )
    # MySQL knows no CREATE INDEX IF NOT EXISTS.
    if "ix_stale_sessions_due_at" not in {
        index["name"] for index in sa.inspect(op.get_bind()).get_indexes("stale_sessions")
    }:
        op.create_index(op.f("ix_stale_sessions_due_at"), "stale_sessions", ["due_at"])
    op.get_bind().execute(
        sa.text(
            "INSERT INTO stale_sessions (session_id, mark, due_at) SELECT s.session_id, 0, :now FROM sessions s"
            " LEFT JOIN stale_sessions t ON t.session_id = s.session_id WHERE t.session_id IS NULL"
        ).bindparams(sa.bindparam("now", datetime.now(UTC).replace(tzinfo=None), _time()))
    )
