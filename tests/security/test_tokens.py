"""Attacks by token: forged, weak, stolen, misplaced, expired. Row by row of SECURITY.md, against the running server."""

import asyncio
import json
import time
from typing import Any

import httpx
import pytest
from websockets.exceptions import InvalidStatus

from server.auth import Principal
from tests.security.conftest import CANARY, PATIENCE_S, Target
from tests.server.test_auth import RSA, SECRET, claims, hmac_token, raw_token, signed


def fresh(**changes: object) -> dict[str, object]:
    now = int(time.time())
    return claims(**{"iat": now, "exp": now + 600, "note": CANARY} | changes)


FORGED: dict[str, Any] = {
    "none": lambda: raw_token(b'{"alg":"none"}', json.dumps(fresh()).encode(), b""),
    "none-signed": lambda: raw_token(b'{"alg":"nOnE"}', json.dumps(fresh()).encode()),
    "other-secret": lambda: signed(fresh(), b"another secret of thirty-two byte"),
    "empty-signature": lambda: signed(fresh()).rsplit(".", 1)[0] + ".",
    "cut-signature": lambda: signed(fresh())[:-2],
    "rs256": lambda: signed(fresh(), RSA, "RS256", kid="k"),
    "jwk": lambda: hmac_token(SECRET, {"alg": "HS256", "jwk": {"kty": "oct", "k": "AAAA"}}),
    "jku": lambda: hmac_token(SECRET, {"alg": "HS256", "jku": "http://127.0.0.1:1/"}),
    "crit": lambda: hmac_token(SECRET, {"alg": "HS256", "crit": ["x"]}),
    "kid-path": lambda: raw_token(b'{"alg":"HS256","kid":"../../dev/null"}', json.dumps(fresh()).encode()),
    "alg-list": lambda: raw_token(b'{"alg":["HS256"]}', json.dumps(fresh()).encode()),
    "deep-header": lambda: raw_token(b"[" * 4_000, b"{}"),
    "no-exp": lambda: signed(fresh(exp=None)),
    "float-exp": lambda: signed(fresh(exp=1e300)),
    "text-exp": lambda: signed(fresh(exp=str(int(time.time()) + 60))),
    "for-ever": lambda: signed(fresh(exp=int(time.time()) + 10**9)),
    "no-jti": lambda: signed(fresh(jti=None)),
    "no-sub": lambda: signed(fresh(sub=None)),
    "control-sub": lambda: signed(fresh(sub="mia\r\n\x1b[2J")),
    "bidi-sub": lambda: signed(fresh(sub="\u202emia")),
    "other-issuer": lambda: signed(fresh(iss="evil")),
    "other-audience": lambda: signed(fresh(aud="evil")),
    "unknown-role": lambda: signed(fresh(role="root")),
    "expired": lambda: signed(fresh(iat=int(time.time()) - 600, exp=int(time.time()) - 60)),
    "not-yet": lambda: signed(fresh(nbf=int(time.time()) + 300)),
    "not-a-token": lambda: CANARY,
    "ek-of-nothing": lambda: f"ek_{CANARY}",
    "ek-of-access-token": lambda: "ek_" + signed(fresh()),
}


@pytest.mark.parametrize("kind", FORGED)
async def test_a_forged_token_is_refused_in_the_header_and_in_the_subprotocol(target: Target, kind: str) -> None:
    token = target.remember(FORGED[kind]())

    with pytest.raises(InvalidStatus) as refused:
        async with target.connect(token):
            pass

    response = refused.value.response
    assert response.status_code == 401
    assert response.headers["www-authenticate"].startswith("Bearer ")
    error = json.loads(response.body)["error"]
    assert error["code"] == ("token_expired" if kind == "expired" else "invalid_api_key")
    assert CANARY.encode() not in response.body

    if token.endswith("."):
        return  # not a token that a browser could offer
    offered = ["realtime", f"openai-insecure-api-key.{token}"]
    async with target.connect(subprotocols=offered, headers={"origin": "https://avatar.example"}) as client:
        assert client.socket.subprotocol == "realtime"
        assert (await client.error())["code"] == "invalid_api_key"
        assert await client.closed() == 3000


async def test_no_token_is_refused(target: Target) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with target.connect():
            pass

    assert refused.value.response.status_code == 401


@pytest.mark.parametrize("name", ["token", "access_token", "api_key", "authorization"])
async def test_a_token_in_the_url_is_refused_even_with_a_good_one_beside(target: Target, name: str) -> None:
    for value in (target.token(), CANARY):
        with pytest.raises(InvalidStatus) as refused:
            async with target.connect(target.token(), url=f"{target.url}&{name}={value}"):
                pass

        assert refused.value.response.status_code == 400
        assert json.loads(refused.value.response.body)["error"]["code"] == "token_in_url"


async def test_two_tokens_are_refused(target: Target) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with target.connect(headers={"authorization": f"Bearer {target.token()}, Bearer {target.token('eve')}"}):
            pass

    assert refused.value.response.status_code == 401


@pytest.mark.parametrize("size", [8_000, 8_150, 8_300, 9_000, 20_000, 200_000])
async def test_a_long_token_fails_fast_and_does_not_hang(target: Target, size: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
    head = (
        "GET /v1/realtime?model=demo HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        f"Authorization: Bearer {'a' * size}\r\n\r\n"
    )
    writer.write(head.encode())

    async with asyncio.timeout(PATIENCE_S):
        line = await reader.readline()

    assert line.split()[1] in (b"400", b"401", b"431")  # 408 is the deadline's
    writer.close()


async def test_a_client_secret_opens_its_session_and_only_realtime_is_echoed(target: Target) -> None:
    body = {"session": {"type": "realtime", "model": "demo", "instructions": "Be brief."}}
    async with httpx.AsyncClient(timeout=PATIENCE_S) as client:
        minted = await client.post(
            f"http://127.0.0.1:{target.port}/v1/realtime/client_secrets",
            json=body,
            headers={"authorization": f"Bearer {target.token()}"},
        )
    secret = target.remember(minted.json()["value"])
    offered = ["realtime", f"openai-insecure-api-key.{secret}"]

    async with target.connect(subprotocols=offered, url=target.url.split("?")[0]) as session:
        created = await session.next()
        assert session.socket.subprotocol == "realtime"
        assert created["session"]["instructions"] == "Be brief."


async def test_an_expired_client_secret_is_refused(target: Target) -> None:
    principal = Principal("mia", "user", frozenset(), "c", int(time.time()) + 600, "t", int(time.time()))
    stolen = target.client_secret(principal, ttl_s=60, ago_s=600)

    with pytest.raises(InvalidStatus) as refused:
        async with target.connect(stolen):
            pass

    assert refused.value.response.status_code == 401


async def test_a_client_secret_mints_no_other(target: Target) -> None:
    principal = Principal("mia", "admin", frozenset(), "c", int(time.time()) + 600, "t", int(time.time()))
    secret = target.client_secret(principal, ttl_s=60)

    async with httpx.AsyncClient(timeout=PATIENCE_S) as client:
        answer = await client.post(
            f"http://127.0.0.1:{target.port}/v1/realtime/client_secrets",
            headers={"authorization": f"Bearer {secret}"},
        )

    assert answer.status_code == 401


async def test_a_session_ends_with_its_token(target: Target) -> None:
    now = int(time.time())
    async with target.connect(target.token(iat=now - 10, exp=now + 5)) as client:
        await client.until("session.created")

        code = await client.closed()

    assert code == 4401
    assert time.time() >= now + 5
