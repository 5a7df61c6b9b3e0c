"""Access tokens that a development server gives to its own pages, so that staff's pages can be tried. Production has none."""

import time

from msgspec import Struct

from server.access import ALL_CLIENTS_SCOPE
from server.auth import Role
from server.tokens import mint

LIFE_S = 8 * 3600


class DevelopmentToken(Struct, frozen=True):
    """`expires_at`: seconds since the epoch."""

    value: str
    expires_at: int


class DevelopmentTokens:
    """Signs with the server's own key, as `flueman token` does."""

    def __init__(self, key: bytes, *, issuer: str, audience: str, max_ttl_s: float) -> None:
        self._key = key
        self._issuer = issuer
        self._audience = audience
        self._ttl_s = int(min(LIFE_S, max_ttl_s))

    def mint(self, role: Role) -> DevelopmentToken:
        """A token for whoever sits at this machine, as another person in each role: staff that looks at its own talks leaves no trail."""
        now = int(time.time())
        value = mint(
            self._key,
            subject="developer" if role == "user" else f"developer-{role}",
            role=role,
            client_id="page",
            scopes=frozenset() if role == "user" else frozenset({ALL_CLIENTS_SCOPE}),
            issuer=self._issuer,
            audience=self._audience,
            now=now,
            ttl_s=self._ttl_s,
        )
        return DevelopmentToken(value, now + self._ttl_s)
