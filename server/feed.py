"""What a connection has been sent of its session's journal: events as they are committed, and after a reconnect the missed ones first.

The numbers decide: what was sent is never sent again, and nothing is skipped, however commits and a reader of the journal overtake each
other.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from sessions.server_events import with_sequence_number
from sessions.store import Store

_NUM_ENTRIES = 256
_SLICE_BYTES = 64 * 1024


class Connection(Protocol):
    """Where a session's events are sent."""

    @property
    def is_congested(self) -> bool:
        """Whether so much is unsent that answers should wait."""

    def send_texts(self, payloads: list[bytes]) -> None:
        """Send each payload as one text message, or drop all when closing."""

    def close(self, code: int, reason: str) -> None:
        """Start the closing handshake."""


class _Gone:
    """The connection of a session that has none now."""

    is_congested = False

    def send_texts(self, payloads: list[bytes]) -> None:
        """Nobody is there; the journal has it."""

    def close(self, code: int, reason: str) -> None:
        """It is closed."""


GONE: Connection = _Gone()


class WindowGone(Exception):
    """Events that were to be sent are not in the journal any more."""


class Feed:
    """`committed` is the last sequence number in the journal, `archived` the last one that the journal may have forgotten."""

    __slots__ = ("_is_behind", "_is_resumed", "_sent", "archived", "committed", "connection", "is_numbered")

    def __init__(self, connection: Connection, *, committed: int = 0, archived: int = 0) -> None:
        self.connection = connection
        self.committed = committed
        self.archived = archived
        self.is_numbered = False
        self._sent = committed
        self._is_behind = False
        self._is_resumed = False

    @property
    def is_behind(self) -> bool:
        """Whether the connection still waits for events that were committed before it came."""
        return self._is_behind

    def holds(self, after: int) -> bool:
        """Whether the journal has all events after that number, and the number is one that was given."""
        return self.archived <= after <= self.committed

    def deliver(self, first_sequence: int, events: list[bytes]) -> None:
        """Send what was committed just now, unless the connection must be sent earlier events first."""
        self.committed = first_sequence + len(events) - 1
        if self._is_behind:
            return
        if first_sequence <= self._sent:
            events = events[self._sent - first_sequence + 1 :]
            first_sequence = self._sent + 1
            if not events:
                return
        self._sent = self.committed
        if self.is_numbered:
            events = number(first_sequence, events)
        self.connection.send_texts(events)

    def attach(self, connection: Connection) -> None:
        """A connection which is sent nothing until it has caught up."""
        self.connection = connection
        self.is_numbered = self._is_resumed = True
        self._is_behind = True

    def detach(self) -> None:
        """The connection is gone."""
        self.connection = GONE
        self._is_behind = self._is_resumed = False

    def ask_numbers(self, *, asked: bool) -> None:
        """The client's wish for sequence numbers; one that named a number to come back has asked for them by that."""
        self.is_numbered = asked or self._is_resumed

    async def catch_up(self, store: Store, session_id: str, *, after: int, room: Callable[[], Awaitable[None]]) -> None:
        """Send the journal after that number, until the connection has all and goes on with what is committed; `WindowGone`.

        Returns early when another connection takes its place.
        """
        connection = self.connection
        self._sent = after
        while self._sent < self.committed:
            entries = await store.journal(session_id, self._sent, _NUM_ENTRIES)
            if connection is not self.connection:
                return
            if not entries or entries[0].first_sequence > self._sent + 1:
                # It was archived and forgotten after this owner claimed the session; whoever resumes next is told.
                self.archived = entries[0].first_sequence - 1 if entries else self.committed
                raise WindowGone
            for entry in entries:
                missed = entry.events[self._sent - entry.first_sequence + 1 :]
                await send_slowly(connection, number(self._sent + 1, missed), room)
                self._sent += len(missed)
                await room()
                if connection is not self.connection:
                    return
        self._is_behind = False


async def send_slowly(connection: Connection, events: Sequence[bytes], room: Callable[[], Awaitable[None]]) -> None:
    """Send any number of events, as fast as a client reads: at once, they would be more than may be unsent."""
    some: list[bytes] = []
    num_bytes = 0
    for event in events:
        some.append(event)
        num_bytes += len(event)
        if num_bytes >= _SLICE_BYTES:
            connection.send_texts(some)
            some, num_bytes = [], 0
            await room()
    connection.send_texts(some)


async def read_journal(store: Store, session_id: str, first: int, last: int) -> list[bytes]:
    """The session's events with the numbers from `first` to `last`; fewer, and those the last ones, where the journal lacks some."""
    events: list[bytes] = []
    after = first - 1
    while after < last:
        entries = await store.journal(session_id, after, _NUM_ENTRIES)
        if not entries:
            break
        for entry in entries:
            if entry.first_sequence > after + 1:
                events.clear()
            events += entry.events[max(0, after - entry.first_sequence + 1) :]
            after = entry.first_sequence + len(entry.events) - 1
    return events[: len(events) - max(0, after - last)]


def number(first_sequence: int, events: Sequence[bytes]) -> list[bytes]:
    """The events with their sequence numbers, which the journal's bytes do not have."""
    return [with_sequence_number(event, sequence) for sequence, event in enumerate(events, first_sequence)]
