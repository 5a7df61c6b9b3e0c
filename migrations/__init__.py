"""Alembic revisions. Each works with the previous release still running. `upgrade` brings a database to the newest one."""

import asyncio
import fcntl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from sqlalchemy import text
from sqlalchemy.engine import URL, Connection
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

from persistence.database import MYSQL_NAMES, driver_arguments
from persistence.errors import DatabaseUnavailable

_LOCK_NAME: Final = "flueman_migrations"
_LOCK_TIMEOUT_S: Final = 300


def upgrade(database_url: str) -> None:
    """Create or change the tables up to the newest revision. Does nothing where that is done; several processes may call it at once."""
    asyncio.run(upgrade_database(database_url))


async def upgrade_database(database_url: str) -> None:
    """`upgrade` for a caller that has a running event loop."""
    url, arguments = driver_arguments(database_url)
    engine = create_async_engine(url, connect_args=arguments, poolclass=NullPool)
    try:
        async with engine.connect() as connection, _lock(connection, url):
            await connection.run_sync(_run)
            await connection.commit()
    finally:
        await engine.dispose()


def configuration() -> Config:
    """Alembic's configuration, wherever the package is installed."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return config


def _run(connection: Connection) -> None:
    config = configuration()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


@asynccontextmanager
async def _lock(connection: AsyncConnection, url: URL) -> AsyncIterator[None]:
    """Let one process at a time migrate this database."""
    if url.get_backend_name() in MYSQL_NAMES:
        name = f"{_LOCK_NAME}:{url.database}"[:64]
        locked = await connection.scalar(
            text("SELECT GET_LOCK(:name, :timeout)"), {"name": name, "timeout": _LOCK_TIMEOUT_S}
        )
        if locked != 1:
            raise DatabaseUnavailable("another process is migrating this database")
        try:
            yield
        finally:
            await connection.execute(text("SELECT RELEASE_LOCK(:name)"), {"name": name})
    elif url.database and url.database != ":memory:":
        with open(f"{url.database}.migrating", "w") as file:  # noqa: ASYNC230
            # Released with the process, however that ends.
            await asyncio.to_thread(fcntl.flock, file, fcntl.LOCK_EX)
            yield
    else:
        yield
