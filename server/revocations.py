"""Which tokens are revoked: known here, so that asking costs nothing; read on from the store; told to the connections that they opened."""

import asyncio
import heapq
import itertools
import time
from collections.abc import Sequence
from typing import Protocol

import structlog

from server.auth import AuthError, Clock, Principal
from server.tokens import LEEWAY_S
from sessions.errors import StoreUnavailable
from sessions.revocation import Kind, Revocation
from sessions.store import Store

_log = structlog.get_logger(__name__)

REASON = "Your token has been revoked."
# A silent line is given up after this and the store's own limit; revocations may be late by that.
_WAIT_S = 1.0
_RETRY_S = 0.5
# At once: nothing is heard meanwhile.
_NUM_WRITTEN_BACK = 50


class Watched(Protocol):
    """An open connection; its methods are called from the event loop and must not block."""

    def revoked(self) -> None:
        """The token that it was opened with is not accepted any more."""


class Revocations:
    """All revocations that are not due, and the connections that are open. No token is accepted for longer than `longest_s`."""

    def __init__(self, store: Store, *, longest_s: float, clock: Clock = time.time) -> None:
        self._store = store
        # An issuer's clock may run ahead, and a token is accepted for a while after its end.
        self._longest_s = int(longest_s) + 2 * LEEWAY_S
        self._clock = clock
        self._mark = ""
        self._known: dict[tuple[Kind, str], Revocation] = {}
        self._due: list[tuple[int, Kind, str]] = []
        # What the store has not told since it began anew: it may have lost it.
        self._untold: dict[tuple[Kind, str], Revocation] = {}
        self._open: dict[Watched, Principal] = {}

    def check(self, principal: Principal) -> None:
        """`AuthError` when the principal's token, the one that minted it, or all that its user had then, is revoked."""
        if self._names(principal):
            raise AuthError("token_revoked", REASON)

    def watch(self, connection: Watched, principal: Principal) -> None:
        """Tell the connection when its token is revoked, at once where that has happened since it was checked."""
        if self._names(principal):
            connection.revoked()
        else:
            self._open[connection] = principal

    def unwatch(self, connection: Watched) -> None:
        """The connection is gone."""
        self._open.pop(connection, None)

    async def revoke_token(self, token_id: str, *, expires_at: int | None = None) -> Revocation:
        """Revoke a token and the client secrets that it minted, until `expires_at`, where that is known; `StoreUnavailable`."""
        latest_s = int(self._clock()) + self._longest_s
        kept_until_s = latest_s if expires_at is None else min(latest_s, expires_at + LEEWAY_S)
        return await self._revoke("token", token_id, kept_until_s)

    async def revoke_user(self, user_id: str) -> Revocation:
        """Revoke all that the user was issued up to this second; `StoreUnavailable`."""
        return await self._revoke("user", user_id, int(self._clock()) + self._longest_s)

    async def _revoke(self, kind: Kind, name: str, kept_until_s: int) -> Revocation:
        revocation = Revocation(kind, name, int(self._clock()), kept_until_s)
        await self._store.revoke(revocation)
        self._add([revocation])
        return revocation

    async def load(self) -> None:
        """Read all that the store has; `StoreUnavailable`."""
        while await self._read(wait_s=0):
            pass

    async def follow(self) -> None:
        """Read on, for ever. While the store is away what is known here holds."""
        is_away = False
        while True:
            try:
                await self._read(wait_s=0 if self._untold else _WAIT_S)
                is_away = False
            except StoreUnavailable as error:
                if not is_away:
                    _log.warning("revocations.not_followed", reason=str(error))
                is_away = True
                await asyncio.sleep(_RETRY_S)

    async def _read(self, *, wait_s: float) -> bool:
        heard = await self._store.revocations(self._mark, wait_s)
        has_more = heard.mark != self._mark
        self._mark = heard.mark
        self._forget_due()
        if heard.is_anew:
            self._untold = self._known.copy()
        for told in heard.revocations:
            if (known := self._untold.get((told.kind, told.name))) is not None and told.covers(known):
                del self._untold[told.kind, told.name]
        self._add(heard.revocations)
        if self._untold and not heard.revocations:
            await self._write_back()
        return has_more

    async def _write_back(self) -> None:
        """Give the store some of what it has lost: it came back empty or older, and nodes that start later ask only it."""
        num_written = 0
        try:
            for key, lost in tuple(itertools.islice(self._untold.items(), _NUM_WRITTEN_BACK)):
                if key in self._known:  # else due meanwhile
                    await self._store.revoke(lost)
                    num_written += 1
                del self._untold[key]
        finally:
            if num_written:
                _log.warning("revocations.written_back", num=num_written)

    def _names(self, principal: Principal) -> bool:
        known = self._known
        if ("token", principal.token_id) in known:
            return True
        if principal.parent_token_id is not None and ("token", principal.parent_token_id) in known:
            return True
        user = known.get(("user", principal.subject))
        return user is not None and principal.issued_at <= user.issued_until_s

    def _add(self, new: Sequence[Revocation]) -> None:
        if not [revocation for revocation in new if self._keep(revocation)]:
            return
        for connection in [connection for connection, principal in self._open.items() if self._names(principal)]:
            self.unwatch(connection)
            connection.revoked()

    def _keep(self, new: Revocation) -> bool:
        """Whether it says more than what is known."""
        key = (new.kind, new.name)
        known = self._known.get(key, new)
        merged = Revocation(
            *key, max(known.issued_until_s, new.issued_until_s), max(known.kept_until_s, new.kept_until_s)
        )
        if self._known.get(key) == merged or merged.kept_until_s < self._clock():
            return False
        self._known[key] = merged
        heapq.heappush(self._due, (merged.kept_until_s, *key))
        return True

    def _forget_due(self) -> None:
        now_s = self._clock()
        while self._due and self._due[0][0] < now_s:
            due_s, kind, name = heapq.heappop(self._due)
            if (known := self._known.get((kind, name))) is not None and known.kept_until_s <= due_s:
                del self._known[kind, name]
