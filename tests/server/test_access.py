"""Who may look at whose sessions, and that nothing is shown before the trail holds it: foreign ids, and reads that are events too."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.access import Access, AuditTrail, is_foreign
from server.auth import Principal, Role
from sessions.errors import StoreUnavailable
from sessions.records import AuditRecord, decode_record
from sessions.sqlite_store import SqliteStore

NOW_MS = 1_790_000_000_000
ACCESS = Access(private_clients=frozenset({"clinic", "*"}))


def make_principal(
    subject: str = "ann", role: Role = "support", *, client_id: str = "lobby", scopes: Sequence[str] = ()
) -> Principal:
    return Principal(subject, role, frozenset(scopes), client_id, 2_000_000_000, "token", 1_000_000_000)


def sees(principal: Principal, client_id: str, user_id: str = "mia") -> bool:
    return ACCESS.may_see(principal, user_id=user_id, client_id=client_id)


@pytest.mark.parametrize(
    ("principal", "client_id", "expected"),
    [
        (make_principal(role="user"), "lobby", False),
        (make_principal(role="user", scopes=["client:lobby", "client:*"]), "lobby", False),
        (make_principal("mia", "user"), "clinic", True),
        (make_principal("mia", "support"), "clinic", True),
        (make_principal(role="admin"), "clinic", True),
        (make_principal(role="admin", client_id="clinic"), "lobby", True),
        (make_principal(), "lobby", True),
        (make_principal(), "kiosk", False),
        (make_principal(scopes=["client:kiosk"]), "kiosk", True),
        (make_principal(scopes=["client:kiosk"]), "lobby", True),
        (make_principal(scopes=["client:kio"]), "kiosk", False),
        (make_principal(scopes=["kiosk", "client:", "client: kiosk", "CLIENT:kiosk"]), "kiosk", False),
        (make_principal(scopes=["client:*"]), "kiosk", True),
        (make_principal(scopes=["client:*"]), "clinic", False),
        (make_principal(client_id="clinic"), "clinic", False),
        (make_principal(client_id="clinic", scopes=["client:*"]), "clinic", False),
        (make_principal(scopes=["client:clinic"]), "clinic", True),
        (make_principal(scopes=["client:*", "client:clinic"]), "clinic", True),
        (make_principal(client_id="*"), "kiosk", False),
        (make_principal(scopes=["client:*"]), "*", False),
    ],
)
def test_a_token_opens_only_the_sessions_it_is_for(principal: Principal, client_id: str, expected: bool) -> None:
    assert sees(principal, client_id) is expected


names = st.sampled_from(["lobby", "kiosk", "clinic", "*", "mia", ""])


@given(
    subject=names,
    role=st.sampled_from(["user", "support", "admin"]),
    client_id=names,
    scopes=st.lists(names.map(lambda name: f"client:{name}")),
    user_id=names,
    session_client=names,
)
def test_a_query_over_many_sessions_finds_what_may_be_seen_one_by_one(
    subject: str, role: Role, client_id: str, scopes: list[str], user_id: str, session_client: str
) -> None:
    principal = make_principal(subject, role, client_id=client_id, scopes=scopes)

    sight = ACCESS.sight(principal)
    is_found = (
        sight.user_id in (None, user_id)
        and (sight.clients is None or session_client in sight.clients)
        and session_client not in sight.hidden_clients
    )

    if is_foreign(principal, user_id):
        assert is_found == ACCESS.may_see(principal, user_id=user_id, client_id=session_client)
    else:
        assert role == "support" or is_found


async def test_an_entry_is_in_the_outbox_when_its_id_is_known(sqlite_store: SqliteStore) -> None:
    """P3."""
    trail = AuditTrail(sqlite_store, now_ms=lambda: NOW_MS)

    audit_id = await trail.write(
        make_principal(), "session.search", session_id="sess_1", detail={"text": "\x1b<b>…", "limit": 50, "after": None}
    )

    (delivery,) = await sqlite_store.take("test", 10, 0)
    record = decode_record(delivery.record)
    assert isinstance(record, AuditRecord)
    assert (record.audit_id, record.actor_id, record.role, record.client_id) == (audit_id, "ann", "support", "lobby")
    assert (record.action, record.session_id, record.at_ms) == ("session.search", "sess_1", NOW_MS)
    assert msgspec.json.decode(record.detail) == {"text": "\x1b<b>…", "limit": 50, "after": None}


async def test_an_entry_and_what_it_is_about_go_to_the_outbox_together(sqlite_store: SqliteStore) -> None:
    """P3."""
    trail = AuditTrail(sqlite_store, now_ms=lambda: NOW_MS)

    await trail.write(make_principal(), "note.create", records=[b'{"record":"note"}'])

    first, second = await sqlite_store.take("test", 10, 0)
    assert (b'"audit"' in first.record, second.record) == (True, b'{"record":"note"}')


async def test_what_the_outbox_does_not_take_is_an_error_for_whoever_wants_to_show_it(tmp_path: Path) -> None:
    """P9."""

    class Away(SqliteStore):
        async def enqueue(self, records: Sequence[bytes]) -> None:
            raise StoreUnavailable("away")

    trail = AuditTrail(Away(tmp_path / "sessions.db"), now_ms=lambda: NOW_MS)

    with pytest.raises(StoreUnavailable):
        await trail.write(make_principal(), "session.view", session_id="sess_1")
