"""What a whole installation stands on: a Redis, a MariaDB database and an S3 bucket of the test's own, and the settings that name them."""

import asyncio
import os
import random
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from urllib.parse import urlencode

import pytest
from msgspec import Struct

from tests import services
from tests.end_to_end.processes import SECRET
from tests.end_to_end.stored import Records, open_records

COMMON = {
    "FLUEMAN_ENGINE": "scripted",
    "FLUEMAN_SCRIPTED_TOKENS_PER_S": "0",
    "FLUEMAN_JWT_SECRET": SECRET,
    "AWS_ACCESS_KEY_ID": services.S3_ACCESS_KEY,
    "AWS_SECRET_ACCESS_KEY": services.S3_SECRET_KEY,
    "AWS_EC2_METADATA_DISABLED": "true",
}


class Backends(Struct, frozen=True):
    """The services behind an installation, each of which the test may pause, kill and bring back."""

    redis: services.RedisServer
    mariadb: services.MariadbServer
    s3: services.FolderS3Server
    settings: Mapping[str, str]

    @property
    def database_url(self) -> str:
        """The tables."""
        return self.settings["FLUEMAN_DATABASE_URL"]

    @property
    def archive_url(self) -> str:
        """The archive."""
        return self.settings["FLUEMAN_ARCHIVE_URL"]


@pytest.fixture(autouse=True)
def _s3_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in COMMON.items():
        if name.startswith("AWS_"):
            monkeypatch.setenv(name, value)


@pytest.fixture
def backends(
    own_redis: services.RedisServer,
    mariadb_service: services.MariadbServer,
    database_url: str,
    durable_s3: services.FolderS3Server,
    tmp_path: Path,
) -> Backends:
    """Empty ones."""
    query = urlencode({"endpoint": durable_s3.url, "region": services.S3_REGION})
    settings = COMMON | {
        "FLUEMAN_DATA_DIR": str(tmp_path / "var"),
        "FLUEMAN_REDIS_URL": own_redis.url,
        "FLUEMAN_DATABASE_URL": database_url,
        "FLUEMAN_ARCHIVE_URL": f"s3://{durable_s3.new_bucket()}/flueman?{query}",
    }
    return Backends(own_redis, mariadb_service, durable_s3, settings)


@pytest.fixture
async def records(backends: Backends) -> AsyncIterator[Records]:
    """The tables and the archive of `backends`."""
    async with open_records(backends.database_url, backends.archive_url) as records:
        yield records
        # The S3 client's pool closes its sockets in the round of the loop after the one that closes it.
        await asyncio.sleep(0)


@pytest.fixture
def embedded_settings(tmp_path: Path) -> dict[str, str]:
    """The embedded default in a folder of the test's own."""
    return COMMON | {"FLUEMAN_DATA_DIR": str(tmp_path / "var")}


@pytest.fixture
def chance() -> random.Random:
    """Chance whose seed is printed when the test fails; FLUEMAN_TEST_SEED sets it."""
    seed = int(os.environ.get("FLUEMAN_TEST_SEED", random.randrange(2**32)))
    print(f"FLUEMAN_TEST_SEED={seed}")
    return random.Random(seed)
