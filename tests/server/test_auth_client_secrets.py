"""`POST /v1/realtime/client_secrets` as OpenAI's SDK calls it, and its refusals in OpenAI's shape."""

import json
import time
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from openai import AsyncOpenAI
from openai.types.realtime import RealtimeSessionCreateResponse
from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send

from server import admission
from server.api.client_secrets import client_secret_routes
from server.api.query import MAX_BODY_BYTES
from server.auth import Authenticator
from server.client_secrets import ClientSecrets
from server.problems import EXCEPTION_HANDLERS
from server.tokens import mint

SECRET = b"0123456789abcdef0123456789abcdef"
PATH = "/v1/realtime/client_secrets"


def make_app(*, has_key: bool = True) -> tuple[ASGIApp, ClientSecrets, Authenticator]:
    secrets = ClientSecrets(SECRET, issuer="flueman", audience="flueman")
    authenticator = Authenticator(
        algorithms=("HS256",),
        secret=SECRET,
        keys=None,
        issuer="flueman",
        audience="flueman",
        max_ttl_s=3_600,
        client_secrets=secrets.verify,
    )
    services = SimpleNamespace(
        authenticator=authenticator,
        admission=admission.Admission(max_per_user=0, max_per_address=0),
        client_secrets=secrets if has_key else None,
        served_model="demo",
    )
    app = Starlette(routes=client_secret_routes(), exception_handlers=dict(EXCEPTION_HANDLERS))

    async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "state": {"services": services}}, receive, send)

    return with_state, secrets, authenticator


def token(**changes: Any) -> str:
    defaults: dict[str, Any] = {
        "subject": "mia",
        "role": "user",
        "client_id": "lobby",
        "scopes": frozenset(),
        "issuer": "flueman",
        "audience": "flueman",
        "now": time.time(),
        "ttl_s": 3_600,
    }
    return mint(SECRET, **(defaults | changes))


def client_of(app: ASGIApp) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://flueman")


async def post(body: object, *, app: ASGIApp | None = None, bearer: str | None = None) -> httpx2.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with client_of(app or make_app()[0]) as client:
        return await client.post(PATH, content=content, headers={"authorization": f"Bearer {bearer or token()}"})


async def test_the_openai_sdk_gets_a_secret_that_opens_sessions() -> None:
    app, _, authenticator = make_app()
    async with AsyncOpenAI(api_key=token(), base_url="http://flueman/v1", http_client=client_of(app)) as sdk:
        created = await sdk.realtime.client_secrets.create(
            expires_after={"anchor": "created_at", "seconds": 60},
            session={"type": "realtime", "model": "demo", "instructions": "Be brief.", "max_output_tokens": 50},
        )

    principal = await authenticator.authenticate(created.value)

    assert isinstance(created.session, RealtimeSessionCreateResponse)
    assert created.value.startswith("ek_")
    assert 55 <= created.expires_at - time.time() <= 60
    assert (created.session.instructions, created.session.model, created.session.max_output_tokens) == (
        "Be brief.",
        "demo",
        50,
    )
    assert (principal.subject, principal.client_id, principal.role) == ("mia", "lobby", "user")
    assert json.loads(principal.session_config or b"")["instructions"] == "Be brief."


async def test_who_asks_too_fast_is_told_when_to_ask_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """P7: each call adds to the outbox that all share."""
    monkeypatch.setattr(admission, "CALLS_BURST", 2)
    monkeypatch.setattr(admission, "CALLS_PER_S", 0.01)
    app = make_app()[0]

    answers = [await post({}, app=app) for _ in range(3)]

    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert int(answers[-1].headers["retry-after"]) > 90


@pytest.mark.parametrize(
    "body", [b"", {}, {"session": {"type": "realtime"}}, {"expires_after": {"anchor": "created_at"}}, {"session": None}]
)
async def test_everything_is_optional(body: object) -> None:
    response = await post(body)

    assert response.status_code == 200
    assert 590 <= response.json()["expires_at"] - time.time() <= 600
    assert response.json()["session"]["model"] == "demo"
    assert response.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"expires_after": {"anchor": "created_at", "seconds": 9}}, "integer_below_min_value", "expires_after.seconds"),
        (
            {"expires_after": {"anchor": "created_at", "seconds": 7201}},
            "integer_above_max_value",
            "expires_after.seconds",
        ),
        ({"expires_after": {"seconds": "60"}}, "invalid_type", "expires_after.seconds"),
        ({"expires_after": {"anchor": "now"}}, "invalid_value", "expires_after.anchor"),
        ({"user_id": "admin"}, "unknown_parameter", "user_id"),
        ({"session": {}}, "missing_required_parameter", "session.type"),
        ({"session": {"type": "transcription"}}, "invalid_parameter", "session.type"),
        ({"session": {"type": "realtime", "role": "admin"}}, "unknown_parameter", "session.role"),
        ({"session": {"type": "realtime", "instructions": "a" * 6_000}}, "string_above_max_length", "session"),
        (b"{", "invalid_json", None),
        (b"\xff", "invalid_json", None),
        (b'{"session":{"type":"realtime","prompt":' + b"[" * 20_000 + b"]" * 20_000 + b"}}", "invalid_json", None),
        (b"[]", "invalid_type", None),
    ],
    ids=lambda value: repr(value)[:40],
)
async def test_a_bad_request_is_named_in_openais_shape(body: object, code: str, param: str | None) -> None:
    response = await post(body)

    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", code, param)
    assert error["message"]
    assert error["id"].startswith("err_")


async def test_a_large_body_is_refused_unread() -> None:
    assert (await post(b" " * (MAX_BODY_BYTES + 1))).status_code == 413


async def test_a_client_secret_cannot_mint_another() -> None:
    first = (await post({})).json()["value"]

    response = await post({}, bearer=first)

    assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")
    assert response.headers["www-authenticate"].startswith("Bearer ")


async def test_no_token_and_a_token_in_the_url_are_refused() -> None:
    async with client_of(make_app()[0]) as client:
        absent = await client.post(PATH)
        leaked = await client.post(f"{PATH}?token=canary", headers={"authorization": f"Bearer {token()}"})

    assert (absent.status_code, absent.json()["error"]["code"]) == (401, "missing_api_key")
    assert (leaked.status_code, leaked.json()["error"]["code"]) == (400, "token_in_url")
    assert "canary" not in leaked.text


async def test_without_a_key_the_server_says_so() -> None:
    assert (await post({}, app=make_app(has_key=False)[0])).status_code == 501


async def test_unknown_paths_and_methods_answer_in_openais_shape() -> None:
    async with client_of(make_app()[0]) as client:
        missing = await client.get("/v1/nothing?secret=canary")
        wrong = await client.get(PATH)

    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"
    assert "canary" not in missing.text


async def test_a_bug_is_answered_with_an_id_and_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    app, secrets, _ = make_app()

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("canary")

    monkeypatch.setattr(secrets, "mint", broken)
    transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport, base_url="http://flueman") as client:
        response = await client.post(PATH, headers={"authorization": f"Bearer {token()}"})

    assert response.status_code == 500
    assert response.json()["error"]["id"].startswith("err_")
    assert "canary" not in response.text
    assert "Traceback" not in response.text
