"""What the tests of both stores share."""

from pathlib import Path

import pytest

from sessions.redis_store import RedisStore
from sessions.store import Store
from tests.sessions.stores import Backup, RedisBackup, SqliteBackup


@pytest.fixture
def backup(request: pytest.FixtureRequest, store: Store, tmp_path: Path) -> Backup:
    """Of the store of the test."""
    if isinstance(store, RedisStore):
        return RedisBackup(request.getfixturevalue("own_redis").url)
    return SqliteBackup(tmp_path / "sessions.sqlite")
