"""What a dialogue asks of the world after each input. The dialogue itself touches nothing."""

from msgspec import Struct

from sessions.generation import Prompt
from sessions.records import Record
from sessions.server_events import ServerEvent
from sessions.store import PlacedItem


class Close(Struct, frozen=True):
    """Close the connection with this code once all events before it were sent."""

    code: int
    reason: str


class Effects(Struct):
    """The effects of one input. Events, records and saves are to be committed together, atomically; the rest follows at once.

    `events` take the session's next sequence numbers in their order. `state` is the dialogue's encoded state when it changed. `ends`: the
    session is over, and nobody's until it is claimed.
    """

    events: list[ServerEvent] = []
    records: list[Record] = []
    saved_items: list[PlacedItem] = []
    dropped_items: list[str] = []
    state: bytes | None = None
    generate: Prompt | None = None
    aborts: list[str] = []
    close: Close | None = None
    ends: bool = False
