"""Who may hold how many connections on this node: counts by user and by address, given back when a connection ends."""

from collections import Counter


class TooManyConnections(Exception):
    """The user or the address holds as many connections as it may."""


class Admission:
    """Counts of open connections. A bound of 0 means none."""

    def __init__(self, *, max_per_user: int, max_per_address: int) -> None:
        self._bounds = {"user": max_per_user, "address": max_per_address}
        self._open: Counter[tuple[str, str]] = Counter()

    def admit(self, *, user_id: str, address: str) -> None:
        """Take a place, to be given back by `release`; `TooManyConnections` when there is none."""
        keys = [("user", user_id), ("address", address)]
        for kind, name in keys:
            if self._bounds[kind] and self._open[kind, name] >= self._bounds[kind]:
                message = f"This {kind} has {self._bounds[kind]} connections, which is the most allowed; close one."
                raise TooManyConnections(message)
        self._open.update(keys)

    def release(self, *, user_id: str, address: str) -> None:
        """Give back a place that `admit` took."""
        for key in (("user", user_id), ("address", address)):
            self._open[key] -= 1
            if self._open[key] <= 0:
                del self._open[key]
