"""What an answer makes of its chunks: its events in the order of the live API, its items in the dialogue, its record at the end."""

from typing import Literal, NoReturn, assert_never

from msgspec import structs

from sessions.answer import Answer, OpenCall, OpenMessage
from sessions.draft import Draft
from sessions.generation import Chunk, ToolCallDelta
from sessions.items import Item
from sessions.limits import MAX_PROMPT_BYTES
from sessions.listener import Listener
from sessions.new_items import NewId
from sessions.records import PredictionStatus
from sessions.repetition import AnswerDiffers
from sessions.server_events import (
    ContentPartAdded,
    ContentPartDone,
    FailureDetail,
    FunctionCallArgumentsDelta,
    FunctionCallArgumentsDone,
    ItemAdded,
    ItemDone,
    OutputItemAdded,
    OutputItemDone,
    OutputTextDelta,
    OutputTextDone,
    ResponseCreated,
    ResponseDone,
    StatusDetails,
    TextPart,
)
from sessions.timeline import Timeline
from sessions.wire_errors import BadEvent

Interrupt = Literal["cancel", "refuse"] | None

CLIENT_CANCELLED = StatusDetails("cancelled", "client_cancelled")
TURN_DETECTED = StatusDetails("cancelled", "turn_detected")
_DIFFERS = StatusDetails(
    "failed",
    error=FailureDetail("server_error", "server_error", "The answer could not be continued after an interruption."),
)


class Answering:
    """The responses of one dialogue that have begun and not ended. `current` is the conversation's own, of which there is one at most."""

    __slots__ = (
        "_draft",
        "_listener",
        "_max_prompt_bytes",
        "_model",
        "_model_version",
        "_new_id",
        "_persona",
        "_timeline",
        "current",
        "open",
    )

    def __init__(
        self,
        draft: Draft,
        timeline: Timeline,
        listener: Listener,
        *,
        new_id: NewId,
        model: str,
        model_version: str,
        persona: str = "",
        max_prompt_bytes: int = MAX_PROMPT_BYTES,
    ) -> None:
        self._draft = draft
        self._timeline = timeline
        self._listener = listener
        self._new_id = new_id
        self._model = model
        self._model_version = model_version
        self._persona = persona
        self._max_prompt_bytes = max_prompt_bytes
        self.open: dict[str, Answer] = {}
        self.current: Answer | None = None

    def add(self, answer: Answer) -> None:
        """The answer has begun."""
        self.open[answer.response_id] = answer
        if answer.in_conversation:
            self.current = answer

    def check_room(self, max_answers: int, *, in_conversation: bool, interrupt: Interrupt) -> None:
        """`BadEvent` when no further response may begin, not even in place of the one that it would cancel."""
        in_its_place = in_conversation and self.current is not None
        if in_its_place and interrupt != "cancel":
            self._refuse_second()
        if len(self.open) - in_its_place >= max_answers:
            message = f"At most {max_answers} responses may be in progress; wait until one is finished."
            raise BadEvent("rate_limit_exceeded", message, type="rate_limit_error")

    def make_way(self, interrupt: Interrupt, now_ms: int) -> None:
        """The user goes on: cancel the conversation's answer, or `BadEvent`, or leave it, as the session has it."""
        if self.current is None or interrupt is None:
            return
        if interrupt == "refuse":
            self._refuse_second()
        self.cancel(self.current, TURN_DETECTED, now_ms)

    def of_item(self, item: Item) -> Answer | None:
        """The answer in progress that the dialogue's item belongs to."""
        for answer in self.open.values():
            unfinished = answer.unfinished
            is_unfinished = unfinished is not None and unfinished.item_id == item.id and item.status == "in_progress"
            if is_unfinished or any(item is done for done in answer.done):
                return answer
        return None

    def begin(self, answer: Answer) -> None:
        """The answer begins."""
        self.add(answer)
        self._draft.changed()
        self._draft.effects.generate = answer.prompt
        self._draft.emit(ResponseCreated, answer.as_response("in_progress"))

    def advance(self, answer: Answer, chunk: Chunk, now_ms: int) -> None:
        """What the engine produced for an answer."""
        if answer.first_token_ms is None and chunk.num_tokens:
            answer.first_token_ms = now_ms
        if chunk.usage is not None:
            answer.usage = chunk.usage
        if chunk.origin is not None:
            answer.told(chunk.origin, self._max_prompt_bytes)
        if chunk.text and (num_first := answer.num_continued(chunk.tool_calls)):
            # The end of a call and the text after it: text first would cut the call in two.
            self.advance(answer, Chunk(num_tokens=chunk.num_tokens, tool_calls=chunk.tool_calls[:num_first]), now_ms)
            if answer.response_id not in self.open:
                return
            chunk = structs.replace(chunk, num_tokens=0, tool_calls=chunk.tool_calls[num_first:])
        if answer.repetition is not None:
            try:
                chunk = answer.repetition.take(chunk)
            except AnswerDiffers:
                self._draft.effects.aborts.append(answer.response_id)
                self._finish(answer, "failed", _DIFFERS, now_ms)
                return
            if answer.repetition.is_over:
                answer.end_repetition()
        answer.num_tokens += chunk.num_tokens
        if chunk.text:
            self._say(answer, chunk.text)
        for delta in chunk.tool_calls:
            self._call(answer, delta)
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

    def fail(self, answer: Answer, failure: FailureDetail, now_ms: int) -> None:
        """The engine could not finish an answer."""
        self._finish(answer, "failed", StatusDetails("failed", error=failure), now_ms)

    def cancel(self, answer: Answer, details: StatusDetails, now_ms: int, *, reason: str | None = None) -> None:
        """Stop an answer; `reason` where the record is to say more than the wire."""
        self._draft.effects.aborts.append(answer.response_id)
        self._finish(answer, "cancelled", details, now_ms, reason=reason)

    def cancel_all(self, now_ms: int, *, reason: str) -> None:
        """Stop every answer."""
        for answer in list(self.open.values()):
            self.cancel(answer, CLIENT_CANCELLED, now_ms, reason=reason)

    def _refuse_second(self) -> NoReturn:
        active = self.current.response_id if self.current else None
        message = (
            f"Conversation already has an active response in progress: {active}. "
            "Wait until the response is finished before creating a new one."
        )
        raise BadEvent("conversation_already_has_active_response", message)

    def _say(self, answer: Answer, text: str) -> None:
        draft, message = self._draft, answer.open
        if type(message) is not OpenMessage:
            message = self._begin_message(answer)
        message.parts.append(text)
        draft.emit(OutputTextDelta, answer.response_id, message.item_id, message.output_index, 0, text)

    def _begin_message(self, answer: Answer) -> OpenMessage:
        draft = self._draft
        self._close_output(answer, "completed")
        message = OpenMessage(self._new_id("item_"), len(answer.done))
        self._add_output(answer, message)
        part = TextPart("")
        draft.emit(ContentPartAdded, answer.response_id, message.item_id, message.output_index, 0, part)
        return message

    def _call(self, answer: Answer, delta: ToolCallDelta) -> None:
        draft, call = self._draft, answer.open
        if type(call) is not OpenCall or call.index != delta.index:
            self._close_output(answer, "completed")
            call = OpenCall(
                self._new_id("item_"),
                len(answer.done),
                index=delta.index,
                call_id=self._new_id("call_"),
                name=delta.name or "",
            )
            self._add_output(answer, call)
        if delta.arguments:
            call.parts.append(delta.arguments)
            draft.emit(
                FunctionCallArgumentsDelta,
                answer.response_id,
                call.item_id,
                call.output_index,
                call.call_id,
                delta.arguments,
            )

    def _add_output(self, answer: Answer, output: OpenMessage | OpenCall) -> None:
        draft, item = self._draft, output.item("in_progress")
        answer.open = output
        draft.changed()
        draft.emit(OutputItemAdded, answer.response_id, output.output_index, item)
        if answer.in_conversation:
            previous = self._timeline.last_id()
            # Saved though it is empty: its place is known here only.
            draft.effects.saved_items += self._timeline.append(item)
            draft.emit(ItemAdded, previous, item)

    def _close_output(self, answer: Answer, status: PredictionStatus) -> None:
        draft, output = self._draft, answer.open
        if output is None:
            return
        answer.open = None
        match output:
            case OpenMessage():
                self._close_message(answer, output)
            case OpenCall():
                self._close_call(answer, output)
            case _:
                assert_never(output)
        item = output.item("completed" if status == "completed" else "incomplete")
        answer.done.append(item)
        begun = self._timeline.get(item.id) if answer.in_conversation else None
        # A completed one is the client's own: it deleted the answer's and wrote what was heard in its place.
        if begun is not None and begun.status == "in_progress":
            draft.effects.saved_items += self._timeline.replace(item)
            draft.emit(ItemDone, self._timeline.previous_id(item.id), item)
        draft.emit(OutputItemDone, answer.response_id, output.output_index, item)

    def _close_message(self, answer: Answer, message: OpenMessage) -> None:
        draft, text = self._draft, message.text()
        response_id, item_id, index = answer.response_id, message.item_id, message.output_index
        draft.emit(OutputTextDone, response_id, item_id, index, 0, text)
        draft.emit(ContentPartDone, response_id, item_id, index, 0, TextPart(text))

    def _close_call(self, answer: Answer, call: OpenCall) -> None:
        draft = self._draft
        draft.emit(
            FunctionCallArgumentsDone,
            answer.response_id,
            call.item_id,
            call.output_index,
            call.call_id,
            call.name,
            call.arguments(),
        )

    def _finish(
        self,
        answer: Answer,
        status: PredictionStatus,
        details: StatusDetails | None,
        now_ms: int,
        *,
        reason: str | None = None,
    ) -> None:
        draft = self._draft
        answer.end_repetition()
        self._close_output(answer, status)
        del self.open[answer.response_id]
        if answer is self.current:
            self.current = None
        draft.changed()
        draft.emit(ResponseDone, answer.as_response(status, details))
        draft.effects.records.append(
            answer.as_prediction(
                status,
                details,
                reason=reason,
                sequence=draft.next_sequence - 1,
                model=self._model,
                model_version=self._model_version,
                persona=self._persona,
                done_ms=now_ms,
            )
        )
        self._listener.ended(answer, self._timeline)
