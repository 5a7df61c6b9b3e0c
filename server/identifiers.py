"""New ids: a prefix and a ULID, so that ids sort by the time they were made."""

from ulid import ULID


def new_id(prefix: str) -> str:
    """`prefix` and a new ULID: 48 bits of milliseconds and 80 random bits, 26 characters."""
    return prefix + str(ULID())
