"""How a viewer sees what was recorded: whole. The one place to put something between a recording and who watches or exports it."""

from collections.abc import AsyncGenerator, Callable

from persistence.recording import Edge, Recorded
from server.auth import Principal
from sessions.store import SessionMeta

Stream = AsyncGenerator[Recorded | Edge, None]
View = Callable[[Stream], Stream]


def view_of(principal: Principal, meta: SessionMeta) -> View:
    """What turns the session's events into those that the principal may see: same numbers, times and order."""
    del principal, meta
    return _whole


def _whole(stream: Stream) -> Stream:
    return stream
