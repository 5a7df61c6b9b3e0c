"""The public keys of a token issuer, from a file or an https URL (RFC 7517): bounded, cached, refreshed with care.

A new key is found by its unknown `kid`; a flood of made-up ones costs one fetch in `REFETCH_S`. While the source fails the keys stay as
they were; what a good answer no longer lists is gone, so the issuer lists an old key until its tokens end.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import jwt
import msgspec
import structlog
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from msgspec import Struct

from server.tokens import AuthError, invalid_token

MAX_DOCUMENT_BYTES = 256 * 1024
MAX_KEYS = 64
MIN_RSA_BITS = 2048  # RFC 7518, 3.3
REFETCH_S = 30.0
MAX_AGE_S = 600.0
FETCH_TIMEOUT_S = 5.0

_RSA = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
_CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}

Fetch = Callable[[], Awaitable[bytes]]

log = structlog.get_logger(__name__)


class JwksError(Exception):
    """The document cannot be had or is no key set."""


class PublicKey(Struct, frozen=True):
    """A verification key and the algorithms of its kind, narrowed to its `alg` when the issuer set one."""

    key: jwt.PyJWK
    algorithms: frozenset[str]


class _Entry(Struct, frozen=True):
    kty: str
    kid: str | None = None
    alg: str | None = None
    use: str | None = None
    key_ops: list[str] | None = None


class _Document(Struct, frozen=True):
    keys: list[msgspec.Raw]


def parse_jwks(document: bytes) -> dict[str | None, PublicKey]:
    """The usable keys by `kid`; `JwksError` when there is none. Secrets, encryption keys, short and unknown ones are left out."""
    try:
        entries = msgspec.json.decode(document, type=_Document).keys
    except (msgspec.DecodeError, RecursionError) as error:
        raise JwksError("is no JWKS document") from error
    if len(entries) > MAX_KEYS:
        raise JwksError(f"has more than {MAX_KEYS} keys")
    keys: dict[str | None, PublicKey] = {}
    for raw in entries:
        parsed = _parse_key(raw)
        if parsed is None:
            continue
        kid, key = parsed
        if kid in keys:
            raise JwksError("has two keys of one kid")
        keys[kid] = key
    if not keys:
        raise JwksError("has no usable public key")
    return keys


def _parse_key(raw: msgspec.Raw) -> tuple[str | None, PublicKey] | None:
    try:
        entry = msgspec.json.decode(raw, type=_Entry)
        if (
            entry.kty == "oct"
            or entry.use not in (None, "sig")
            or (entry.key_ops is not None and "verify" not in entry.key_ops)
        ):
            return None
        key = jwt.PyJWK(msgspec.json.decode(raw, type=dict[str, object]))
    except (msgspec.DecodeError, RecursionError, jwt.PyJWTError, ValueError, TypeError, KeyError):
        return None
    algorithms = _algorithms_of(key.key)
    if entry.alg is not None:
        algorithms &= {entry.alg}
    return (entry.kid, PublicKey(key, algorithms)) if algorithms else None


def _algorithms_of(key: object) -> frozenset[str]:
    """What a public key may verify; nothing for a private key, which has no place in a published set."""
    if isinstance(key, RSAPublicKey):
        return _RSA if key.key_size >= MIN_RSA_BITS else frozenset()
    if isinstance(key, EllipticCurvePublicKey):
        return frozenset({_CURVES[key.curve.name]} if key.curve.name in _CURVES else ())
    if isinstance(key, Ed25519PublicKey | Ed448PublicKey):
        return frozenset({"EdDSA"})
    return frozenset()


class Jwks:
    """The keys, as fetched last. One fetch at a time, at most one in `REFETCH_S`, whatever tokens ask for."""

    def __init__(self, fetch: Fetch, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._fetch = fetch
        self._clock = clock
        self._keys: Mapping[str | None, PublicKey] = {}
        self._fetched_at: float | None = None
        self._tried_at: float | None = None
        self._lock = asyncio.Lock()

    async def find(self, kid: str | None) -> PublicKey:
        """The key of that `kid`, or the only one when a token names none; `AuthError` when there is none, or no keys could be had yet."""
        key = self._cached(kid)
        if key is not None and (self._is_fresh() or self._lock.locked()):
            return key  # also while another refreshes: a slow issuer delays nobody whose key is known
        await self._refresh_if_due(kid)
        key = self._cached(kid)
        if key is not None:
            return key
        if self._fetched_at is None:
            raise AuthError(
                "keys_unavailable", "Tokens cannot be checked now.", status=503, retry_after_s=int(REFETCH_S)
            )
        raise invalid_token("The token's key is not known.")

    async def refresh(self) -> None:
        """Fetch the keys now; `JwksError` when that fails, with the old keys kept."""
        self._tried_at = self._clock()
        try:
            async with asyncio.timeout(FETCH_TIMEOUT_S):
                self._keys = parse_jwks(await self._fetch())
        except (TimeoutError, OSError, httpx.HTTPError) as error:
            raise JwksError(f"cannot be fetched: {type(error).__name__}") from error
        self._fetched_at = self._clock()

    async def _refresh_if_due(self, kid: str | None) -> None:
        async with self._lock:
            satisfied = self._is_fresh() and self._cached(kid) is not None
            if satisfied or (self._tried_at is not None and self._clock() - self._tried_at < REFETCH_S):
                return
            try:
                await self.refresh()
            except JwksError as error:
                log.warning("jwks_refresh_failed", reason=str(error), num_keys_kept=len(self._keys))
            else:
                log.info("jwks_refreshed", num_keys=len(self._keys))

    def _cached(self, kid: str | None) -> PublicKey | None:
        if kid is None:
            return next(iter(self._keys.values())) if len(self._keys) == 1 else None
        return self._keys.get(kid)

    def _is_fresh(self) -> bool:
        return self._fetched_at is not None and self._clock() - self._fetched_at < MAX_AGE_S


@asynccontextmanager
async def open_jwks(url: str) -> AsyncIterator[Jwks]:
    """The keys behind a URL or in a file, fetched once. A file must be right at start; a URL may recover later."""
    parts = urlsplit(url)
    if parts.scheme in ("", "file"):
        path = Path(parts.path)
        jwks = Jwks(lambda: asyncio.to_thread(_read_bounded, path))
        await jwks.refresh()
        yield jwks
        return
    # No redirects: the keys come from the host that the operator named, or not at all.
    async with httpx.AsyncClient(follow_redirects=False, timeout=FETCH_TIMEOUT_S) as client:
        jwks = Jwks(lambda: _download(client, url))
        try:
            await jwks.refresh()
        except JwksError as error:
            log.warning("jwks_refresh_failed", reason=str(error), num_keys_kept=0)
        yield jwks


def _read_bounded(path: Path) -> bytes:
    with path.open("rb") as file:
        document = file.read(MAX_DOCUMENT_BYTES + 1)
    _check_size(document)
    return document


async def _download(client: httpx.AsyncClient, url: str) -> bytes:
    document = bytearray()
    headers = {"accept": "application/jwk-set+json, application/json"}
    async with client.stream("GET", url, headers=headers) as response:
        if response.status_code != 200:
            raise JwksError(f"answered {response.status_code}")
        async for chunk in response.aiter_bytes():
            document += chunk
            if len(document) > MAX_DOCUMENT_BYTES:
                # Closing ends the iteration from within; leaving it halfway would leave its generators to the collector.
                await response.aclose()
    _check_size(document)
    return bytes(document)


def _check_size(document: bytes | bytearray) -> None:
    if len(document) > MAX_DOCUMENT_BYTES:
        raise JwksError(f"is larger than {MAX_DOCUMENT_BYTES} bytes")
