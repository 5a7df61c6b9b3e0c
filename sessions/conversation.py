"""The dialogue's items as its client changes them: added, deleted, cut to what was heard; and the turns that user messages begin."""

from sessions.answering import CLIENT_CANCELLED, Answering, Interrupt
from sessions.client_events import AvatarItemTruncate, ItemCreate, ItemDelete
from sessions.draft import Draft
from sessions.items import Item, MessageItem, OutputText, num_chars
from sessions.limits import DialogueLimits
from sessions.listener import Listener
from sessions.new_items import NewId, make_item
from sessions.records import TurnRecord
from sessions.server_events import AvatarItemTruncated, ItemAdded, ItemDeleted, ItemDone
from sessions.timeline import Timeline
from sessions.utf16 import clip, num_units
from sessions.wire_errors import BadEvent


class Conversation:
    """The items of one dialogue. `turn_id` is the last user message's turn, `num_turns` its number."""

    __slots__ = (
        "_answering",
        "_draft",
        "_limits",
        "_listener",
        "_new_id",
        "_session_id",
        "_timeline",
        "num_turns",
        "turn_id",
    )

    def __init__(
        self,
        draft: Draft,
        timeline: Timeline,
        answering: Answering,
        listener: Listener,
        *,
        session_id: str,
        new_id: NewId,
        limits: DialogueLimits,
        turn_id: str | None,
        num_turns: int,
    ) -> None:
        self._draft = draft
        self._timeline = timeline
        self._answering = answering
        self._listener = listener
        self._session_id = session_id
        self._new_id = new_id
        self._limits = limits
        self.turn_id = turn_id
        self.num_turns = num_turns

    def require(self, item_id: str, code: str) -> Item:
        """The item of that id; `BadEvent` with that code when there is none."""
        found = self._timeline.get(item_id)
        if found is None:
            raise BadEvent(code, f"Item with id {item_id[:64]!r} not found.", "item_id")
        return found

    def create(self, event: ItemCreate, now_ms: int, *, interrupt: Interrupt) -> None:
        """Add an item; a user's message begins a turn, and meets an answer in progress as the session's `interrupt` says."""
        item = make_item(event.item, new_id=self._new_id, param="item", max_chars=self._limits.max_item_chars)
        self._check_place(item, event.previous_item_id)
        is_turn = isinstance(item, MessageItem) and item.role == "user"
        if is_turn:
            self._answering.make_way(interrupt, now_ms)
        self._place(item, event.previous_item_id)
        previous = self._timeline.previous_id(item.id)
        self._draft.emit(ItemAdded, previous, item)
        self._draft.emit(ItemDone, previous, item)
        if isinstance(item, MessageItem) and is_turn:
            self._begin_turn(item, now_ms)

    def delete(self, event: ItemDelete) -> None:
        """Forget an item."""
        self.require(event.item_id, "item_delete_invalid_item_id")
        self._timeline.remove(event.item_id)
        self._listener.forget(event.item_id)
        self._draft.changed()
        self._draft.effects.dropped_items.append(event.item_id)
        self._draft.emit(ItemDeleted, event.item_id)

    def truncate(self, event: AvatarItemTruncate, now_ms: int) -> None:
        """Cut an answer's message to what was heard. If it is still being answered, that is a barge-in, which cancels the answer."""
        item = self._require_cuttable(event)
        answer = self._answering.of_item(item)
        if answer is not None and item.status == "in_progress":
            _check_end(event.char_end, answer.unfinished_text())
        else:
            _check_end(event.char_end, _first_text(self._listener.whole(item)))
        if answer is not None:
            self._answering.cancel(answer, CLIENT_CANCELLED, now_ms)
        self._cut(event.item_id, event.char_end, now_ms)

    def _cut(self, item_id: str, char_end: int, now_ms: int) -> None:
        item = self._timeline.get(item_id)
        if not isinstance(item, MessageItem):
            raise TypeError("only a message is cut")
        whole = self._listener.whole(item)
        cut = _cut_message(whole, char_end)
        if cut != item:
            self._draft.effects.saved_items += self._timeline.replace(cut)
        self._draft.changed()
        self._draft.emit(AvatarItemTruncated, item_id, 0, num_units(_first_text(cut)))
        record = self._listener.heard(
            whole,
            self._timeline,
            session_id=self._session_id,
            sequence=self._draft.next_sequence - 1,
            now_ms=now_ms,
        )
        if record is not None:
            self._draft.effects.records.append(record)

    def _check_place(self, item: Item, after: str | None) -> None:
        if item.id in self._timeline:
            raise BadEvent("item_create_duplicate_item_id", f"Item with id {item.id!r} already exists.", "item.id")
        check_length(self._timeline, self._limits, "item", num_more_chars=num_chars(item))
        if after is not None and after != "root" and after not in self._timeline:
            message = f"Previous item with id {after[:64]!r} not found."
            raise BadEvent("item_create_invalid_previous_item_id", message, "previous_item_id")

    def _place(self, item: Item, after: str | None) -> None:
        after = self._timeline.last_id() if after is None else None if after == "root" else after
        self._draft.effects.saved_items += self._timeline.insert(item, after)

    def _begin_turn(self, item: MessageItem, now_ms: int) -> None:
        self.turn_id = self._new_id("turn_")
        self.num_turns += 1
        self._draft.changed()
        sequence = self._draft.next_sequence - 1
        self._draft.effects.records.append(
            TurnRecord(self.turn_id, self._session_id, sequence, self.num_turns, item.id, item.text, now_ms)
        )

    def _require_cuttable(self, event: AvatarItemTruncate) -> MessageItem:
        item = self.require(event.item_id, "item_truncate_invalid_item_id")
        if not isinstance(item, MessageItem) or item.role != "assistant":
            raise BadEvent("invalid_value", "Only messages of the assistant can be truncated.", "item_id")
        if event.content_index != 0:
            message = f"Content index {event.content_index} not found: a message's text is its content 0."
            raise BadEvent("invalid_value", message, "content_index")
        return item


def check_length(timeline: Timeline, limits: DialogueLimits, param: str | None, *, num_more_chars: int = 0) -> None:
    """`BadEvent` unless one more item of so many characters may come into the dialogue."""
    if len(timeline) >= limits.max_items:
        message = f"A conversation holds at most {limits.max_items} items; delete some."
        raise BadEvent("conversation_too_long", message, param)
    if timeline.num_chars + num_more_chars > limits.max_chars:
        message = f"A conversation holds at most {limits.max_chars} characters; delete some items."
        raise BadEvent("conversation_too_long", message, param)


def _check_end(char_end: int, text: str) -> None:
    if char_end < 0:
        raise BadEvent("integer_below_min_value", f"Expected a value of at least 0, got {char_end}.", "char_end")
    if char_end > (num_chars := num_units(text)):
        message = f"Expected a value of at most {num_chars}, which is what was sent, got {char_end}."
        raise BadEvent("integer_above_max_value", message, "char_end")


def _first_text(message: MessageItem) -> str:
    return message.content[0].text if message.content else ""


def _cut_message(whole: MessageItem, char_end: int) -> MessageItem:
    text = clip(_first_text(whole), char_end)
    if text == whole.text:
        return whole
    return MessageItem(whole.id, whole.role, (OutputText(text),), "incomplete")
