"""`GET /v1/realtime`: the WebSocket's shell. Lets a client in or tells it why not, then hands its frames to its session.

What goes out does not pass here: the journal's task sends what it committed (`server.live`).
"""

import asyncio
import time

import msgspec
import structlog
from starlette.websockets import WebSocket

from server.admission import TooManyConnections
from server.auth import SUBPROTOCOL_TOKEN_PREFIX, AuthError, Credentials, Principal, check_origin, credentials
from server.identifiers import new_id
from server.live import LiveSession, NodeFull
from server.problems import auth_problem_response, problem_response
from server.services import Services, services_of
from server.throttle import Throttle
from server.websocket_protocol import EXTENSION, FluemanWebSocketProtocol
from sessions.config import SessionConfig, merge, parse_session_patch
from sessions.errors import StoreUnavailable
from sessions.records import RequestRecord
from sessions.server_events import ErrorEvent, encode_event
from sessions.wire_errors import BadEvent, WireError

_log = structlog.get_logger(__name__)

CLOSE_BINARY = 1003
CLOSE_TRY_LATER = 1013
CLOSE_UNAUTHENTICATED = 3000
CLOSE_BAD_REQUEST = 4000
CLOSE_TOKEN_EXPIRED = 4401
CLOSE_SESSION_OVER = 1001
CLOSE_RESTARTING = 1012
RETRY_AFTER_S = 2


async def realtime(websocket: WebSocket) -> None:
    """One connection, from its upgrade to its end."""
    services = services_of(websocket)
    started_s = time.monotonic()
    created_ms = services.node.now_ms()
    visit = _Visit()
    try:
        await _visit(websocket, services, visit)
    finally:
        services.requests.add(
            RequestRecord(
                request_id=new_id("req_"),
                user_id=visit.user_id,
                method="WEBSOCKET",
                path=websocket.url.path,
                status=visit.status,
                duration_ms=(time.monotonic() - started_s) * 1000,
                created_ms=created_ms,
                session_id=visit.session_id,
            )
        )


class _Visit:
    """What the request log will say of a connection."""

    __slots__ = ("session_id", "status", "user_id")

    def __init__(self) -> None:
        self.user_id: str | None = None
        self.session_id: str | None = None
        self.status = 101


async def _visit(websocket: WebSocket, services: Services, visit: _Visit) -> None:
    try:
        check_origin(websocket.headers, services.allowed_origins, development=services.is_development)
        presented = credentials(websocket.scope)
        principal = await services.authenticator.authenticate(presented.token)
    except AuthError as refusal:
        visit.status = refusal.status
        await _refuse(websocket, refusal)
        return
    visit.user_id = principal.subject
    address = websocket.client.host if websocket.client else ""
    try:
        services.node.check_room()
        with services.admission.admit(user_id=principal.subject, address=address):
            await _connect(websocket, services, principal, presented, visit)
    except (NodeFull, StoreUnavailable, TooManyConnections) as full:
        visit.status = 429 if isinstance(full, TooManyConnections) else 503
        message = (
            "The server cannot keep a session now; try again soon." if isinstance(full, StoreUnavailable) else str(full)
        )
        await _turn_away(websocket, visit.status, message)


async def _connect(
    websocket: WebSocket, services: Services, principal: Principal, presented: Credentials, visit: _Visit
) -> None:
    protocol: FluemanWebSocketProtocol = websocket.scope["extensions"][EXTENSION]
    try:
        config = _config(websocket, services, principal)
    except BadEvent as mistake:
        visit.status = CLOSE_BAD_REQUEST
        await websocket.accept(presented.subprotocol)
        _say_goodbye(protocol, mistake.as_wire_error(None), CLOSE_BAD_REQUEST, f"{mistake.type}.{mistake.code}")
        return
    await websocket.accept(presented.subprotocol)
    try:
        session = await services.node.open(
            user_id=principal.subject, client_id=principal.client_id, config=config, connection=protocol
        )
    except (NodeFull, StoreUnavailable) as full:
        visit.status = 503
        _log.warning("session.not_opened", reason=str(full))
        error = WireError("server_error", "server_error", "No session can be opened now; try again soon.")
        _say_goodbye(protocol, error, CLOSE_TRY_LATER, "try again later")
        return
    visit.session_id = session.session_id
    with structlog.contextvars.bound_contextvars(session_id=session.session_id):
        _log.info("session.opened", user_id=principal.subject, client_id=principal.client_id)
        try:
            _set_expiry(session, services, principal)
            protocol.on_shutdown = lambda: session.finish(code=CLOSE_RESTARTING, reason="the server restarts")
            await _converse(websocket, session, services, protocol)
        finally:
            session.end()
            _log.info("session.ended")


async def _converse(
    websocket: WebSocket, session: LiveSession, services: Services, protocol: FluemanWebSocketProtocol
) -> None:
    loop = asyncio.get_running_loop()
    limits = services.event_limits
    throttle = Throttle(limits.events_per_s, limits.events_burst, limits.events_burst, loop.time())
    while True:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            return
        text = message.get("text")
        if text is None:
            session.reject(
                WireError("invalid_request_error", "invalid_event", "Binary messages are not served."), CLOSE_BINARY
            )
            continue
        session.receive(text)
        await session.room()
        if delay_s := throttle.delay_s(loop.time()):
            # Not reading is the whole refusal: TCP slows the client down, nothing it sent is lost.
            await asyncio.sleep(delay_s)


def _config(websocket: WebSocket, services: Services, principal: Principal) -> SessionConfig:
    """The session's first configuration: the model from the URL, the rest from the client secret if one carries it."""
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


def _set_expiry(session: LiveSession, services: Services, principal: Principal) -> None:
    now_s = asyncio.get_running_loop().time()
    token_left_s = principal.expires_at - time.time()
    if token_left_s < services.max_session_s:
        session.expire_at(now_s + token_left_s, code=CLOSE_TOKEN_EXPIRED, reason="Your token has expired.")
        return
    minutes = round(services.max_session_s / 60)
    reason = f"Your session hit the maximum duration of {minutes} minutes."
    session.expire_at(now_s + services.max_session_s, code=CLOSE_SESSION_OVER, reason=reason)


async def _refuse(websocket: WebSocket, refusal: AuthError) -> None:
    offered: list[str] = websocket.scope["subprotocols"]
    by_subprotocol = any(name.startswith(SUBPROTOCOL_TOKEN_PREFIX) for name in offered)
    if refusal.status == 401 and by_subprotocol:
        # A browser cannot see the status of a refused upgrade: OpenAI tells it in band.
        await websocket.accept("realtime" if "realtime" in offered else None)
        error = WireError("invalid_request_error", "invalid_api_key", refusal.message)
        protocol: FluemanWebSocketProtocol = websocket.scope["extensions"][EXTENSION]
        _say_goodbye(protocol, error, CLOSE_UNAUTHENTICATED, "invalid_request_error.invalid_api_key")
        return
    await websocket.send_denial_response(auth_problem_response(refusal))


async def _turn_away(websocket: WebSocket, status: int, message: str) -> None:
    code = "server_error" if status == 503 else "rate_limit_exceeded"
    await websocket.send_denial_response(
        problem_response(status, code, message, headers={"retry-after": str(RETRY_AFTER_S)})
    )


def _say_goodbye(protocol: FluemanWebSocketProtocol, error: WireError, code: int, reason: str) -> None:
    protocol.send_texts([encode_event(ErrorEvent(new_id("event_"), error))])
    protocol.close(code, reason)
