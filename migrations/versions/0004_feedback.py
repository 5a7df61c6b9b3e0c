"""Feedback, which answer said what, how answers came to be, notes, and the audit log with its head.

Revises: 0003

New tables only: the previous release neither reads nor writes them.
"""

from datetime import datetime

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql
from sqlalchemy.schema import SchemaItem
from sqlalchemy.types import TypeEngine, UserDefinedType

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


class _Json(UserDefinedType[str]):
    cache_ok = True

    def get_col_spec(self, **_: object) -> str:
        return "JSON"


def _ascii(length: int) -> TypeEngine[str]:
    narrow = mysql.VARCHAR(length, charset="ascii", collation="ascii_bin")
    return sa.String(length).with_variant(narrow, "mysql", "mariadb")


def _long_text() -> TypeEngine[str]:
    return sa.Text().with_variant(mysql.MEDIUMTEXT(), "mysql", "mariadb")


def _time() -> TypeEngine[datetime]:
    return sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")


def _of_session(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(["session_id"], ["sessions.session_id"], name=op.f(f"fk_{table}_session_id"))


def _create_table(name: str, *items: SchemaItem) -> None:
    lengths = {
        item.name: item.type.length
        for item in items
        if isinstance(item, sa.Column) and isinstance(item.type, sa.String) and item.type.length is not None
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
        mysql_engine="InnoDB",
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mariadb_engine="InnoDB",
        mariadb_charset="utf8mb4",
        mariadb_collate="utf8mb4_bin",
    )


def _create_index(table: str, *columns: str) -> None:
    # MySQL knows no CREATE INDEX IF NOT EXISTS.
    name = f"ix_{table}_{'_'.join(columns)}"
    if name not in {index["name"] for index in sa.inspect(op.get_bind()).get_indexes(table)}:
        op.create_index(op.f(name), table, list(columns))


def upgrade() -> None:
    """Create each table, each index and the head's row where it is missing: a run that was cut off can be repeated."""
    _create_feedback()
    _create_traces()
    _create_notes()
    _create_audit_logs()


def _create_feedback() -> None:
    _create_table(
        "feedback",
        sa.Column("feedback_id", _ascii(64), nullable=False),
        sa.Column("session_id", _ascii(64), nullable=False),
        sa.Column("item_id", sa.String(64), nullable=False),
        sa.Column("user_id", sa.String(255), nullable=False),
        sa.Column("role", _ascii(16), nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("rating", _ascii(8)),
        sa.Column("reason", sa.String(64)),
        sa.Column("comment", sa.Text),
        sa.Column("start_chars", sa.Integer),
        sa.Column("end_chars", sa.Integer),
        sa.Column("rated_at", _time(), nullable=False),
        sa.Column("received_at", _time(), nullable=False),
        sa.PrimaryKeyConstraint("feedback_id", name=op.f("pk_feedback")),
        _of_session("feedback"),
        sa.UniqueConstraint("session_id", "item_id", "user_id", name=op.f("uq_feedback_session_id_item_id_user_id")),
    )
    _create_index("feedback", "rated_at", "feedback_id")
    _create_index("feedback", "rating", "rated_at", "feedback_id")
    _create_index("feedback", "user_id", "rated_at")
    _create_table(
        "answer_items",
        sa.Column("session_id", _ascii(64), nullable=False),
        sa.Column("item_id", sa.String(64), nullable=False),
        sa.Column("response_id", _ascii(64), nullable=False),
        sa.PrimaryKeyConstraint("session_id", "item_id", name=op.f("pk_answer_items")),
        _of_session("answer_items"),
    )


def _create_traces() -> None:
    _create_table(
        "traces",
        sa.Column("session_id", _ascii(64), nullable=False),
        sa.Column("response_id", _ascii(64), nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("prompt", _long_text()),
        sa.Column("prompt_format", _ascii(16), nullable=False),
        sa.Column("sampling", _Json, nullable=False),
        sa.Column("queued_at", _time()),
        sa.Column("engine_first_token_at", _time()),
        sa.Column("last_token_at", _time()),
        sa.Column("prompt_version", sa.String(255)),
        sa.Column("persona", sa.String(255), nullable=False),
        sa.PrimaryKeyConstraint("session_id", "response_id", name=op.f("pk_traces")),
        _of_session("traces"),
    )


def _create_notes() -> None:
    _create_table(
        "notes",
        sa.Column("note_id", _ascii(64), nullable=False),
        sa.Column("session_id", _ascii(64), nullable=False),
        sa.Column("author_id", sa.String(255), nullable=False),
        sa.Column("text", _long_text(), nullable=False),
        sa.Column("position_ms", sa.BigInteger),
        sa.Column("created_at", _time(), nullable=False),
        sa.PrimaryKeyConstraint("note_id", name=op.f("pk_notes")),
        _of_session("notes"),
    )
    _create_index("notes", "session_id", "created_at")


def _create_audit_logs() -> None:
    _create_table(
        "audit_logs",
        sa.Column("number", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("audit_id", _ascii(64), nullable=False),
        sa.Column("at", _time(), nullable=False),
        sa.Column("actor_id", sa.String(255), nullable=False),
        sa.Column("role", _ascii(16), nullable=False),
        sa.Column("client_id", sa.String(255), nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("session_id", sa.String(64)),
        sa.Column("detail", _long_text(), nullable=False),
        sa.Column("previous_hash", _ascii(64), nullable=False),
        sa.Column("hash", _ascii(64), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_audit_logs")),
        sa.UniqueConstraint("audit_id", name=op.f("uq_audit_logs_audit_id")),
    )
    _create_index("audit_logs", "actor_id", "number")
    _create_index("audit_logs", "session_id", "number")
    _create_index("audit_logs", "action", "number")
    _create_table(
        "audit_head",
        sa.Column("head_id", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("hash", _ascii(64), nullable=False),
        sa.PrimaryKeyConstraint("head_id", name=op.f("pk_audit_head")),
    )
    # The writer never makes this row: one that was deleted must be missed.
    if op.get_bind().scalar(sa.text("SELECT COUNT(*) FROM audit_head")) == 0:
        op.execute(f"INSERT INTO audit_head (head_id, number, hash) VALUES (1, 0, '{'0' * 64}')")  # noqa: S608
