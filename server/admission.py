"""Who may hold how many connections on this node: counts by user and by address, given back when a connection ends."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class TooManyConnections(Exception):
    """The user or the address holds as many connections as it may."""


class Admission:
    """Counts of open connections. A bound of 0 means none."""

    def __init__(self, *, max_per_user: int, max_per_address: int) -> None:
        self._bounds = {"user": max_per_user, "address": max_per_address}
        self._open: Counter[tuple[str, str]] = Counter()

    @contextmanager
    def admit(self, *, user_id: str, address: str) -> Iterator[None]:
        """Hold a place for the duration of the block; `TooManyConnections` when there is none."""
        keys = [("user", user_id), ("address", address)]
        for kind, name in keys:
            if self._bounds[kind] and self._open[kind, name] >= self._bounds[kind]:
                raise TooManyConnections(
                    f"This {kind} has {self._bounds[kind]} connections, which is the most allowed; close one."
                )
        self._open.update(keys)
        try:
            yield
        finally:
            self._open.subtract(keys)
            for key in keys:
                if self._open[key] <= 0:
                    del self._open[key]
