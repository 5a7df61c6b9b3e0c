"""The live sessions of one process: each dialogue with its connection, its running answers and its place in the journal.

Order is the order of calls on the event loop: a client's frame and an engine's chunk are both handed to the dialogue in one synchronous
call, whose effects go to the journal before anything else can happen. So there is no inbox to lock or to drain; backpressure is `room`.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Protocol

import structlog

from engine.base import Engine, EngineError, EngineOverloaded, PromptTooLong
from server.identifiers import new_id
from sessions.client_events import RefusedEvent, ResponseCreate, decode_client_event
from sessions.config import SessionConfig
from sessions.dialogue import Dialogue, DialogueLimits, DialogueState
from sessions.effects import Close, Effects
from sessions.generation import Prompt
from sessions.journal import Journal
from sessions.server_events import with_sequence_number
from sessions.store import Append, AppendStatus, SessionMeta, Store
from sessions.wire_errors import BadEvent, WireError

_log = structlog.get_logger(__name__)

_MAX_UNCOMMITTED_EVENTS = 256
CLOSE_RESTARTING = 1012
_CLOSING = BadEvent("server_error", "The session is closing; connect again.", type="server_error")


class Connection(Protocol):
    """Where a session's events are sent."""

    @property
    def is_congested(self) -> bool:
        """Whether so much is unsent that answers should wait."""

    def send_texts(self, payloads: list[bytes]) -> None:
        """Send each payload as one text message, or drop all when closing."""

    def close(self, code: int, reason: str) -> None:
        """Start the closing handshake."""


class _Gone:
    """The connection of a session that has none any more."""

    is_congested = False

    def send_texts(self, payloads: list[bytes]) -> None:
        """Nobody is there; the journal has it."""

    def close(self, code: int, reason: str) -> None:
        """It is closed."""


_GONE = _Gone()


class NodeLimits(Protocol):
    """The bounds of a node and its sessions; `server.settings.Settings` has them."""

    @property
    def max_sessions(self) -> int: ...
    @property
    def max_session_s(self) -> float: ...
    @property
    def max_items(self) -> int: ...
    @property
    def max_responses_per_session(self) -> int: ...
    @property
    def max_instructions_chars(self) -> int: ...
    @property
    def max_item_chars(self) -> int: ...


class NodeFull(Exception):
    """The node has as many sessions as it may, or takes no more since it stops."""


class LiveSession:
    """One session on this node: applies its dialogue's effects and delivers what was committed."""

    __slots__ = (
        "_answers",
        "_close",
        "_connection",
        "_dialogue",
        "_expiry",
        "_is_numbered",
        "_node",
        "_num_uncommitted",
        "_room",
        "epoch",
        "on_room",
        "session_id",
    )

    def __init__(
        self, node: "Node", dialogue: Dialogue, *, session_id: str, epoch: int, connection: Connection
    ) -> None:
        self._node = node
        self._dialogue = dialogue
        self._connection = connection
        self._answers: dict[str, asyncio.Task[None]] | None = None
        self._num_uncommitted = 0
        self._room: asyncio.Event | None = None
        self._close: Close | None = None
        self._is_numbered = False
        self._expiry: asyncio.TimerHandle | None = None
        self.session_id = session_id
        self.epoch = epoch
        # Called once, after the next commit; who waits for room then looks again.
        self.on_room: Callable[[], None] | None = None

    @property
    def has_room(self) -> bool:
        """Whether few enough events wait for their commit; when not, whoever makes more waits for `room` or `on_room`."""
        return self._num_uncommitted <= _MAX_UNCOMMITTED_EVENTS

    @property
    def is_answering(self) -> bool:
        """Whether an answer is in progress."""
        return self._dialogue.num_answers > 0

    def begin(self) -> None:
        """The session's first event."""
        self._apply(self._dialogue.open(self._node.now_ms()))

    def expire_at(self, when_s: float, *, code: int, reason: str) -> None:
        """Close the connection at that time of the event loop's clock."""
        if self._expiry is not None:
            self._expiry.cancel()
        loop = asyncio.get_running_loop()
        self._expiry = loop.call_at(when_s, self._expire, Close(code, reason))

    def receive(self, frame: str) -> None:
        """A client's frame."""
        try:
            event = decode_client_event(frame)
        except RefusedEvent as refused:
            self._apply(self._dialogue.refuse(refused))
        else:
            if self._close is not None and isinstance(event, ResponseCreate):
                # Answer upon answer would keep the connection open for ever.
                self._apply(self._dialogue.report(_CLOSING.as_wire_error(event.event_id)))
                return
            self._apply(self._dialogue.receive(event, self._node.now_ms()))

    async def room(self) -> None:
        """Return when an answer may go on: the journal has room for its events and the connection is not congested."""
        while not self.has_room or self._connection.is_congested:
            if self._room is None:
                self._room = asyncio.Event()
            self._room.clear()
            await self._room.wait()

    def wake(self) -> None:
        """Let waiting answers look again whether there is room."""
        if self._room is not None:
            self._room.set()

    def reject(self, error: WireError, code: int) -> None:
        """Tell the client of a mistake that ends its connection."""
        self._apply(self._dialogue.report(error))
        self._close = Close(code, error.message)
        self._close_when_done()

    def finish(self, *, code: int, reason: str) -> None:
        """Close the connection once the answers in progress have ended, at once when there are none."""
        self._close = Close(code, reason)
        self._close_when_done()

    def cut(self, *, code: int, reason: str) -> None:
        """Close the connection and end the session now."""
        self._connection.close(code, reason)
        if self in self._node:  # unless the connection, closing, has ended it already
            self.end()

    def end(self) -> None:
        """The connection is gone and with it the session."""
        self.on_room = None
        if self._expiry is not None:
            self._expiry.cancel()
        self._connection = _GONE
        self._apply(self._dialogue.end(self._node.now_ms()))
        self._node.remove(self)

    def committed(self, part: Append) -> None:
        """Deliver what the journal holds."""
        events = part.events
        self._num_uncommitted -= len(events)
        if self._is_numbered:
            events = [with_sequence_number(event, part.first_sequence + index) for index, event in enumerate(events)]
        self._connection.send_texts(events)
        if self._room is not None:
            self._room.set()
        if self.on_room is not None:
            tell, self.on_room = self.on_room, None
            tell()
        if self._close is not None:
            self._close_when_done()

    def refused(self, status: AppendStatus) -> None:
        """Somebody else owns the session, or the store lost part of it: nothing more may be said here."""
        _log.warning("session.append_refused", session_id=self.session_id, status=status)
        self._stop_answers()
        if status == "fenced":
            self._connection.close(4001, "superseded by another connection")
        else:
            self._connection.close(1011, "the session's journal is damaged")

    def _expire(self, close: Close) -> None:
        self._apply(self._dialogue.expire(self._node.now_ms(), code=close.code, reason=close.reason))

    def _close_when_done(self) -> None:
        close = self._close
        if close is not None and self._num_uncommitted == 0 and not self.is_answering:
            self._connection.close(close.code, close.reason)

    def _apply(self, effects: Effects) -> None:
        num_events = len(effects.events)
        if num_events or effects.records:
            self._num_uncommitted += num_events
            self._node.journal.append(self, self._dialogue.next_sequence - num_events, effects)
        if effects.state is not None:
            resumption = self._dialogue.config.resumption
            self._is_numbered = resumption is not None and resumption.enabled
        if effects.generate is not None:
            self._start_answer(effects.generate)
        for response_id in effects.aborts:
            self._stop_answer(response_id)
        if effects.close is not None:
            self._close = effects.close
            self._close_when_done()

    def _start_answer(self, prompt: Prompt) -> None:
        if self._answers is None:
            self._answers = {}
        self._answers[prompt.response_id] = self._node.start(self._answer(prompt))

    def _stop_answer(self, response_id: str) -> None:
        # Cancelling the task closes the engine's generator, which aborts the request and frees its slot.
        if self._answers is not None and (task := self._answers.pop(response_id, None)) is not None:
            task.cancel()

    def _stop_answers(self) -> None:
        for response_id in tuple(self._answers or ()):
            self._stop_answer(response_id)

    async def _answer(self, prompt: Prompt) -> None:
        response_id = prompt.response_id
        node, dialogue, connection = self._node, self._dialogue, self._connection
        try:
            async with contextlib.aclosing(node.engine.generate(prompt)) as chunks:
                async for chunk in chunks:
                    if (event := dialogue.delta(response_id, chunk)) is not None:
                        self._num_uncommitted += 1
                        node.journal.append_event(self, dialogue.next_sequence - 1, event)
                    else:
                        self._apply(dialogue.advance(response_id, chunk, node.now_ms()))
                    if self._num_uncommitted > _MAX_UNCOMMITTED_EVENTS or connection.is_congested:
                        await self.room()
            self._fail(response_id, "server_error", "The engine ended the answer early.")
        except EngineError as error:
            _log.warning(
                "answer.failed", session_id=self.session_id, response_id=response_id, error=type(error).__name__
            )
            self._fail(response_id, error.code, _public_message(error))
        except Exception:
            # The one place where an engine's bug is caught: it ends this answer, not the node.
            _log.exception("answer.crashed", session_id=self.session_id, response_id=response_id)
            self._fail(response_id, "server_error", "The answer failed.")
        finally:
            if self._answers is not None:
                self._answers.pop(response_id, None)

    def _fail(self, response_id: str, code: str, message: str) -> None:
        """End the response as failed; without effect when it has ended already."""
        self._apply(self._dialogue.fail(response_id, code=code, message=message, now_ms=self._node.now_ms()))


class Node:
    """All live sessions of this process, and what they share."""

    def __init__(
        self,
        *,
        store: Store,
        journal: Journal,
        engine: Engine,
        limits: NodeLimits,
        name: str,
        model_version: str,
        now_ms: Callable[[], int],
        tasks: asyncio.TaskGroup,
    ) -> None:
        self.journal = journal
        self.engine = engine
        self.now_ms = now_ms
        self._store = store
        self._limits = limits
        self._name = name
        self._model_version = model_version
        self._tasks = tasks
        self._sessions: set[LiveSession] = set()
        self._num_opening = 0
        self._is_draining = False
        self._dialogue_limits = DialogueLimits(
            max_items=limits.max_items,
            max_answers=limits.max_responses_per_session,
            max_instructions_chars=limits.max_instructions_chars,
            max_item_chars=limits.max_item_chars,
        )

    @property
    def num_sessions(self) -> int:
        """Sessions that live here now."""
        return len(self._sessions)

    def __contains__(self, session: LiveSession) -> bool:
        return session in self._sessions

    @property
    def is_draining(self) -> bool:
        """Whether the node takes no new sessions because it stops."""
        return self._is_draining

    def check_room(self) -> None:
        """`NodeFull` when no further session may be opened here."""
        if self._is_draining:
            raise NodeFull("The server is stopping; connect again.")
        if len(self._sessions) + self._num_opening >= self._limits.max_sessions:
            raise NodeFull("The server has no room for another session; try again soon.")

    async def open(self, *, user_id: str, client_id: str, config: SessionConfig, connection: Connection) -> LiveSession:
        """A new session for this connection, to be begun; `NodeFull` or `StoreUnavailable` when it cannot be had."""
        self.check_room()
        session_id = new_id("sess_")
        now_ms = self.now_ms()
        meta = SessionMeta(session_id, user_id, client_id, config.model, now_ms)
        self._num_opening += 1
        try:
            epoch = await self._store.create(meta, self._name)
        finally:
            self._num_opening -= 1
        dialogue = Dialogue(
            meta,
            DialogueState(config),
            new_id=new_id,
            expires_at=now_ms // 1000 + int(self._limits.max_session_s),
            model_version=self._model_version,
            limits=self._dialogue_limits,
        )
        session = LiveSession(self, dialogue, session_id=session_id, epoch=epoch, connection=connection)
        self._sessions.add(session)
        return session

    def start(self, answer: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Run an answer as a task of this node."""
        return self._tasks.create_task(answer)

    def remove(self, session: LiveSession) -> None:
        """Forget a session that has ended."""
        self._sessions.discard(session)

    def drain(self) -> None:
        """Take no new sessions from here on."""
        self._is_draining = True

    def shut_down(self) -> None:
        """The grace is over: end every session that is still here, its answers with it."""
        self.drain()
        for session in tuple(self._sessions):
            session.cut(code=CLOSE_RESTARTING, reason="the server restarts")


def _public_message(error: EngineError) -> str:
    """What a client may be told: never an address, a path or a trace."""
    match error:
        case PromptTooLong():
            return str(error)
        case EngineOverloaded():
            return "The engine is busy; try again soon."
        case _ if error.retryable:
            return "The engine is not available; try again soon."
        case _:
            return "The engine could not answer this."
