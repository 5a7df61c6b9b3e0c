"""What was sent of an answer.

Revises: 0001
"""

from datetime import datetime

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql
from sqlalchemy.types import TypeEngine

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def _ascii(length: int) -> TypeEngine[str]:
    narrow = mysql.VARCHAR(length, charset="ascii", collation="ascii_bin")
    return sa.String(length).with_variant(narrow, "mysql", "mariadb")


def _time() -> TypeEngine[datetime]:
    return sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")


def upgrade() -> None:
    """Create the table where it is missing: a run that was cut off can be repeated."""
    checks = [
        sa.CheckConstraint(f"length({column}) <= 64", name=op.f(f"ck_sent_{column}_length")).ddl_if(dialect="sqlite")
        for column in ("session_id", "response_id")
    ]
    op.create_table(
        "sent",
        sa.Column("session_id", _ascii(64), nullable=False),
        sa.Column("response_id", _ascii(64), nullable=False),
        sa.Column("sent_chars", sa.Integer, nullable=False),
        sa.Column("sent_at", _time(), nullable=False),
        sa.PrimaryKeyConstraint("session_id", "response_id", name=op.f("pk_sent")),
        sa.ForeignKeyConstraint(["session_id"], ["sessions.session_id"], name=op.f("fk_sent_session_id")),
        *checks,
        if_not_exists=True,
        mysql_engine="InnoDB",
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mariadb_engine="InnoDB",
        mariadb_charset="utf8mb4",
        mariadb_collate="utf8mb4_bin",
    )
