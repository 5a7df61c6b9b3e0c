"""What an operator does with the outbox: see which records could not be stored and why, and have them tried again.

Nothing here shows what a record holds, only what it is and whose.
"""

import re
from collections.abc import AsyncIterator

import msgspec
from msgspec import Struct

from sessions.store import DeadLetter, Store

# A record may be as large as a whole answer: so many at a time are read or moved.
_CHUNK = 100
_KIND = re.compile(r"[a-z_]{1,32}")
_SESSION_ID = re.compile(r"sess_[0-9A-Za-z]{1,59}")


class DeadLetterNote(Struct, frozen=True):
    """A dead letter in one line. `kind` and `session_id` are None where the record is none of ours, or belongs to no session."""

    error: str
    deliveries: int
    kind: str | None
    session_id: str | None


class _Head(Struct, frozen=True):
    record: str = ""
    session_id: str | None = None


_decode_head = msgspec.json.Decoder(_Head).decode


async def dead_letters(store: Store, limit: int) -> list[DeadLetterNote]:
    """Up to `limit` of them, oldest first."""
    return [_note(letter) for letter in await store.dead(limit)]


async def revive(store: Store, limit: int | None) -> AsyncIterator[int]:
    """Put dead letters back into the outbox, oldest first: `limit` of them, or all that are dead now. Yields how many, as it goes on.

    No more than are dead now, or else one that a writer buries again at once would come back for ever.
    """
    num_dead = (await store.lag()).dead
    num_left = num_dead if limit is None else min(limit, num_dead)
    while num_left > 0:
        num_revived = await store.revive(min(num_left, _CHUNK))
        if num_revived == 0:
            return
        yield num_revived
        num_left -= num_revived


def _note(letter: DeadLetter) -> DeadLetterNote:
    try:
        head = _decode_head(letter.record)
    except msgspec.DecodeError:
        head = _Head()
    # It died perhaps because it is nonsense: nothing of it passes that does not look like what it should be.
    kind = head.record if _KIND.fullmatch(head.record) else None
    session_id = head.session_id if head.session_id and _SESSION_ID.fullmatch(head.session_id) else None
    return DeadLetterNote(letter.error, letter.num_deliveries, kind, session_id)
