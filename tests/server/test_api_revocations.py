"""`POST /v1/revocations`: whom one may revoke, what is refused afterwards, and what is written down."""

import asyncio
import time
from pathlib import Path

import jwt
import pytest

from server.client_secrets import MAX_TTL_S
from server.revocations import Revocations
from server.tokens import LEEWAY_S, mint
from sessions.errors import StoreUnavailable
from sessions.revocation import Revocation
from tests.server.console import SECRET, Console, open_console, token

PATH = "/v1/revocations"
CLIENT_SECRETS = "/v1/realtime/client_secrets"


def id_of(bearer: str) -> str:
    """The `jti` of an access token or a client secret."""
    claims = jwt.decode(bearer.removeprefix("ek_"), options={"verify_signature": False})
    token_id: str = claims["jti"]
    return token_id


async def secret_of(console: Console, bearer: str) -> str:
    value: str = (await console.post(CLIENT_SECRETS, bearer, json={})).json()["value"]
    return value


async def accepted(console: Console, *bearers: str) -> list[bool]:
    """Which of the tokens are; the others are refused as revoked."""
    answers = [await console.get("/v1/me", bearer) for bearer in bearers]
    for answer in answers:
        assert answer.status_code == 200 or answer.json()["error"]["code"] == "token_revoked"
    return [answer.status_code == 200 for answer in answers]


async def test_a_token_revokes_itself_and_the_secrets_that_it_minted(tmp_path: Path) -> None:
    async with open_console(tmp_path, writer="none") as console:
        own, other, stranger = token("mia", "user"), token("mia", "user"), token("tom", "user")
        secret = await secret_of(console, own)

        answer = await console.post(PATH, own, json={})
        found = await accepted(console, own, secret, other, stranger)
        minted = await console.post(CLIENT_SECRETS, own, json={})
        again = await console.post(PATH, own, json={})
        trail = await console.trail()

    revoked = answer.json()
    assert answer.status_code == 201
    assert revoked == {"token_id": id_of(own), "kept_until": revoked["kept_until"], "audit_id": None}
    assert abs(revoked["kept_until"] - LEEWAY_S - time.time() - 21_600) < 60  # the token's own end
    assert found == [False, False, True, True]
    assert (minted.status_code, again.status_code) == (401, 401)
    assert 'error_description="token_revoked"' in minted.headers["www-authenticate"]
    assert trail == []


async def test_a_token_may_name_itself_or_its_user_and_later_tokens_are_accepted(tmp_path: Path) -> None:
    async with open_console(tmp_path, writer="none") as console:
        named, own, other, stranger = (token(name, "user") for name in ("mia", "mia", "mia", "tom"))
        secret = await secret_of(console, other)
        first = await console.post(PATH, named, json={"token_id": id_of(named)})

        answer = await console.post(PATH, own, json={"user_id": "mia"})
        later = mint(
            SECRET.encode(),
            subject="mia",
            role="user",
            client_id="kiosk",
            scopes=frozenset(),
            issuer="flueman",
            audience="flueman",
            now=answer.json()["issued_until"] + 1,
            ttl_s=600,
        )
        found = await accepted(console, named, own, other, secret, later, await secret_of(console, later), stranger)

    revoked = answer.json()
    assert (first.status_code, answer.status_code) == (201, 201)
    assert revoked.keys() == {"user_id", "issued_until", "kept_until", "audit_id"}
    assert (revoked["user_id"], revoked["audit_id"]) == ("mia", None)
    assert found == [False, False, False, False, True, True, True]


@pytest.mark.parametrize("role", ["user", "support"])
async def test_what_is_anothers_only_an_admin_may_revoke(tmp_path: Path, role: str) -> None:
    async with open_console(tmp_path, writer="none") as console:
        theirs = token("tom", "user")
        bearer = token("mia", "user") if role == "user" else token("mia", "support", scopes=["client:*"])

        answers = [
            await console.post(PATH, bearer, json=body) for body in ({"token_id": id_of(theirs)}, {"user_id": "tom"})
        ]
        found = await accepted(console, theirs, bearer)
        trail = await console.trail()

    for answer in answers:
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden")
    assert (found, trail) == ([True, True], [])


async def test_an_admin_revokes_anything_and_it_is_written_down(tmp_path: Path) -> None:
    async with open_console(tmp_path, writer="none") as console:
        admin, named, other = token("ada", "admin"), token("tom", "user"), token("tom", "support")

        first = await console.post(PATH, admin, json={"token_id": id_of(named)})
        after_first = await accepted(console, named, other)
        second = await console.post(PATH, admin, json={"user_id": "tom"})
        after_second = await accepted(console, other, admin)
        own = await console.post(PATH, admin, json={"user_id": "ada"})
        trail = await console.trail()

    assert (after_first, after_second) == ([False, True], [False, True])
    assert [answer.status_code for answer in (first, second, own)] == [201, 201, 201]
    assert own.json()["audit_id"] is None
    assert [(entry.audit_id, entry.actor_id, entry.action, bytes(entry.detail)) for entry in trail] == [
        (first.json()["audit_id"], "ada", "token.revoke", b'{"token_id":"%s"}' % id_of(named).encode()),
        (second.json()["audit_id"], "ada", "token.revoke", b'{"user_id":"tom"}'),
    ]


async def test_a_client_secret_revokes_itself_and_nothing_else(tmp_path: Path) -> None:
    """A browser must not lock out its user, let alone all users of a backend."""
    async with open_console(tmp_path, writer="none") as console:
        parent = token("backend", "admin", ttl_s=80_000)
        secret, other = [await secret_of(console, parent) for _ in range(2)]

        answers = [
            await console.post(PATH, secret, json=body)
            for body in ({"token_id": id_of(parent)}, {"token_id": id_of(other)}, {"user_id": "backend"}, {})
        ]
        found = await accepted(console, parent, other, secret)

    assert [answer.status_code for answer in answers] == [403, 403, 403, 201]
    assert found == [True, True, False]
    # No longer than it could have opened sessions.
    assert answers[-1].json()["kept_until"] <= time.time() + MAX_TTL_S + LEEWAY_S


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"token_id": "t", "user_id": "mia"}, "invalid_value", "user_id"),
        ({"token_id": None}, "invalid_type", "token_id"),
        ({"user_id": 7}, "invalid_type", "user_id"),
        ({"token_id": ""}, "string_below_min_length", "token_id"),
        ({"user_id": "a" * 129}, "string_above_max_length", "user_id"),
        ({"user_id": "mia\n"}, "invalid_value", "user_id"),
        ({"token_id": "\u202emia"}, "invalid_value", "token_id"),
        ({"user_id": "mia", "role": "admin"}, "unknown_parameter", "role"),
        ([], "invalid_type", None),
        (b"{", "invalid_json", None),
        (b'{"user_id":"\\ud800"}', "invalid_json", None),
    ],
)
async def test_a_wish_that_is_not_exactly_right_revokes_nothing(
    tmp_path: Path, body: object, code: str, param: str | None
) -> None:
    async with open_console(tmp_path, writer="none") as console:
        admin = token("ada", "admin")

        sent = {"content": body} if isinstance(body, bytes) else {"json": body}
        answer = await console.post(PATH, admin, **sent)
        stored = await console.services.store.revocations("", 0)
        trail = await console.trail()

    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, code, param)
    assert (stored[0], trail) == ([], [])


async def test_what_the_store_does_not_have_is_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """P9."""

    async def away(revocation: Revocation) -> None:
        raise StoreUnavailable("away")

    async with open_console(tmp_path, writer="none") as console:
        own = token("mia", "user")
        with monkeypatch.context() as patch:
            patch.setattr(console.services.store, "revoke", away)
            refused = await console.post(PATH, own, json={})
        found = await accepted(console, own)

        revoked = await console.post(PATH, own, json={})

    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "unavailable")
    assert "retry-after" in refused.headers
    assert (found, revoked.status_code) == ([True], 201)


async def test_a_server_knows_what_was_revoked_before_it_lets_anyone_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(revocations: Revocations) -> None:
        await asyncio.Event().wait()

    own, other = token("mia", "user"), token("tom", "user")
    async with open_console(tmp_path, writer="none") as console:
        await console.post(PATH, own, json={"user_id": "mia"})

    monkeypatch.setattr(Revocations, "follow", never)
    async with open_console(tmp_path, writer="none") as console:
        found = await accepted(console, own, other)

    assert found == [False, True]
