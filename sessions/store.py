"""Where sessions live between processes: ownership with epochs, the dialogue, the journal, and the outbox of records.

Two implementations, `redis_store` and `sqlite_store`, one test suite for both. A session belongs to the owner that created or last
claimed it: every claim raises the epoch, and an append under an old epoch is refused. An epoch reads `<number>.<owner>`: owners are
unique, so that no epoch comes twice, not even from a store that was restored from an older state.
"""

from collections.abc import Sequence
from types import TracebackType
from typing import Literal, Protocol, Self

import msgspec
from msgspec import Struct, structs

from sessions.feedback import Feedback
from sessions.items import Item
from sessions.revocation import Heard, Revocation

AppendStatus = Literal["ok", "dup", "gap", "fenced", "gone", "too_large"]

# No store takes a larger part, however often it is asked.
MAX_PART_BYTES = 64 * 1024 * 1024

# What the reading of a stored session raises that another release has written, or a fault.
UNREADABLE = (msgspec.MsgspecError, ValueError, KeyError)


class SessionMeta(Struct, frozen=True):
    """What never changes about a session. Times are milliseconds since the epoch, UTC."""

    session_id: str
    user_id: str
    client_id: str
    model: str
    created_ms: int


class PlacedItem(Struct, frozen=True, omit_defaults=True):
    """An item, its place (items are ordered by `rank`), and what the session's user thinks of it.

    `is_untold`: that came past the dialogue, whose journal does not tell of it yet.
    """

    rank: float
    item: Item
    feedback: Feedback | None = None
    is_untold: bool = False


class Append(Struct):
    """What one session adds in one commit, atomically: journal events, records for the outbox, changes of the dialogue.

    Items are dropped before others are saved: an id that is in both was deleted and created anew.

    `events` are encoded server events without newlines; they take the sequence numbers from `first_sequence` on. `config` replaces
    the stored state of the dialogue (opaque JSON) when not None. `ends`: nobody owns the session from here on, until it is claimed.
    """

    session_id: str
    epoch: str
    first_sequence: int
    at_ms: int
    events: list[bytes]
    records: list[bytes]
    saved_items: dict[str, bytes]
    dropped_items: list[str]
    config: bytes | None = None
    ends: bool = False


_placed_encoder = msgspec.json.Encoder()
_placed_decoder = msgspec.json.Decoder(PlacedItem)


def encode_placed(placed: PlacedItem) -> bytes:
    """The item and its place as JSON: the values of `Append.saved_items`."""
    return _placed_encoder.encode(placed)


def decode_placed(data: bytes) -> PlacedItem:
    """What `encode_placed` wrote."""
    return _placed_decoder.decode(data)


def rated(placed: PlacedItem, feedback: Feedback) -> PlacedItem | None:
    """The item with a choice that its dialogue has not told of; None when it does not replace the one that is there."""
    if not feedback.replaces(placed.feedback):
        return None
    return structs.replace(placed, feedback=feedback, is_untold=True)


def epoch_number(epoch: str) -> int:
    """How many claims there were up to this epoch; 0 for what is none."""
    number = epoch.partition(".")[0]
    return int(number) if number.isdecimal() else 0


class JournalEntry(Struct, frozen=True):
    """Events that were committed together at `at_ms`, with the sequence numbers from `first_sequence` on."""

    first_sequence: int
    at_ms: int
    events: tuple[bytes, ...]


class LoadedSession(Struct, frozen=True):
    """All that another node needs to go on with a session. `next_sequence` is the number of the next event."""

    meta: SessionMeta
    epoch: str
    next_sequence: int
    archived_sequence: int
    config: bytes
    items: tuple[PlacedItem, ...]


class Glimpse(Struct, frozen=True):
    """What anyone may know of a session without claiming it. `has_owner`: it has not ended, so that more events may come.

    Its journal may have forgotten the events up to `archived_sequence`.
    """

    meta: SessionMeta
    next_sequence: int
    archived_sequence: int
    has_owner: bool


class Delivery(Struct, frozen=True):
    """A record taken from the outbox, to be acknowledged by `receipt`. `num_deliveries` counts this one."""

    receipt: str
    record: bytes
    num_deliveries: int


class DeadLetter(Struct, frozen=True):
    """A record that could not be stored, why, and how often it was tried."""

    record: bytes
    error: str
    num_deliveries: int


class OutboxLag(Struct, frozen=True):
    """Records not yet acknowledged, age of the oldest in seconds, and dead letters waiting for someone to act."""

    pending: int
    oldest_s: float
    dead: int


class Store(Protocol):
    """Sessions, journals and the outbox. Every call raises `StoreUnavailable` when the store cannot answer in time."""

    async def __aenter__(self) -> Self:
        """Connect and check that the store is as durable as the settings demand."""

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close every connection."""

    async def ping(self) -> None:
        """Return when the store answers."""

    async def create(self, meta: SessionMeta, owner: str) -> str:
        """Create the session, owned by `owner`; its epoch. The first sequence number is 1."""

    async def claim(
        self, session_id: str, owner: str, *, user_id: str | None = None, client_id: str | None = None
    ) -> LoadedSession:
        """Take the session over under the next epoch and load it; `SessionNotFound` when there is none, or not of that user or client.

        Without a user nobody has come for it: the owner goes on with it by itself, as with what it adopts.
        """

    async def epoch(self, session_id: str) -> str | None:
        """The epoch of the session's last claim; None when there is no such session."""

    async def is_adopted(self, session_id: str, since: str) -> bool:
        """Whether owners have claimed the session after the epoch `since`, and only by themselves: no client has gone on with it elsewhere.

        A claim of which that is not known counts as a client's.
        """

    async def peek(self, session_id: str) -> Glimpse | None:
        """The session as it is now, left as it is: nothing is claimed; None when there is no such session."""

    async def item(self, session_id: str, item_id: str) -> PlacedItem | None:
        """That item of the session as it is stored now, left as it is; None when there is none, or no such session."""

    async def rate(self, session_id: str, item_id: str, feedback: Feedback) -> None:
        """Keep this choice, untold, with that item as it is stored; nothing where there is no such item, or a later choice.

        It is for whoever claims the session next: the owner of now does not learn of it, and its next change of the item is without it.
        """

    async def renew(self, owner: str, lease_s: float) -> list[str]:
        """Extend the owner's lease by the store's clock; ids of its sessions that others have claimed since the last call that returned."""

    async def adopt(self, owner: str, limit: int) -> list[LoadedSession]:
        """Claim up to `limit` sessions whose owner has no lease, and those that this owner claimed without learning of it.

        One that cannot be read is claimed, logged and left out: it must not come back for ever, nor keep the others from coming.
        A session that ended has no owner and is never among them. Who never renewed has no lease: renew first, or others adopt in turn.
        """

    async def surrender(self, owner: str) -> None:
        """End the owner's lease now: others may adopt its sessions."""

    async def restore(
        self,
        meta: SessionMeta,
        owner: str,
        epoch: str,
        *,
        next_sequence: int,
        config: bytes,
        items: Sequence[PlacedItem],
    ) -> str | None:
        """Write back a session that the store lost or knows only an older state of, under a new epoch, which is returned.

        Its journal starts at `next_sequence`; what came before is gone. None, and nothing is changed, when an epoch later than `epoch` is
        there.
        """

    async def append(self, batch: Sequence[Append]) -> list[AppendStatus]:
        """Commit each session's part atomically and durably, in one round trip for all; a status for each, in order.

        `dup`: these events are already there (a retry after a lost reply), nothing was changed. `gap`: `first_sequence` is not the next
        number. `fenced`: another epoch owns the session. `gone`: the store lost the session, or knows only an earlier epoch of it.
        `too_large`: the part is larger than `MAX_PART_BYTES`; nothing is lost. After `dup` the caller may go on as after `ok`.
        """

    async def journal(self, session_id: str, after: int, limit: int) -> list[JournalEntry]:
        """Up to `limit` entries with events numbered above `after`, in order. An entry cut by `after` comes whole."""

    async def trim(self, session_id: str, archived_sequence: int, *, final: bool) -> None:
        """Forget journal entries up to `archived_sequence`; `final` lets the rest of the session expire after the retention."""

    async def enqueue(self, records: Sequence[bytes]) -> None:
        """Add records that belong to no journal commit to the outbox."""

    async def take(self, consumer: str, limit: int, wait_s: float) -> list[Delivery]:
        """Up to `limit` new records for this consumer, waiting at most `wait_s` for the first."""

    async def reclaim(self, consumer: str, limit: int, min_idle_s: float) -> list[Delivery]:
        """Records that another consumer (or this one before a crash) took and did not acknowledge for `min_idle_s`."""

    async def acknowledge(self, receipts: Sequence[str]) -> None:
        """Remove stored records from the outbox."""

    async def bury(self, delivery: Delivery, error: str) -> None:
        """Move a record that cannot be stored to the dead letters, with its error, and out of the outbox."""

    async def dead(self, limit: int) -> list[DeadLetter]:
        """Up to `limit` dead letters, oldest first."""

    async def revive(self, limit: int) -> int:
        """Put up to `limit` dead letters back into the outbox, oldest first; how many."""

    async def lag(self) -> OutboxLag:
        """How far the writer is behind."""

    async def revoke(self, revocation: Revocation) -> None:
        """Keep it for every process to read, until it is due."""

    async def revocations(self, after: str, wait_s: float) -> Heard:
        """Some of those that were added after the mark `after`, oldest first, waiting at most `wait_s` for the first.

        The mark of what was never read is "". Where the store does not know the mark, since it came back empty or older, or forgot what was
        due, all that it has come again. One call at a time.
        """
