"""Objects that are written once and kept: an S3 bucket, or a folder for the embedded default. Nothing is ever overwritten or deleted."""

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Literal, ParamSpec, Protocol, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

import aioboto3
from aiohttp import ClientError as HttpError
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.handlers import add_expect_header

from persistence.errors import ArchiveDamaged, ArchiveUnavailable

P = ParamSpec("P")
T = TypeVar("T")
PutResult = Literal["stored", "exists"]

# Three tries of connect 1 s and read 4 s, and the pauses between.
_S3_TIMEOUT_S: Final = 20.0
_STALE_S: Final = 24 * 3600.0


class Archive(Protocol):
    """Write-once objects by key. Every call raises `ArchiveUnavailable` when the archive cannot answer in time."""

    async def put(self, key: str, data: bytes) -> PutResult:
        """Store the object durably, or leave the one that is there as it is and say `exists`."""

    async def get(self, key: str) -> bytes:
        """The object's bytes; `ArchiveDamaged` when there is none."""

    async def check(self) -> None:
        """Return when the archive can be reached."""


class S3Archive:
    """A bucket, or what lies under a prefix in it."""

    def __init__(self, client: Any, bucket: str, prefix: str) -> None:
        self._client = client
        self._bucket = bucket
        self._prefix = prefix

    async def put(self, key: str, data: bytes) -> PutResult:
        try:
            await _answer(
                self._client.put_object(Bucket=self._bucket, Key=self._prefix + key, Body=data, IfNoneMatch="*")
            )
        except ClientError as error:
            if _status(error) == 412:
                return "exists"
            raise ArchiveUnavailable(_describe(error)) from error
        return "stored"

    async def get(self, key: str) -> bytes:
        try:
            return await _answer(self._read(key))
        except ClientError as error:
            # A bucket that is missing is not what is damaged, but where it was looked for.
            if _status(error) == 404 and _code(error) != "NoSuchBucket":
                raise ArchiveDamaged(key, "missing") from error
            raise ArchiveUnavailable(_describe(error)) from error

    async def check(self) -> None:
        try:
            await _answer(self._client.head_bucket(Bucket=self._bucket))
        except ClientError as error:
            raise ArchiveUnavailable(_describe(error)) from error

    async def _read(self, key: str) -> bytes:
        reply = await self._client.get_object(Bucket=self._bucket, Key=self._prefix + key)
        async with reply["Body"] as body:
            return bytes(await body.read())


async def _answer(call: Awaitable[T]) -> T:
    """The call's result within a time that the client's own limits do not bound: they start anew with every byte and every try."""
    try:
        async with asyncio.timeout(_S3_TIMEOUT_S):
            return await call
    except (TimeoutError, OSError, BotoCoreError, HttpError) as error:
        raise ArchiveUnavailable(type(error).__name__) from error


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _describe(error: ClientError) -> str:
    return f"S3 answered {_status(error)} {_code(error)}"


class FolderArchive:
    """Files under one folder. The folder's file system must know hard links."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._incoming = root / ".incoming"

    async def put(self, key: str, data: bytes) -> PutResult:
        return await _in_thread(self._put, key, data)

    async def get(self, key: str) -> bytes:
        return await _in_thread(self._get, key)

    async def check(self) -> None:
        await _in_thread(self._check)

    def prepare(self) -> None:
        """Make the folder, and remove what writers that were killed left half-written long ago."""
        self._incoming.mkdir(parents=True, exist_ok=True)
        for leftover in self._incoming.iterdir():
            if time.time() - leftover.stat().st_mtime > _STALE_S:
                leftover.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        path = Path(os.path.normpath(self._root / key))
        if not path.is_relative_to(self._root) or path == self._root:
            raise ValueError(f"the key {key} leads out of the archive")
        return path

    def _put(self, key: str, data: bytes) -> PutResult:
        path = self._path(key)
        _make_folders(path.parent)
        handle, temporary = tempfile.mkstemp(dir=self._incoming)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            # Unlike a rename, a link fails when the name is taken.
            os.link(temporary, path)
        except FileExistsError:
            return "exists"
        finally:
            os.unlink(temporary)
        _sync_folder(path.parent)
        return "stored"

    def _get(self, key: str) -> bytes:
        try:
            return self._path(key).read_bytes()
        except FileNotFoundError as error:
            raise ArchiveDamaged(key, "missing") from error

    def _check(self) -> None:
        if not os.access(self._incoming, os.W_OK | os.X_OK):
            raise ArchiveUnavailable("the archive's folder cannot be written")


async def _in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    try:
        return await asyncio.to_thread(work, *args, **kwargs)
    except OSError as error:
        raise ArchiveUnavailable(f"{type(error).__name__} {error.errno}") from error


def _make_folders(folder: Path) -> None:
    """`mkdir -p`, each new name made durable in its parent."""
    if folder.is_dir():
        return
    _make_folders(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@asynccontextmanager
async def open_archive(url: str) -> AsyncIterator[Archive]:
    """The archive at `s3://bucket/prefix?endpoint=…&region=…`, `file:///folder` or a folder's path.

    Credentials for S3 come from the environment, as boto3 finds them. An archive that is away does not fail here: ask `check`.
    """
    parts = urlsplit(url)
    if parts.scheme != "s3":
        folder = FolderArchive(Path(os.path.abspath(unquote(parts.path) if parts.scheme == "file" else url)))  # noqa: ASYNC240
        await _in_thread(folder.prepare)
        yield folder
        return
    query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    prefix = parts.path.strip("/")
    endpoint = query.get("endpoint")
    config = Config(
        connect_timeout=1,
        read_timeout=4,
        retries={"mode": "standard", "max_attempts": 3},
        max_pool_connections=16,
        # S3's look-alikes seldom have a host name for each bucket.
        s3={"addressing_style": "path" if endpoint else "auto"},
    )
    async with aioboto3.Session().client(
        "s3", endpoint_url=endpoint, region_name=query.get("region"), config=config
    ) as client:
        # With `Expect: 100-continue` aiohttp waits for a hung server for ever, and each put costs a round trip more.
        client.meta.events.unregister("before-call.s3", add_expect_header)
        yield S3Archive(client, parts.netloc, f"{prefix}/" if prefix else "")
