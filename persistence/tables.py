"""The tables, as one SQLAlchemy metadata for MySQL, MariaDB and SQLite. Revisions in `migrations` create them; nothing here does.

A row with a negative `sequence` is a stub: something named its id before its own record arrived. Its other columns are still empty.
"""

from datetime import UTC, datetime

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Dialect,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.schema import SchemaItem
from sqlalchemy.types import DateTime, TypeDecorator, TypeEngine, UserDefinedType

STUB_SEQUENCE = -1

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class UtcTime(TypeDecorator[datetime]):
    """An instant with microseconds: aware UTC in Python, `DATETIME(6)` in MySQL, ISO text in SQLite."""

    impl = DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[datetime]:
        return mysql.DATETIME(fsp=6) if dialect.name in ("mysql", "mariadb") else DateTime()

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=UTC)


class JsonDocument(UserDefinedType[str]):
    """A JSON column whose value in Python is the document's text: it arrives encoded and leaves encoded."""

    cache_ok = True

    def get_col_spec(self, **_: object) -> str:
        return "JSON"


def _ascii(length: int) -> TypeEngine[str]:
    """Ids and digests of our own making: one byte a character, compared byte by byte."""
    return String(length).with_variant(
        mysql.VARCHAR(length, charset="ascii", collation="ascii_bin"), "mysql", "mariadb"
    )


def _long_text() -> TypeEngine[str]:
    """Up to 16 MiB: MySQL's plain TEXT ends at 64 KiB."""
    return Text().with_variant(mysql.MEDIUMTEXT(), "mysql", "mariadb")


def _table(name: str, *columns_and_constraints: SchemaItem) -> Table:
    """A table with our options, and with checks of length where the database itself would accept longer strings."""
    table = Table(
        name,
        metadata,
        *columns_and_constraints,
        mysql_engine="InnoDB",
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mariadb_engine="InnoDB",
        mariadb_charset="utf8mb4",
        mariadb_collate="utf8mb4_bin",
    )
    for column in table.columns:
        if isinstance(column.type, String) and column.type.length is not None:
            check = CheckConstraint(f"length({column.name}) <= {column.type.length}", name=f"{column.name}_length")
            table.append_constraint(check.ddl_if(dialect="sqlite"))
    return table


sessions = _table(
    "sessions",
    Column("session_id", _ascii(64), primary_key=True),
    Column("sequence", BigInteger, nullable=False),
    # Who is asking may come from a foreign identity provider: any text, of any script.
    Column("user_id", String(255)),
    Column("client_id", String(255)),
    Column("model", String(255)),
    Column("status", _ascii(16)),
    Column("created_at", UtcTime),
    Column("updated_at", UtcTime),
    Column("ended_at", UtcTime),
    Index(None, "user_id", "created_at"),
    Index(None, "created_at"),
    Index(None, "status", "updated_at"),
)

turns = _table(
    "turns",
    Column("turn_id", _ascii(64), primary_key=True),
    Column("session_id", _ascii(64), ForeignKey("sessions.session_id"), nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("number", Integer),
    # Clients name their items; nothing obliges them to ASCII.
    Column("item_id", String(64)),
    Column("text", _long_text()),
    Column("created_at", UtcTime),
    UniqueConstraint("session_id", "number"),
    Index(None, "session_id", "item_id"),
)

predictions = _table(
    "predictions",
    Column("response_id", _ascii(64), primary_key=True),
    Column("session_id", _ascii(64), ForeignKey("sessions.session_id"), nullable=False),
    Column("turn_id", _ascii(64), ForeignKey("turns.turn_id")),
    Column("sequence", BigInteger, nullable=False),
    Column("model", String(255), nullable=False),
    Column("model_version", String(255), nullable=False),
    Column("status", _ascii(16), nullable=False),
    Column("status_reason", String(255)),
    Column("text", _long_text(), nullable=False),
    # As encoded; a document that this database's JSON type refuses, being too deep, stands here as a JSON string.
    Column("output", JsonDocument, nullable=False),
    Column("request", JsonDocument, nullable=False),
    Column("input_tokens", Integer, nullable=False),
    Column("output_tokens", Integer, nullable=False),
    Column("cached_tokens", Integer, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("first_token_at", UtcTime),
    Column("done_at", UtcTime, nullable=False),
    Column("error", _long_text()),
    Index(None, "session_id", "created_at"),
    Index(None, "turn_id"),
    Index(None, "created_at"),
    Index(None, "status", "created_at"),
)

# What was generated, sent and heard of an answer are three facts from three times: each has its table, so that none waits for another.
# No foreign keys to predictions: either may arrive before the prediction itself.
sent = _table(
    "sent",
    Column("session_id", _ascii(64), ForeignKey("sessions.session_id"), primary_key=True),
    Column("response_id", _ascii(64), primary_key=True),
    # UTF-16 code units of the answer's text that were handed to a connected client. It only grows.
    Column("sent_chars", Integer, nullable=False),
    Column("sent_at", UtcTime, nullable=False),
)

heard = _table(
    "heard",
    Column("session_id", _ascii(64), ForeignKey("sessions.session_id"), primary_key=True),
    Column("response_id", _ascii(64), primary_key=True),
    Column("sequence", BigInteger, nullable=False),
    Column("item_id", String(64), nullable=False),
    Column("heard_text", _long_text(), nullable=False),
    Column("heard_chars", Integer, nullable=False),
    Column("heard_at", UtcTime, nullable=False),
)

requests = _table(
    "requests",
    Column("request_id", _ascii(64), primary_key=True),
    Column("user_id", String(255)),
    # No foreign key: a log also tells of calls for sessions that never were.
    Column("session_id", String(64)),
    Column("method", String(16), nullable=False),
    Column("path", String(1024), nullable=False),
    Column("status", Integer, nullable=False),
    Column("duration_ms", Double, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Index(None, "created_at"),
    Index(None, "user_id", "created_at"),
    Index(None, "session_id", "created_at"),
)

# One row for each archived part of a journal. The row is made before its object, to settle where the part ends; with `stored_at` set
# the object is known to be in the archive, and only the commit of that allows the journal to be trimmed.
archives = _table(
    "archives",
    Column("session_id", _ascii(64), ForeignKey("sessions.session_id"), primary_key=True),
    Column("first_sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("last_sequence", BigInteger, nullable=False),
    Column("object_key", _ascii(255), nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("num_events", Integer, nullable=False),
    Column("num_bytes", BigInteger),
    Column("sha256", _ascii(64)),
    Column("stored_at", UtcTime),
    UniqueConstraint("object_key"),
)
