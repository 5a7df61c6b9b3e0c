"""A new token by session.update: whom the connection lives by from then on, and what cannot be taken, is late, or comes too often."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from msgspec import Raw

from server.auth import AuthError, Principal
from server.live import LiveSession
from server.realtime import CLOSE_TOKEN_EXPIRED
from server.renewal import MAX_WAITING, Renewal
from server.revocations import REASON
from sessions.client_events import SessionUpdate
from tests.end_to_end.client import Client, open_client
from tests.end_to_end.in_process import Served, served
from tests.server.console import token
from tests.server.house import until
from tests.server.test_replay import make_settings
from tests.sessions.builders import Json

HOUR_S = 3600


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Served]:
    async with served(make_settings(tmp_path, max_session_s=4 * HOUR_S)) as server:
        yield server


@pytest.fixture
def gate(server: Served, monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Until it is set no token is checked; connections come before that."""
    gate, authenticate = asyncio.Event(), server.services.authenticator.authenticate
    gate.set()

    async def authenticate_late(bearer: str) -> Principal:
        await gate.wait()
        return await authenticate(bearer)

    monkeypatch.setattr(server.services.authenticator, "authenticate", authenticate_late)
    return gate


def live(server: Served, client: Client) -> LiveSession:
    session = server.services.node.find(client.session_id)
    assert session is not None
    return session


def expiry_of(session: LiveSession) -> asyncio.TimerHandle:
    assert session._expiry is not None
    return session._expiry


async def renew(client: Client, bearer: str, event_id: str | None = None) -> None:
    await client.send("session.update", event_id=event_id, session={"type": "realtime", "token": bearer})


async def reply(client: Client) -> tuple[str, str | None, str | None]:
    """Of the next reply to an update: its type or its error's code, and whom and what it is about."""
    while (event := await client.next())["type"] not in ("error", "session.updated"):
        pass
    error: Json = event.get("error", {"code": "session.updated"})
    return error["code"], error.get("param"), error.get("event_id")


async def id_of(server: Served, bearer: str) -> str:
    return (await server.services.authenticator.authenticate(bearer)).token_id


async def test_the_connection_lives_by_its_new_token(server: Served) -> None:
    old, new = token("mia", "user", ttl_s=HOUR_S), token("mia", "user", ttl_s=2 * HOUR_S)
    async with open_client(server.port, old) as client:
        session = live(server, client)
        before = expiry_of(session)

        await renew(client, new)
        updated = await client.until("session.updated")
        after = expiry_of(session)
        await server.services.revocations.revoke_token(await id_of(server, old))
        answer = await client.ask("[echo still here]")
        await server.services.revocations.revoke_token(await id_of(server, new))
        code = await client.drain()

    assert updated["session"] == client.events[0]["session"]
    assert before.cancelled()
    assert 0.9 * HOUR_S < after.when() - before.when() < 1.1 * HOUR_S
    assert answer["status"] == "completed"
    assert (code, client._socket.close_reason) == (CLOSE_TOKEN_EXPIRED, REASON)
    assert server.services.revocations._open == {}


async def test_no_token_makes_a_connection_longer_than_any_may_be(server: Served) -> None:
    async with open_client(server.port, token("mia", "user", ttl_s=HOUR_S)) as client:
        session = live(server, client)
        ends_s = []
        for _ in range(2):
            await renew(client, token("mia", "user", ttl_s=20 * HOUR_S))
            await client.until("session.updated")
            ends_s.append(expiry_of(session).when())

        assert ends_s[0] == ends_s[1] < asyncio.get_running_loop().time() + 4 * HOUR_S


async def test_an_earlier_end_is_taken_too(server: Served) -> None:
    async with open_client(server.port, token("mia", "user", ttl_s=2 * HOUR_S)) as client:
        session = live(server, client)
        before_s = expiry_of(session).when()
        await renew(client, token("mia", "user", ttl_s=HOUR_S))
        await client.until("session.updated")

        assert expiry_of(session).when() < before_s - 0.9 * HOUR_S


async def test_updates_in_a_row_are_answered_each_and_in_order_while_the_session_goes_on(
    server: Served, gate: asyncio.Event
) -> None:
    """P5: nobody waits for a token to be checked."""
    async with open_client(server.port, token("mia", "user", ttl_s=HOUR_S)) as client:
        gate.clear()
        await renew(client, token("mia", "user", ttl_s=2 * HOUR_S), "one")
        await renew(client, token("tom", "user"), "two")
        await renew(client, "nonsense", "three")
        await renew(client, token("mia", "user", ttl_s=3 * HOUR_S), "four")
        before_s = expiry_of(live(server, client)).when()
        answer = await client.ask("[echo meanwhile]")
        gate.set()
        replies = [await reply(client) for _ in range(4)]
        after_s = expiry_of(live(server, client)).when()

    assert answer["status"] == "completed"
    assert replies == [
        ("session.updated", None, None),
        ("invalid_api_key", "session.token", "two"),
        ("invalid_api_key", "session.token", "three"),
        ("session.updated", None, None),
    ]
    assert after_s - before_s > 1.9 * HOUR_S  # the last one holds


async def test_no_more_than_a_few_wait_to_be_checked(server: Served, gate: asyncio.Event) -> None:
    """P7."""
    async with open_client(server.port, token("mia", "user")) as client:
        gate.clear()
        for number in range(MAX_WAITING + 1):
            await renew(client, token("mia", "user"), f"event {number}")
        refused = await reply(client)
        gate.set()
        replies = [await reply(client) for _ in range(MAX_WAITING)]
        await renew(client, token("mia", "user"))
        again = await reply(client)

    assert refused == ("rate_limit_exceeded", "session.token", f"event {MAX_WAITING}")
    assert {code for code, *_ in (*replies, again)} == {"session.updated"}


@pytest.mark.parametrize("goes", ["the connection", "the session"])
async def test_what_is_gone_before_its_token_is_checked_changes_nothing(
    server: Served, gate: asyncio.Event, goes: str
) -> None:
    async with open_client(server.port, token("mia", "user")) as client:
        session = live(server, client)
        gate.clear()
        await renew(client, token("mia", "user"))
        await client.ask("[echo taken in]")
        if goes == "the session":
            session.taken()
        else:
            client.cut()
            await until(lambda: server.services.node.find(client.session_id) is None)
        next_sequence = session._dialogue.next_sequence
        gate.set()
        await client.drain()

    async with open_client(server.port, token("mia", "user")) as another:
        assert (await another.ask("[echo still here]"))["status"] == "completed"
        assert len(server.services.revocations._open) == 1
    assert session._dialogue.next_sequence == next_sequence
    assert session._expiry is None


async def test_a_session_whose_token_is_revoked_is_not_saved_by_a_new_one(server: Served, gate: asyncio.Event) -> None:
    old = token("mia", "user")
    async with open_client(server.port, old) as client:
        token_id = await id_of(server, old)
        gate.clear()
        await renew(client, token("mia", "user"))
        await client.ask("[echo taken in]")

        await server.services.revocations.revoke_token(token_id)
        gate.set()
        code = await client.drain()

    assert code == CLOSE_TOKEN_EXPIRED
    assert [event["type"] for event in client.events].count("session.updated") == 0


async def test_a_token_that_comes_when_the_connection_is_about_to_close_is_refused(server: Served) -> None:
    accepted: list[Principal] = []
    async with open_client(server.port, token("mia", "user")) as client:
        renewal = Renewal(server.services, live(server, client), accepted.append)
        renewal.stop()
        session = json.dumps({"type": "realtime", "token": token("mia", "user")})
        renewal.add(SessionUpdate(session=Raw(session.encode()), event_id="late"))
        refused = await reply(client)

    assert refused == ("token_revoked", "session.token", "late")
    assert accepted == []


def raises(error: Exception) -> Callable[[str], Principal]:
    def authenticate(bearer: str) -> Principal:
        raise error

    return authenticate


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (AuthError("keys_unavailable", "Tokens cannot be checked now.", status=503), "keys_unavailable"),
        (ValueError("canary"), "server_error"),
    ],
)
async def test_a_token_that_cannot_be_checked_costs_nothing_else(
    server: Served, error: Exception, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P9."""
    async with open_client(server.port, token("mia", "user")) as client:
        with monkeypatch.context() as patch:
            patch.setattr(server.services.authenticator, "authenticate", raises(error))
            await renew(client, token("mia", "user"), "mine")
            while (event := await client.next())["type"] != "error":
                pass
        answer = await client.ask("[echo still here]")

    assert event["error"] == {
        "type": "server_error",
        "code": code,
        "message": event["error"]["message"],
        "param": "session.token",
        "event_id": "mine",
    }
    assert "canary" not in event["error"]["message"]
    assert answer["status"] == "completed"
