"""What the client was given of the answers, and what its listener heard of them: both kept apart from what was generated.

Text that is generated while no client is connected counts as sent once one is back. The whole text of a message that was cut to what was
heard is kept for the last few answers, since a later report of the playback may correct an earlier one.
"""

from collections.abc import Iterable

from msgspec import Struct

from sessions.answer import Answer
from sessions.items import MessageItem
from sessions.records import HeardRecord, SentRecord
from sessions.timeline import Timeline
from sessions.utf16 import num_units

_MAX_RECENT_ANSWERS = 8


class SpokenMessage(Struct, frozen=True, omit_defaults=True):
    """A message of a recent answer; `whole` is the message as it was before it was cut, None when it was not."""

    item_id: str
    whole: MessageItem | None = None


class RecentAnswer(Struct, frozen=True):
    """An answer that ended, and its messages that are still in the dialogue."""

    response_id: str
    messages: tuple[SpokenMessage, ...]


class ListenerState(Struct, frozen=True, omit_defaults=True):
    """What the store keeps of it. `unsent` has the whole length of each answer that ended while no client was connected."""

    is_attached: bool = True
    unsent: dict[str, int] = {}
    recent: tuple[RecentAnswer, ...] = ()


class Listener:
    """The other end of one dialogue. Every change of it is to be saved by the caller."""

    __slots__ = ("_recent", "_unsent", "is_attached")

    def __init__(self, state: ListenerState) -> None:
        self.is_attached = state.is_attached
        self._unsent = dict(state.unsent)
        self._recent = list(state.recent)

    def state(self) -> ListenerState:
        """What to store."""
        return ListenerState(self.is_attached, dict(self._unsent), tuple(self._recent))

    def detach(self, answers: Iterable[Answer]) -> None:
        """The connection is lost: what these answers say from here on reaches nobody yet."""
        self.is_attached = False
        for answer in answers:
            answer.sent_chars = num_units(answer.text())

    def attach(self, answers: Iterable[Answer], *, session_id: str, sequence: int, now_ms: int) -> list[SentRecord]:
        """A client is back and is given all that it missed; a record for each answer that ended meanwhile."""
        self.is_attached = True
        for answer in answers:
            answer.sent_chars = None
        missed, self._unsent = self._unsent, {}
        return [
            SentRecord(response_id, session_id, sequence, num_chars, now_ms)
            for response_id, num_chars in missed.items()
        ]

    def ended(self, answer: Answer, timeline: Timeline) -> None:
        """Remember an answer that has ended."""
        if answer.sent_chars is not None and (num_chars := num_units(answer.text())) > answer.sent_chars:
            self._unsent[answer.response_id] = num_chars
        if not answer.in_conversation:
            return
        kept = (item for item in answer.done if isinstance(item, MessageItem) and timeline.get(item.id) is item)
        if messages := tuple(SpokenMessage(item.id) for item in kept):
            self._recent = [*self._recent, RecentAnswer(answer.response_id, messages)][-_MAX_RECENT_ANSWERS:]

    def whole(self, item: MessageItem) -> MessageItem:
        """The message as it was before it was cut, as far as that is still known."""
        for answer in self._recent:
            for message in answer.messages:
                if message.item_id == item.id and message.whole is not None:
                    return message.whole
        return item

    def forget(self, item_id: str) -> None:
        """The item was deleted, and its id may come again for another."""
        self._replace(item_id, ())

    def heard(
        self, whole: MessageItem, timeline: Timeline, *, session_id: str, sequence: int, now_ms: int
    ) -> HeardRecord | None:
        """Note that the message in the timeline is what was heard of `whole`; None when its answer is not among the recent ones."""
        self._replace(whole.id, (SpokenMessage(whole.id, whole),))
        for answer in self._recent:
            if any(message.item_id == whole.id for message in answer.messages):
                texts = (timeline.get(message.item_id) for message in answer.messages)
                text = "".join(item.text for item in texts if isinstance(item, MessageItem))
                return HeardRecord(answer.response_id, whole.id, session_id, sequence, text, num_units(text), now_ms)
        return None

    def _replace(self, item_id: str, new: tuple[SpokenMessage, ...]) -> None:
        for index, answer in enumerate(self._recent):
            ids = [message.item_id for message in answer.messages]
            if item_id in ids:
                at = ids.index(item_id)
                messages = answer.messages[:at] + new + answer.messages[at + 1 :]
                self._recent[index] = RecentAnswer(answer.response_id, messages)
