"""A writer's process that kills itself at a named point, so that nothing it would do on the way out is done.

Reads orders as JSON lines, forks a writer for each, and answers a line with the signal that ended it, 0 when it found nothing more to do:
what takes long, the imports, is done once.
"""

import asyncio
import os
import signal
import sys
from typing import cast

import msgspec
import structlog
from msgspec import Struct
from sqlalchemy import event

from persistence.archive import open_archive
from persistence.database import open_database
from persistence.webhook_changes import announce_ratings
from persistence.writer import Writer
from sessions.redis_store import RedisStore
from sessions.store import Store
from tests.persistence.builders import (
    IMPATIENT,
    CrashingArchive,
    CrashingDatabase,
    CrashingStore,
    CrashPoint,
    running,
)


class Order(Struct, frozen=True):
    """Where to work, and to die at the `nth` time that a step of this kind is reached."""

    redis_url: str
    database_url: str
    archive_url: str
    step: str
    nth: int


class KillPoint(CrashPoint):
    """SIGKILL, whatever number the step has."""

    def reach(self, step: str) -> None:
        if step.rstrip(" 0123456789") == self._step:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


async def write(order: Order) -> None:
    """Work until the outbox is empty, or until the point."""
    point = KillPoint(order.step, order.nth)
    async with (
        RedisStore(order.redis_url, timeout_s=10) as store,
        open_database(order.database_url) as database,
        open_archive(order.archive_url) as archive,
    ):
        event.listen(database.engine.sync_engine, "before_cursor_execute", lambda *_: point.reach("before statement"))
        writer = Writer(
            cast("Store", CrashingStore(store, point)),
            CrashingDatabase(database, point),
            CrashingArchive(archive, point),
            consumer=f"doomed-{os.getpid()}",
            announce=announce_ratings,
            options=IMPATIENT,
        )
        async with running(writer):
            while (await store.lag()).pending:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


def main() -> None:
    """Serve orders until the input ends."""
    # Only answers go to standard output.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            try:
                asyncio.run(write(msgspec.json.decode(line, type=Order)))
            except BaseException:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        print(os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status), flush=True)


if __name__ == "__main__":
    main()
