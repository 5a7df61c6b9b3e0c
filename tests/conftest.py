"""Fixtures for all tests: real services, one of each a run and started by the first test that asks, and the check for leaked tasks."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from sessions.redis_store import RedisStore
from sessions.sqlite_store import SqliteStore
from sessions.store import Store
from tests import scheduling, services

# No property is about how long its examples take: on a busy machine any of them may take a second.
settings.register_profile("flueman", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("flueman")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> scheduling.HouseScheduling:
    """For xdist, where a run has several processes."""
    return scheduling.HouseScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Takes what is longest first."""
    items[:] = scheduling.longest_first(items)


@pytest.fixture(autouse=True)
def no_leaked_tasks(request: pytest.FixtureRequest) -> None:
    """An async test whose tasks outlive it and its fixtures fails."""
    if inspect.iscoroutinefunction(getattr(request.node, "function", None)):
        # First in, last out: its own check runs when all other fixtures are gone.
        request.getfixturevalue("_watch_tasks")


@pytest.fixture
async def _watch_tasks() -> AsyncIterator[None]:
    yield
    # One round of the loop, for tasks that are over but for their last step.
    await asyncio.sleep(0)
    leaked = asyncio.all_tasks() - {asyncio.current_task()}
    if leaked:
        pytest.fail("leaked tasks: " + ", ".join(sorted(repr(task.get_coro()) for task in leaked)))


@pytest.fixture(scope="session")
def redis_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[services.RedisServer]:
    """The run's Redis. A test that kills or pauses one takes `own_redis`."""
    with services.redis_server(tmp_path_factory.mktemp("redis")) as service:
        yield service


@pytest.fixture(scope="session")
def redis_url(redis_service: services.RedisServer) -> str:
    """The run's Redis, shared and never emptied: ids are unique or the test takes `own_redis`."""
    return redis_service.url


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[services.RedisServer]:
    """An empty Redis of the test's own, to kill and to pause."""
    directory = tmp_path / "redis"
    directory.mkdir()
    with services.redis_server(directory) as service:
        yield service


@pytest.fixture(scope="session")
def mariadb_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[services.MariadbServer]:
    """The run's MariaDB; a test that kills or pauses it brings it back."""
    with services.mariadb_server(tmp_path_factory.mktemp("mariadb")) as service:
        yield service


@pytest.fixture(scope="session")
def mariadb_url(mariadb_service: services.MariadbServer) -> str:
    """The run's MariaDB, without a database: `mysql+aiomysql://…`."""
    return mariadb_service.url


@pytest.fixture
def database_url(mariadb_service: services.MariadbServer) -> Iterator[str]:
    """An empty database of the test's own: `mysql+aiomysql://…/test_…`."""
    with mariadb_service.fresh_database() as url:
        yield url


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[services.S3Server]:
    """The run's moto: for conditional puts. `s3.new_bucket()` is the test's own."""
    with services.s3_server(tmp_path_factory.mktemp("moto")) as service:
        yield service


@pytest.fixture
def durable_s3(tmp_path: Path) -> Iterator[services.FolderS3Server]:
    """An rclone of the test's own, to kill and to restart."""
    directory = tmp_path / "rclone"
    directory.mkdir()
    with services.durable_s3_server(directory) as service:
        yield service


@pytest.fixture
async def redis_store(own_redis: services.RedisServer) -> AsyncIterator[RedisStore]:
    """A store on an empty Redis."""
    # Generous: a busy machine's disk may take seconds for an fsync.
    async with RedisStore(own_redis.url, production=True, timeout_s=10) as store:
        yield store


@pytest.fixture
async def sqlite_store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    """A store in an empty file."""
    async with SqliteStore(tmp_path / "sessions.sqlite") as store:
        yield store


@pytest.fixture(params=["redis", "sqlite"])
def store(request: pytest.FixtureRequest) -> Store:
    """Each of the two stores, empty."""
    found: Store = request.getfixturevalue(f"{request.param}_store")
    return found
