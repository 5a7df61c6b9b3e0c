"""New tokens for a connection that is open: checked one after the other while its session goes on, and forgotten."""

from collections import deque
from collections.abc import Callable

import structlog

from server.auth import AuthError, Principal
from server.live import LiveSession
from server.services import Services
from server.tokens import invalid_token
from sessions.client_events import SessionUpdate
from sessions.new_token import PARAM, new_token
from sessions.wire_errors import BadEvent, ErrorType

_log = structlog.get_logger(__name__)

MAX_WAITING = 8


class Renewal:
    """The new tokens of one connection, each answered by `session.updated` or an error.

    `accept` is called with the principal of one that is good, which is of the session's own user and client.
    """

    __slots__ = ("_accept", "_is_over", "_is_running", "_services", "_session", "_waiting")

    def __init__(self, services: Services, session: LiveSession, accept: Callable[[Principal], None]) -> None:
        self._services = services
        self._session = session
        self._accept = accept
        self._waiting: deque[tuple[str, str | None]] = deque()
        self._is_running = False
        self._is_over = False

    def add(self, event: SessionUpdate) -> None:
        """Check the token of an event that brings one, after those that came before."""
        try:
            token = new_token(event.session)
            if self._is_over:
                raise BadEvent("token_revoked", "The connection is about to be closed; connect again.", PARAM)
            if len(self._waiting) == MAX_WAITING:
                message = "Too many tokens wait to be checked; try again in a second."
                raise BadEvent("rate_limit_exceeded", message, PARAM, type="rate_limit_error")
        except BadEvent as mistake:
            self._session.report(mistake.as_wire_error(event.event_id))
            return
        self._waiting.append((token, event.event_id))
        if not self._is_running:
            self._is_running = True
            self._services.node.start(self._run())

    def stop(self) -> None:
        """The connection closes: no token is for it any more.

        A check that has begun is not cut short: it may be fetching the issuer's keys, which others need, and nobody may again so soon.
        """
        self._is_over = True

    async def _run(self) -> None:
        try:
            await self._check_waiting()
        except Exception:
            # Raised in a task of the node's group it would end all others; a bug costs this connection its renewals.
            _log.exception("token.not_renewed", session_id=self._session.session_id)
            return
        self._is_running = False

    async def _check_waiting(self) -> None:
        while self._waiting and not self._is_over:
            token, event_id = self._waiting[0]
            found = await self._checked(token)
            if self._is_over:
                return
            self._waiting.popleft()
            if isinstance(found, BadEvent):
                self._session.report(found.as_wire_error(event_id))
            else:
                self._accept(found)
                self._session.tell_update()

    async def _checked(self, token: str) -> Principal | BadEvent:
        session = self._session
        try:
            principal = await self._services.authenticator.authenticate(token)
            if (principal.subject, principal.client_id) != (session.meta.user_id, session.meta.client_id):
                raise invalid_token("The token is for another user or digital human.")
        except AuthError as refusal:
            _log.info("token.refused", session_id=session.session_id, code=refusal.code)
            kind: ErrorType = "server_error" if refusal.status >= 500 else "invalid_request_error"
            return BadEvent(refusal.code, refusal.message, PARAM, type=kind)
        except Exception:
            _log.exception("token.not_checked", session_id=session.session_id)
            return BadEvent("server_error", "The token cannot be checked now.", PARAM, type="server_error")
        _log.info("token.renewed", session_id=session.session_id)
        return principal
