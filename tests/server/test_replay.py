"""Watching over a real socket: who may, what is refused how, who is written down; stops, expiry, storms, another node's session."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import select
from websockets.exceptions import InvalidStatus

from persistence.errors import ArchiveUnavailable, DatabaseUnavailable
from server.settings import load_settings
from sessions.errors import StoreUnavailable
from sessions.server_events import with_sequence_number
from sessions.store import Append, SessionMeta
from tests.end_to_end.in_process import Served, served
from tests.persistence.builders import CREATED_MS, journal_events, make_archive, make_events, make_session, new_id
from tests.server import watcher as viewers
from tests.server.console import SECRET, token
from tests.server.watcher import WAIT_S, Watcher

Query = dict[str, object]


@asynccontextmanager
async def watching(
    server: Served, session_id: str, bearer: str | None = None, *, subprotocols: Sequence[str] = (), **query: object
) -> AsyncIterator[Watcher]:
    """A viewer, of support if nothing else is said."""
    bearer = None if subprotocols else bearer or token()
    async with viewers.watching(server.port, session_id, bearer, subprotocols=subprotocols, **query) as viewer:
        yield viewer


def make_settings(folder: Path, **changes: Any) -> Any:
    return load_settings(
        **{"data_dir": folder / "var", "engine": "scripted", "scripted_tokens_per_s": 0.0, "jwt_secret": SECRET}
        | changes
    )


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Served]:
    async with served(make_settings(tmp_path)) as server:
        # Whoever owns no lease is dead, and its sessions are adopted.
        await server.services.store.renew("node", lease_s=3600)
        yield server


async def seed(server: Served, num_events: int = 30, *, archived: bool = False) -> tuple[str, list[bytes]]:
    """A session of anna's at the kiosk, which has ended if it is archived."""
    session_id, events = new_id("sess"), make_events(num_events)
    store = server.services.store
    if not archived:
        await journal_events(store, session_id, events)
        return session_id, events
    records = [make_session(session_id, sequence=num_events, status="ended")]
    await journal_events(store, session_id, events, [*records, make_archive(session_id, num_events)])
    epoch = await store.epoch(session_id)
    assert epoch is not None
    ends = Append(session_id, epoch, num_events + 1, CREATED_MS, [], [], {}, [], ends=True)
    assert await store.append([ends]) == ["ok"]
    async with asyncio.timeout(WAIT_S):
        while (await store.lag()).pending:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return session_id, events


def numbered(events: Sequence[bytes]) -> list[bytes]:
    return [with_sequence_number(event, sequence) for sequence, event in enumerate(events, 1)]


async def audited(server: Served) -> list[tuple[str, str, str | None]]:
    """What the trail says of replays, once the writer has it."""
    from persistence.tables import audit_logs

    async with asyncio.timeout(WAIT_S):
        while (await server.services.store.lag()).pending:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    query = select(audit_logs.c.actor_id, audit_logs.c.action, audit_logs.c.session_id).order_by(audit_logs.c.number)
    async with server.services.database.snapshot() as connection:
        rows = [tuple(row) for row in await connection.execute(query)]
    return [row for row in rows if row[1] == "session.replay"]


@pytest.mark.parametrize("archived", [True, False])
async def test_a_stored_session_is_replayed_byte_for_byte(server: Served, archived: bool) -> None:
    """P8"""
    session_id, events = await seed(server, archived=archived)

    async with watching(server, session_id, speed=100) as watcher:
        first = await watcher.next()
        await watcher.until_recorded(30)
        if archived:
            await watcher.until("avatar.replay.done")

    assert first["type"] == "avatar.replay.updated"
    assert (first["replay"]["last_sequence_number"], first["replay"]["is_live"]) == (30, not archived)
    assert watcher.recorded == numbered(events)


async def test_watching_changes_nothing_of_the_session(server: Served) -> None:
    session_id, events = await seed(server)
    store = server.services.store
    before = await store.peek(session_id), await store.epoch(session_id)

    async with watching(server, session_id, speed=100) as watcher:
        await watcher.until_recorded(30)
        await watcher.send("conversation.item.create", item={"type": "message", "role": "user", "content": []})
        error = await watcher.until("error")

    assert error["error"]["code"] == "replay_read_only"
    assert (await store.peek(session_id), await store.epoch(session_id)) == before
    assert len([event for entry in await store.journal(session_id, 0, 100) for event in entry.events]) == len(events)


async def test_a_session_of_another_node_is_followed_as_it_happens(server: Served) -> None:
    session_id, events = await seed(server, 14)
    store = server.services.store
    epoch = await store.epoch(session_id)
    assert epoch is not None

    async with watching(server, session_id, position=0, speed=100) as watcher:
        await watcher.until_recorded(14)
        more = make_events(20)[14:]
        await store.append([Append(session_id, epoch, 15, CREATED_MS + 20, more, [], {}, [])])
        await watcher.until_recorded(20)
        last = b'{"type":"session.updated"}'
        await store.append([Append(session_id, epoch, 21, CREATED_MS + 30, [last], [], {}, [], ends=True)])
        await watcher.until("avatar.replay.done")

    assert watcher.recorded == numbered([*events, *more, last])


async def test_a_seek_in_a_live_session_is_done_though_nobody_speaks(server: Served) -> None:
    store, session_id, events = server.services.store, new_id("sess"), make_events(7)
    began_ms = server.services.node.now_ms() - 60_000
    meta = SessionMeta(session_id, user_id="anna", client_id="kiosk", model="demo", created_ms=began_ms)
    epoch = await store.create(meta, "node")
    assert await store.append([Append(session_id, epoch, 1, began_ms, events, [], {}, [])]) == ["ok"]

    async with watching(server, session_id, position=0) as watcher:
        await watcher.until_recorded(7)
        position = 0
        # Once all was shown it is at what happens now.
        while position < 60_000:
            await watcher.send("avatar.replay.update")
            position = (await watcher.until("avatar.replay.updated"))["replay"]["position"]
            await asyncio.sleep(0.1)
        await watcher.send("avatar.replay.update", position=0, paused=True)
        restarted = await watcher.until("avatar.replay.updated")
        await watcher.until_recorded(14)

    assert restarted["replay"]["restarted"]
    assert watcher.recorded == numbered(events) * 2


async def test_seek_pause_and_speed_are_answered(server: Served) -> None:
    session_id, _ = await seed(server, archived=True)

    async with watching(server, session_id, paused="true") as watcher:
        await watcher.next()
        await watcher.send("avatar.replay.update", position=14)
        restarted = await watcher.until("avatar.replay.updated")
        await watcher.until_recorded(21)
        await watcher.send("avatar.replay.update", paused=False, speed=50)
        going = await watcher.until("avatar.replay.updated")
        done = await watcher.until("avatar.replay.done")

    assert (restarted["replay"]["restarted"], restarted["replay"]["position"]) == (True, 14)
    assert (going["replay"]["restarted"], going["replay"]["speed"], going["replay"]["paused"]) == (False, 50, False)
    assert done["position"] == going["replay"]["duration"] == 28


# Who may


WHO = [
    ("own", {"subject": "anna", "role": "user"}, 101),
    ("another user", {"subject": "mallory", "role": "user"}, 404),
    (
        "another user of the same client with a scope",
        {"subject": "mallory", "role": "user", "scopes": ["client:*"]},
        404,
    ),
    ("support of this client", {"subject": "ann", "role": "support"}, 101),
    ("support of another client", {"subject": "ann", "role": "support", "client": "shop"}, 404),
    ("support of all clients", {"subject": "ann", "role": "support", "client": "shop", "scopes": ["client:*"]}, 101),
    ("admin", {"subject": "root", "role": "admin", "client": "shop"}, 101),
    ("expired", {"subject": "anna", "role": "user", "ttl_s": -60}, 401),
]


@pytest.mark.parametrize(("who", "claims", "status"), WHO, ids=[row[0] for row in WHO])
@pytest.mark.parametrize("is_known", [True, False])
async def test_only_who_may_see_a_session_can_watch_it(
    server: Served, who: str, claims: dict[str, Any], status: int, is_known: bool
) -> None:
    """A foreign session is refused as one that never was; a look at another's is on the trail before it is seen."""
    session_id = (await seed(server))[0] if is_known else new_id("sess")
    expected = status if is_known or status == 401 else 404

    if expected == 101:
        async with watching(server, session_id, token(**claims)) as watcher:
            await watcher.next()
    else:
        with pytest.raises(InvalidStatus) as refusal:
            async with watching(server, session_id, token(**claims)):
                pass
        assert refusal.value.response.status_code == expected
        if expected == 404:
            assert b"There is no such session to replay." in refusal.value.response.body

    is_foreign = expected == 101 and claims["subject"] != "anna"
    assert await audited(server) == ([(claims["subject"], "session.replay", session_id)] if is_foreign else [])


NO_SESSIONS = ["", "sess_", "conv_x", "sess_" + "x" * 500, "sess_{}:*\x00", "../../etc", "sess_é"]


async def test_what_cannot_be_a_session_is_not_found(server: Served) -> None:
    for session_id in NO_SESSIONS:
        with pytest.raises(InvalidStatus) as refusal:
            async with watching(server, session_id):
                pass

        assert refusal.value.response.status_code == 404, session_id


async def test_a_browser_is_told_in_band_that_there_is_none(server: Served) -> None:
    subprotocols = ["realtime", f"openai-insecure-api-key.{token('mallory', 'user')}"]
    session_id, _ = await seed(server)

    async with watching(server, session_id, subprotocols=subprotocols) as watcher:
        error = await watcher.next()
        code, _ = await watcher.closed()

    assert (error["error"]["code"], error["error"]["param"]) == ("invalid_value", "replay")
    assert code == 4000


WRONG_BEGINNINGS: list[tuple[Query, str, str]] = [
    ({"speed": "0"}, "invalid_value", "speed"),
    ({"speed": "101"}, "invalid_value", "speed"),
    ({"speed": "nan"}, "invalid_value", "speed"),
    ({"speed": "-1"}, "invalid_value", "speed"),
    ({"speed": "1e2"}, "invalid_value", "speed"),
    ({"speed": ""}, "invalid_value", "speed"),
    ({"speed": "."}, "invalid_value", "speed"),
    ({"speed": "9" * 400}, "invalid_value", "speed"),
    ({"starting_after": "-1"}, "invalid_value", "starting_after"),
    ({"starting_after": "31"}, "integer_above_max_value", "starting_after"),
    ({"position": "x"}, "invalid_value", "position"),
    ({"position": "29"}, "integer_above_max_value", "position"),
    ({"position": "5", "starting_after": "5"}, "invalid_value", "position"),
    ({"max_silence_ms": "86400001"}, "integer_above_max_value", "max_silence_ms"),
    ({"paused": "yes"}, "invalid_value", "paused"),
]


async def test_a_wrong_beginning_is_refused_by_name(server: Served) -> None:
    session_id, _ = await seed(server, archived=True)

    for query, code, param in WRONG_BEGINNINGS:
        async with watching(server, session_id, **cast("Any", query)) as watcher:
            error = await watcher.next()
            close_code, _ = await watcher.closed()

        assert (error["type"], error["error"]["code"], error["error"]["param"]) == ("error", code, param), query
        assert close_code == 4000
    assert await audited(server) == []


# Bounds


async def test_viewers_count_among_a_users_connections(tmp_path: Path) -> None:
    """P7: and give their place back."""
    async with served(make_settings(tmp_path, max_connections_per_user=2)) as server:
        await server.services.store.renew("node", lease_s=3600)
        session_id, _ = await seed(server)
        async with watching(server, session_id) as first, watching(server, session_id):
            with pytest.raises(InvalidStatus) as refusal:
                async with watching(server, session_id):
                    pass
            assert refusal.value.response.status_code == 429
            await first.socket.close()
            async with watching(server, session_id) as third:
                assert (await third.next())["type"] == "avatar.replay.updated"
        with pytest.raises(InvalidStatus):
            async with watching(server, new_id("sess")):
                pass
        assert server.services.admission._open == {}


async def test_a_viewer_is_closed_when_its_token_expires(server: Served) -> None:
    session_id, _ = await seed(server)

    async with watching(server, session_id, token(ttl_s=2)) as watcher:
        code, reason = await watcher.closed()

    assert (code, reason) == (4401, "Your token has expired.")


async def test_a_binary_frame_ends_the_connection(server: Served) -> None:
    session_id, _ = await seed(server)

    async with watching(server, session_id) as watcher:
        await watcher.socket.send(b"\x00")
        code, _ = await watcher.closed()

    assert code == 1003
    assert watcher.events[-1]["error"]["code"] == "invalid_event"


async def test_a_stop_closes_viewers_at_once_for_another_node(tmp_path: Path) -> None:
    async with served(make_settings(tmp_path)) as server:
        await server.services.store.renew("node", lease_s=3600)
        session_id, _ = await seed(server)
        connection = watching(server, session_id)
        watcher = await connection.__aenter__()
        await watcher.next()
        closed = asyncio.create_task(watcher.closed())

    assert (await closed)[0] == 1012
    await connection.__aexit__(None, None, None)


async def test_a_flood_of_updates_is_answered_and_the_connection_lives(server: Served) -> None:
    session_id, _ = await seed(server, archived=True)

    async with watching(server, session_id, paused="true") as watcher:
        for _ in range(60):
            await watcher.send("avatar.replay.update", speed=2)
        answers = [await watcher.next() for _ in range(61)]
        await watcher.send("avatar.replay.update", paused=False, speed=100)
        codes = {event["error"]["code"] for event in answers if event["type"] == "error"}

    assert codes == {"rate_limit_exceeded"}
    assert len([event for event in answers if event["type"] == "avatar.replay.updated"]) >= 21


@pytest.mark.parametrize("away", [StoreUnavailable("away"), DatabaseUnavailable("away"), ArchiveUnavailable("away")])
async def test_what_is_away_is_a_503_with_a_time_to_come_back(
    server: Served, monkeypatch: pytest.MonkeyPatch, away: Exception
) -> None:
    """P9"""
    session_id, _ = await seed(server, archived=True)

    async def fail(*_: object) -> None:
        raise away

    monkeypatch.setattr(server.services.recording, "extent", fail)

    with pytest.raises(InvalidStatus) as refusal:
        async with watching(server, session_id):
            pass

    assert refusal.value.response.status_code == 503
    assert "retry-after" in refusal.value.response.headers
    assert await audited(server) == []


async def test_nothing_is_shown_that_cannot_be_written_down(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    session_id, _ = await seed(server)

    async def fail(*_: object) -> None:
        raise StoreUnavailable("full")

    monkeypatch.setattr(type(server.services.store), "enqueue", fail)

    with pytest.raises(InvalidStatus) as refusal:
        async with watching(server, session_id):
            pass

    assert refusal.value.response.status_code == 503


async def test_the_request_log_names_the_session_that_was_watched_and_no_foreign_one(server: Served) -> None:
    session_id, _ = await seed(server)
    entries: list[Any] = []
    requests = cast("Any", server.services.requests)
    add = requests.add

    def note(record: object) -> None:
        entries.append(record)
        add(record)

    requests.add = note

    async with watching(server, session_id) as watcher:
        await watcher.next()
    with pytest.raises(InvalidStatus):
        async with watching(server, session_id, token("mallory", "user")):
            pass
    async with asyncio.timeout(WAIT_S):
        while len(entries) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    assert sorted((entry.status, entry.user_id, entry.session_id) for entry in entries) == [
        (101, "ann", session_id),
        (404, "mallory", None),
    ]
