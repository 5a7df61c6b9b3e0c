"""The dialogue: a pure state machine. Client events and engine chunks in, effects out; no clock, no I/O, no tasks.

Time and ids are passed in, so that any schedule can be replayed. Every method that takes an input returns its `Effects`; the caller
commits and applies them in the order of the calls. A chunk of a response that has ended, by a cancel for instance, has no effects.
"""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Literal, Self, assert_never

from sessions import client_events as incoming
from sessions import recovery, resume
from sessions.answer import OpenMessage
from sessions.answering import CLIENT_CANCELLED, Answering, Interrupt
from sessions.client_events import ClientEvent, RefusedEvent, ResponseParams
from sessions.config import SessionConfig, check_size, merge, parse_session_patch
from sessions.conversation import Conversation, check_length
from sessions.draft import Draft
from sessions.effects import Close, Effects
from sessions.feedback import Feedback
from sessions.generation import Chunk, Prompt
from sessions.items import Item
from sessions.limits import DialogueLimits
from sessions.listener import Listener
from sessions.new_items import NewId
from sessions.prompts import check_choice, check_instructions, make_answer, plan_response
from sessions.ratings import Ratings
from sessions.records import ArchiveRecord, SessionStatus, session_record
from sessions.server_events import (
    ErrorEvent,
    FailureDetail,
    InputAudioCleared,
    ItemRetrieved,
    OutputTextDelta,
    ResumptionOutcome,
    ServerEvent,
    SessionCreated,
    SessionObject,
    SessionUpdated,
    session_object,
)
from sessions.state import DialogueState, decode_state, encode_state
from sessions.store import LoadedSession, PlacedItem, SessionMeta
from sessions.timeline import Timeline
from sessions.wire_errors import BadEvent, WireError

EndReason = Literal["disconnected", "client_closed"]

_DEFAULT_LIMITS = DialogueLimits()
_NO_EFFECTS = Effects()


class Dialogue:
    """One session's dialogue. `expires_at` is when the session ends, in seconds since the epoch."""

    __slots__ = (
        "_answering",
        "_answers",
        "_broken",
        "_conversation",
        "_draft",
        "_has_ended",
        "_limits",
        "_listener",
        "_meta",
        "_new_id",
        "_ratings",
        "_timeline",
        "config",
        "conversation_id",
        "expires_at",
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
        ulid = meta.session_id.removeprefix("sess_")
        self.config: SessionConfig = state.config
        self.conversation_id = f"conv_{ulid}"
        self.expires_at = expires_at
        self._meta = meta
        self._new_id = new_id
        self._limits = limits
        self._has_ended = state.has_ended
        self._timeline = Timeline(items)
        self._listener = Listener(state.listener)
        self._draft = Draft(f"event_{ulid}_", next_sequence)
        self._answering = Answering(
            self._draft,
            self._timeline,
            self._listener,
            new_id=new_id,
            model=state.config.model,
            model_version=model_version,
            persona=meta.client_id,
            max_prompt_bytes=limits.max_prompt_bytes,
        )
        self._conversation = Conversation(
            self._draft,
            self._timeline,
            self._answering,
            self._listener,
            session_id=meta.session_id,
            new_id=new_id,
            limits=limits,
            turn_id=state.turn_id,
            num_turns=state.num_turns,
        )
        self._ratings = Ratings(
            self._draft,
            self._timeline,
            self._answering,
            self._listener,
            meta=meta,
            limits=limits,
            is_asked=state.rates or state.config.avatar is not None,
        )
        self._answers = self._answering.open
        self._broken: AbstractSet[str] = frozenset()
        for answer in recovery.load_answers(state, self._timeline, meta.session_id, self.conversation_id):
            self._answering.add(answer)

    @classmethod
    def restore(
        cls,
        loaded: LoadedSession,
        events: Sequence[bytes],
        *,
        new_id: NewId,
        expires_at: int,
        model_version: str = "",
        limits: DialogueLimits = _DEFAULT_LIMITS,
    ) -> Self:
        """The dialogue as it was committed. `events` end the journal and begin no later than `DialogueState.first_open_sequence`.

        Its answers go on with the prompts of `unfinished`; those in `broken` cannot, since events are missing: they are to be failed.
        """
        state = decode_state(loaded.config)
        dialogue = cls(
            loaded.meta,
            state,
            new_id=new_id,
            expires_at=expires_at,
            model_version=model_version,
            items=loaded.items,
            next_sequence=loaded.next_sequence,
            limits=limits,
        )
        dialogue._broken = recovery.catch_up(
            dialogue._answers,
            state.answers,
            events,
            first_sequence=loaded.next_sequence - len(events),
            event_prefix=dialogue._draft.event_prefix,
        )
        return dialogue

    @property
    def next_sequence(self) -> int:
        """The number of the next event."""
        return self._draft.next_sequence

    @property
    def items(self) -> tuple[Item, ...]:
        """The dialogue's items in order."""
        return tuple(self._timeline)

    @property
    def placed_items(self) -> tuple[PlacedItem, ...]:
        """The items with their places, as a store holds them."""
        return self._timeline.placed

    @property
    def num_answers(self) -> int:
        """Responses that have begun and not ended."""
        return len(self._answers)

    @property
    def first_open_sequence(self) -> int | None:
        """The number of the earliest open response's response.created; None when none is open."""
        return min((answer.first_sequence for answer in self._answers.values()), default=None)

    @property
    def broken(self) -> tuple[str, ...]:
        """Ids of open responses that cannot be continued."""
        return tuple(response_id for response_id in self._answers if response_id in self._broken)

    def encoded_state(self) -> bytes:
        """All that a store keeps of the dialogue besides its items, up to the last event."""
        answers = recovery.save_answers(self._answers.values(), self.config, self._timeline, self._draft.next_sequence)
        state = DialogueState(
            config=self.config,
            turn_id=self._conversation.turn_id,
            num_turns=self._conversation.num_turns,
            answers=answers,
            listener=self._listener.state(),
            has_ended=self._has_ended,
            rates=self._ratings.is_asked,
        )
        return encode_state(state)

    # A client comes, goes and comes back

    def open(self, now_ms: int) -> Effects:
        """The session begins."""
        self._draft.begin()
        self._draft.changed()
        self._draft.emit(SessionCreated, self._session_object())
        self._record_session("active", now_ms)
        return self._effects()

    def detach(self, now_ms: int) -> Effects:
        """The connection is lost, though the session goes on: what is generated from here on reaches nobody yet."""
        if not self._listener.is_attached:
            return _NO_EFFECTS
        self._draft.begin()
        self._draft.changed()
        self._listener.detach(self._answers.values())
        return self._effects()

    def attach(self, now_ms: int) -> Effects:
        """A client is back, and is given what `greeting` says and the journal after it."""
        out = self._draft.begin()
        if not self._listener.is_attached:
            self._draft.changed()
            session_id, sequence = self._meta.session_id, self._draft.next_sequence - 1
            out.records += self._listener.attach(
                self._answers.values(), session_id=session_id, sequence=sequence, now_ms=now_ms
            )
        if self._has_ended:
            self._has_ended = False
            self._record_session("active", now_ms)
        self._ratings.tell_untold()
        return self._effects()

    def greeting(self, *, resumed: bool, gap: bool) -> list[ServerEvent]:
        """What a resumed connection begins with, none of it journaled; with a gap, the history. `after_gap` says what follows that."""
        session = self._session_object(ResumptionOutcome(resumed=resumed, gap=gap))
        history = (
            resume.history(self._timeline, self._answers.values(), self._ratings, new_id=self._new_id) if gap else []
        )
        return [SessionCreated(self._new_id("event_"), session), *history]

    def after_gap(self, events: Sequence[bytes], first_sequence: int) -> list[tuple[int, bytes]]:
        """Of the journaled events, numbered from `first_sequence`, those that follow a greeting with a gap, with their numbers.

        They must begin no later than `first_open_sequence` and end with the journal.
        """
        return resume.select_events(events, first_sequence, self._answers.values(), self._timeline)

    def expire(self, now_ms: int, *, code: int, reason: str) -> Effects:
        """The session's or the token's time is over: answers end with it, or else they could hold the session open."""
        out = self._draft.begin()
        self._answering.cancel_all(now_ms, reason="expired")
        self._draft.emit(ErrorEvent, WireError("invalid_request_error", "session_expired", reason))
        out.close = Close(code, reason)
        return self._effects()

    def end(self, now_ms: int, reason: EndReason = "disconnected", *, forgotten_sequence: int = 0) -> Effects:
        """The client is gone: answers are cancelled, the session is over, idle if it may be resumed, and its journal is to be archived.

        The journal holds nothing up to `forgotten_sequence`.
        """
        out = self._draft.begin()
        self._draft.changed()
        self._answering.cancel_all(now_ms, reason=reason)
        self._listener.detach(())
        self._has_ended = True
        resumption = self.config.resumption
        self._record_session("idle" if resumption is not None and resumption.enabled else "ended", now_ms)
        last = self._draft.next_sequence - 1
        out.records.append(
            ArchiveRecord(
                self._meta.session_id,
                last,
                self._meta.created_ms,
                last_sequence=last,
                final=True,
                forgotten_sequence=forgotten_sequence,
            )
        )
        out.ends = True
        return self._effects()

    # What the client says

    def receive(self, event: ClientEvent, now_ms: int) -> Effects:
        """A client's event; a mistake in it is answered by an `error` event and changes nothing."""
        self._draft.begin()
        try:
            self._dispatch(event, now_ms)
        except BadEvent as mistake:
            self._draft.emit(ErrorEvent, mistake.as_wire_error(event.event_id))
        return self._effects()

    def check_rating(self, item_id: str, feedback: Feedback) -> None:
        """`BadEvent` when `rate` would refuse it."""
        self._ratings.check(item_id, feedback)

    def rate(self, item_id: str, feedback: Feedback, now_ms: int) -> tuple[Feedback, Effects]:
        """What the user chose by another way than the connection; what holds now. `BadEvent`, and no effects, where it cannot be taken."""
        self._draft.begin()
        current = self._ratings.add(item_id, feedback, now_ms)
        return current, self._effects()

    def refuse(self, refused: RefusedEvent) -> Effects:
        """A frame that was no event of the protocol."""
        return self.report(refused.reason.as_wire_error(refused.event_id))

    def report(self, error: WireError) -> Effects:
        """Tell the client of a failure; the session goes on."""
        self._draft.begin()
        self._draft.emit(ErrorEvent, error)
        return self._effects()

    def tell_update(self) -> Effects:
        """Tell the client of the configuration as it is, in answer to an update that changed something else."""
        self._draft.begin()
        self._draft.emit(SessionUpdated, self._session_object())
        return self._effects()

    # What the engine says

    def unfinished(self) -> list[Prompt]:
        """Prompts to go on with the answers that are open and can be continued."""
        return [
            recovery.continuation(answer)
            for response_id, answer in self._answers.items()
            if response_id not in self._broken
        ]

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
        draft = self._draft
        sequence = draft.next_sequence
        draft.next_sequence = sequence + 1
        event_id = f"{draft.event_prefix}{sequence}"
        return OutputTextDelta(event_id, response_id, message.item_id, message.output_index, 0, chunk.text)

    def advance(self, response_id: str, chunk: Chunk, now_ms: int) -> Effects:
        """What the engine produced for a response."""
        answer = self._answers.get(response_id)
        if answer is None:
            return _NO_EFFECTS
        self._draft.begin()
        self._answering.advance(answer, chunk, now_ms)
        return self._effects()

    def fail(self, response_id: str, *, code: str, message: str, now_ms: int) -> Effects:
        """The engine could not finish a response."""
        answer = self._answers.get(response_id)
        if answer is None:
            return _NO_EFFECTS
        self._draft.begin()
        self._answering.fail(answer, FailureDetail("server_error", code, message), now_ms)
        return self._effects()

    # Client events

    def _dispatch(self, event: ClientEvent, now_ms: int) -> None:
        draft, conversation = self._draft, self._conversation
        match event:
            case incoming.SessionUpdate():
                self._update(event)
            case incoming.ItemCreate():
                conversation.create(event, now_ms, interrupt=self._interrupt)
            case incoming.ItemRetrieve():
                draft.emit(ItemRetrieved, conversation.require(event.item_id, "item_retrieve_invalid_item_id"))
            case incoming.ItemDelete():
                conversation.delete(event)
            case incoming.ItemTruncate():
                conversation.require(event.item_id, "item_truncate_invalid_item_id")
                raise BadEvent(
                    "unsupported_content_type", "Only model output audio messages can be truncated", "item_id"
                )
            case incoming.AvatarItemTruncate():
                conversation.truncate(event, now_ms)
            case incoming.FeedbackCreate():
                self._ratings.create(event, now_ms)
            case incoming.FeedbackDelete():
                self._ratings.delete(event, now_ms)
            case incoming.ResponseCreate():
                self._create_response(event, now_ms)
            case incoming.ResponseCancel():
                self._cancel(event, now_ms)
            case incoming.InputAudioClear():
                draft.emit(InputAudioCleared)
            case incoming.InputAudioCommit():
                message = "Error committing input audio buffer: the buffer is empty; this server takes text."
                raise BadEvent("input_audio_buffer_commit_empty", message)
            case incoming.InputAudioAppend() | incoming.OutputAudioClear():
                pass
            case _:
                assert_never(event)

    def _update(self, event: incoming.SessionUpdate) -> None:
        config = merge(self.config, parse_session_patch(event.session))
        check_instructions(config.instructions, self._limits, "session.instructions")
        check_choice(config.tool_choice, config.tools, "session.tool_choice")
        check_size(config, self._limits)
        self.config = config
        self._ratings.is_asked |= config.avatar is not None
        self._draft.changed()
        self._draft.emit(SessionUpdated, self._session_object())

    def _create_response(self, event: incoming.ResponseCreate, now_ms: int) -> None:
        params = event.response if isinstance(event.response, ResponseParams) else ResponseParams()
        in_conversation = params.conversation != "none"
        self._answering.check_room(self._limits.max_answers, in_conversation=in_conversation, interrupt=self._interrupt)
        if in_conversation:
            check_length(self._timeline, self._limits, None)
        plan = plan_response(params, self.config, self._timeline, limits=self._limits, new_id=self._new_id)
        if in_conversation:
            # Nothing can be refused from here on, so that what cancels an answer also brings the next.
            self._answering.make_way(self._interrupt, now_ms)
        answer = make_answer(
            plan,
            self._timeline,
            response_id=self._new_id("resp_"),
            session_id=self._meta.session_id,
            conversation_id=self.conversation_id,
            turn_id=self._conversation.turn_id,
            created_ms=now_ms,
            first_sequence=self._draft.next_sequence,
        )
        self._answering.begin(answer)

    def _cancel(self, event: incoming.ResponseCancel, now_ms: int) -> None:
        current = self._answering.current
        answer = current if event.response_id is None else self._answers.get(event.response_id)
        if answer is None:
            raise BadEvent("response_cancel_not_active", "Cancellation failed: no active response found")
        self._answering.cancel(answer, CLIENT_CANCELLED, now_ms)

    @property
    def _interrupt(self) -> Interrupt:
        return self.config.avatar.interrupt if self.config.avatar else None

    # Output

    def _effects(self) -> Effects:
        return self._draft.finish(self.encoded_state)

    def _session_object(self, outcome: ResumptionOutcome | None = None) -> SessionObject:
        return session_object(
            self.config, session_id=self._meta.session_id, expires_at=self.expires_at, outcome=outcome
        )

    def _record_session(self, status: SessionStatus, now_ms: int) -> None:
        sequence = self._draft.next_sequence - 1
        self._draft.effects.records.append(session_record(self._meta, status, sequence=sequence, now_ms=now_ms))
