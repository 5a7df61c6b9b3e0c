"""`GET /v1/realtime?replay=…`: lets a viewer in to a session that it may see, and ties its connection to a player.

Nothing that a viewer sends reaches the session.
"""

import asyncio
import time
from collections.abc import Mapping

import structlog
from msgspec import structs
from starlette.websockets import WebSocket

from server.api.subject import audited, find_subject
from server.auth import Principal
from server.live import CLOSE_RESTARTING
from server.node import NodeFull
from server.player import CLOSE_BUG, Asked, Player
from server.revocations import REASON
from server.services import Services
from server.throttle import Throttle
from server.upgrade import Entry
from server.view import view_of
from server.websocket_protocol import FluemanWebSocketProtocol
from sessions.errors import SessionNotFound
from sessions.replay_events import ReplayUpdate, check_update
from sessions.wire_errors import BadEvent, WireError

_log = structlog.get_logger(__name__)

CLOSE_BINARY = 1003
CLOSE_TOKEN_EXPIRED = 4401
_MAX_DIGITS = 15


def asked_replay(query: Mapping[str, str]) -> Asked:
    """What the URL asks for; `BadEvent` names the first parameter that is wrong."""
    update = ReplayUpdate(
        speed=_number(query, "speed", "1"),
        position=_integer(query, "position", "0"),
        max_silence_ms=_integer(query, "max_silence_ms", "0"),
    )
    check_update(update)
    starting_after = _integer(query, "starting_after", "0")
    if "position" in query and starting_after:
        raise BadEvent("invalid_value", "A replay begins after an event or at a position, not both.", "position")
    if query.get("paused", "false") not in ("true", "false"):
        raise BadEvent("invalid_value", "paused must be true or false.", "paused")
    return Asked(
        session_id=query["replay"],
        speed=_number(query, "speed", "1"),
        starting_after=starting_after,
        position=_integer(query, "position", "0") if "position" in query else None,
        max_silence_ms=_integer(query, "max_silence_ms", "0") if "max_silence_ms" in query else None,
        paused=query.get("paused") == "true",
    )


def _integer(query: Mapping[str, str], name: str, default: str) -> int:
    value = query.get(name, default)
    if not (value.isascii() and value.isdigit() and len(value) <= _MAX_DIGITS):
        raise BadEvent("invalid_value", f"{name} must be a whole number of at least 0.", name)
    return int(value)


def _number(query: Mapping[str, str], name: str, default: str) -> float:
    value = query.get(name, default)
    whole, _, fraction = value.partition(".")
    if not (value.isascii() and whole.isdigit() and (fraction or "0").isdigit() and len(value) <= _MAX_DIGITS):
        raise BadEvent("invalid_value", f"{name} must be a number.", name)
    return float(value)


class ReplayVisit:
    """A viewer's connection and its player, tied. A receiver of the WebSocket protocol."""

    def __init__(
        self, services: Services, entry: Entry, user_id: str, address: str, protocol: FluemanWebSocketProtocol
    ) -> None:
        limits = services.event_limits
        now_s = asyncio.get_running_loop().time()
        self._services: Services | None = services
        self._entry = entry
        self._user_id = user_id
        self._address = address
        self._protocol = protocol
        self._throttle = Throttle(limits.events_per_s, limits.events_burst, limits.events_burst, now_s)
        self._player: Player | None = None
        self._task: asyncio.Task[None] | None = None
        self._timers: list[asyncio.TimerHandle] = []

    async def open(self, websocket: WebSocket, asked: Asked, principal: Principal, subprotocol: str | None) -> None:
        """Find the session, write down who watches another's, accept the connection and play.

        `SessionNotFound`, `BadEvent`, `NodeFull`, and the `…Unavailable` errors of what it lies in.
        """
        services = self._services
        assert services is not None
        if services.node.is_draining:
            raise NodeFull("The server is stopping; connect again.")
        subject = await find_subject(services, principal, asked.session_id)
        extent = await services.recording.extent(asked.session_id)
        if extent is None:
            raise SessionNotFound(asked.session_id)
        self._entry.session_id = asked.session_id
        loop = asyncio.get_running_loop()
        player = Player(
            services.recording,
            extent,
            self._protocol,
            asked,
            view=view_of(services.access, principal, extent.meta),
            now_ms=services.node.now_ms,
            now_s=loop.time,
        )
        await player.locate()
        # In the outbox before the first event is seen.
        await audited(services, principal, subject, "session.replay", starting_after=asked.starting_after)
        await websocket.accept(subprotocol)
        player.begin()
        _log.info("replay.opened", session_id=asked.session_id, user_id=principal.subject)
        self._player = player
        left_s = principal.expires_at - time.time()
        self._timers.append(
            loop.call_later(left_s, self._protocol.close, CLOSE_TOKEN_EXPIRED, "Your token has expired.")
        )
        self._task = services.node.start(player.run())
        services.revocations.watch(self, structs.replace(principal, session_config=None))
        self._protocol.attach(self)

    def received_text(self, text: str) -> None:
        """One frame, to the player; then no more is read while the viewer is ahead of its rate."""
        if self._player is None:
            return
        try:
            self._player.receive(text)
        except Exception:
            _log.exception("connection.crashed", session_id=self._entry.session_id)
            self._protocol.close(CLOSE_BUG, "internal error")
            return
        loop = asyncio.get_running_loop()
        if (delay_s := self._throttle.delay_s(loop.time())) and not self._protocol.read_paused:
            self._protocol.pause_reading()
            self._timers[1:] = [loop.call_later(delay_s, self._protocol.resume_reading)]

    def received_bytes(self) -> None:
        """A binary frame is told of and ends the connection."""
        if self._player is not None:
            error = WireError("invalid_request_error", "invalid_event", "Binary messages are not served.")
            self._player.reject(error, CLOSE_BINARY)

    def lost(self) -> None:
        """The connection is gone."""
        self.end(101)

    def drained(self) -> None:
        """The viewer has caught up."""
        if self._player is not None:
            self._player.wake()

    def revoked(self) -> None:
        """The viewer's token is not accepted any more."""
        self._protocol.close(CLOSE_TOKEN_EXPIRED, REASON)

    def stop(self) -> None:
        """The server stops: there is nothing to wait for."""
        if self._services is not None:
            self._services.node.drain()
        self._protocol.close(CLOSE_RESTARTING, "the server restarts")

    def end(self, status: int) -> None:
        """Stop the player, if there is one, and give back what the connection held; further calls do nothing."""
        services, self._services = self._services, None
        if services is None:
            return
        services.admission.release(user_id=self._user_id, address=self._address)
        services.revocations.unwatch(self)
        for timer in self._timers:
            timer.cancel()
        self._player = None
        if self._task is not None:
            self._task.cancel()
        self._entry.close(status)
