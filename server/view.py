"""How a viewer sees what was recorded: whole, or with personal data masked. It stands between a recording and whoever watches it."""

from collections.abc import AsyncGenerator, Callable

from persistence.masked_events import masked_events
from persistence.recording import Edge, Recorded
from server.access import Access
from server.auth import Principal
from sessions.store import SessionMeta

Stream = AsyncGenerator[Recorded | Edge, None]
View = Callable[[Stream], Stream]


def view_of(access: Access, principal: Principal, meta: SessionMeta) -> View:
    """What turns the session's events into those that the principal may see: same numbers, times and order."""
    return masked_events if access.is_masked(principal, user_id=meta.user_id) else _whole


def _whole(stream: Stream) -> Stream:
    return stream
