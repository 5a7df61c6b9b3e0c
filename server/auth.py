"""Who is asking: credentials taken from a request, origins checked, tokens turned into principals. Knows nothing of sessions."""

import hashlib
import re
import time
from collections.abc import Callable, Mapping
from typing import Literal, Protocol
from urllib.parse import parse_qsl, urlsplit

import jwt
import msgspec
from msgspec import Struct
from starlette.datastructures import Headers
from starlette.types import Scope

from server.tokens import MAX_NAME_CHARS, check_times, claimed_name, claimed_scopes, decode, invalid_token, token_header
from server.tokens import AuthError as AuthError

Role = Literal["user", "support", "admin"]
Clock = Callable[[], float]
Verifier = Callable[[str], "Principal"]
Check = Callable[["Principal"], None]

CLIENT_SECRET_PREFIX = "ek_"  # noqa: S105
CLIENT_SECRET_TYPE = "ek+jwt"  # noqa: S105
SUBPROTOCOL = "realtime"
SUBPROTOCOL_TOKEN_PREFIX = "openai-insecure-api-key."  # noqa: S105
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})

_BEARER = re.compile(r"[Bb]earer +([!-~]+)", re.ASCII)
_CREDENTIAL_PARAMETERS = frozenset(
    {
        "token",
        "access_token",
        "id_token",
        "api_key",
        "api-key",
        "apikey",
        "key",
        "jwt",
        "authorization",
        "client_secret",
        "bearer",
    }
)


class Principal(Struct, frozen=True):
    """Who is asking, as an accepted token says. `expires_at`: seconds since the epoch when the authority ends.

    A revocation names `token_id` or `parent_token_id` (of a client secret: the token that minted it), or the subject and `issued_at` (of a
    client secret: its parent's). `session_config` is the JSON of the session that a client secret carries.
    """

    subject: str
    role: Role
    scopes: frozenset[str]
    client_id: str
    expires_at: int
    token_id: str
    issued_at: int
    parent_token_id: str | None = None
    session_config: bytes | None = None


class Credentials(Struct, frozen=True):
    """What a request presents. `subprotocol` is the one to answer with, never the one that carries the token."""

    token: str
    subprotocol: str | None = None


class SigningKey(Protocol):
    """A public key that may verify only the algorithms of its kind."""

    @property
    def key(self) -> jwt.PyJWK: ...

    @property
    def algorithms(self) -> frozenset[str]: ...


class PublicKeys(Protocol):
    """Where public keys come from."""

    async def find(self, kid: str | None) -> SigningKey:
        """The key of that id (None: the only one); `AuthError` when there is none."""


def credentials(scope: Scope) -> Credentials:
    """The one token that an HTTP or WebSocket request presents; `AuthError` when there is none, several, or one in the URL."""
    refuse_token_in_url(scope["query_string"])
    headers = Headers(scope=scope)
    offered: list[str] = list(scope.get("subprotocols") or ())
    tokens = [
        name.removeprefix(SUBPROTOCOL_TOKEN_PREFIX) for name in offered if name.startswith(SUBPROTOCOL_TOKEN_PREFIX)
    ]
    for value in headers.getlist("authorization"):
        match = _BEARER.fullmatch(value.strip())
        if match is None:
            raise invalid_token("The Authorization header must be: Bearer TOKEN.")
        tokens.append(match[1])
    if not tokens:
        raise AuthError(
            "missing_api_key",
            "No token was given: send it as Authorization: Bearer TOKEN, or as a WebSocket subprotocol.",
        )
    if len(tokens) > 1:
        raise invalid_token("More than one token was given.")
    return Credentials(tokens[0], SUBPROTOCOL if SUBPROTOCOL in offered else None)


def refuse_token_in_url(query: bytes) -> None:
    """`AuthError` when the query has a parameter that names a credential: URLs end up in logs, histories and referrers."""
    names = {name.lower() for name, _ in parse_qsl(query.decode("latin-1"), keep_blank_values=True)}
    if names & _CREDENTIAL_PARAMETERS:
        raise AuthError(
            "token_in_url", "A token must never be in the URL; consider it leaked and use another.", status=400
        )


def check_origin(headers: Headers, allowed: frozenset[str], *, development: bool) -> None:
    """`AuthError` (403) unless the request's Origin is listed exactly, or absent, as from anything that is not a browser.

    In development a page of this server on this machine may connect too. The host must then be a loopback name: otherwise a page of a
    stranger's domain that resolves to this machine (DNS rebinding) would pass.
    """
    origins = headers.getlist("origin")
    if not origins:
        return
    if len(origins) == 1 and (origins[0] in allowed or (development and _is_own_page(origins[0], headers))):
        return
    raise AuthError("origin_not_allowed", "Pages of this origin may not connect.", status=403)


def _is_own_page(origin: str, headers: Headers) -> bool:
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return (
        parts.hostname in LOOPBACK
        and headers.getlist("host") == [parts.netloc]
        and origin == f"{parts.scheme}://{parts.netloc}"
    )


class Authenticator:
    """Turns a token into a `Principal`.

    `secret` verifies the HS algorithms among `algorithms`, `keys` the others, never the other way round: a public key is no HMAC secret.
    `client_secrets` verifies `ek_` tokens. `check` has the last word on a principal: it raises `AuthError` for one that is revoked.
    """

    def __init__(
        self,
        *,
        algorithms: tuple[str, ...],
        secret: bytes | None,
        keys: PublicKeys | None,
        issuer: str,
        audience: str,
        max_ttl_s: float,
        client_secrets: Verifier | None = None,
        check: Check = lambda _: None,
        clock: Clock = time.time,
    ) -> None:
        self._secret_algorithms = (
            frozenset(name for name in algorithms if name.startswith("HS")) if secret else frozenset()
        )
        self._key_algorithms = (
            frozenset(algorithms) - {"none"} - {n for n in algorithms if n.startswith("HS")} if keys else frozenset()
        )
        self._secret = secret
        self._keys = keys
        self._issuer = issuer
        self._audience = audience
        self._max_ttl_s = max_ttl_s
        self._client_secrets = client_secrets
        self._check = check
        self._clock = clock

    async def authenticate(self, token: str) -> Principal:
        """The principal of a JWT or a client secret; `AuthError` says why there is none."""
        if token.startswith(CLIENT_SECRET_PREFIX) and self._client_secrets is not None:
            principal = self._client_secrets(token)
            self._check(principal)
            return principal
        return await self.authenticate_jwt(token)

    async def authenticate_jwt(self, token: str) -> Principal:
        """The principal of a JWT; a client secret is refused."""
        header = token_header(token)
        if str(header.get("typ", "")).lower() == CLIENT_SECRET_TYPE:
            raise invalid_token("This is not an access token.")
        algorithm = header.get("alg")
        if not isinstance(algorithm, str):
            raise invalid_token("The token's algorithm is not accepted.")
        if algorithm in self._secret_algorithms and self._secret is not None:
            claims = decode(token, self._secret, algorithm, issuer=self._issuer, audience=self._audience)
            token_id = claimed_name(claims, "jti")
        elif algorithm in self._key_algorithms and self._keys is not None:
            claims = await self._decode_by_public_key(token, header, algorithm)
            token_id = claimed_name(claims, "jti") if "jti" in claims else _hash(token)
        else:
            raise invalid_token("The token's algorithm is not accepted.")
        life = check_times(claims, max_ttl_s=self._max_ttl_s, now=self._clock())
        principal = Principal(
            subject=claimed_name(claims, "sub"),
            role=_role(claims),
            scopes=claimed_scopes(claims),
            client_id=claimed_name(claims, "client", default="default"),
            expires_at=life.expires_at,
            token_id=token_id,
            issued_at=life.issued_at,
        )
        self._check(principal)
        return principal

    async def _decode_by_public_key(
        self, token: str, header: Mapping[str, object], algorithm: str
    ) -> dict[str, object]:
        assert self._keys is not None
        kid = header.get("kid")
        if kid is not None and (not isinstance(kid, str) or not 0 < len(kid) <= MAX_NAME_CHARS * 2):
            raise invalid_token("The token's key id is malformed.")
        signing_key = await self._keys.find(kid)
        if algorithm not in signing_key.algorithms:
            raise invalid_token("The token's algorithm does not fit its key.")
        return decode(token, signing_key.key, algorithm, issuer=self._issuer, audience=self._audience)


def _hash(token: str) -> str:
    """What names a token without `jti`, which not every identity provider sets.

    Of what is signed only: anybody can turn a signature by ECDSA into another that verifies.
    """
    return hashlib.sha256(token.rpartition(".")[0].encode()).hexdigest()


def _role(claims: Mapping[str, object]) -> Role:
    try:
        role: Role = msgspec.convert(claims.get("role", "user"), Role)
    except msgspec.ValidationError:
        raise invalid_token("The token's role is not known.") from None
    return role
