"""One door to MySQL, MariaDB or SQLite: bounded connections, strict sessions, a time limit on every transaction, errors sorted in two.

The schema is created by `migrations`, never here.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from sqlalchemy import event, text
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DataError as SqlDataError
from sqlalchemy.exc import DBAPIError, DisconnectionError, OperationalError, StatementError
from sqlalchemy.exc import IntegrityError as SqlIntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from persistence.errors import DatabaseUnavailable, PoisonRecord
from persistence.mysql import open_connection

MYSQL_NAMES: Final = ("mysql", "mariadb")

_SQL_MODE = "STRICT_TRANS_TABLES,NO_ZERO_IN_DATE,NO_ZERO_DATE,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION"

# What MySQL and MariaDB say of a row that will never fit, although some of it comes as an OperationalError. Everything not listed is
# held to be the database's trouble, not the record's: waiting loses nothing, burying a good record would.
# Source: mysql.com/doc/mysql-errors/8.0, mariadb.com/kb/en/mariadb-error-codes.
_DATA_ERRNOS: Final = frozenset(
    {
        1048,  # column cannot be null
        1118,  # row size too large
        1153,  # packet bigger than max_allowed_packet
        1264,  # number out of range
        1265,  # data truncated
        1292,  # incorrect date or time
        1300,  # invalid character string
        1366,  # incorrect value for the column's character set
        1406,  # data too long
        3140,  # invalid JSON text (MySQL)
        3141,  # invalid JSON in a parameter (MySQL)
        3144,  # JSON of a wrong character set (MySQL)
        3157,  # JSON nested too deep (MySQL)
        3819,  # check constraint violated (MySQL)
        3854,  # string not convertible
        4025,  # check constraint failed, also MariaDB's json_valid
        4038,  # MariaDB: JSON nested too deep
    }
)


class Database:
    """Connections to one database. Its two ways in translate every failure to `DatabaseUnavailable` or `PoisonRecord`."""

    def __init__(self, engine: AsyncEngine, *, timeout_s: float) -> None:
        self.engine = engine
        self._timeout_s = timeout_s

    @property
    def is_mysql(self) -> bool:
        """True for MySQL and MariaDB, whose upserts are spelt otherwise than SQLite's."""
        return self.engine.dialect.name in MYSQL_NAMES

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """A transaction for writing, committed at the end of the block, rolled back when the block raises."""
        with _TranslatedErrors():
            async with asyncio.timeout(self._timeout_s), self.engine.begin() as connection:
                yield connection

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[AsyncConnection]:
        """A transaction for reading only, which on SQLite waits for no writer."""
        with _TranslatedErrors():
            async with asyncio.timeout(self._timeout_s), self.engine.connect() as connection:
                yield await connection.execution_options(flueman_read_only=True)

    async def check(self) -> None:
        """Ask the database for an answer; `DatabaseUnavailable` when it has none."""
        async with self.snapshot() as connection:
            await connection.execute(text("SELECT 1"))


class _TranslatedErrors:
    """Turns what the drivers raise into our two kinds of trouble, the cause chained."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, exc_type: object, exc: BaseException | None, traceback: object) -> None:
        if isinstance(exc, TimeoutError | PoolTimeout):
            raise DatabaseUnavailable("the database did not answer in time") from exc
        if isinstance(exc, DBAPIError):
            raise (PoisonRecord if is_data_error(exc) else DatabaseUnavailable)(describe(exc)) from exc
        if isinstance(exc, StatementError):
            # A value that its column's type could not even turn into a parameter.
            raise PoisonRecord(type(exc.orig).__name__) from exc
        if isinstance(exc, OSError | DisconnectionError):
            raise DatabaseUnavailable(type(exc).__name__) from exc


def is_data_error(error: DBAPIError) -> bool:
    """Whether the statement's data is to blame, and not the database, its schema or the way to it."""
    if error.connection_invalidated:
        return False
    errno = _errno(error)
    if errno is not None:
        # Without a statement it is the opening that failed, and before TLS anybody may say why: a good record would be buried for it.
        return error.statement is not None and (errno in _DATA_ERRNOS or isinstance(error, SqlIntegrityError))
    return isinstance(error, SqlIntegrityError | SqlDataError)


def describe(error: DBAPIError) -> str:
    """The kind and number of a database error, without its message: that may quote what a user said."""
    errno = _errno(error)
    kind = type(error.orig).__name__
    if errno is not None:
        return f"{kind} {errno}"
    # SQLite's messages name tables and columns, never values.
    return f"{kind}: {error.orig}" if isinstance(error, OperationalError | SqlIntegrityError) else kind


def _errno(error: DBAPIError) -> int | None:
    arguments = error.orig.args if error.orig is not None else ()
    return arguments[0] if arguments and isinstance(arguments[0], int) else None


@asynccontextmanager
async def open_database(url: str, *, timeout_s: float = 10.0, max_connections: int = 10) -> AsyncIterator[Database]:
    """Connections to the database at `url`, opened when first needed and closed at the end of the block.

    `timeout_s` bounds each transaction as a whole, because aiomysql itself would wait for an answer for ever.
    """
    parsed, arguments = driver_arguments(url)
    engine = create_async_engine(
        parsed,
        connect_args=arguments,
        pool_size=max_connections,
        max_overflow=0,
        pool_timeout=timeout_s,
        pool_pre_ping=True,
        pool_recycle=1800,
        hide_parameters=True,
        **({} if parsed.get_backend_name() == "sqlite" else {"isolation_level": "READ COMMITTED"}),
    )
    if parsed.get_backend_name() == "sqlite":
        event.listen(engine.sync_engine, "connect", _prepare_sqlite)
        event.listen(engine.sync_engine, "begin", _begin_sqlite)
    try:
        yield Database(engine, timeout_s=timeout_s)
    finally:
        await engine.dispose()


def driver_arguments(url: str) -> tuple[URL, dict[str, object]]:
    """The URL and the arguments with which its driver opens a strict, UTC, utf8mb4 connection.

    For MySQL `?ssl_ca=FILE` demands TLS with that authority, `?ssl=true` TLS with the system's.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() not in MYSQL_NAMES:
        return parsed, {"timeout": 5.0}
    query = dict(parsed.query)
    authority = query.pop("ssl_ca", None)
    # Any other word than false demands it too: a slip must not cost the encryption.
    wants_tls = query.pop("ssl", "false") != "false" or authority is not None
    arguments: dict[str, object] = {
        "async_creator_fn": open_connection,
        "connect_timeout": 5,
        "charset": "utf8mb4",
        "local_infile": False,
        "init_command": f"SET sql_mode = '{_SQL_MODE}', time_zone = '+00:00', innodb_lock_wait_timeout = 5",
    }
    if wants_tls:
        # aiomysql takes a context only; SQLAlchemy would hand it PyMySQL's dictionary.
        arguments["ssl"] = ssl.create_default_context(cafile=str(authority) if authority else None)
    return parsed.set(query=query), arguments


def _prepare_sqlite(connection: DBAPIConnection, entry: ConnectionPoolEntry) -> None:
    # Python's sqlite3 begins transactions late and by its own rules; we begin them ourselves.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=5000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A deferred transaction that reads and then writes fails at once, busy timeout or not, when another one wrote in between.
    read_only = connection.get_execution_options().get("flueman_read_only", False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")
