"""JWTs, piece by piece: their shape, signature, times and claims; and the minting of our own. Never logs a token.

Rules from RFC 8725 (JWT best practices): a fixed list of algorithms, each bound to its kind of key; every claim required and typed;
nothing that a token says about keys is followed. PyJWT's defaults are laxer (a missing or fractional `exp`, any size), so they are
checked here.
"""

import re
import secrets
from collections.abc import Mapping
from typing import NamedTuple

import jwt

MAX_TOKEN_BYTES = 8 * 1024
MAX_NAME_CHARS = 128
MAX_SCOPES = 64
LEEWAY_S = 10

_COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+", re.ASCII)
# Headers that name or carry a key, or change what is signed: RFC 7515, 4.1.2 to 4.1.11, and RFC 7797.
_FORBIDDEN_HEADERS = frozenset({"crit", "jku", "jwk", "x5u", "x5c", "b64", "zip"})


class AuthError(Exception):
    """A refusal. `code` and the text go to the client, `status` is the HTTP status."""

    def __init__(self, code: str, message: str, *, status: int = 401, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status
        self.retry_after_s = retry_after_s

    @property
    def headers(self) -> dict[str, str]:
        """The response's headers: RFC 6750, 3 for a refused credential."""
        headers = {}
        if self.status == 401:
            headers["www-authenticate"] = (
                f'Bearer realm="flueman", error="invalid_token", error_description="{self.code}"'
            )
        if self.retry_after_s is not None:
            headers["retry-after"] = str(self.retry_after_s)
        return headers


def invalid_token(message: str) -> AuthError:
    """The refusal of a token that cannot be trusted; `message` says why in general words."""
    return AuthError("invalid_api_key", message)


def token_header(token: str) -> dict[str, object]:
    """The header of a token that has the shape of a JWT and no header that touches keys; not yet verified."""
    if len(token) > MAX_TOKEN_BYTES:
        raise invalid_token(f"The token is longer than {MAX_TOKEN_BYTES} bytes.")
    if _COMPACT.fullmatch(token) is None:
        raise invalid_token("The token is not a JWT.")
    try:
        header: dict[str, object] = jwt.get_unverified_header(token)
    except (jwt.PyJWTError, ValueError, RecursionError):
        raise invalid_token("The token is malformed.") from None
    if _FORBIDDEN_HEADERS & header.keys():
        raise invalid_token("The token's header has parameters that are not accepted.")
    return header


def decode(token: str, key: bytes | jwt.PyJWK, algorithm: str, *, issuer: str, audience: str) -> dict[str, object]:
    """The claims of a token whose signature, issuer and audience are right; times are not checked."""
    try:
        claims: dict[str, object] = jwt.decode(
            token,
            key,
            algorithms=[algorithm],
            issuer=issuer,
            audience=audience,
            # Times are checked by `check_times`, which takes only integers and an injected clock.
            options={
                "require": ["exp", "iat", "sub", "iss", "aud"],
                "verify_exp": False,
                "verify_iat": False,
                "verify_nbf": False,
                "verify_sub": False,
                "verify_jti": False,
            },
        )
    except jwt.InvalidIssuerError:
        raise invalid_token("The token is from another issuer.") from None
    except jwt.InvalidAudienceError:
        raise invalid_token("The token is for another audience.") from None
    except jwt.MissingRequiredClaimError as error:
        raise invalid_token(f"The token has no {error.claim}.") from None
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
        raise invalid_token("The token's signature is not valid.") from None
    return claims


class Life(NamedTuple):
    """A token's `iat` and `exp`, in seconds since the epoch."""

    issued_at: int
    expires_at: int


def check_times(claims: Mapping[str, object], *, max_ttl_s: float, now: float) -> Life:
    """The token's life, when it holds now; `AuthError` when it is over, not begun, too long, or not in whole seconds."""
    issued_at, expires_at, not_before = (_seconds(claims, name) for name in ("iat", "exp", "nbf"))
    assert issued_at is not None
    assert expires_at is not None
    if expires_at <= issued_at or expires_at - issued_at > max_ttl_s:
        raise invalid_token(f"The token's life must be between 1 and {max_ttl_s:.0f} seconds.")
    if now >= expires_at + LEEWAY_S:
        raise AuthError("token_expired", "The token has expired.")
    if now < issued_at - LEEWAY_S or (not_before is not None and now < not_before - LEEWAY_S):
        raise invalid_token("The token is not valid yet.")
    return Life(issued_at, expires_at)


def _seconds(claims: Mapping[str, object], name: str) -> int | None:
    value = claims.get(name)
    if value is None and name == "nbf":
        return None
    if type(value) is not int or not 0 <= value < 2**40:
        raise invalid_token(f"The token's {name} must be whole seconds since 1970.")
    return value


def claimed_name(claims: Mapping[str, object], claim: str, *, default: str | None = None) -> str:
    """A claim that is a short printable text: no control, bidi or half characters, since it goes to logs and stores."""
    value = claims.get(claim, default)
    if not isinstance(value, str) or not is_name(value):
        raise invalid_token(f"The token's {claim} is missing or malformed.")
    return value


def is_name(value: str) -> bool:
    """Whether a claim that names something may have that value."""
    return 0 < len(value) <= MAX_NAME_CHARS and value.isprintable() and value == value.strip()


def claimed_scopes(claims: Mapping[str, object]) -> frozenset[str]:
    """The claim `scope`: names in one string separated by spaces (RFC 8693, 4.2), or a list of them."""
    value = claims.get("scope", "")
    names = value.split() if isinstance(value, str) else value
    if not isinstance(names, list) or len(names) > MAX_SCOPES:
        raise invalid_token("The token's scope is malformed.")
    if not all(
        isinstance(name, str) and 0 < len(name) <= MAX_NAME_CHARS and name.isprintable() and " " not in name
        for name in names
    ):
        raise invalid_token("The token's scope is malformed.")
    return frozenset(names)


def mint(
    secret: bytes,
    *,
    subject: str,
    role: str,
    client_id: str,
    scopes: frozenset[str],
    issuer: str,
    audience: str,
    now: float,
    ttl_s: int,
) -> str:
    """An access token signed with our own secret, with a new `jti`."""
    claims: dict[str, object] = {
        "iss": issuer,
        "aud": audience,
        "sub": subject,
        "role": role,
        "client": client_id,
        "iat": int(now),
        "exp": int(now) + ttl_s,
        "jti": secrets.token_urlsafe(16),
    }
    if scopes:
        claims["scope"] = " ".join(sorted(scopes))
    return jwt.encode(claims, secret, algorithm="HS256")
