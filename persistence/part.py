"""One archived part of a journal: its name, its lines, its bytes. The same events always give the same name and the same bytes."""

import hashlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import msgspec
import zstandard
from msgspec import Struct

from persistence.errors import PoisonRecord

_ZSTD_LEVEL = 6
_CHUNK_BYTES = 32 * 1024


class JournalEvent(Struct, frozen=True):
    """An event of a session's journal: its number, when it was committed, and its very bytes."""

    sequence: int
    at_ms: int
    event: bytes


class _Head(Struct, frozen=True):
    sequence: int
    at_ms: int


_head_decoder = msgspec.json.Decoder(_Head)
_EVENT = b',"event":'


def part_key(session_id: str, created_ms: int, first_sequence: int, last_sequence: int) -> str:
    """Where the part lies: by the day on which the session was created, in UTC, and so that names sort like events."""
    day = datetime.fromtimestamp(created_ms // 1000, UTC)
    return f"sessions/{day:%Y/%m/%d}/{session_id}/{first_sequence:012d}-{last_sequence:012d}.jsonl.zst"


def encode_line(event: JournalEvent) -> bytes:
    """A JSON line, without its newline, with the event's bytes spliced in unchanged; `PoisonRecord` when they would break the line."""
    if b"\n" in event.event:
        raise PoisonRecord(f"event {event.sequence} holds a newline")
    return b'{"sequence":%d,"at_ms":%d,"event":%b}' % (event.sequence, event.at_ms, event.event)


def decode_line(line: bytes) -> JournalEvent:
    """The inverse of `encode_line`, byte for byte; `ValueError` when it is no such line."""
    head, mark, event = line.partition(_EVENT)
    if not mark or not event.endswith(b"}"):
        raise ValueError("not a line of an archive")
    place = _head_decoder.decode(head + b"}")
    return JournalEvent(sequence=place.sequence, at_ms=place.at_ms, event=event[:-1])


def pack(lines: Sequence[bytes]) -> bytes:
    """The compressed part. Takes about 10 ms of CPU a MiB: keep it off the event loop."""
    compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_content_size=True, write_checksum=True, threads=0)
    return compressor.compress(b"\n".join(lines) + b"\n")


def unpack(data: bytes) -> Iterator[JournalEvent]:
    """The events of a part, in order; `ValueError` when it is damaged."""
    try:
        lines = zstandard.ZstdDecompressor().decompress(data)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error
    if not lines.endswith(b"\n"):
        raise ValueError("the last line is cut off")
    for line in lines[:-1].split(b"\n"):
        yield decode_line(line)


def unpack_lines(data: bytes) -> Iterator[list[bytes]]:
    """The lines of a part, some at a time and each time only as much decompressed; `ValueError` where it is damaged."""
    rest = b""
    try:
        for chunk in zstandard.ZstdDecompressor().read_to_iter(data, write_size=_CHUNK_BYTES):
            *lines, rest = (rest + chunk).split(b"\n")
            if lines:
                yield lines
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error
    if rest:
        raise ValueError("the last line is cut off")


def first_line(data: bytes) -> bytes:
    """The first line of a part; `ValueError` when it is damaged or empty."""
    for lines in unpack_lines(data):
        return lines[0]
    raise ValueError("there is no line")


def last_line(data: bytes) -> bytes:
    """The last line of a part; `ValueError` when it is damaged or empty. Takes some milliseconds a MiB: keep it off the event loop."""
    last = b""
    for lines in unpack_lines(data):
        last = lines[-1]
    if not last:
        raise ValueError("there is no line")
    return last


def digest(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()
