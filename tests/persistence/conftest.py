"""Migrated databases of both kinds and archives of all three, each test with its own."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest

from migrations import upgrade_database
from persistence.archive import Archive, open_archive
from persistence.database import Database, open_database
from tests import services


@pytest.fixture(params=["sqlite", "mariadb"])
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database without tables."""
    if request.param == "mariadb":
        return str(request.getfixturevalue("database_url"))
    return f"sqlite+aiosqlite:///{tmp_path}/empty.sqlite"


@pytest.fixture(params=["sqlite", "mariadb"])
def tables_url(
    request: pytest.FixtureRequest, tmp_path: Path, mariadb_service: services.MariadbServer
) -> Iterator[str]:
    """The URL of `database`, another one than `empty_database_url`'s."""
    if request.param == "sqlite":
        yield f"sqlite+aiosqlite:///{tmp_path}/tables.sqlite"
        return
    with mariadb_service.fresh_database() as url:
        yield url


@pytest.fixture
async def database(tables_url: str) -> AsyncIterator[Database]:
    """A migrated database of each kind."""
    await upgrade_database(tables_url)
    async with open_database(tables_url, timeout_s=5.0) as database:
        yield database


@pytest.fixture
async def mariadb(mariadb_service: services.MariadbServer) -> AsyncIterator[Database]:
    """A migrated MariaDB, impatient: for tests that make it hang."""
    with mariadb_service.fresh_database() as url:
        await upgrade_database(url)
        async with open_database(url, timeout_s=1.0) as database:
            yield database


@pytest.fixture(autouse=True)
def _s3_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", services.S3_ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", services.S3_SECRET_KEY)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def bucket_url(service: services.S3Server) -> str:
    """A new bucket's URL, with a prefix in it."""
    query = urlencode({"endpoint": service.url, "region": services.S3_REGION})
    return f"s3://{service.new_bucket()}/some/where?{query}"


@pytest.fixture
async def folder(tmp_path: Path) -> AsyncIterator[Archive]:
    """An archive in a folder."""
    async with open_archive(str(tmp_path / "archive")) as archive:
        yield archive


@pytest.fixture
async def moto(s3: services.S3Server) -> AsyncIterator[Archive]:
    """An archive in a bucket that honours conditions."""
    async with open_archive(bucket_url(s3)) as archive:
        yield archive


@pytest.fixture
async def rclone(durable_s3: services.FolderS3Server) -> AsyncIterator[Archive]:
    """An archive in a bucket that ignores conditions."""
    async with open_archive(bucket_url(durable_s3)) as archive:
        yield archive


@pytest.fixture(params=["folder", "moto", "rclone"])
def archive(request: pytest.FixtureRequest) -> Archive:
    """Each of the three."""
    found: Archive = request.getfixturevalue(request.param)
    return found
