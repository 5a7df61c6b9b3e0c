"""Who may hold how many connections on this node: counts by user and by address, given back when a connection ends; and how fast a user
may call the API here."""

from collections import Counter, OrderedDict
from typing import Final

CALLS_PER_S: Final = 50.0
CALLS_BURST: Final = 200
_MAX_CALLERS: Final = 10_000


class TooManyConnections(Exception):
    """The user or the address holds as many connections as it may."""


class TooManyCalls(Exception):
    """The user calls faster than it may; after `retry_after_s` it may again."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"No more than {CALLS_PER_S:.0f} calls a second are taken.")
        self.retry_after_s = retry_after_s


class Admission:
    """Counts of open connections, of which a bound of 0 means none, and of calls."""

    def __init__(self, *, max_per_user: int, max_per_address: int) -> None:
        self._bounds = {"user": max_per_user, "address": max_per_address}
        self._open: Counter[tuple[str, str]] = Counter()
        # Of each user how many calls it may make at once, and since when. Who is forgotten has made none for the longest.
        self._calls: OrderedDict[str, tuple[float, float]] = OrderedDict()

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

    def call(self, *, user_id: str, now_s: float) -> None:
        """Count a call, each of which adds to the outbox that all share; `TooManyCalls`, uncounted, when there are too many."""
        num_left, since_s = self._calls.get(user_id, (float(CALLS_BURST), now_s))
        num_left = min(CALLS_BURST, num_left + (now_s - since_s) * CALLS_PER_S)
        if num_left < 1:
            raise TooManyCalls((1 - num_left) / CALLS_PER_S)
        self._calls[user_id] = (num_left - 1, now_s)
        self._calls.move_to_end(user_id)
        if len(self._calls) > _MAX_CALLERS:
            self._calls.popitem(last=False)
