"""Attacks by a new token in session.update: another's, a worse one, one with company; and that a good one outlives the first."""

import asyncio
import time
from typing import Any

import httpx
import pytest

from server.auth import Principal
from tests.security.conftest import PATIENCE_S, Client, Event, Target
from tests.server.test_auth import claims, signed

CLIENT_SECRETS = "/v1/realtime/client_secrets"


async def renew(client: Client, token: str, **beside: object) -> None:
    session = {"type": "realtime", "token": token, **beside}
    await client.send({"type": "session.update", "event_id": "mine", "session": session})


def refusal(error: Event) -> tuple[str, str, str, str]:
    return error["type"], error["code"], error["param"], error["event_id"]


def bad_token(target: Target, kind: str) -> str:
    now = int(time.time())
    principal = Principal("mia", "user", frozenset(), "c", now + 600, "t", now)
    match kind:
        case "another user's":
            return target.token("eve")
        case "for another client":
            return target.token(client="elsewhere")
        case "a secret for another client":
            return target.client_secret(principal, ttl_s=60)
        case "expired":
            return target.token(iat=now - 600, exp=now - 60)
        case "an expired secret":
            return target.client_secret(principal, ttl_s=60, ago_s=600)
        case "forged":
            return target.remember(signed(claims(iat=now, exp=now + 600), b"another secret of thirty-two byte"))
        case "malformed":
            return target.remember("this-is-not-a-token-but-it-may-be-a-password")
        case "too long":
            return target.remember("a" * 9_000 + "the-end-of-a-long-token")
        case _:
            return ""


@pytest.mark.parametrize(
    "kind",
    [
        "another user's",
        "for another client",
        "a secret for another client",
        "expired",
        "an expired secret",
        "forged",
        "malformed",
        "too long",
        "empty",
    ],
)
async def test_a_token_that_is_not_the_sessions_own_is_refused_and_the_session_goes_on(
    target: Target, kind: str
) -> None:
    async with target.session() as client:
        await renew(client, bad_token(target, kind))
        error = await client.error()
        await client.is_answered()

    code = "token_expired" if "expired" in kind else "invalid_api_key"
    assert refusal(error) == ("invalid_request_error", code, "session.token", "mine")


async def test_a_revoked_token_is_refused(target: Target) -> None:
    token = target.token(jti="revoked-before-it-came")
    async with target.session() as client, httpx.AsyncClient(timeout=PATIENCE_S) as http:
        url = f"http://127.0.0.1:{target.port}/v1/revocations"
        revoked = await http.post(url, json={}, headers={"authorization": f"Bearer {token}"})
        await renew(client, token)
        error = await client.error()
        await client.is_answered()

    assert revoked.status_code == 201
    assert refusal(error) == ("invalid_request_error", "token_revoked", "session.token", "mine")


@pytest.mark.parametrize("beside", [{"instructions": "Be brief."}, {"unheard_of": 1}, {"client_secret": None}])
async def test_a_token_with_company_changes_nothing(target: Target, beside: dict[str, Any]) -> None:
    async with target.session() as client:
        await renew(client, target.token(), **beside)
        error = await client.error()
        await client.send({"type": "session.update", "session": {"type": "realtime"}})
        updated = await client.until("session.updated")

    assert refusal(error) == ("invalid_request_error", "invalid_value", "session.token", "mine")
    assert updated["session"]["instructions"] == ""


async def test_no_client_secret_carries_a_token(target: Target) -> None:
    async with httpx.AsyncClient(timeout=PATIENCE_S) as http:
        answer = await http.post(
            f"http://127.0.0.1:{target.port}{CLIENT_SECRETS}",
            json={"session": {"type": "realtime", "token": target.token()}},
            headers={"authorization": f"Bearer {target.token()}"},
        )

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "session.token")


@pytest.mark.parametrize("kind", ["token", "secret"])
async def test_a_session_outlives_its_token_by_a_new_one(target: Target, kind: str) -> None:
    now = int(time.time())
    principal = Principal("mia", "user", frozenset(), "default", now + 600, "t", now)
    new = target.token() if kind == "token" else target.client_secret(principal, ttl_s=60)
    async with target.connect(target.token(iat=now - 10, exp=now + 5)) as client:
        await client.until("session.created")
        await renew(client, new)
        await client.until("session.updated")

        await asyncio.sleep(now + 5.5 - time.time())

        await client.is_answered()


async def test_a_token_that_was_refused_prolongs_nothing(target: Target) -> None:
    now = int(time.time())
    async with target.connect(target.token(iat=now - 10, exp=now + 5)) as client:
        await client.until("session.created")
        await renew(client, target.token("eve"))
        assert (await client.error())["param"] == "session.token"

        assert await client.closed() == 4401
    assert time.time() >= now + 5
