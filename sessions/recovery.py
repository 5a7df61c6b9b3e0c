"""An open answer to its stored state and back: from what was stored and the deltas that were journaled after it.

Every event of an answer but its deltas is journaled with a new state. So only deltas of its unfinished item can follow one, and whatever
else is found, or is missing, means that the answer cannot be continued.
"""

from collections.abc import Iterable, Mapping, Sequence

import msgspec
from msgspec import Struct

from sessions.answer import Answer, OpenCall, OpenMessage
from sessions.config import SessionConfig
from sessions.generation import Prompt
from sessions.items import FunctionCallItem, Item, MessageItem
from sessions.repetition import Repetition
from sessions.state import AnswerState, DialogueState, ItemReference
from sessions.timeline import Timeline


class _Entry(Struct, frozen=True):
    """What a delta has, and enough of any other event to know that it is none."""

    type: str
    event_id: str
    response_id: str | None = None
    item_id: str | None = None
    delta: str = ""


_entry_decoder = msgspec.json.Decoder(_Entry)
_DELTAS = {OpenMessage: "response.output_text.delta", OpenCall: "response.function_call_arguments.delta"}


def save_answers(
    answers: Iterable[Answer], config: SessionConfig, timeline: Timeline, next_sequence: int
) -> tuple[AnswerState, ...]:
    """What another node needs to go on with the answers from the event `next_sequence` on."""
    return tuple(_save(answer, config, timeline, next_sequence) for answer in answers)


def load_answers(state: DialogueState, timeline: Timeline, session_id: str, conversation_id: str) -> list[Answer]:
    """The answers as they were stored."""
    return [_load(answer, state.config, timeline, session_id, conversation_id) for answer in state.answers]


def catch_up(
    answers: Mapping[str, Answer],
    states: Iterable[AnswerState],
    events: Sequence[bytes],
    *,
    first_sequence: int,
    event_prefix: str,
) -> set[str]:
    """Add what was journaled after the answers were stored; ids of those that cannot be continued, since something is missing.

    `events` are the journal's from `first_sequence` to its end, and may begin before the answers do.
    """
    behind = {state.response_id: state.next_sequence for state in states}
    broken = {response_id for response_id, following in behind.items() if following < first_sequence}
    broken |= {state.response_id for state in states if not _is_whole(answers[state.response_id], state)}
    for sequence, event in enumerate(events, first_sequence):
        entry = _read(event)
        if entry is None or entry.event_id != f"{event_prefix}{sequence}":
            broken |= {response_id for response_id, following in behind.items() if following <= sequence}
            continue
        answer = answers.get(entry.response_id or "")
        if answer is None or answer.response_id in broken or sequence < behind[answer.response_id]:
            continue
        if not _add(answer, entry):
            broken.add(answer.response_id)
    for response_id in behind.keys() - broken:
        _await_repetition(answers[response_id])
    return broken


def continuation(answer: Answer) -> Prompt:
    """The prompt to go on with: an engine can continue text, but calls and what follows them it must generate again."""
    first = answer.done[0] if answer.done else answer.unfinished
    spoken = first.text if isinstance(first, MessageItem) else first.text() if isinstance(first, OpenMessage) else ""
    return msgspec.structs.replace(answer.prompt, spoken=spoken)


def _save(answer: Answer, config: SessionConfig, timeline: Timeline, next_sequence: int) -> AnswerState:
    prompt, unfinished = answer.prompt, answer.unfinished
    return AnswerState(
        response_id=prompt.response_id,
        first_sequence=answer.first_sequence,
        next_sequence=next_sequence,
        created_ms=answer.created_ms,
        max_output_tokens=answer.max_output_tokens,
        tool_choice=prompt.tool_choice,
        truncation=prompt.truncation,
        items=_references(prompt.items, timeline),
        in_conversation=answer.in_conversation,
        turn_id=answer.turn_id,
        metadata=answer.metadata,
        instructions=None if prompt.instructions == config.instructions else prompt.instructions,
        tools=None if prompt.tools == config.tools else prompt.tools,
        done=_references(answer.done, timeline),
        unfinished=unfinished.item("incomplete") if unfinished else None,
        first_token_ms=answer.first_token_ms,
        num_tokens=answer.num_tokens,
        usage=answer.usage,
        sent_chars=answer.sent_chars,
        prompt_version=answer.prompt_version,
    )


def _load(
    state: AnswerState, config: SessionConfig, timeline: Timeline, session_id: str, conversation_id: str
) -> Answer:
    prompt = Prompt(
        response_id=state.response_id,
        session_id=session_id,
        instructions=config.instructions if state.instructions is None else state.instructions,
        items=_resolved(state.items, timeline),
        tools=config.tools if state.tools is None else state.tools,
        tool_choice=state.tool_choice,
        max_output_tokens=None if state.max_output_tokens == "inf" else state.max_output_tokens,
        truncation=state.truncation,
    )
    answer = Answer(
        prompt,
        conversation_id=conversation_id if state.in_conversation else None,
        turn_id=state.turn_id,
        max_output_tokens=state.max_output_tokens,
        metadata=state.metadata,
        created_ms=state.created_ms,
        first_sequence=state.first_sequence,
        prompt_version=state.prompt_version,
    )
    answer.done = list(_resolved(state.done, timeline))
    answer.open = _reopened(state.unfinished, len(state.done))
    answer.first_token_ms = state.first_token_ms
    answer.num_tokens = state.num_tokens
    answer.usage = state.usage
    answer.sent_chars = state.sent_chars
    return answer


def _read(event: bytes) -> _Entry | None:
    try:
        return _entry_decoder.decode(event)
    except msgspec.DecodeError:
        return None


def _is_whole(answer: Answer, state: AnswerState) -> bool:
    """Whether every item was found, and an item is unfinished unless none has begun."""
    num_found = len(answer.prompt.items) + len(answer.done)
    return num_found == len(state.items) + len(state.done) and (answer.open is not None or not answer.done)


def _add(answer: Answer, entry: _Entry) -> bool:
    output = answer.open
    if output is None or entry.item_id != output.item_id or entry.type != _DELTAS[type(output)]:
        return False
    output.parts.append(entry.delta)
    answer.num_tokens += 1
    return True


def _await_repetition(answer: Answer) -> None:
    output = answer.open
    if output is None or (isinstance(output, OpenMessage) and not answer.done):
        return
    items = [*answer.done, output.item("incomplete")]
    if isinstance(items[0], MessageItem):
        del items[0]  # an engine goes on after it
    answer.repetition, answer.repeated, answer.open = Repetition(items), output, None


def _references(items: Iterable[Item], timeline: Timeline) -> tuple[ItemReference, ...]:
    return tuple(item.id if timeline.get(item.id) == item else item for item in items)


def _resolved(references: Iterable[ItemReference], timeline: Timeline) -> tuple[Item, ...]:
    found = (timeline.get(item) if isinstance(item, str) else item for item in references)
    return tuple(item for item in found if item is not None)


def _reopened(item: Item | None, output_index: int) -> OpenMessage | OpenCall | None:
    match item:
        case MessageItem():
            message = OpenMessage(item.id, output_index)
            message.parts.append(item.text)
            return message
        case FunctionCallItem():
            call = OpenCall(item.id, output_index, index=-1, call_id=item.call_id, name=item.name)
            call.parts.append(item.arguments)
            return call
        case _:
            return None
