"""How the value of one variable is read and checked, whatever the others are. A bad one raises a `ValueError` that does not repeat it."""

import json
from collections.abc import Callable
from urllib.parse import urlsplit

from pydantic import SecretStr

_MIN_SECRET_BYTES = 32  # RFC 7518, 3.2: an HS256 key is at least as long as the hash
_MAX_REASON_CHARS = 64
SECRET_ALGORITHMS = ("HS256", "HS384", "HS512")
PUBLIC_KEY_ALGORITHMS = ("EdDSA", "ES256", "ES384", "ES512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512")


def listed(value: object) -> object:
    """Comma-separated or JSON text as a list; anything else unchanged."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return _from_json(value)
    return [part.strip() for part in value.split(",") if part.strip()]


def mapped(value: object) -> object:
    """`a=b,c` or JSON text as a mapping, a lone name mapped to None; anything else unchanged."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("{"):
        return _from_json(value)
    pairs = (part.partition("=") for part in value.split(",") if part.strip())
    return {alias.strip(): name.strip() or None for alias, _, name in pairs}


def json_object(value: object) -> object:
    """JSON text as an object; anything else unchanged."""
    return _from_json(value) if isinstance(value, str) else value


def _from_json(value: str) -> object:
    try:
        return json.loads(value)
    except ValueError:
        raise ValueError("is not valid JSON") from None


def exact_origins(origins: tuple[str, ...]) -> tuple[str, ...]:
    """The origins, each as a browser writes it."""
    for origin in origins:
        parts = urlsplit(origin)
        if (
            parts.scheme not in ("http", "https")
            or not parts.hostname
            or origin != f"{parts.scheme}://{parts.netloc.lower()}"
        ):
            raise ValueError(
                "each must be an exact origin such as https://avatar.example.com, in lower case, with no path and no *"
            )
    return origins


def long_enough(secret: SecretStr) -> SecretStr:
    """The secret, if it can sign."""
    text = secret.get_secret_value()
    if len(text.encode()) < _MIN_SECRET_BYTES:
        raise ValueError(f"must have at least {_MIN_SECRET_BYTES} bytes; make one with: openssl rand -hex 32")
    if len(set(text)) < 8:
        raise ValueError("looks like a placeholder; make one with: openssl rand -hex 32")
    return secret


def schemes(*allowed: str) -> Callable[[str], str]:
    """A check that a URL has one of these schemes."""

    def check(url: str) -> str:
        if urlsplit(url).scheme not in allowed:
            raise ValueError("must start with " + " or ".join(f"{scheme}://" for scheme in allowed))
        return url

    return check


def folder_or_s3(url: str) -> str:
    """Where an archive can be."""
    parts = urlsplit(url)
    if parts.scheme not in ("", "file", "s3"):
        raise ValueError("must be a folder or s3://bucket/prefix?endpoint=…&region=…")
    if parts.scheme == "s3" and not parts.netloc:
        raise ValueError("names no bucket: s3://bucket/prefix")
    return url


def known_algorithms(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names, if tokens may be signed with each."""
    if unknown := [name for name in names if name not in SECRET_ALGORITHMS + PUBLIC_KEY_ALGORITHMS]:
        raise ValueError(f"{len(unknown)} unknown; known are {', '.join(SECRET_ALGORITHMS + PUBLIC_KEY_ALGORITHMS)}")
    return names


def short_words(words: tuple[str, ...]) -> tuple[str, ...]:
    """The words, if each can be shown and chosen."""
    if len(set(words)) != len(words) or not all(
        0 < len(word) <= _MAX_REASON_CHARS and word.isprintable() for word in words
    ):
        raise ValueError(f"each must be printable, at most {_MAX_REASON_CHARS} characters long, and there once")
    return words
