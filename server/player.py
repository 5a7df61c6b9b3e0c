"""One replay on one connection: what was recorded, sent when it is due, and where the viewer is in it.

A viewer's update is applied in the call that reads it; one task sends. Whenever that task has waited, it looks first whether the viewer has
gone elsewhere meanwhile. What the loop's turn brings goes out in one write.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import aclosing, suppress

import structlog
from msgspec import UNSET, Struct

from persistence.errors import PersistenceError
from persistence.masked_events import masked_events
from persistence.part import JournalEvent
from persistence.recording import Edge, Extent, Recorded, Recording
from server.feed import Connection
from server.identifiers import new_id
from server.view import View
from sessions.errors import StoreUnavailable
from sessions.playback import CatchUp, Playback
from sessions.replay_events import (
    GapObject,
    RefusedUpdate,
    ReplayDone,
    ReplayGap,
    ReplayObject,
    ReplayUpdate,
    ReplayUpdated,
    decode_update,
    encode_replay_event,
)
from sessions.server_events import ErrorEvent, with_sequence_number
from sessions.wire_errors import BadEvent, WireError

_log = structlog.get_logger(__name__)

MAX_UPDATES_PER_S = 20
CLOSE_BUG = 1011
CLOSE_TRY_AGAIN = 1013
_MAX_BATCH_BYTES = 64 * 1024
_MAX_HOLES = 1000


class Asked(Struct, frozen=True, kw_only=True):
    """What a viewer wants to watch, and how to begin: after an event that it has seen, or with all up to a position at once."""

    session_id: str
    speed: float = 1.0
    starting_after: int = 0
    position: int | None = None
    max_silence_ms: int | None = None
    paused: bool = False


class _Leg(Struct, frozen=True, eq=False):
    """A run through the events after one, until the viewer goes elsewhere: those up to `until_ms` at once, the rest at their pace."""

    after: int
    until_ms: int | None


class Player:
    """Sends `extent`'s session to the connection; `BadEvent` when that has no such beginning.

    `now_s` is the event loop's clock, `now_ms` the wall clock that events are dated by.
    """

    def __init__(
        self,
        recording: Recording,
        extent: Extent,
        connection: Connection,
        asked: Asked,
        *,
        view: View,
        now_ms: Callable[[], int],
        now_s: Callable[[], float],
    ) -> None:
        self._recording = recording
        self._connection = connection
        self._view = view
        self._now_ms = now_ms
        self._now_s = now_s
        self._session_id = extent.meta.session_id
        self._first_ms = extent.first_ms
        self._duration_ms = extent.last_ms - extent.first_ms
        self._last_sequence = extent.last_sequence
        self._is_live = extent.is_live
        self._holes = {hole.last: hole for hole in extent.holes}
        self._playback = Playback(
            speed=asked.speed, is_paused=asked.paused, max_silence_ms=asked.max_silence_ms, now_s=now_s()
        )
        self._next_ms = 0
        self._is_at_edge = False
        self._leg = _Leg(asked.starting_after, asked.position)
        self._batch: list[bytes] = []
        self._num_batch_bytes = 0
        self._changed = asyncio.Event()
        self._update_times: deque[float] = deque(maxlen=MAX_UPDATES_PER_S)
        if asked.position is not None:
            self._check_position(asked.position)
        if asked.starting_after > extent.last_sequence:
            message = f"The session has no event {asked.starting_after}."
            raise BadEvent("integer_above_max_value", message, "starting_after")

    async def run(self) -> None:
        """Play until cancelled; what goes wrong closes the connection."""
        try:
            while True:
                leg = self._leg
                await self._play(leg)
                while leg is self._leg:
                    await self._next_change(None)
        except (StoreUnavailable, PersistenceError) as error:
            _log.warning("replay.interrupted", session_id=self._session_id, reason=str(error))
            self._tell(BadEvent("server_error", "What was recorded cannot be read now.", type="server_error"), None)
            self._close(CLOSE_TRY_AGAIN, "what was recorded cannot be read now; connect again")
        except Exception:
            _log.exception("replay.crashed", session_id=self._session_id)
            self._close(CLOSE_BUG, "internal error")

    # From the connection

    def receive(self, frame: str) -> None:
        """A viewer's frame."""
        try:
            update = decode_update(frame)
            self._check_rate()
            if update.position is not UNSET:
                self._check_position(update.position)
        except RefusedUpdate as refused:
            self._tell(refused.reason, refused.event_id)
        except BadEvent as mistake:
            self._tell(mistake, update.event_id)
        else:
            self._apply(update)

    def wake(self) -> None:
        """The connection is no longer congested."""
        self._changed.set()

    def reject(self, error: WireError, code: int) -> None:
        """Tell the viewer of a mistake that ends the connection."""
        self._send(encode_replay_event(ErrorEvent(new_id("event_"), error)))
        self._close(code, error.message)

    def _check_rate(self) -> None:
        now_s = self._now_s()
        times = self._update_times
        if len(times) == MAX_UPDATES_PER_S and now_s - times[0] < 1.0:
            message = f"No more than {MAX_UPDATES_PER_S} updates a second are taken; try again in a second."
            raise BadEvent("rate_limit_exceeded", message, type="rate_limit_error")
        times.append(now_s)

    def _check_position(self, position_ms: int) -> None:
        if position_ms > (longest := self._longest_ms()):
            message = f"Expected a value of at most {longest}, the session's duration, got {position_ms}."
            raise BadEvent("integer_above_max_value", message, "position")

    def _longest_ms(self) -> int:
        return max(self._duration_ms, self._live_ms()) if self._is_live else self._duration_ms

    def _live_ms(self) -> int:
        """The position of now, where the session is going on."""
        return max(0, self._now_ms() - self._first_ms)

    def _apply(self, update: ReplayUpdate) -> None:
        now_s = self._now_s()
        self._playback.change(now_s, speed=update.speed, is_paused=update.paused, max_silence_ms=update.max_silence_ms)
        if update.position is UNSET:
            if self._is_at_edge:
                self._reach_edge()
            self._tell_state(is_restarted=False)
        else:
            self._leg = _Leg(0, update.position)
            self._go_to(update.position)
            self._tell_state(is_restarted=True)
        self._changed.set()

    # What is played

    async def locate(self) -> None:
        """Find out where the replay begins."""
        leg = self._leg
        self._go_to(leg.until_ms if leg.until_ms is not None else await self._position_after(leg.after))

    def begin(self) -> None:
        """Tell the viewer where the replay begins, before it can say anything."""
        self._go_to(self._next_ms)
        self._tell_state(is_restarted=self._leg.until_ms is not None)

    async def _position_after(self, sequence: int) -> int:
        if sequence == 0:
            return 0
        async with aclosing(self._recording.events(self._session_id, sequence)) as stream:
            async for found in stream:
                if isinstance(found, JournalEvent):
                    return self._position_of(found)
        return self._duration_ms

    async def _play(self, leg: _Leg) -> None:
        """Send what follows, until all is sent or the viewer goes elsewhere."""
        catch_up = None if leg.until_ms is None else CatchUp()
        recorded = self._recording.follow(self._session_id, leg.after, wait=self._next_change)
        async with aclosing(self._view(recorded)) as stream:
            async for found in stream:
                if leg is not self._leg:
                    return
                if catch_up is not None and self._is_after(found, leg):
                    if not await self._end_catch_up(catch_up, leg):
                        return
                    catch_up = None
                if isinstance(found, Edge):
                    self._reach_edge()
                    continue
                if catch_up is None and isinstance(found, JournalEvent) and not await self._until_due(leg, found):
                    return
                payload = self._payload(found)
                if not await self._send_as_read([payload] if catch_up is None else catch_up.take(payload), leg):
                    return
        if catch_up is not None and not await self._end_catch_up(catch_up, leg):
            return
        if leg is not self._leg:
            return
        self._is_live = False
        self._go_to(self._duration_ms)
        self._send(encode_replay_event(ReplayDone(new_id("event_"), self._duration_ms)))

    def _is_after(self, found: Recorded | Edge, leg: _Leg) -> bool:
        """Whether it is beyond what is to be shown at once."""
        if isinstance(found, JournalEvent) and leg.until_ms is not None:
            return self._position_of(found) > leg.until_ms
        return isinstance(found, Edge)

    async def _end_catch_up(self, catch_up: CatchUp, leg: _Leg) -> bool:
        """Show what was held back; False when the viewer has gone elsewhere."""
        if not await self._send_as_read(catch_up.finish(), leg):
            return False
        if leg.until_ms is not None:
            self._go_to(leg.until_ms)
        return True

    async def _send_as_read(self, payloads: Iterable[bytes], leg: _Leg) -> bool:
        """Send these, as fast as the viewer reads: at once, they may be more than may be unsent. False when it has gone elsewhere."""
        for payload in payloads:
            self._send(payload)
            if self._connection.is_congested and not await self._until_room(leg):
                return False
        return True

    def _reach_edge(self) -> None:
        """All that there is was shown: it is at what happens now, and what is committed next is due as soon as it is."""
        self._is_live = True
        if not self._playback.is_paused:
            self._go_to(self._live_ms())
        self._is_at_edge = True

    async def _until_due(self, leg: _Leg, event: JournalEvent) -> bool:
        """Return when the event is to be shown, which is noted; False when the viewer has gone elsewhere."""
        position_ms = self._next_ms = self._position_of(event)
        self._is_at_edge = False
        while (due_s := self._playback.due_s(position_ms)) is None or due_s > self._now_s():
            await self._next_change(None if due_s is None else due_s - self._now_s())
            if leg is not self._leg:
                return False
        self._playback.passed(position_ms, self._now_s())
        return True

    async def _until_room(self, leg: _Leg) -> bool:
        while self._connection.is_congested and leg is self._leg:
            await self._next_change(None)
        return leg is self._leg

    async def _next_change(self, timeout_s: float | None) -> None:
        self._changed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()

    def _go_to(self, position_ms: int) -> None:
        """All up to there is shown, or will be at once; what comes next is not known yet."""
        self._playback.seek(position_ms, self._now_s())
        self._next_ms = position_ms
        self._is_at_edge = False

    def _position_of(self, event: JournalEvent) -> int:
        return max(0, event.at_ms - self._first_ms)

    # What is said

    def _payload(self, found: Recorded) -> bytes:
        """What is sent of it; where the session ends is learnt on the way."""
        if isinstance(found, JournalEvent):
            self._last_sequence = max(self._last_sequence, found.sequence)
            self._duration_ms = max(self._duration_ms, self._position_of(found))
            return with_sequence_number(found.event, found.sequence)
        self._last_sequence = max(self._last_sequence, found.last)
        if len(self._holes) < _MAX_HOLES:
            self._holes.setdefault(found.last, found)
        return encode_replay_event(ReplayGap(new_id("event_"), found.first, found.last, found.reason))

    def _tell_state(self, *, is_restarted: bool) -> None:
        position_ms = self._playback.position_ms(self._next_ms, self._now_s())
        holes = sorted(self._holes.values(), key=lambda hole: hole.first)
        replay = ReplayObject(
            session_id=self._session_id,
            speed=self._playback.speed,
            paused=self._playback.is_paused,
            position=position_ms,
            duration=max(self._duration_ms, position_ms),
            max_silence_ms=self._playback.max_silence_ms,
            first_sequence_number=1,
            last_sequence_number=self._last_sequence,
            is_live=self._is_live,
            restarted=is_restarted,
            holes=tuple(GapObject(hole.first, hole.last, hole.reason) for hole in holes),
            masked=True if self._view is masked_events else UNSET,
        )
        self._send(encode_replay_event(ReplayUpdated(new_id("event_"), replay)))

    def _tell(self, mistake: BadEvent, event_id: str | None) -> None:
        self._send(encode_replay_event(ErrorEvent(new_id("event_"), mistake.as_wire_error(event_id))))

    def _send(self, *payloads: bytes) -> None:
        for payload in payloads:
            if not self._batch:
                asyncio.get_running_loop().call_soon(self._flush)
            self._batch.append(payload)
            self._num_batch_bytes += len(payload)
            if self._num_batch_bytes >= _MAX_BATCH_BYTES:
                self._flush()

    def _flush(self) -> None:
        batch, self._batch = self._batch, []
        self._num_batch_bytes = 0
        if batch:
            self._connection.send_texts(batch)

    def _close(self, code: int, reason: str) -> None:
        self._flush()
        self._connection.close(code, reason)
