"""`GET /v1/realtime`: lets a client in or tells it why not, then ties its connection to its session.

What goes out does not pass here: the journal's task sends what it committed (`server.live`).
"""

import asyncio
import time

import msgspec
import structlog
from msgspec import Struct
from starlette.responses import Response
from starlette.websockets import WebSocket

from persistence.errors import PersistenceError
from server.admission import TooManyConnections
from server.auth import SUBPROTOCOL, SUBPROTOCOL_TOKEN_PREFIX, AuthError, Principal, check_origin, credentials
from server.identifiers import new_id
from server.live import CLOSE_RESTARTING, CLOSE_TRY_AGAIN, LiveSession
from server.node import NodeFull
from server.player import Asked
from server.problems import auth_problem_response, problem_response
from server.renewal import Renewal
from server.replay import ReplayVisit, asked_replay
from server.revocations import REASON
from server.services import Services, services_of
from server.throttle import Throttle
from server.upgrade import Entry
from server.websocket_protocol import EXTENSION, RETRY_AFTER_S, FluemanWebSocketProtocol
from sessions.client_events import SessionUpdate
from sessions.config import SessionConfig, merge, parse_session_patch
from sessions.errors import SessionNotFound, StoreUnavailable
from sessions.new_token import brings_token
from sessions.server_events import ErrorEvent, encode_event
from sessions.wire_errors import BadEvent, WireError

_log = structlog.get_logger(__name__)

CLOSE_NORMAL = 1000
CLOSE_SESSION_OVER = 1001
CLOSE_BINARY = 1003
CLOSE_BUG = 1011
CLOSE_UNAUTHENTICATED = 3000
CLOSE_BAD_REQUEST = 4000
CLOSE_TOKEN_EXPIRED = 4401
REVOKED_GRACE_S = 1.0
MAX_SEQUENCE_DIGITS = 15
MAX_ID_CHARS = 64


async def realtime(websocket: WebSocket) -> None:
    """The upgrade: refused with a status, refused in band where only that is seen, or a session on the connection."""
    services = services_of(websocket)
    entry = Entry(services)
    try:
        check_origin(websocket.headers, services.allowed_origins, development=services.is_development)
        presented = credentials(websocket.scope)
        principal = await services.authenticator.authenticate(presented.token)
    except AuthError as refusal:
        entry.close(refusal.status)
        await _refuse(websocket, refusal)
        return
    entry.user_id = principal.subject
    try:
        asked = _asked(websocket, services, principal)
    except BadEvent as mistake:
        entry.close(400)
        await _refuse_in_band(websocket, mistake, presented.subprotocol)
        return
    address = websocket.client.host if websocket.client else ""
    try:
        services.admission.admit(user_id=principal.subject, address=address)
    except TooManyConnections as full:
        entry.close(429)
        await websocket.send_denial_response(_turned_away(429, "rate_limit_exceeded", str(full)))
        return
    protocol: FluemanWebSocketProtocol = websocket.scope["extensions"][EXTENSION]
    visit: Visit | ReplayVisit
    try:
        if isinstance(asked, Asked):
            visit = ReplayVisit(services, entry, principal.subject, address, protocol)
            await visit.open(websocket, asked, principal, presented.subprotocol)
        else:
            visit = Visit(services, entry, principal.subject, address, protocol)
            await visit.open(websocket, asked, principal, presented.subprotocol)
    except BadEvent as mistake:
        visit.end(400)
        await _refuse_in_band(websocket, mistake, presented.subprotocol)
    except SessionNotFound:
        visit.end(404)
        await _not_found(websocket, asked, presented.subprotocol)
    except (NodeFull, StoreUnavailable, PersistenceError) as full:
        visit.end(503)
        _log.warning("session.not_opened", reason=str(full))
        message = str(full) if isinstance(full, NodeFull) else "No session can be kept or shown now; try again soon."
        await websocket.send_denial_response(_turned_away(503, "server_error", message))
    except BaseException:
        visit.end(500)
        raise


class Return(Struct, frozen=True):
    """A client that comes back to a session of its own, having seen the events up to `starting_after`."""

    session_id: str
    starting_after: int


class Visit:
    """A connection and its session, tied: what the one reads goes to the other until either ends. A receiver of the WebSocket protocol."""

    __slots__ = (
        "_address",
        "_ends_s",
        "_entry",
        "_protocol",
        "_renewal",
        "_services",
        "_session",
        "_throttle",
        "_timer",
        "_user_id",
    )

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
        self._session: LiveSession | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._renewal: Renewal | None = None
        self._ends_s = now_s + services.max_session_s

    async def open(
        self, websocket: WebSocket, asked: SessionConfig | Return, principal: Principal, subprotocol: str | None
    ) -> None:
        """Open the session, or find the one to resume; accept the connection and tie the two."""
        assert self._services is not None
        node = self._services.node
        user_id, client_id = principal.subject, principal.client_id
        if isinstance(asked, Return):
            session = await node.resume(asked.session_id, user_id=user_id, client_id=client_id)
        else:
            session = await node.open(user_id=user_id, client_id=client_id, config=asked, connection=self._protocol)
        self._session = session
        self._entry.session_id = session.session_id
        await websocket.accept(subprotocol)
        if isinstance(asked, Return):
            if session not in node:
                self._protocol.close(CLOSE_TRY_AGAIN, "the session is moving; resume again")
                self.end(101)
                return
            session.attach(self._protocol, after=asked.starting_after)
        else:
            _log.info("session.opened", session_id=session.session_id, user_id=user_id, client_id=client_id)
            session.begin()
        session.on_update = self._renew
        self._live_by(principal)
        self._protocol.attach(self)

    def received_text(self, text: str) -> None:
        """One frame, to the session; then no more is read while the client is ahead of its rate or of the journal."""
        session = self._session
        if session is None:
            return
        try:
            num_bytes = session.receive(text)
        except Exception:
            # The one catch-all at the connection's edge: a bug ends this connection, says nothing, and no other notices.
            _log.exception("connection.crashed", session_id=session.session_id)
            self._protocol.close(CLOSE_BUG, "internal error")
            return
        if not session.has_room:
            session.on_room = self._resume
            self._protocol.pause_reading()
        loop = asyncio.get_running_loop()
        if (delay_s := self._throttle.delay_s(loop.time(), num_bytes=len(text) + num_bytes)) and self._timer is None:
            # Not reading is the whole refusal: TCP slows the client down, nothing it sent is lost.
            self._protocol.pause_reading()
            self._timer = loop.call_later(delay_s, self._end_throttle)

    def received_bytes(self) -> None:
        """A binary frame is told of and ends the connection."""
        if self._session is not None:
            error = WireError("invalid_request_error", "invalid_event", "Binary messages are not served.")
            self._session.reject(error, CLOSE_BINARY)

    def lost(self) -> None:
        """The connection is gone."""
        self.end(101)

    def drained(self) -> None:
        """The client has caught up."""
        if self._session is not None:
            self._session.wake()

    def revoked(self) -> None:
        """The client's token is not accepted any more: its session here ends as when the token does."""
        loop = asyncio.get_running_loop()
        if self._session is not None and self._services is not None:
            self._renewal_of(self._session, self._services).stop()
            self._session.expire_at(loop.time(), code=CLOSE_TOKEN_EXPIRED, reason=REASON)
        # Whatever keeps the session from saying so: a store that is away, a client that does not read.
        loop.call_later(REVOKED_GRACE_S, self._protocol.close, CLOSE_TOKEN_EXPIRED, REASON)

    def stop(self) -> None:
        """The server stops: what is being answered may end first."""
        if self._services is not None:
            self._services.node.drain()
        if self._session is not None:
            self._session.finish(code=CLOSE_RESTARTING, reason="the server restarts")

    def end(self, status: int) -> None:
        """Untie the session, if there is one, and give back what the connection held; further calls do nothing."""
        services, self._services = self._services, None
        if services is None:
            return
        services.admission.release(user_id=self._user_id, address=self._address)
        services.revocations.unwatch(self)
        if self._timer is not None:
            self._timer.cancel()
        if self._renewal is not None:
            self._renewal.stop()
        session, self._session = self._session, None
        if session is not None:
            session.lost(self._protocol, by_choice=self._protocol.client_code == CLOSE_NORMAL)
        self._entry.close(status)

    def _live_by(self, principal: Principal) -> None:
        """The connection is open until this principal's token ends or is revoked, and no longer than any may be."""
        session, services = self._session, self._services
        if session is None or services is None:
            return
        token_ends_s = asyncio.get_running_loop().time() + principal.expires_at - time.time()
        if token_ends_s < self._ends_s:
            session.expire_at(token_ends_s, code=CLOSE_TOKEN_EXPIRED, reason="Your token has expired.")
        else:
            minutes = round(services.max_session_s / 60)
            reason = f"Your session hit the maximum duration of {minutes} minutes."
            session.expire_at(self._ends_s, code=CLOSE_SESSION_OVER, reason=reason)
        services.revocations.watch(self, msgspec.structs.replace(principal, session_config=None))

    def _renew(self, event: SessionUpdate) -> bool:
        """Whether the client brings a new token, which takes the old one's place once it is checked."""
        if self._session is None or self._services is None or not brings_token(event.session):
            return False
        self._renewal_of(self._session, self._services).add(event)
        return True

    def _renewal_of(self, session: LiveSession, services: Services) -> Renewal:
        # Nearly no connection ever needs one.
        if self._renewal is None:
            self._renewal = Renewal(services, session, self._live_by)
        return self._renewal

    def _end_throttle(self) -> None:
        self._timer = None
        self._resume()

    def _resume(self) -> None:
        if self._timer is not None or self._session is None:
            return
        if self._session.has_room:
            self._protocol.resume_reading()
        else:
            self._session.on_room = self._resume


def _asked(websocket: WebSocket, services: Services, principal: Principal) -> SessionConfig | Return | Asked:
    """What the client came for: a new session with this configuration, one that it had begun, or one to watch."""
    if "replay" in websocket.query_params:
        return asked_replay(websocket.query_params)
    if "realtime=v1" in websocket.headers.get("openai-beta", ""):
        message = "The Realtime beta is not served; remove the OpenAI-Beta header to use the GA shape."
        raise BadEvent("beta_api_shape_disabled", message)
    conversation_id = websocket.query_params.get("conversation_id")
    if conversation_id is None:
        return _config(websocket, services, principal)
    after = websocket.query_params.get("starting_after", "0")
    if not (after.isascii() and after.isdigit() and len(after) <= MAX_SEQUENCE_DIGITS):
        raise BadEvent("invalid_value", "starting_after must be a sequence number.", "starting_after")
    return Return("sess_" + conversation_id.removeprefix("conv_")[:MAX_ID_CHARS], int(after))


def _config(websocket: WebSocket, services: Services, principal: Principal) -> SessionConfig:
    """A new session's configuration: the model from the URL, the rest from the client secret if one carries it."""
    config = SessionConfig(model="")
    asked = websocket.query_params.get("model")
    if principal.session_config is not None:
        patch = parse_session_patch(principal.session_config)
        config = merge(config, patch)
        asked = asked or (patch.model if isinstance(patch.model, str) else None)
    if not asked:
        raise BadEvent("missing_model", "You must provide a model parameter.", "model")
    model = services.models.get(asked)
    if model is None:
        raise BadEvent("invalid_model", f"The model {asked[:64]!r} is not served here.", "model")
    return msgspec.structs.replace(config, model=model)


async def _refuse_in_band(websocket: WebSocket, mistake: BadEvent, subprotocol: str | None) -> None:
    await websocket.accept(subprotocol)
    _say_goodbye(websocket, mistake.as_wire_error(None), CLOSE_BAD_REQUEST, f"{mistake.type}.{mistake.code}")


async def _not_found(websocket: WebSocket, asked: object, subprotocol: str | None) -> None:
    """A conversation that never was, is over for good, or is another's: the client cannot tell which."""
    is_replay = isinstance(asked, Asked)
    message = "There is no such session to replay." if is_replay else "There is no such conversation to resume."
    if subprotocol is not None:
        # A browser cannot see the status of a refused upgrade.
        param = "replay" if is_replay else "conversation_id"
        await _refuse_in_band(websocket, BadEvent("invalid_value", message, param), subprotocol)
        return
    await websocket.send_denial_response(problem_response(404, "not_found", message))


async def _refuse(websocket: WebSocket, refusal: AuthError) -> None:
    offered: list[str] = websocket.scope["subprotocols"]
    if refusal.status == 401 and any(name.startswith(SUBPROTOCOL_TOKEN_PREFIX) for name in offered):
        # A browser cannot see the status of a refused upgrade: OpenAI tells it in band.
        await websocket.accept(SUBPROTOCOL if SUBPROTOCOL in offered else None)
        error = WireError("invalid_request_error", "invalid_api_key", refusal.message)
        _say_goodbye(websocket, error, CLOSE_UNAUTHENTICATED, "invalid_request_error.invalid_api_key")
        return
    await websocket.send_denial_response(auth_problem_response(refusal))


def _turned_away(status: int, code: str, message: str) -> Response:
    return problem_response(status, code, message, headers={"retry-after": str(RETRY_AFTER_S)})


def _say_goodbye(websocket: WebSocket, error: WireError, code: int, reason: str) -> None:
    protocol: FluemanWebSocketProtocol = websocket.scope["extensions"][EXTENSION]
    protocol.send_texts([encode_event(ErrorEvent(new_id("event_"), error))])
    protocol.close(code, reason)
