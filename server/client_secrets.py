"""Client secrets: `ek_` tokens that a backend mints with its real token, for a browser to open sessions with. Nothing is stored.

A secret is a JWT of its own type and audience under a key of its own, bound to the user and client of the token that minted it, never
worth more than a user's token, and carries the session's configuration. As at OpenAI it opens any number of sessions until it expires,
and a session outlives it, here until the minting token ends.
"""

import hashlib
import hmac
import secrets
import time

import msgspec
from jwt import api_jws

from server.auth import CLIENT_SECRET_PREFIX, CLIENT_SECRET_TYPE, Clock, Principal
from server.tokens import (
    MAX_TOKEN_BYTES,
    AuthError,
    check_times,
    claimed_name,
    claimed_scopes,
    decode,
    invalid_token,
    token_header,
)

MIN_TTL_S = 10
MAX_TTL_S = 7_200
DEFAULT_TTL_S = 600
# The whole line `Sec-WebSocket-Protocol: realtime, openai-insecure-api-key.ek_…` stays under the 8 KiB that servers and proxies allow.
MAX_SECRET_BYTES = MAX_TOKEN_BYTES - 128


class SessionTooLarge(Exception):
    """The session's configuration does not fit into a client secret."""


class ClientSecret(msgspec.Struct, frozen=True):
    """A minted secret; `expires_at` is when it opens no more sessions, in seconds since the epoch."""

    value: str
    expires_at: int


class ClientSecrets:
    """Mints and verifies `ek_` secrets under a key derived from `key`."""

    def __init__(self, key: bytes, *, issuer: str, audience: str, clock: Clock = time.time) -> None:
        # A key of its own: an access token can never pass as a client secret nor the other way round, whatever their headers say.
        self._key = hmac.digest(key, b"flueman client secret v1", hashlib.sha256)
        self._issuer = issuer
        self._audience = f"{audience}/client_secrets"
        self._clock = clock

    def mint(self, principal: Principal, session: bytes, *, ttl_s: int) -> ClientSecret:
        """A secret for that principal's user and client, ending with the principal's token at the latest; `session` is JSON."""
        now = int(self._clock())
        expires_at = min(now + ttl_s, principal.expires_at)
        if expires_at <= now:
            raise AuthError("token_expired", "The token has expired.")
        claims = {
            "iss": self._issuer,
            "aud": self._audience,
            "sub": principal.subject,
            "client": principal.client_id,
            # Scopes of staff are not handed down with the staff's role.
            "scope": sorted(principal.scopes) if principal.role == "user" else [],
            "iat": now,
            "exp": expires_at,
            "jti": secrets.token_urlsafe(16),
            "parent": principal.token_id,
            "parent_iat": principal.issued_at,
            "parent_exp": principal.expires_at,
            "session": msgspec.Raw(session),
        }
        payload = msgspec.json.encode(claims)
        value = CLIENT_SECRET_PREFIX + api_jws.encode(payload, self._key, "HS256", {"typ": CLIENT_SECRET_TYPE})
        if len(value) > MAX_SECRET_BYTES:
            raise SessionTooLarge
        return ClientSecret(value, expires_at)

    def verify(self, value: str) -> Principal:
        """The principal of a secret, whose authority lasts as long as the minting token's; `AuthError` when it is not one of ours."""
        token = value.removeprefix(CLIENT_SECRET_PREFIX)
        header = token_header(token)
        if header.get("typ") != CLIENT_SECRET_TYPE or header.get("alg") != "HS256":
            raise invalid_token("This is not a client secret.")
        claims = decode(token, self._key, "HS256", issuer=self._issuer, audience=self._audience)
        life = check_times(claims, max_ttl_s=MAX_TTL_S, now=self._clock())
        return Principal(
            subject=claimed_name(claims, "sub"),
            role="user",
            scopes=claimed_scopes(claims),
            client_id=claimed_name(claims, "client"),
            expires_at=_seconds_of(claims, "parent_exp"),
            token_id=claimed_name(claims, "jti"),
            # The release before this one wrote no `parent_iat`.
            issued_at=_seconds_of(claims, "parent_iat", default=life.issued_at),
            parent_token_id=claimed_name(claims, "parent"),
            session_config=msgspec.json.encode(claims.get("session")),
        )


def _seconds_of(claims: dict[str, object], claim: str, *, default: int | None = None) -> int:
    value = claims.get(claim, default)
    if type(value) is not int:
        raise invalid_token("The client secret is malformed.")
    return value
