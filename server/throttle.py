"""A token bucket: how long the next event of a client must wait so that its rate holds."""

from msgspec import Struct

BYTES_AN_EVENT = 8 * 1024


class Throttle(Struct):
    """Allows `burst` events at once and `rate` a second on average. Not shared between connections."""

    rate: float
    burst: float
    num_left: float
    last_s: float

    def delay_s(self, now_s: float, *, num_bytes: int = 0) -> float:
        """Count one event at `now_s`; the seconds to wait before the next one is read, 0.0 within the rate.

        `num_bytes` is what the event costs all: it counts as one more for each `BYTES_AN_EVENT`.
        """
        cost = 1 + num_bytes / BYTES_AN_EVENT
        self.num_left = min(self.num_left + (now_s - self.last_s) * self.rate, self.burst) - cost
        self.last_s = now_s
        return max(0.0, -self.num_left / self.rate)
