"""A wall clock that a test can step while the process that reads it runs: the offset is in a file that both have mapped."""

import mmap
import struct
import time
from collections.abc import Callable
from pathlib import Path

_OFFSET = struct.Struct("<q")


def make_clock(path: Path) -> None:
    """A clock that goes right."""
    path.write_bytes(_OFFSET.pack(0))


def step_clock(path: Path, offset_ms: int) -> None:
    """From now on the clock is wrong by that much."""
    with path.open("r+b") as file:
        file.write(_OFFSET.pack(offset_ms * 1_000_000))


def install_clock(path: Path) -> None:
    """Make `time.time` and `time.time_ns` of this process read it."""
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), _OFFSET.size, access=mmap.ACCESS_READ)
    real_ns: Callable[[], int] = time.time_ns

    def time_ns() -> int:
        return real_ns() + int(_OFFSET.unpack_from(mapped)[0])

    time.time_ns = time_ns
    time.time = lambda: time_ns() / 1e9
