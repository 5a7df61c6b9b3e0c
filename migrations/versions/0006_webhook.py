"""Ratings of which the webhook's receiver has yet to be told.

Revises: 0005

A new table only: the previous release neither reads nor writes it. What that stores while it still runs is announced by nobody.
"""

from datetime import datetime

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql
from sqlalchemy.types import TypeEngine

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_TABLE = "webhook_deliveries"


def _ascii(length: int) -> TypeEngine[str]:
    narrow = mysql.VARCHAR(length, charset="ascii", collation="ascii_bin")
    return sa.String(length).with_variant(narrow, "mysql", "mariadb")


def _long_text() -> TypeEngine[str]:
    return sa.Text().with_variant(mysql.MEDIUMTEXT(), "mysql", "mariadb")


def _time() -> TypeEngine[datetime]:
    return sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")


def _short(column: str) -> sa.CheckConstraint:
    check = sa.CheckConstraint(f"length({column}) <= 64", name=op.f(f"ck_{_TABLE}_{column}_length"))
    return check.ddl_if(dialect="sqlite")


def upgrade() -> None:
    """Create the table and its index where they are missing: a run that was cut off can be repeated."""
    op.create_table(
        _TABLE,
        sa.Column("feedback_id", _ascii(64), nullable=False),
        sa.Column("delivery_id", _ascii(64), nullable=False),
        sa.Column("record", _long_text(), nullable=False),
        sa.Column("announced_at", _time(), nullable=False),
        sa.Column("due_at", _time(), nullable=False),
        sa.Column("num_tries", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("feedback_id", name=op.f(f"pk_{_TABLE}")),
        _short("feedback_id"),
        _short("delivery_id"),
        if_not_exists=True,
        mysql_engine="InnoDB",
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mariadb_engine="InnoDB",
        mariadb_charset="utf8mb4",
        mariadb_collate="utf8mb4_bin",
    )
    # MySQL knows no CREATE INDEX IF NOT EXISTS.
    name = f"ix_{_TABLE}_due_at"
    if name not in {index["name"] for index in sa.inspect(op.get_bind()).get_indexes(_TABLE)}:
        op.create_index(op.f(name), _TABLE, ["due_at"])
