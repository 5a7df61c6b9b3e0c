"""Whether a Redis keeps what it acknowledges: its settings, looked at once when the store is opened."""

from collections.abc import Mapping

import structlog
from redis.exceptions import ResponseError

from sessions.errors import SessionError, StoreUnavailable
from sessions.redis_line import RedisLine

_log = structlog.get_logger(__name__)

_DURABLE = {
    "appendonly": "yes",
    "appendfsync": "always",
    "no-appendfsync-on-rewrite": "no",
    # Of a torn log Redis would leave a transaction's beginning, which the next one's end completes: `deploy/redis.sh`.
    "aof-load-truncated": "no",
    "maxmemory-policy": "noeviction",
}


class StoreNotDurable(SessionError):
    """Redis may lose what it acknowledges. `settings` are the wrong ones and their values."""

    def __init__(self, settings: Mapping[str, str]) -> None:
        self.settings = dict(settings)
        wrong = ", ".join(f"{name} is {value!r} (must be {_DURABLE[name]!r})" for name, value in settings.items())
        super().__init__(f"Redis would lose acknowledged data: {wrong}; deploy/redis.sh starts one that would not")


async def check_durable(line: RedisLine, *, production: bool) -> None:
    """Raise `StoreNotDurable` in production, and warn elsewhere, where Redis may lose what it acknowledges."""
    try:
        replies = await line.ask(*(("CONFIG", "GET", name) for name in _DURABLE))
    except StoreUnavailable as error:
        if not isinstance(error.__cause__, ResponseError):
            raise
        # Managed Redis hides CONFIG: what it promises must be read in its contract.
        _log.warning("redis.durability_unknown", reason=str(error))
        return
    found = {name: reply[1].decode() for name, reply in zip(_DURABLE, replies, strict=True) if reply}
    wrong = {name: found.get(name, "") for name in _DURABLE if found.get(name) != _DURABLE[name]}
    if not wrong:
        return
    if production:
        raise StoreNotDurable(wrong)
    _log.warning("redis.not_durable", settings=wrong)
