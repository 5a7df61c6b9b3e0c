"""What our tables are made of: their options and column types, the same for MySQL, MariaDB and SQLite. Holds no table itself."""

from datetime import UTC, datetime

from sqlalchemy import CheckConstraint, Dialect, MetaData, String, Table, Text
from sqlalchemy.dialects import mysql
from sqlalchemy.schema import SchemaItem
from sqlalchemy.types import DateTime, TypeDecorator, TypeEngine, UserDefinedType

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


def ascii_text(length: int) -> TypeEngine[str]:
    """Ids and digests of our own making: one byte a character, compared byte by byte."""
    return String(length).with_variant(
        mysql.VARCHAR(length, charset="ascii", collation="ascii_bin"), "mysql", "mariadb"
    )


def long_text() -> TypeEngine[str]:
    """Up to 16 MiB: MySQL's plain TEXT ends at 64 KiB."""
    return Text().with_variant(mysql.MEDIUMTEXT(), "mysql", "mariadb")


def make_table(name: str, *columns_and_constraints: SchemaItem) -> Table:
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
