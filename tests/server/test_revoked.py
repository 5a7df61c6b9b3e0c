"""Connections whose token is revoked: closed as when it expires, and also where something keeps the session from saying so."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus

from server.realtime import CLOSE_TOKEN_EXPIRED
from server.revocations import REASON
from sessions.store import Append, AppendStatus, SessionMeta
from tests.end_to_end.client import Client, open_client
from tests.end_to_end.in_process import Served, served
from tests.server.console import token
from tests.server.house import House, until
from tests.server.test_replay import make_settings, seed, watching

RESUMABLE = {"type": "realtime", "resumption": {"enabled": True}}


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Served]:
    async with served(make_settings(tmp_path)) as server:
        # Whoever owns no lease is dead, and its sessions are adopted.
        await server.services.store.renew("node", lease_s=3600)
        yield server


def closed_with(client: Client) -> tuple[int, str | None]:
    return client.close_code, client._socket.close_reason


async def test_a_session_ends_as_when_its_token_expires(server: Served) -> None:
    """P6: with an answer in progress."""
    async with (
        open_client(server.port, token("mia", "user")) as client,
        open_client(server.port, token("tom")) as other,
    ):
        await client.say("[hang]")
        await client.send("response.create")
        await client.until("response.created")

        await server.services.revocations.revoke_user("mia")
        await client.drain()
        answer = await other.ask("[echo still here]")

    *_, done, error = client.events
    assert (done["type"], done["response"]["status"]) == ("response.done", "cancelled")
    assert (error["type"], error["error"]["code"], error["error"]["message"]) == ("error", "session_expired", REASON)
    assert closed_with(client) == (CLOSE_TOKEN_EXPIRED, REASON)
    assert answer["status"] == "completed"
    assert server.services.revocations._open == {}


async def test_a_session_is_gone_on_with_by_a_token_that_is_not_revoked_and_by_no_other(server: Served) -> None:
    """P4."""
    revoked, good = token("mia", "user"), token("mia", "user")
    async with open_client(server.port, revoked) as client:
        await client.send("session.update", session=RESUMABLE)
        await client.until("session.updated")
        await client.send("input_audio_buffer.clear")
        await client.until("input_audio_buffer.cleared")
        principal = await server.services.authenticator.authenticate(revoked)
        await server.services.revocations.revoke_token(principal.token_id)
        await client.drain()
    resuming = (client.conversation_id, client.events[-1]["sequence_number"])

    with pytest.raises(InvalidStatus) as refused:
        async with open_client(server.port, revoked, resuming=resuming):
            pass
    async with open_client(server.port, good, resuming=resuming) as again:
        assert (await again.ask("[echo back]"))["status"] == "completed"

    assert refused.value.response.status_code == 401


async def test_a_viewer_is_closed(server: Served) -> None:
    session_id, _ = await seed(server)

    async with (
        watching(server, session_id, token("ann")) as watcher,
        watching(server, session_id, token("bob")) as other,
    ):
        await watcher.next()
        await server.services.revocations.revoke_user("ann")
        closed = await watcher.closed()
        await other.until_recorded(1)

    assert closed == (CLOSE_TOKEN_EXPIRED, REASON)
    assert server.services.revocations._open == {}


async def test_who_leaves_is_not_remembered(server: Served) -> None:
    """P7."""
    session_id, _ = await seed(server)
    async with open_client(server.port, token("mia", "user")), watching(server, session_id):
        assert len(server.services.revocations._open) == 2

    await until(lambda: not server.services.revocations._open)


async def test_a_session_that_cannot_say_so_is_closed_all_the_same(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal waits for a store that does not answer."""
    gate, store = asyncio.Event(), server.services.store
    append = store.append

    async def waits(batch: Sequence[Append]) -> list[AppendStatus]:
        await gate.wait()
        return await append(batch)

    async with open_client(server.port, token("mia", "user")) as client:
        monkeypatch.setattr(store, "append", waits)
        await server.services.revocations.revoke_user("mia")
        await client.drain()
        gate.set()

    assert closed_with(client) == (CLOSE_TOKEN_EXPIRED, REASON)
    assert [event["type"] for event in client.events] == ["session.created"]


@pytest.mark.parametrize("comes", ["to talk", "to watch"])
async def test_who_was_let_in_just_before_is_closed_too(
    server: Served, comes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its token was good when it was checked, and is not any more when the session is there."""
    session_id, _ = await seed(server)
    store, recording = server.services.store, server.services.recording
    create, extent = store.create, recording.extent

    async def create_late(meta: SessionMeta, owner: str) -> str:
        await server.services.revocations.revoke_user("mia")
        return await create(meta, owner)

    async def extent_late(session_id: str) -> object:
        await server.services.revocations.revoke_user("mia")
        return await extent(session_id)

    monkeypatch.setattr(store, "create", create_late)
    monkeypatch.setattr(recording, "extent", extent_late)

    if comes == "to talk":
        async with open_client(server.port, token("mia", "user")) as client:
            await client.drain()
            closed: tuple[int | None, str | None] = closed_with(client)
    else:
        async with watching(server, session_id, token("mia")) as watcher:
            closed = await watcher.closed()

    assert closed == (CLOSE_TOKEN_EXPIRED, REASON)
    assert server.services.revocations._open == {}


async def test_a_session_that_another_node_has_taken_does_not_expire_here(house: House) -> None:
    """P4: nothing more is written under its old epoch."""
    session, screen = await house.open()
    num_events = session._dialogue.next_sequence
    session.taken()

    session.expire_at(asyncio.get_running_loop().time(), code=CLOSE_TOKEN_EXPIRED, reason=REASON)
    await screen.until_closed()

    assert session._dialogue.next_sequence == num_events
