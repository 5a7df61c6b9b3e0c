"""Who the caller is, and the tokens that a development server gives to its own pages."""

import json
import time
from pathlib import Path

import pytest

from server import admission
from tests.server.console import open_console, token
from tests.server.test_auth import ED, jwk

LOCAL = {"origin": "http://127.0.0.1:8000"}


async def test_a_token_is_told_who_it_is(tmp_path: Path) -> None:
    async with open_console(tmp_path, writer="none") as console:
        answer = await console.get("/v1/me", token("한나", "support", client="kiosk", scopes=["client:b", "client:a"]))

    me = answer.json()
    assert (me["subject"], me["role"], me["client_id"], me["scopes"]) == (
        "한나",
        "support",
        "kiosk",
        ["client:a", "client:b"],
    )
    assert 21_590 <= me["expires_at"] - time.time() <= 21_600
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"


async def test_what_a_rating_may_give_as_its_reason_is_told(tmp_path: Path) -> None:
    async with open_console(tmp_path, writer="none", feedback_reasons=["boring", "wrong-face"]) as console:
        me = (await console.get("/v1/me", token("anna", "user"))).json()

    assert me["feedback_reasons"] == ["boring", "wrong-face"]


async def test_who_calls_too_fast_is_told_when_to_call_again_and_adds_nothing_to_what_all_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P7: the outbox that one fills up is everybody's."""
    monkeypatch.setattr(admission, "CALLS_BURST", 3)
    monkeypatch.setattr(admission, "CALLS_PER_S", 0.01)
    async with open_console(tmp_path, writer="none") as console:
        answers = [await console.get("/v1/sessions", token("ann", "support")) for _ in range(5)]
        other = await console.get("/v1/me", token("bob", "user"))
        await console.services.requests.flush()
        pending = (await console.services.store.lag()).pending

    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
    assert answers[-1].json()["error"]["code"] == "rate_limit_exceeded"
    assert 90 <= int(answers[-1].headers["retry-after"]) <= 100
    assert other.status_code == 200
    # Three looks of ann's with their requests, and bob's request.
    assert pending == 7


async def test_the_page_of_a_user_asks_for_no_role_and_can_ask_for_none_by_a_body(tmp_path: Path) -> None:
    async with open_console(tmp_path, writer="none") as console:
        given = await console.post("/dev/token", headers=LOCAL)
        me = (await console.get("/v1/me", given.json()["value"])).json()

    assert given.json()["value"].startswith("ek_")
    assert (me["subject"], me["role"], me["client_id"]) == ("developer", "user", "page")


@pytest.mark.parametrize("role", ["support", "admin"])
async def test_the_page_of_staff_gets_a_token_for_another_person_who_sees_every_digital_human(
    tmp_path: Path, role: str
) -> None:
    async with open_console(tmp_path, writer="none") as console:
        given = await console.post("/dev/token", headers=LOCAL, json={"role": role})
        me = (await console.get("/v1/me", given.json()["value"])).json()

    assert (me["subject"], me["role"], me["scopes"]) == (f"developer-{role}", role, ["client:*"])


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"role": "root"}, "invalid_value", "role"),
        ({"role": None}, "invalid_type", "role"),
        ({"role": "admin", "sub": "mia"}, "unknown_parameter", "sub"),
        ([], "invalid_type", None),
    ],
)
async def test_a_wish_that_is_not_exactly_right_gets_no_token(
    tmp_path: Path, body: object, code: str, param: str | None
) -> None:
    async with open_console(tmp_path, writer="none") as console:
        answer = await console.post("/dev/token", headers=LOCAL, json=body)

    assert (answer.status_code, answer.json()["error"]["code"], answer.json()["error"]["param"]) == (400, code, param)


async def test_strangers_pages_get_no_token_of_staff(tmp_path: Path) -> None:
    async with open_console(tmp_path, writer="none") as console:
        answer = await console.post("/dev/token", headers={"origin": "https://evil.example"}, json={"role": "admin"})

    assert answer.status_code == 403


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("host", "demo.example"),
        ("host", "demo.example:8000"),
        ("host", "127.0.0.1.demo.example"),
        ("host", "localhost@demo.example"),
        ("host", ""),
        ("forwarded", "for=203.0.113.7"),
        ("via", "1.1 tunnel"),
        ("x-forwarded-for", "203.0.113.7"),
        ("x-forwarded-host", "demo.example"),
        ("x-real-ip", "203.0.113.7"),
    ],
)
async def test_who_comes_by_a_proxy_or_a_tunnel_on_this_machine_gets_no_token(
    tmp_path: Path, name: str, value: str
) -> None:
    async with open_console(tmp_path, writer="none") as console:
        answers = [
            await console.post("/dev/token", headers={name: value}, json={"role": role})
            for role in ("user", "support", "admin")
        ]

    assert [(answer.status_code, answer.json()["error"]["code"]) for answer in answers] == [(403, "not_local")] * 3


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1", "127.0.0.1:9", "[::1]", "[::1]:8000"])
async def test_who_sits_at_this_machine_gets_a_token_by_each_of_its_names(tmp_path: Path, host: str) -> None:
    async with open_console(tmp_path, writer="none") as console:
        page = await console.post("/dev/token", headers={"host": host, "origin": f"http://{host}"})
        program = await console.post("/dev/token", headers={"host": host}, json={"role": "admin"})

    assert (page.status_code, program.status_code) == (200, 200)


async def test_without_a_key_of_its_own_the_server_gives_no_token_of_staff(tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps({"keys": [jwk(ED.public_key(), "k")]}))
    async with open_console(tmp_path, writer="none", jwt_secret=None, jwks_url=str(keys)) as console:
        staff = await console.post("/dev/token", headers=LOCAL, json={"role": "support"})
        user = await console.post("/dev/token", headers=LOCAL)

    assert (staff.status_code, user.status_code) == (501, 200)
