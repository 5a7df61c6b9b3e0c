"""The first tables: sessions, turns, predictions, requests, archives.

Revises: nothing

The only revision with several operations: until it has run there is nothing that could be left half-changed, and each table is
created only where it is missing, so that a run that was cut off can be repeated.
"""

from datetime import datetime

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql
from sqlalchemy.schema import SchemaItem
from sqlalchemy.types import TypeEngine, UserDefinedType

revision = "0001"
down_revision = None
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


def _create_table(name: str, *items: SchemaItem, lengths: dict[str, int]) -> None:
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
    """Create the tables, parents first."""
    _create_table(
        "sessions",
        sa.Column("session_id", _ascii(64), nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("user_id", sa.String(255)),
        sa.Column("client_id", sa.String(255)),
        sa.Column("model", sa.String(255)),
        sa.Column("status", _ascii(16)),
        sa.Column("created_at", _time()),
        sa.Column("updated_at", _time()),
        sa.Column("ended_at", _time()),
        sa.PrimaryKeyConstraint("session_id", name=op.f("pk_sessions")),
        lengths={"session_id": 64, "user_id": 255, "client_id": 255, "model": 255, "status": 16},
    )
    _create_index("sessions", "user_id", "created_at")
    _create_index("sessions", "created_at")
    _create_index("sessions", "status", "updated_at")
    _create_table(
        "turns",
        sa.Column("turn_id", _ascii(64), nullable=False),
        sa.Column("session_id", _ascii(64), nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("number", sa.Integer),
        sa.Column("item_id", sa.String(64)),
        sa.Column("text", _long_text()),
        sa.Column("created_at", _time()),
        sa.PrimaryKeyConstraint("turn_id", name=op.f("pk_turns")),
        sa.ForeignKeyConstraint(["session_id"], ["sessions.session_id"], name=op.f("fk_turns_session_id")),
        sa.UniqueConstraint("session_id", "number", name=op.f("uq_turns_session_id_number")),
        lengths={"turn_id": 64, "session_id": 64, "item_id": 64},
    )
    _create_index("turns", "session_id", "item_id")
    _create_table(
        "predictions",
        sa.Column("response_id", _ascii(64), nullable=False),
        sa.Column("session_id", _ascii(64), nullable=False),
        sa.Column("turn_id", _ascii(64)),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("model", sa.String(255), nullable=False),
        sa.Column("model_version", sa.String(255), nullable=False),
        sa.Column("status", _ascii(16), nullable=False),
        sa.Column("status_reason", sa.String(255)),
        sa.Column("text", _long_text(), nullable=False),
        sa.Column("output", _Json, nullable=False),
        sa.Column("request", _Json, nullable=False),
        sa.Column("input_tokens", sa.Integer, nullable=False),
        sa.Column("output_tokens", sa.Integer, nullable=False),
        sa.Column("cached_tokens", sa.Integer, nullable=False),
        sa.Column("created_at", _time(), nullable=False),
        sa.Column("first_token_at", _time()),
        sa.Column("done_at", _time(), nullable=False),
        sa.Column("error", _long_text()),
        sa.PrimaryKeyConstraint("response_id", name=op.f("pk_predictions")),
        sa.ForeignKeyConstraint(["session_id"], ["sessions.session_id"], name=op.f("fk_predictions_session_id")),
        sa.ForeignKeyConstraint(["turn_id"], ["turns.turn_id"], name=op.f("fk_predictions_turn_id")),
        lengths={
            "response_id": 64,
            "session_id": 64,
            "turn_id": 64,
            "model": 255,
            "model_version": 255,
            "status": 16,
            "status_reason": 255,
        },
    )
    _create_index("predictions", "session_id", "created_at")
    _create_index("predictions", "turn_id")
    _create_index("predictions", "created_at")
    _create_index("predictions", "status", "created_at")
    _create_table(
        "requests",
        sa.Column("request_id", _ascii(64), nullable=False),
        sa.Column("user_id", sa.String(255)),
        sa.Column("session_id", sa.String(64)),
        sa.Column("method", sa.String(16), nullable=False),
        sa.Column("path", sa.String(1024), nullable=False),
        sa.Column("status", sa.Integer, nullable=False),
        sa.Column("duration_ms", sa.Double, nullable=False),
        sa.Column("created_at", _time(), nullable=False),
        sa.PrimaryKeyConstraint("request_id", name=op.f("pk_requests")),
        lengths={"request_id": 64, "user_id": 255, "session_id": 64, "method": 16, "path": 1024},
    )
    _create_index("requests", "created_at")
    _create_index("requests", "user_id", "created_at")
    _create_index("requests", "session_id", "created_at")
    _create_table(
        "archives",
        sa.Column("session_id", _ascii(64), nullable=False),
        sa.Column("first_sequence", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("last_sequence", sa.BigInteger, nullable=False),
        sa.Column("object_key", _ascii(255), nullable=False),
        sa.Column("created_at", _time(), nullable=False),
        sa.Column("num_events", sa.Integer, nullable=False),
        sa.Column("num_bytes", sa.BigInteger),
        sa.Column("sha256", _ascii(64)),
        sa.Column("stored_at", _time()),
        sa.PrimaryKeyConstraint("session_id", "first_sequence", name=op.f("pk_archives")),
        sa.ForeignKeyConstraint(["session_id"], ["sessions.session_id"], name=op.f("fk_archives_session_id")),
        sa.UniqueConstraint("object_key", name=op.f("uq_archives_object_key")),
        lengths={"session_id": 64, "object_key": 255, "sha256": 64},
    )
