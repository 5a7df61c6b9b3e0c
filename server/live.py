"""One live session: its dialogue with its connection, its running answers and its place in the journal.

Order is the order of calls on the event loop: a client's frame and an engine's chunk are both handed to the dialogue in one synchronous
call, whose effects go to the journal before anything else can happen. So there is no inbox to lock or to drain; backpressure is `room`.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog

from engine.base import EngineError, EngineOverloaded, PromptTooLong
from server.feed import GONE, Connection, Feed, WindowGone, read_journal, send_slowly
from server.identifiers import new_id
from sessions.client_events import (
    FeedbackCreate,
    FeedbackDelete,
    ItemCreate,
    RefusedEvent,
    ResponseCreate,
    SessionUpdate,
    decode_client_event,
)
from sessions.dialogue import Dialogue, EndReason
from sessions.effects import Close, Effects
from sessions.errors import StoreUnavailable
from sessions.feedback import Feedback
from sessions.generation import Prompt
from sessions.server_events import ErrorEvent, encode_event, with_sequence_number
from sessions.store import Append, AppendStatus, SessionMeta
from sessions.wire_errors import BadEvent, WireError

if TYPE_CHECKING:
    from server.node import Node

_log = structlog.get_logger(__name__)

# So few that a session which answers as fast as it can (to a client that is gone, say) adds little to a commit that others wait for.
_MAX_UNCOMMITTED_EVENTS = 64
CLOSE_DAMAGED = 1011
CLOSE_RESTARTING = 1012
CLOSE_TRY_AGAIN = 1013
_TOO_LARGE = Close(1009, "more was sent at once than can be stored")
_UNSTORABLE = Close(CLOSE_TRY_AGAIN, "the conversation cannot be stored now; resume later")
_MOVED = Close(CLOSE_TRY_AGAIN, "the session has moved; resume again")
# No client retries it: two that resume one session would take it from each other for ever.
_SUPERSEDED = Close(4001, "superseded by another connection")
_CLOSING = BadEvent("server_error", "The session is closing; connect again.", type="server_error")
_STORE_AWAY = BadEvent(
    "server_error", "The conversation cannot be stored now; try again in 2 seconds.", type="server_error"
)
# What adds to the outbox: refused while that is full, or while nothing can be journaled.
_Recorded = ItemCreate | ResponseCreate | FeedbackCreate | FeedbackDelete
_UNCONTINUABLE = "The server that was answering stopped, and the answer could not be continued."


class LiveSession:
    """One session on this node: applies its dialogue's effects and delivers what was committed."""

    __slots__ = (
        "_answers",
        "_catching_up",
        "_close",
        "_dialogue",
        "_expiry",
        "_feed",
        "_grace",
        "_is_dropped",
        "_node",
        "_num_uncommitted",
        "_rescue",
        "_room",
        "_unstored",
        "epoch",
        "meta",
        "on_room",
        "on_update",
    )

    def __init__(self, node: "Node", dialogue: Dialogue, *, meta: SessionMeta, epoch: str, feed: Feed) -> None:
        self._node = node
        self._dialogue = dialogue
        self._feed = feed
        self._answers: dict[str, asyncio.Task[None]] | None = None
        self._num_uncommitted = 0
        self._room: asyncio.Event | None = None
        self._close: Close | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._grace: asyncio.TimerHandle | None = None
        self._catching_up: asyncio.Task[None] | None = None
        self._rescue: asyncio.Task[None] | None = None
        self._unstored: list[Append] = []
        self._is_dropped = False
        self.meta = meta
        self.epoch = epoch
        # Called once, after the next commit; who waits for room then looks again.
        self.on_room: Callable[[], None] | None = None
        # Sees each session.update first; whether it takes it, and answers it by and by.
        self.on_update: Callable[[SessionUpdate], bool] | None = None

    @property
    def session_id(self) -> str:
        """Whose journal this is."""
        return self.meta.session_id

    @property
    def has_room(self) -> bool:
        """Whether few enough events wait for their commit; when not, whoever makes more waits for `room` or `on_room`."""
        return self._num_uncommitted <= _MAX_UNCOMMITTED_EVENTS and self._rescue is None

    @property
    def is_answering(self) -> bool:
        """Whether an answer is in progress."""
        return self._dialogue.num_answers > 0

    @property
    def is_resumable(self) -> bool:
        """Whether the client asked that the session outlives its connection."""
        resumption = self._dialogue.config.resumption
        return resumption is not None and resumption.enabled

    # From the connection

    def begin(self) -> None:
        """The session's first event."""
        self._apply(self._dialogue.open(self._node.now_ms()))

    def attach(self, connection: Connection, *, after: int) -> None:
        """A connection that has seen the events up to `after`: it gets what it missed, then what is committed. An older one is closed."""
        self._stop_timers()
        self._close = None
        old = self._feed.connection
        self._feed.attach(connection)
        old.close(_SUPERSEDED.code, _SUPERSEDED.reason)
        self._apply(self._dialogue.attach(self._node.now_ms()))
        self._catching_up = self._node.start(self._catch_up(connection, after))

    def lost(self, connection: Connection, *, by_choice: bool) -> None:
        """That connection is gone. A client that left by choice ends its session; another may come back within the grace."""
        if connection is not self._feed.connection:
            return
        self._stop_timers()
        self._feed.detach()
        self.on_room = self.on_update = None
        self.wake()
        if self not in self._node:
            return
        if by_choice or not self.is_resumable:
            self.end("client_closed" if by_choice else "disconnected")
            return
        self._close = None
        self._apply(self._dialogue.detach(self._node.now_ms()))
        self._wait_for_return()

    def expire_at(self, when_s: float, *, code: int, reason: str) -> None:
        """Close the connection at that time of the event loop's clock, unless it is about to be closed."""
        if self._is_dropped:
            return
        if self._expiry is not None:
            self._expiry.cancel()
        loop = asyncio.get_running_loop()
        self._expiry = loop.call_at(when_s, self._expire, Close(code, reason))

    def receive(self, frame: str) -> int:
        """A client's frame; how many bytes of events it brought about at once."""
        if self._is_dropped:
            return 0  # its connection is about to be closed
        try:
            event = decode_client_event(frame)
        except RefusedEvent as refused:
            self._apply(self._dialogue.refuse(refused))
            return 0
        if isinstance(event, _Recorded) and self._refuses(event):
            return 0
        if isinstance(event, SessionUpdate) and self.on_update is not None and self.on_update(event):
            return 0
        return self._apply(self._dialogue.receive(event, self._node.now_ms()))

    def _refuses(self, event: _Recorded) -> bool:
        node = self._node
        if node.journal.failure() is not None:
            # Nothing can be journaled, so this one event is sent without; it says nothing of the conversation.
            error = ErrorEvent(new_id("event_"), _STORE_AWAY.as_wire_error(event.event_id))
            self._feed.connection.send_texts([encode_event(error)])
            return True
        if node.refusal is not None:
            error_of_node = BadEvent("server_error", node.refusal, type="server_error")
            self._apply(self._dialogue.report(error_of_node.as_wire_error(event.event_id)))
            return True
        if self._close is not None and isinstance(event, ResponseCreate):
            # Answer upon answer would keep the connection open for ever.
            self._apply(self._dialogue.report(_CLOSING.as_wire_error(event.event_id)))
            return True
        return False

    def check_rating(self, item_id: str, feedback: Feedback) -> None:
        """`BadEvent` when `rate` would refuse it."""
        self._dialogue.check_rating(item_id, feedback)

    def rate(self, item_id: str, feedback: Feedback) -> Feedback:
        """What the session's user chose by another way than the connection, and has durably; what holds now. `BadEvent` as it says."""
        current, effects = self._dialogue.rate(item_id, feedback, self._node.now_ms())
        self._apply(effects)
        return current

    async def room(self) -> None:
        """Return when an answer may go on: the journal has room for its events and the connection is not congested."""
        while not self.has_room or self._feed.connection.is_congested:
            await self._next_commit()

    def wake(self) -> None:
        """Let whoever waits for room look again whether there is any."""
        if self._room is not None:
            self._room.set()

    async def _next_commit(self) -> None:
        if self._room is None:
            self._room = asyncio.Event()
        self._room.clear()
        await self._room.wait()

    def report(self, error: WireError) -> None:
        """Tell the client of a mistake; the session goes on."""
        if not self._is_dropped:
            self._apply(self._dialogue.report(error))

    def tell_update(self) -> None:
        """Answer an update that was taken by `on_update`."""
        if not self._is_dropped:
            self._apply(self._dialogue.tell_update())

    def reject(self, error: WireError, code: int) -> None:
        """Tell the client of a mistake that ends its connection."""
        self._apply(self._dialogue.report(error))
        self._close = Close(code, error.message)
        self._close_when_done()

    def finish(self, *, code: int, reason: str) -> None:
        """Close the connection once the answers in progress have ended, at once when there are none."""
        self._close = Close(code, reason)
        self._close_when_done()

    async def _catch_up(self, connection: Connection, after: int) -> None:
        feed = self._feed
        try:
            if feed.holds(after):
                connection.send_texts(self._greeting(after, is_gap=False))
            else:
                after = await self._tell_history(connection)
            await feed.catch_up(self._node.store, self.session_id, after=after, room=self.room)
        except (StoreUnavailable, WindowGone) as error:
            _log.warning("session.not_caught_up", session_id=self.session_id, reason=str(error))
            connection.close(CLOSE_TRY_AGAIN, "the missed events cannot be read now; resume again")
        except Exception:
            _log.exception("session.catch_up_crashed", session_id=self.session_id)
            connection.close(CLOSE_DAMAGED, "internal error")
        else:
            self._close_when_done()

    def _greeting(self, sequence: int, *, is_gap: bool) -> list[bytes]:
        _log.info("session.resumed", session_id=self.session_id, is_gap=is_gap)
        events = self._dialogue.greeting(resumed=not is_gap, gap=is_gap)
        return [with_sequence_number(encode_event(event), sequence) for event in events]

    async def _tell_history(self, connection: Connection) -> int:
        """In place of events that are gone: the items, then what is journaled of open answers; the number up to which this tells all."""
        feed, dialogue = self._feed, self._dialogue
        while True:
            while self._num_uncommitted:
                await self._next_commit()  # what is told must be durable
            first, last = dialogue.first_open_sequence, feed.committed
            events: list[bytes] = []
            if first is not None and feed.holds(first - 1):
                events = await read_journal(self._node.store, self.session_id, first, last)
            if feed.committed == last and not self._num_uncommitted:
                break  # else the dialogue has moved on meanwhile, and the two would not fit
        told = self._greeting(last, is_gap=True)
        open_events = dialogue.after_gap(events, last - len(events) + 1)
        told += [with_sequence_number(event, sequence) for sequence, event in open_events]
        await send_slowly(connection, told, self.room)
        return last

    # From the node

    def go_on(self) -> None:
        """Continue the answers that another owner had begun; fail those that cannot be continued."""
        for response_id in self._dialogue.broken:
            self._fail(response_id, "server_error", _UNCONTINUABLE)
        for prompt in self._dialogue.unfinished():
            self._start_answer(prompt)
        self._apply(self._dialogue.detach(self._node.now_ms()))
        self._wait_for_return()

    def close_down(self) -> None:
        """Another owner left it, and nobody can come back to it: its open answers fail, it ends."""
        open_ids = [prompt.response_id for prompt in self._dialogue.unfinished()]
        for response_id in (*self._dialogue.broken, *open_ids):
            self._fail(response_id, "server_error", _UNCONTINUABLE)
        self.end("disconnected")

    def end(self, reason: EndReason) -> None:
        """Nobody is there any more: answers are cancelled, the session ends until somebody resumes it."""
        self._leave()
        self._apply(self._dialogue.end(self._node.now_ms(), reason=reason, forgotten_sequence=self._feed.archived))
        self._node.remove(self)
        _log.info("session.ended", session_id=self.session_id, reason=reason)

    def hand_over(self) -> None:
        """The node stops: close the connection; what is not finished, another node goes on with, if the client wants that."""
        connection = self._feed.connection
        if self.is_resumable:
            self._leave()
            self._stop_answers()
            self._node.remove(self)
        else:
            self.end("disconnected")
        connection.close(CLOSE_RESTARTING, "the server restarts")

    def superseded(self) -> None:
        """Another connection has the session: nothing more may be said to this one, whose client does not come back."""
        self._drop(_SUPERSEDED)

    def taken(self) -> None:
        """Another node has the session: nothing more may be said here. Its client comes back, unless another connection took it there."""
        connection = self._forget()
        if connection is not GONE:
            self._node.start(self._close_taken(connection))

    async def _close_taken(self, connection: Connection) -> None:
        close = _MOVED
        try:
            if not await self._node.store.is_adopted(self.session_id, self.epoch):
                close = _SUPERSEDED
        except StoreUnavailable as error:
            _log.warning("session.taker_unknown", session_id=self.session_id, reason=str(error))
        finally:
            connection.close(close.code, close.reason)

    def moved(self) -> None:
        """This node has claimed the session anew, and another object stands for it."""
        self._drop(_MOVED)

    def _drop(self, close: Close) -> None:
        self._forget().close(close.code, close.reason)

    def _forget(self) -> Connection:
        """Nothing of the session is stored or said here any more; the connection that it had."""
        connection = self._feed.connection
        self._is_dropped = True
        self._leave()
        self._stop_answers()
        self._node.remove(self)
        return connection

    def _leave(self) -> None:
        self._stop_timers()
        self._feed.detach()
        self.on_room = self.on_update = None
        self.wake()

    def _wait_for_return(self) -> None:
        loop = asyncio.get_running_loop()
        self._grace = loop.call_later(self._node.resume_grace_s, self.end, "disconnected")

    def _stop_timers(self) -> None:
        for pending in (self._expiry, self._grace, self._catching_up):
            if pending is not None:
                pending.cancel()
        self._expiry = self._grace = self._catching_up = None

    def _expire(self, close: Close) -> None:
        self._apply(self._dialogue.expire(self._node.now_ms(), code=close.code, reason=close.reason))

    # From the journal

    def committed(self, part: Append) -> None:
        """Deliver what the journal holds."""
        events = part.events
        if events:
            self._num_uncommitted -= len(events)
            self._feed.deliver(part.first_sequence, events)
        if self._room is not None:
            self._room.set()
        self._tell_room()
        if self._close is not None:
            self._close_when_done()

    def _tell_room(self) -> None:
        if self.on_room is not None:
            tell, self.on_room = self.on_room, None
            tell()

    def refused(self, part: Append, status: AppendStatus) -> None:
        """Somebody else owns the session, it is too large, or the store lost part of the session, which is then written back."""
        if self._is_dropped:
            return  # what follows a part that is not stored would look like a loss
        is_stale = part.epoch != self.epoch  # made before the session was written back
        if self._rescue is None and (status == "too_large" or (status == "fenced" and not is_stale)):
            self._give_way(status)
            return
        self._unstored.append(part)
        self.wake()
        if self._rescue is None:
            if not is_stale:
                _log.error("session.store_lost_it", session_id=self.session_id, status=status)
            self._rescue = self._node.start(self._write_back(is_lost=not is_stale))

    def _give_way(self, status: AppendStatus) -> None:
        """Leave the session as it is stored: to its owner, or to be claimed anew."""
        if status == "fenced":
            _log.info("session.superseded", session_id=self.session_id)
            self.taken()
        elif status == "too_large":
            _log.warning("session.too_large", session_id=self.session_id)
            self._drop(_TOO_LARGE)
            self._node.give_up(self)
        else:
            self.abandoned()

    def abandoned(self) -> None:
        """The store was away for too long. What it holds is claimed anew when it is back."""
        self._drop(_UNSTORABLE)
        self._node.give_up(self)

    async def _write_back(self, *, is_lost: bool) -> None:
        """Give the store what it refused; before that, where it came back empty or older, the dialogue. Its journal starts anew then."""
        try:
            if is_lost and not await self._restore():
                self.taken()
                return
            while self._unstored or self._num_uncommitted:
                if not self._unstored:
                    if self not in self._node:
                        return  # what is refused from here on begins anew
                    await self._next_commit()  # what was on its way meanwhile is refused too
                    continue
                part = self._unstored[0]
                part.epoch = self.epoch
                (status,) = await self._node.store.append([part])
                if status not in ("ok", "dup"):
                    self._give_way(status)
                    return
                del self._unstored[0]
                self.committed(part)
        except StoreUnavailable:
            self.abandoned()
        finally:
            self._rescue = None
            self.wake()
            self._tell_room()

    async def _restore(self) -> bool:
        node, feed, dialogue = self._node, self._feed, self._dialogue
        epoch = await node.store.restore(
            self.meta,
            node.name,
            self.epoch,
            next_sequence=feed.committed + 1,
            config=dialogue.encoded_state(),
            items=dialogue.placed_items,
        )
        if epoch is None:
            return False
        self.epoch = epoch
        feed.archived = feed.committed
        return True

    def _close_when_done(self) -> None:
        close = self._close
        if close is None or self._num_uncommitted or self.is_answering or self._feed.is_behind:
            return
        self._feed.connection.close(close.code, close.reason)

    # Effects and answers

    def _apply(self, effects: Effects) -> int:
        num_events, num_bytes = len(effects.events), 0
        if num_events or effects.records or effects.state is not None:
            self._num_uncommitted += num_events
            num_bytes = self._node.journal.append(self, self._dialogue.next_sequence - num_events, effects)
        if effects.state is not None:
            self._feed.ask_numbers(asked=self.is_resumable)
        if effects.generate is not None:
            self._start_answer(effects.generate)
        for response_id in effects.aborts:
            self._stop_answer(response_id)
        if effects.close is not None:
            self._close = effects.close
            self._close_when_done()
        return num_bytes

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
        node, dialogue, feed = self._node, self._dialogue, self._feed
        try:
            async with contextlib.aclosing(node.engine.generate(prompt)) as chunks:
                async for chunk in chunks:
                    if (event := dialogue.delta(response_id, chunk)) is not None:
                        self._num_uncommitted += 1
                        node.journal.append_event(self, dialogue.next_sequence - 1, event)
                    else:
                        self._apply(dialogue.advance(response_id, chunk, node.now_ms()))
                    if self._num_uncommitted > _MAX_UNCOMMITTED_EVENTS or feed.connection.is_congested:
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
