"""How Alembic runs our revisions: on the connection that `migrations.upgrade` holds, or for developers on FLUEMAN_DATABASE_URL."""

import asyncio
import os

from alembic import context
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from persistence.database import driver_arguments
from persistence.tables import metadata


def _run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=metadata,
        render_as_batch=True,
        transaction_per_migration=True,
        compare_type=True,
    )
    with context.begin_transaction():
        context.run_migrations()


async def _run_for_developers() -> None:
    url, arguments = driver_arguments(os.environ["FLUEMAN_DATABASE_URL"])
    engine = create_async_engine(url, connect_args=arguments, poolclass=NullPool)
    async with engine.connect() as connection:
        await connection.run_sync(_run)
        await connection.commit()
    await engine.dispose()


_held = context.config.attributes.get("connection")
if _held is None:
    asyncio.run(_run_for_developers())
else:
    _run(_held)
