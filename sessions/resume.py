"""What a client that resumes is given besides the journal: the session, and, where the journal's window is gone, the dialogue's items.

None of these events is journaled: they take no sequence numbers, and their ids are new ones.
"""

from collections.abc import Collection, Container, Sequence

import msgspec
from msgspec import Struct

from sessions.answer import Answer
from sessions.new_items import NewId
from sessions.ratings import Ratings
from sessions.server_events import FeedbackCreated, ItemAdded, ItemDone, ServerEvent
from sessions.timeline import Timeline


class _Id(Struct, frozen=True):
    id: str = ""


class _Rated(Struct, frozen=True):
    item_id: str = ""


class _Entry(Struct, frozen=True):
    type: str
    response_id: str = ""
    response: _Id = _Id()
    item: _Id = _Id()
    item_id: str = ""
    feedback: _Rated = _Rated()


_decoder = msgspec.json.Decoder(_Entry)
_ITEM_EVENTS = ("conversation.item.added", "conversation.item.done")
_FEEDBACK_EVENTS = ("avatar.feedback.created", "avatar.feedback.deleted")


def history(timeline: Timeline, answers: Collection[Answer], ratings: Ratings, *, new_id: NewId) -> list[ServerEvent]:
    """Every item but those of open answers, whose journaled events follow; then the ratings of these items."""
    events: list[ServerEvent] = []
    rated: list[ServerEvent] = []
    left_out = _items_of(answers, timeline)
    previous: str | None = None
    for item in timeline:
        if item.id in left_out or item.status == "in_progress":
            continue
        events.append(ItemAdded(new_id("event_"), previous, item))
        events.append(ItemDone(new_id("event_"), previous, item))
        previous = item.id
        if (feedback := ratings.shown(item.id)) is not None:
            rated.append(FeedbackCreated(new_id("event_"), feedback))
    return events + rated


def select_events(
    events: Sequence[bytes], first_sequence: int, answers: Collection[Answer], timeline: Timeline
) -> list[tuple[int, bytes]]:
    """Of journaled events, numbered from `first_sequence`, those of open answers, with their numbers: all others are in the history."""
    response_ids = {answer.response_id for answer in answers}
    item_ids = _items_of(answers, timeline)
    return [
        (sequence, event)
        for sequence, event in enumerate(events, first_sequence)
        if _is_of(event, response_ids, item_ids)
    ]


def _items_of(answers: Collection[Answer], timeline: Timeline) -> set[str]:
    """Ids of items that are the answers' own still; a client may have put another under the same id."""
    ids = {item.id for answer in answers for item in answer.done if timeline.get(item.id) is item}
    outputs = (answer.unfinished for answer in answers if answer.in_conversation)
    begun = (timeline.get(output.item_id) for output in outputs if output is not None)
    return ids | {item.id for item in begun if item is not None and item.status == "in_progress"}


def _is_of(event: bytes, response_ids: Container[str], item_ids: Container[str]) -> bool:
    try:
        entry = _decoder.decode(event)
    except msgspec.DecodeError:
        return False
    if entry.type in _ITEM_EVENTS:
        return entry.item.id in item_ids
    if entry.type in _FEEDBACK_EVENTS:
        return (entry.item_id or entry.feedback.item_id) in item_ids
    return entry.response_id in response_ids or entry.response.id in response_ids
