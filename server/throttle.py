"""A token bucket: how long the next event of a client must wait so that its rate holds."""

from msgspec import Struct


class Throttle(Struct):
    """Allows `burst` events at once and `rate` a second on average. Not shared between connections."""

    rate: float
    burst: float
    num_left: float
    last_s: float

    def delay_s(self, now_s: float) -> float:
        """Count one event at `now_s`; the seconds to wait before the next one is read, 0.0 within the rate."""
        self.num_left = min(self.num_left + (now_s - self.last_s) * self.rate, self.burst) - 1
        self.last_s = now_s
        return max(0.0, -self.num_left / self.rate)
