"""What the webhook's settings must look like, each by itself. A reason never quotes a value."""

import ipaddress

import httpx
from pydantic import SecretStr

from persistence.webhook_event import secret_key


def receiver_url(url: str) -> str:
    """The URL; ValueError unless an HTTP client can post there."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        raise ValueError("is no URL") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError("must be https://host/path (http in development only)")
    if parsed.port is not None and not 0 < parsed.port < 1 << 16:
        raise ValueError("has no such port")
    if parsed.userinfo or parsed.fragment:
        raise ValueError("must hold neither a user nor a fragment")
    return url


def signing_secret(secret: SecretStr) -> SecretStr:
    """The secret; ValueError unless it holds a key."""
    secret_key(secret.get_secret_value())
    return secret


def some_networks(texts: tuple[str, ...]) -> tuple[str, ...]:
    """The networks; ValueError unless all are some."""
    for text in texts:
        try:
            ipaddress.ip_network(text)
        except ValueError:
            raise ValueError("each must be a network such as 10.1.0.0/16") from None
    return texts
