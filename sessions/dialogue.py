"""The dialogue: a pure state machine. Client events and engine chunks in, effects out; no clock, no I/O, no tasks.

Time and ids are passed in, so that any schedule can be replayed. Every method that takes an input returns its `Effects`; the caller
commits and applies them in the order of the calls. A chunk of a response that has ended, by a cancel for instance, has no effects.
"""

from collections.abc import Sequence
from typing import assert_never

import msgspec
from msgspec import Struct

from sessions import client_events as incoming
from sessions.answer import Answer, OpenCall, OpenMessage
from sessions.client_events import ClientEvent, RefusedEvent, ResponseParams
from sessions.config import SessionConfig, check_max_output_tokens, check_tools, merge, parse_session_patch
from sessions.effects import Close, Effects
from sessions.generation import Chunk, FunctionChoice, FunctionTool, Prompt, ToolCallDelta, ToolChoice
from sessions.items import FunctionCallItem, Item, MessageItem
from sessions.new_items import NewId, make_item
from sessions.records import ArchiveRecord, PredictionRecord, PredictionStatus, SessionRecord, SessionStatus, TurnRecord
from sessions.server_events import (
    ContentPartAdded,
    ContentPartDone,
    ErrorEvent,
    FailureDetail,
    FunctionCallArgumentsDelta,
    FunctionCallArgumentsDone,
    InputAudioCleared,
    ItemAdded,
    ItemDeleted,
    ItemDone,
    ItemRetrieved,
    OutputItemAdded,
    OutputItemDone,
    OutputTextDelta,
    OutputTextDone,
    ResponseCreated,
    ResponseDone,
    SessionCreated,
    SessionObject,
    SessionUpdated,
    StatusDetails,
    TextPart,
    session_object,
)
from sessions.store import PlacedItem, SessionMeta
from sessions.timeline import Timeline
from sessions.wire_errors import BadEvent, WireError


class DialogueLimits(Struct, frozen=True):
    """Bounds of one dialogue, so that no client can fill the store."""

    max_items: int = 2000
    max_answers: int = 8
    max_instructions_chars: int = 32_768
    max_item_chars: int = 65_536


class DialogueState(Struct, frozen=True):
    """What the store keeps of a dialogue besides its items."""

    config: SessionConfig
    turn_id: str | None = None
    num_turns: int = 0


_state_encoder = msgspec.json.Encoder()
_state_decoder = msgspec.json.Decoder(DialogueState)
_DEFAULT_LIMITS = DialogueLimits()
_NO_EFFECTS = Effects()


def encode_state(state: DialogueState) -> bytes:
    """The state as JSON, for the store."""
    return _state_encoder.encode(state)


def decode_state(data: bytes) -> DialogueState:
    """What `encode_state` wrote."""
    return _state_decoder.decode(data)


class Dialogue:
    """One session's dialogue. `expires_at` is when the session ends, in seconds since the epoch."""

    __slots__ = (
        "_answers",
        "_current",
        "_event_prefix",
        "_limits",
        "_meta",
        "_model_version",
        "_new_id",
        "_out",
        "_state",
        "_timeline",
        "conversation_id",
        "expires_at",
        "next_sequence",
    )

    def __init__(
        self,
        meta: SessionMeta,
        state: DialogueState,
        *,
        new_id: NewId,
        expires_at: int,
        model_version: str = "",
        items: Sequence[PlacedItem] = (),
        next_sequence: int = 1,
        limits: DialogueLimits = _DEFAULT_LIMITS,
    ) -> None:
        self._meta = meta
        self._state = state
        self._new_id = new_id
        self._model_version = model_version
        self._limits = limits
        self._timeline = Timeline(items)
        self._answers: dict[str, Answer] = {}
        self._current: Answer | None = None
        self._out = _NO_EFFECTS
        self.expires_at = expires_at
        self.next_sequence = next_sequence
        ulid = meta.session_id.removeprefix("sess_")
        self.conversation_id = f"conv_{ulid}"
        self._event_prefix = f"event_{ulid}_"

    @property
    def config(self) -> SessionConfig:
        """The effective configuration."""
        return self._state.config

    @property
    def items(self) -> tuple[Item, ...]:
        """The dialogue's items in order."""
        return tuple(self._timeline)

    @property
    def num_answers(self) -> int:
        """Responses that have begun and not ended."""
        return len(self._answers)

    # Inputs

    def open(self, now_ms: int) -> Effects:
        """The session begins."""
        out = self._begin()
        self._save_state()
        out.events.append(SessionCreated(self._event_id(), self._session_object()))
        self._record_session("active", now_ms)
        return out

    def receive(self, event: ClientEvent, now_ms: int) -> Effects:
        """A client's event; a mistake in it is answered by an `error` event and changes nothing."""
        out = self._begin()
        try:
            self._dispatch(event, now_ms)
        except BadEvent as mistake:
            self._emit_error(mistake.as_wire_error(event.event_id))
        return out

    def refuse(self, refused: RefusedEvent) -> Effects:
        """A frame that was no event of the protocol."""
        return self.report(refused.reason.as_wire_error(refused.event_id))

    def report(self, error: WireError) -> Effects:
        """Tell the client of a failure; the session goes on."""
        out = self._begin()
        self._emit_error(error)
        return out

    def delta(self, response_id: str, chunk: Chunk) -> OutputTextDelta | None:
        """The one event of a chunk that only lengthens a message that has begun; None for any other, which `advance` takes.

        Nearly every token is such a chunk, so it is spared the making of `Effects`.
        """
        answer = self._answers.get(response_id)
        if answer is None or chunk.tool_calls or chunk.usage is not None or chunk.finish_reason is not None:
            return None
        message = answer.open
        if type(message) is not OpenMessage or not chunk.text:
            return None
        answer.num_tokens += chunk.num_tokens
        message.parts.append(chunk.text)
        sequence = self.next_sequence
        self.next_sequence = sequence + 1
        event_id = f"{self._event_prefix}{sequence}"
        return OutputTextDelta(event_id, response_id, message.item_id, message.output_index, 0, chunk.text)

    def advance(self, response_id: str, chunk: Chunk, now_ms: int) -> Effects:
        """What the engine produced for a response."""
        answer = self._answers.get(response_id)
        if answer is None:
            return _NO_EFFECTS
        out = self._begin()
        if answer.first_token_ms is None and chunk.num_tokens:
            answer.first_token_ms = now_ms
        answer.num_tokens += chunk.num_tokens
        if chunk.text:
            message = answer.open
            if type(message) is not OpenMessage:
                message = self._begin_message(answer)
            message.parts.append(chunk.text)
            out.events.append(
                OutputTextDelta(self._event_id(), response_id, message.item_id, message.output_index, 0, chunk.text)
            )
        for delta in chunk.tool_calls:
            self._advance_call(answer, delta)
        if chunk.usage is not None:
            answer.usage = chunk.usage
        match chunk.finish_reason:
            case None:
                pass
            case "stop" | "tool_calls":
                self._finish(answer, "completed", None, now_ms)
            case "length":
                self._finish(answer, "incomplete", StatusDetails("incomplete", "max_output_tokens"), now_ms)
            case "content_filter":
                self._finish(answer, "incomplete", StatusDetails("incomplete", "content_filter"), now_ms)
            case _:
                assert_never(chunk.finish_reason)
        return out

    def fail(self, response_id: str, *, code: str, message: str, now_ms: int) -> Effects:
        """The engine could not finish a response."""
        answer = self._answers.get(response_id)
        if answer is None:
            return _NO_EFFECTS
        out = self._begin()
        details = StatusDetails("failed", error=FailureDetail("server_error", code, message))
        self._finish(answer, "failed", details, now_ms)
        return out

    def expire(self, now_ms: int, *, code: int, reason: str) -> Effects:
        """The session's or the token's time is over: answers end with it, or else they could hold the session open."""
        out = self._begin()
        self._cancel_all(now_ms, reason="expired")
        self._emit_error(WireError("invalid_request_error", "session_expired", reason))
        out.close = Close(code, reason)
        return out

    def end(self, now_ms: int) -> Effects:
        """The client is gone: answers are cancelled, the session ends and its journal is to be archived."""
        out = self._begin()
        self._cancel_all(now_ms, reason="disconnected")
        self._record_session("ended", now_ms)
        last = self.next_sequence - 1
        out.records.append(
            ArchiveRecord(self._meta.session_id, last, self._meta.created_ms, last_sequence=last, final=True)
        )
        return out

    # Client events

    def _dispatch(self, event: ClientEvent, now_ms: int) -> None:
        match event:
            case incoming.SessionUpdate():
                self._update(event)
            case incoming.ItemCreate():
                self._create_item(event, now_ms)
            case incoming.ItemRetrieve():
                item = self._require_item(event.item_id, "item_retrieve_invalid_item_id")
                self._out.events.append(ItemRetrieved(self._event_id(), item))
            case incoming.ItemDelete():
                self._delete_item(event)
            case incoming.ItemTruncate():
                self._require_item(event.item_id, "item_truncate_invalid_item_id")
                raise BadEvent(
                    "unsupported_content_type", "Only model output audio messages can be truncated", "item_id"
                )
            case incoming.ResponseCreate():
                self._create_response(event, now_ms)
            case incoming.ResponseCancel():
                self._cancel(event, now_ms)
            case incoming.InputAudioClear():
                self._out.events.append(InputAudioCleared(self._event_id()))
            case incoming.InputAudioCommit():
                message = "Error committing input audio buffer: the buffer is empty; this server takes text."
                raise BadEvent("input_audio_buffer_commit_empty", message)
            case incoming.InputAudioAppend() | incoming.OutputAudioClear():
                pass
            case _:
                assert_never(event)

    def _update(self, event: incoming.SessionUpdate) -> None:
        patch = parse_session_patch(event.session)
        config = merge(self.config, patch)
        self._check_instructions(config.instructions, "session.instructions")
        _check_choice(config.tool_choice, config.tools, "session.tool_choice")
        self._state = msgspec.structs.replace(self._state, config=config)
        self._save_state()
        self._out.events.append(SessionUpdated(self._event_id(), self._session_object()))

    def _create_item(self, event: incoming.ItemCreate, now_ms: int) -> None:
        item = make_item(event.item, new_id=self._new_id, param="item", max_chars=self._limits.max_item_chars)
        if item.id in self._timeline:
            raise BadEvent("item_create_duplicate_item_id", f"Item with id {item.id!r} already exists.", "item.id")
        if len(self._timeline) >= self._limits.max_items:
            message = f"A conversation holds at most {self._limits.max_items} items; delete some."
            raise BadEvent("conversation_too_long", message, "item")
        after = event.previous_item_id
        if after is None:
            self._out.saved_items += self._timeline.append(item)
        elif after == "root":
            self._out.saved_items += self._timeline.insert(item, None)
        elif after in self._timeline:
            self._out.saved_items += self._timeline.insert(item, after)
        else:
            message = f"Previous item with id {after[:64]!r} not found."
            raise BadEvent("item_create_invalid_previous_item_id", message, "previous_item_id")
        previous = self._timeline.previous_id(item.id)
        self._out.events.append(ItemAdded(self._event_id(), previous, item))
        self._out.events.append(ItemDone(self._event_id(), previous, item))
        if isinstance(item, MessageItem) and item.role == "user":
            self._begin_turn(item, now_ms)

    def _begin_turn(self, item: MessageItem, now_ms: int) -> None:
        turn_id = self._new_id("turn_")
        number = self._state.num_turns + 1
        self._state = msgspec.structs.replace(self._state, turn_id=turn_id, num_turns=number)
        self._save_state()
        self._out.records.append(
            TurnRecord(turn_id, self._meta.session_id, self.next_sequence - 1, number, item.id, item.text, now_ms)
        )

    def _delete_item(self, event: incoming.ItemDelete) -> None:
        self._require_item(event.item_id, "item_delete_invalid_item_id")
        self._timeline.remove(event.item_id)
        self._out.dropped_items.append(event.item_id)
        self._out.events.append(ItemDeleted(self._event_id(), event.item_id))

    def _create_response(self, event: incoming.ResponseCreate, now_ms: int) -> None:
        params = event.response if isinstance(event.response, ResponseParams) else ResponseParams()
        in_conversation = params.conversation != "none"
        self._check_response(params, in_conversation=in_conversation)
        config = self.config
        limit = config.max_output_tokens if params.max_output_tokens is None else params.max_output_tokens
        tools = config.tools if params.tools is None else params.tools
        choice = config.tool_choice if params.tool_choice is None else params.tool_choice
        _check_choice(choice, tools, "response.tool_choice")
        prompt = Prompt(
            response_id=self._new_id("resp_"),
            session_id=self._meta.session_id,
            instructions=config.instructions if params.instructions is None else params.instructions,
            items=self._prompt_items() if params.input is None else self._given_items(params.input),
            tools=() if choice == "none" else tools,
            tool_choice=choice,
            max_output_tokens=None if limit == "inf" else limit,
            truncation=config.truncation,
        )
        answer = Answer(
            prompt,
            conversation_id=self.conversation_id if in_conversation else None,
            turn_id=self._state.turn_id if in_conversation else None,
            max_output_tokens=limit,
            metadata=params.metadata,
            created_ms=now_ms,
        )
        self._answers[prompt.response_id] = answer
        if in_conversation:
            self._current = answer
        self._out.generate = prompt
        self._out.events.append(ResponseCreated(self._event_id(), answer.as_response("in_progress")))

    def _check_response(self, params: ResponseParams, *, in_conversation: bool) -> None:
        if in_conversation and self._current is not None:
            message = (
                f"Conversation already has an active response in progress: {self._current.response_id}. "
                "Wait until the response is finished before creating a new one."
            )
            raise BadEvent("conversation_already_has_active_response", message)
        if len(self._answers) >= self._limits.max_answers:
            message = f"At most {self._limits.max_answers} responses may be in progress; wait until one is finished."
            raise BadEvent("rate_limit_exceeded", message, type="rate_limit_error")
        check_max_output_tokens(params.max_output_tokens, "response.max_output_tokens")
        check_tools(params.tools, "response.tools")
        self._check_instructions(params.instructions or "", "response.instructions")
        _check_metadata(params.metadata)

    def _cancel(self, event: incoming.ResponseCancel, now_ms: int) -> None:
        answer = self._current if event.response_id is None else self._answers.get(event.response_id)
        if answer is None:
            raise BadEvent("response_cancel_not_active", "Cancellation failed: no active response found")
        self._out.aborts.append(answer.response_id)
        self._finish(answer, "cancelled", StatusDetails("cancelled", "client_cancelled"), now_ms)

    def _cancel_all(self, now_ms: int, *, reason: str) -> None:
        for answer in list(self._answers.values()):
            self._out.aborts.append(answer.response_id)
            self._finish(answer, "cancelled", StatusDetails("cancelled", "client_cancelled"), now_ms, reason=reason)

    def _require_item(self, item_id: str, code: str) -> Item:
        found = self._timeline.get(item_id)
        if found is None:
            raise BadEvent(code, f"Item with id {item_id[:64]!r} not found.", "item_id")
        return found

    def _check_instructions(self, text: str, param: str) -> None:
        if len(text) > self._limits.max_instructions_chars:
            message = f"Expected at most {self._limits.max_instructions_chars} characters, got {len(text)}."
            raise BadEvent("string_above_max_length", message, param)

    def _prompt_items(self) -> tuple[Item, ...]:
        return tuple(item for item in self._timeline if _is_settled(item))

    def _given_items(self, given: tuple[incoming.NewInput, ...]) -> tuple[Item, ...]:
        items: list[Item] = []
        for index, entry in enumerate(given):
            param = f"response.input[{index}]"
            if isinstance(entry, incoming.ItemReference):
                found = self._timeline.get(entry.id)
                if found is None:
                    raise BadEvent("invalid_value", f"Item with id {entry.id[:64]!r} not found.", f"{param}.id")
                items.append(found)
            else:
                items.append(make_item(entry, new_id=self._new_id, param=param, max_chars=self._limits.max_item_chars))
        return tuple(items)

    # Answers

    def _begin_message(self, answer: Answer) -> OpenMessage:
        self._close_output(answer, "completed")
        message = OpenMessage(self._new_id("item_"), len(answer.done))
        answer.open = message
        self._add_output(answer, message)
        self._out.events.append(
            ContentPartAdded(
                self._event_id(), answer.response_id, message.item_id, message.output_index, 0, TextPart("")
            )
        )
        return message

    def _advance_call(self, answer: Answer, delta: ToolCallDelta) -> None:
        call = answer.open
        if type(call) is not OpenCall or call.index != delta.index:
            self._close_output(answer, "completed")
            call = OpenCall(
                self._new_id("item_"),
                len(answer.done),
                index=delta.index,
                call_id=self._new_id("call_"),
                name=delta.name or "",
            )
            answer.open = call
            self._add_output(answer, call)
        if delta.arguments:
            call.parts.append(delta.arguments)
            self._out.events.append(
                FunctionCallArgumentsDelta(
                    self._event_id(), answer.response_id, call.item_id, call.output_index, call.call_id, delta.arguments
                )
            )

    def _add_output(self, answer: Answer, output: OpenMessage | OpenCall) -> None:
        item = output.item("in_progress")
        self._out.events.append(OutputItemAdded(self._event_id(), answer.response_id, output.output_index, item))
        if answer.in_conversation:
            previous = self._timeline.last_id()
            self._timeline.append(item)
            self._out.events.append(ItemAdded(self._event_id(), previous, item))

    def _close_output(self, answer: Answer, status: str) -> None:
        output = answer.open
        if output is None:
            return
        answer.open = None
        match output:
            case OpenMessage():
                self._close_message(answer, output)
            case OpenCall():
                self._out.events.append(
                    FunctionCallArgumentsDone(
                        self._event_id(),
                        answer.response_id,
                        output.item_id,
                        output.output_index,
                        output.call_id,
                        output.name,
                        output.arguments(),
                    )
                )
            case _:
                assert_never(output)
        item = output.item("completed" if status == "completed" else "incomplete")
        answer.done.append(item)
        begun = self._timeline.get(item.id) if answer.in_conversation else None
        # A completed one is the client's own: it deleted the answer's and wrote what was heard in its place.
        if begun is not None and begun.status == "in_progress":
            self._out.saved_items += self._timeline.replace(item)
            self._out.events.append(ItemDone(self._event_id(), self._timeline.previous_id(item.id), item))
        self._out.events.append(OutputItemDone(self._event_id(), answer.response_id, output.output_index, item))

    def _close_message(self, answer: Answer, message: OpenMessage) -> None:
        text = message.text()
        response_id, item_id, index = answer.response_id, message.item_id, message.output_index
        self._out.events.append(OutputTextDone(self._event_id(), response_id, item_id, index, 0, text))
        self._out.events.append(ContentPartDone(self._event_id(), response_id, item_id, index, 0, TextPart(text)))

    def _finish(
        self,
        answer: Answer,
        status: PredictionStatus,
        details: StatusDetails | None,
        now_ms: int,
        *,
        reason: str | None = None,
    ) -> None:
        self._close_output(answer, status)
        del self._answers[answer.response_id]
        if answer is self._current:
            self._current = None
        self._out.events.append(ResponseDone(self._event_id(), answer.as_response(status, details)))
        error = details.error if details else None
        usage = answer.final_usage()
        self._out.records.append(
            PredictionRecord(
                response_id=answer.response_id,
                session_id=self._meta.session_id,
                sequence=self.next_sequence - 1,
                turn_id=answer.turn_id,
                model=self.config.model,
                model_version=self._model_version,
                status=status,
                status_reason=reason or (details.reason if details else None) or (error.code if error else None),
                text="".join(item.text for item in answer.done if isinstance(item, MessageItem)),
                output=msgspec.Raw(_state_encoder.encode(answer.done)),
                request=msgspec.Raw(_state_encoder.encode(answer.request())),
                input_tokens=usage.input_tokens if usage else 0,
                output_tokens=usage.output_tokens if usage else answer.num_tokens,
                cached_tokens=usage.cached_tokens if usage else 0,
                created_ms=answer.created_ms,
                first_token_ms=answer.first_token_ms,
                done_ms=now_ms,
                error=error.message if error else None,
            )
        )

    # Output

    def _begin(self) -> Effects:
        self._out = Effects()
        return self._out

    def _event_id(self) -> str:
        sequence = self.next_sequence
        self.next_sequence = sequence + 1
        return f"{self._event_prefix}{sequence}"

    def _emit_error(self, error: WireError) -> None:
        self._out.events.append(ErrorEvent(self._event_id(), error))

    def _save_state(self) -> None:
        self._out.state = encode_state(self._state)

    def _session_object(self) -> SessionObject:
        return session_object(self.config, session_id=self._meta.session_id, expires_at=self.expires_at)

    def _record_session(self, status: SessionStatus, now_ms: int) -> None:
        meta = self._meta
        self._out.records.append(
            SessionRecord(
                session_id=meta.session_id,
                sequence=self.next_sequence - 1,
                user_id=meta.user_id,
                client_id=meta.client_id,
                model=meta.model,
                status=status,
                created_ms=meta.created_ms,
                updated_ms=now_ms,
                ended_ms=now_ms if status == "ended" else None,
            )
        )


def _is_settled(item: Item) -> bool:
    """Whether an item belongs in a prompt: an answer in progress does not, nor a call whose arguments were cut off."""
    return item.status == "completed" or (item.status == "incomplete" and not isinstance(item, FunctionCallItem))


def _check_choice(choice: ToolChoice, tools: tuple[FunctionTool, ...], param: str) -> None:
    if isinstance(choice, FunctionChoice) and all(tool.name != choice.name for tool in tools):
        raise BadEvent("invalid_value", f"No tool is named {choice.name[:64]!r}.", f"{param}.name")


def _check_metadata(metadata: dict[str, str] | None) -> None:
    if not metadata:
        return
    if len(metadata) > 16:
        raise BadEvent("invalid_value", "At most 16 metadata pairs are kept.", "response.metadata")
    for key, value in metadata.items():
        if len(key) > 64 or len(value) > 512:
            message = "Metadata keys have at most 64 characters and values 512."
            raise BadEvent("string_above_max_length", message, "response.metadata")
