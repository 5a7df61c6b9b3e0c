"""The revisions make the tables that the code expects, once, however often and by however many they are run."""

import asyncio
import re
import sys
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text
from sqlalchemy.engine import Connection

from migrations import configuration, upgrade_database
from persistence.audit import FIRST_HASH, AuditEnd, append, verify
from persistence.database import Database, open_database
from persistence.tables import metadata
from tests.persistence.builders import make_audit

NEWEST_FIRST = list(ScriptDirectory.from_config(configuration()).walk_revisions())


async def schema(database: Database) -> dict[str, str]:
    """Each table and index as the database itself spells it, without what only tells where it was first written."""
    async with database.snapshot() as connection:
        if database.is_mysql:
            names = [name for (name,) in await connection.execute(text("SHOW TABLES")) if name != "alembic_version"]
            shown = {}
            for name in names:
                row = (await connection.execute(text(f"SHOW CREATE TABLE {name}"))).one()
                # Constraints and keys in any order.
                shown[name] = "\n".join(sorted(line.strip().rstrip(",") for line in row[1].splitlines()))
            return shown
        rows = await connection.execute(text("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"))
        return {
            name: "\n".join(sorted(part.strip() for part in re.split(r"[,\n]\s*\n?", re.sub(r"[ \t]+", " ", sql))))
            for name, sql in rows
            if name != "alembic_version"
        }


async def test_revisions_and_metadata_agree(database: Database) -> None:
    def compare(connection: Connection) -> list[object]:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return list(compare_metadata(context, metadata))

    async with database.engine.connect() as connection:
        differences = await connection.run_sync(compare)

    assert differences == []


async def test_revisions_make_what_metadata_would_create(empty_database_url: str) -> None:
    async with open_database(empty_database_url) as database:
        async with database.transaction() as connection:
            await connection.run_sync(metadata.create_all)
        created = await schema(database)
        async with database.transaction() as connection:
            await connection.run_sync(metadata.drop_all)

        await upgrade_database(empty_database_url)

        assert await schema(database) == created


async def test_upgrading_again_changes_nothing(database: Database, tables_url: str) -> None:
    before = await schema(database)

    await upgrade_database(tables_url)

    assert await schema(database) == before


async def test_four_processes_may_upgrade_at_once(empty_database_url: str) -> None:
    code = "import sys, migrations; migrations.upgrade(sys.argv[1])"

    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-W", "error", "-c", code, empty_database_url, cwd=Path(__file__).parents[2]
        )
        for _ in range(4)
    ]

    assert [await process.wait() for process in processes] == [0, 0, 0, 0]
    async with open_database(empty_database_url) as database, database.engine.connect() as connection:
        tables = await connection.run_sync(lambda connection: set(inspect(connection).get_table_names()))
    assert tables == {*metadata.tables, "alembic_version"}


async def test_an_upgrade_that_was_cut_off_is_repeated(empty_database_url: str) -> None:
    async with open_database(empty_database_url) as database:
        await upgrade_database(empty_database_url)
        whole = await schema(database)
        async with database.transaction() as connection:
            lost = ("audit_head", "notes", "traces", "heard", "sent", "archives", "requests")
            for statement in (*(f"DROP TABLE {table}" for table in lost), "DELETE FROM alembic_version"):
                await connection.execute(text(statement))
            on_table = " ON sessions" if database.is_mysql else ""
            await connection.execute(text(f"DROP INDEX ix_sessions_created_at{on_table}"))
            on_table = " ON audit_logs" if database.is_mysql else ""
            await connection.execute(text(f"DROP INDEX ix_audit_logs_action_number{on_table}"))

        await upgrade_database(empty_database_url)

        assert await schema(database) == whole
        assert await verify(database) == AuditEnd(0, FIRST_HASH)


async def test_an_upgrade_that_is_repeated_leaves_the_end_of_the_audit_log(empty_database_url: str) -> None:
    await upgrade_database(empty_database_url)
    async with open_database(empty_database_url) as database:
        async with database.transaction() as connection:
            await append(connection, [make_audit(), make_audit()])
            await connection.execute(text("DELETE FROM alembic_version"))

        await upgrade_database(empty_database_url)

        end = await verify(database)
        assert isinstance(end, AuditEnd)
        assert end.number == 2


async def test_each_revision_can_be_repeated_after_a_crash_before_it_was_noted(empty_database_url: str) -> None:
    """MySQL commits a change of the schema by itself, before Alembic notes the revision."""
    await upgrade_database(empty_database_url)
    async with open_database(empty_database_url) as database:
        whole = await schema(database)
        for revision in NEWEST_FIRST:
            async with database.transaction() as connection:
                back = f"SET version_num = '{revision.down_revision}'"
                first = revision.down_revision is None
                await connection.execute(
                    text("DELETE FROM alembic_version" if first else f"UPDATE alembic_version {back}")
                )

            await upgrade_database(empty_database_url)

            assert await schema(database) == whole


@pytest.mark.parametrize("revision", [revision.revision for revision in NEWEST_FIRST[:0:-1]])
async def test_what_an_older_release_writes_and_reads_is_still_there(empty_database_url: str, revision: str) -> None:
    """Every revision works with the previous release still running: no column of it changes, and it need not know a new one."""
    async with open_database(empty_database_url) as database:
        older = await columns_at(database, revision)
        newest = await columns_at(database, "head")

    for table, columns in older.items():
        assert {name: newest[table].get(name) for name in columns} == columns
        unknown = [column for name, column in newest[table].items() if name not in columns]
        assert all("NULL" in column for column in unknown)


async def columns_at(database: Database, revision: str) -> dict[str, dict[str, str]]:
    """Type and nullability of each column of each table, after the upgrade to that revision."""

    def upgrade_and_inspect(connection: Connection) -> dict[str, dict[str, str]]:
        config = configuration()
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
        found = inspect(connection)
        return {
            table: {
                column["name"]: f"{column['type']!r} {'NULL' if column['nullable'] or column['default'] else ''}"
                for column in found.get_columns(table)
            }
            for table in found.get_table_names()
            if table != "alembic_version"
        }

    async with database.engine.connect() as connection:
        columns = await connection.run_sync(upgrade_and_inspect)
        await connection.commit()
    return columns


async def test_sqlite_is_opened_durable_and_strict(tmp_path: Path) -> None:
    async with (
        open_database(f"sqlite+aiosqlite:///{tmp_path}/tables.sqlite") as database,
        database.snapshot() as connection,
    ):
        pragmas = {
            name: await connection.scalar(text(f"PRAGMA {name}"))
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }

    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 5000}
