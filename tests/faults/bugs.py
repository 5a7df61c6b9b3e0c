"""Bugs to plant in a process of the fleet, to see that they are found. Each is a small change of the product's code at its start."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

_LATE_S = 0.05


def acknowledge_before_commit() -> None:
    """Events go to the client first and to the store a moment later."""
    from sessions.journal import Journal

    commit: Callable[..., Awaitable[Any]] = Journal._commit
    late: list[asyncio.Task[None]] = []

    async def in_order(before: asyncio.Task[None] | None, journal: Journal, parts: Sequence[Any]) -> None:
        if before is not None:
            await before
        await asyncio.sleep(_LATE_S)
        await commit(journal, parts)

    async def pretend(journal: Journal, parts: Sequence[Any]) -> list[str]:
        late[:] = [asyncio.create_task(in_order(late[-1] if late else None, journal, parts))]
        return ["ok"] * len(parts)

    Journal._commit = pretend  # type: ignore[method-assign,assignment]


def skip_the_epoch_check() -> None:
    """Whoever once owned the session may write it."""
    from sessions import redis_scripts, redis_store
    from sessions.redis_line import Script

    assert "APPEND" in vars(redis_store)
    check = "if stored[1] ~= header[i + 1] then"
    assert check in redis_scripts.APPEND
    vars(redis_store)["APPEND"] = Script(redis_scripts.APPEND.replace(check, "if false then"))


def acknowledge_before_archiving() -> None:
    """The outbox forgets what is to be archived before S3 has it."""
    from persistence.writer import Writer

    archive: Callable[..., Awaitable[None]] = Writer._archive

    async def acknowledge_first(writer: Writer, work: Any) -> None:
        await writer._acknowledge([work.delivery], [work.record])
        await archive(writer, work)

    Writer._archive = acknowledge_first  # type: ignore[method-assign,assignment]


def drop_an_event_at_resume() -> None:
    """The first missed event is not sent."""
    from server.feed import Feed

    catch_up: Callable[..., Awaitable[None]] = Feed.catch_up

    async def forget_one(feed: Feed, *arguments: Any, after: int, **named: Any) -> None:
        await catch_up(feed, *arguments, after=min(after + 1, feed.committed), **named)

    Feed.catch_up = forget_one  # type: ignore[method-assign,assignment]


BUGS: dict[str, Callable[[], None]] = {
    bug.__name__: bug
    for bug in (
        acknowledge_before_commit,
        skip_the_epoch_check,
        acknowledge_before_archiving,
        drop_an_event_at_resume,
    )
}
