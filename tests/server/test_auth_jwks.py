"""Keys of an issuer: rotation, outage, floods of unknown kids, documents that are none."""

import asyncio
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from server.jwks import MAX_AGE_S, MAX_DOCUMENT_BYTES, REFETCH_S, Jwks, JwksError, open_jwks, parse_jwks
from server.tokens import AuthError
from tests.server.test_auth import EC, ED, RSA, jwk


class Issuer:
    """A JWKS endpoint and a clock under the test's hand."""

    def __init__(self, *kids: str) -> None:
        self.kids = list(kids)
        self.fails = False
        self.num_fetches = 0
        self.now = 1_000.0
        self.gate: asyncio.Event | None = None
        self.jwks = Jwks(self.fetch, clock=lambda: self.now)

    async def fetch(self) -> bytes:
        self.num_fetches += 1
        if self.gate is not None:
            await self.gate.wait()
        if self.fails:
            raise httpx.ConnectError("down")
        return json.dumps({"keys": [jwk(ED.public_key(), kid) for kid in self.kids]}).encode()


async def test_a_new_key_is_found_by_its_kid_and_a_removed_one_is_gone() -> None:
    issuer = Issuer("old")
    await issuer.jwks.find("old")
    issuer.kids = ["new"]
    issuer.now += REFETCH_S

    await issuer.jwks.find("new")

    assert issuer.num_fetches == 2
    with pytest.raises(AuthError) as caught:
        await issuer.jwks.find("old")
    assert caught.value.status == 401


async def test_the_keys_stay_while_the_issuer_fails() -> None:
    issuer = Issuer("k")
    await issuer.jwks.find("k")
    issuer.fails = True

    for _ in range(20):
        issuer.now += MAX_AGE_S
        await issuer.jwks.find("k")

    assert issuer.num_fetches == 21


async def test_an_empty_or_broken_answer_changes_nothing() -> None:
    issuer = Issuer("k")
    await issuer.jwks.find("k")
    issuer.kids = []
    issuer.now += MAX_AGE_S

    await issuer.jwks.find("k")


async def test_a_removed_key_is_noticed_when_the_cache_is_old() -> None:
    issuer = Issuer("k", "leaked")
    await issuer.jwks.find("leaked")
    issuer.kids = ["k"]
    issuer.now += MAX_AGE_S

    with pytest.raises(AuthError):
        await issuer.jwks.find("leaked")


async def test_a_flood_of_unknown_kids_costs_one_fetch() -> None:
    issuer = Issuer("k")
    await issuer.jwks.find("k")
    issuer.now += REFETCH_S

    results = await asyncio.gather(*(issuer.jwks.find(f"made-up-{n}") for n in range(500)), return_exceptions=True)

    assert all(isinstance(result, AuthError) and result.status == 401 for result in results)
    assert issuer.num_fetches == 2


async def test_a_slow_issuer_delays_nobody_whose_key_is_known() -> None:
    issuer = Issuer("k")
    await issuer.jwks.find("k")
    issuer.now += MAX_AGE_S
    issuer.gate = asyncio.Event()
    first = asyncio.create_task(issuer.jwks.find("k"))
    await asyncio.sleep(0)

    async with asyncio.timeout(30):
        await issuer.jwks.find("k")

    issuer.gate.set()
    await first
    assert issuer.num_fetches == 2


async def test_without_any_keys_yet_the_answer_is_503_with_a_hint() -> None:
    issuer = Issuer("k")
    issuer.fails = True

    with pytest.raises(AuthError) as caught:
        await issuer.jwks.find("k")

    assert (caught.value.status, caught.value.headers) == (503, {"retry-after": "30"})
    issuer.fails = False
    issuer.now += REFETCH_S
    await issuer.jwks.find("k")


async def test_a_token_without_kid_needs_an_only_key() -> None:
    await Issuer("k").jwks.find(None)
    with pytest.raises(AuthError):
        await Issuer("a", "b").jwks.find(None)


def document(*keys: Mapping[str, object]) -> bytes:
    return json.dumps({"keys": keys}).encode()


def test_only_public_signing_keys_of_known_kinds_are_taken() -> None:
    short = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    found = parse_jwks(
        document(
            jwk(RSA.public_key(), "good"),
            jwk(EC.public_key(), "ec", use="sig"),
            jwk(RSA.public_key(), "enc", use="enc"),
            jwk(RSA.public_key(), "wrap", key_ops=["wrapKey"]),
            jwk(RSA.public_key(), "odd", alg="HS256"),
            jwk(short.public_key(), "short"),
            {"kty": "oct", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0", "kid": "secret", "alg": "HS256"},
            {"kty": "RSA", "kid": "broken", "n": "!", "e": "AQAB"},
            {"kty": "new", "kid": "unknown"},
            {"kid": 5, "kty": "RSA"},
        )
    )

    assert found.keys() == {"good", "ec"}
    assert found["ec"].algorithms == {"ES256"}
    assert not any(name.startswith("HS") for key in found.values() for name in key.algorithms)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b"[]",
        b'{"keys":{}}',
        b'{"keys":[]}',
        b'{"keys":[5]}',
        b"[" * 100_000,
        b'{"keys":[' + b"[" * 100_000,
        document(*({"kty": "RSA"} for _ in range(65))),
        document(jwk(ED.public_key(), "twice"), jwk(EC.public_key(), "twice")),
    ],
    # Keys are new in each process: nothing of them may name a test.
    ids=lambda text: repr(text[:12]),
)
def test_what_is_no_key_set_is_refused(text: bytes) -> None:
    with pytest.raises(JwksError):
        parse_jwks(text)


async def test_a_file_is_read_at_start_and_must_be_right(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    path.write_bytes(document(jwk(ED.public_key(), "k")))
    async with open_jwks(path.as_uri()) as keys:
        await keys.find("k")

    path.write_bytes(b" " * (MAX_DOCUMENT_BYTES + 1))
    with pytest.raises(JwksError):
        async with open_jwks(str(path)):
            pass


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, response: bytes) -> None:
    with suppress(ConnectionError):  # of an answer that is too large the client reads no more
        await reader.readuntil(b"\r\n\r\n")
        writer.write(response)
        await writer.drain()
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize(
    ("response", "is_found"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n" + document(jwk(ED.public_key(), "k")), True),
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:%d/keys\r\n\r\n", False),
        (b"HTTP/1.1 500 No\r\n\r\n" + document(jwk(ED.public_key(), "k")), False),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b" " * (MAX_DOCUMENT_BYTES + 1) + document(jwk(ED.public_key(), "k")), False),
        (b"HTTP/1.1 200 OK\r\n\r\n<html>", False),
    ],
    ids=["good", "redirect", "500", "huge", "html"],
)
async def test_keys_are_fetched_from_the_named_host_only(response: bytes, is_found: bool) -> None:
    elsewhere: list[bytes] = []

    async def on_elsewhere(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        elsewhere.append(b"asked")
        await answer(reader, writer, b"HTTP/1.1 200 OK\r\n\r\n" + document(jwk(ED.public_key(), "k")))

    async with await asyncio.start_server(on_elsewhere, "127.0.0.1", 0) as other:
        port = other.sockets[0].getsockname()[1]
        told = response.replace(b"%d", str(port).encode())
        async with await asyncio.start_server(lambda r, w: answer(r, w, told), "127.0.0.1", 0) as issuer:
            url = f"http://127.0.0.1:{issuer.sockets[0].getsockname()[1]}/jwks"
            async with open_jwks(url) as keys:
                if is_found:
                    await keys.find("k")
                else:
                    with pytest.raises(AuthError) as caught:
                        await keys.find("k")
                    assert caught.value.status == 503

    assert elsewhere == []
