"""Milliseconds since the epoch, as everything of ours counts, and the aware UTC times that the tables hold."""

from datetime import UTC, datetime, timedelta
from typing import Final

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def utc_time(ms: int) -> datetime:
    """The instant `ms` milliseconds after the epoch, exactly."""
    return _EPOCH + timedelta(milliseconds=ms)


def milliseconds(time: datetime) -> int:
    """The inverse of `utc_time`."""
    return (time - _EPOCH) // timedelta(milliseconds=1)


def microseconds(time: datetime) -> int:
    """Since the epoch: all that a column holds of the time."""
    return (time - _EPOCH) // timedelta(microseconds=1)


def optional_utc_time(ms: int | None) -> datetime | None:
    """The instant, where there is one."""
    return None if ms is None else utc_time(ms)


def optional_milliseconds(time: datetime | None) -> int | None:
    """The inverse of `optional_utc_time`."""
    return None if time is None else milliseconds(time)
