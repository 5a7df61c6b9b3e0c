"""Each archive keeps what it was given first, and fails in bounded time when it is away."""

import asyncio
import os
from pathlib import Path

import pytest

from persistence.archive import Archive, open_archive
from persistence.errors import ArchiveDamaged, ArchiveUnavailable
from tests import services
from tests.persistence.conftest import bucket_url


def files_in(folder: Path) -> list[Path]:
    return [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]


async def test_get_returns_what_was_put(archive: Archive) -> None:
    data = os.urandom(300_000)

    assert await archive.put("sessions/2026/11/22/a.jsonl.zst", data) == "stored"

    assert await archive.get("sessions/2026/11/22/a.jsonl.zst") == data
    await archive.check()


async def test_a_missing_object_is_told_from_an_archive_that_is_away(archive: Archive) -> None:
    with pytest.raises(ArchiveDamaged, match=r"none\.zst: missing"):
        await archive.get("none.zst")


async def test_a_bucket_that_is_not_there_is_an_archive_that_is_away(s3: services.S3Server) -> None:
    """P9: nothing in it is damaged."""
    async with open_archive(bucket_url(s3).replace("s3://", "s3://no-")) as archive:
        with pytest.raises(ArchiveUnavailable, match="NoSuchBucket"):
            await archive.get("none.zst")


@pytest.mark.parametrize("archive", ["folder", "moto"], indirect=True)
async def test_of_twelve_puts_at_once_one_wins(archive: Archive) -> None:
    results = await asyncio.gather(*(archive.put("race.zst", b"data of %d" % number) for number in range(12)))

    assert sorted(results) == ["exists"] * 11 + ["stored"]
    assert await archive.get("race.zst") == b"data of %d" % results.index("stored")


async def test_a_folder_keeps_keys_inside_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    async with open_archive(f"file://{tmp_path}/archive") as archive:
        with pytest.raises(ValueError, match="leads out"):
            await archive.put("../outside", b"")
        await archive.put("a/b", b"1")
        await archive.put("a/b", b"2")

    assert files_in(tmp_path) == [Path("archive/a/b")]


async def test_a_folder_that_cannot_be_written_is_unavailable(tmp_path: Path) -> None:
    async with open_archive(str(tmp_path / "archive")) as archive:
        (tmp_path / "archive" / ".incoming").rmdir()

        with pytest.raises(ArchiveUnavailable):
            await archive.put("a", b"")
        with pytest.raises(ArchiveUnavailable):
            await archive.check()


async def test_a_hung_server_is_unavailable_in_bounded_time(
    durable_s3: services.FolderS3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("persistence.archive._S3_TIMEOUT_S", 1.0)
    async with open_archive(bucket_url(durable_s3)) as archive:
        durable_s3.pause()

        with pytest.raises(ArchiveUnavailable) as caught:
            await archive.put("a.zst", b"data")

        # Our limit ended it: the client's own, four seconds a try, would have been botocore's error.
        assert isinstance(caught.value.__cause__, TimeoutError)
        monkeypatch.undo()
        durable_s3.resume()
        assert await archive.put("b.zst", b"data") == "stored"


async def test_a_killed_server_is_unavailable_and_keeps_what_it_had(durable_s3: services.FolderS3Server) -> None:
    async with open_archive(bucket_url(durable_s3)) as archive:
        await archive.put("a.zst", b"data")
        durable_s3.kill()
        with pytest.raises(ArchiveUnavailable):
            await archive.put("b.zst", b"data")
        with pytest.raises(ArchiveUnavailable):
            await archive.check()

        durable_s3.restart()

        assert await archive.get("a.zst") == b"data"
