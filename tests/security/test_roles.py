"""Who may do what: every role on every route, for sessions of its own, of others, of a private digital human's, and for none at all.

A route that the application has and the table has not fails: whoever adds one says here who may use it.
"""

import asyncio
import itertools
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import quote

import httpx
import msgspec
import pytest
from msgspec import Raw, Struct
from starlette.routing import Mount, Route, WebSocketRoute
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from server.app import create_app
from server.settings import ROOT, load_settings
from sessions.feedback import feedback_id
from sessions.items import MessageItem, OutputText
from sessions.records import FeedbackRecord, Record, Trace, encode_record
from sessions.sqlite_store import SqliteStore
from sessions.store import Append, SessionMeta
from tests.persistence.builders import make_prediction, make_session, make_turn
from tests.server.console import SECRET, token
from tests.server.test_replay import NO_SESSIONS
from tests.services import Service

Role = Literal[
    "nobody",
    "expired",
    "secret",
    "secret elsewhere",
    "user",
    "support",
    "elsewhere",
    "everywhere",
    "named",
    "admin",
]
Owner = Literal["own", "foreign", "private", "unknown"]

# The sessions of others were held with the kiosk, or with the clinic, which is private; own ones with the kiosk.
OWNERS: tuple[Owner, ...] = ("own", "foreign", "private", "unknown")
PRIVATE_CLIENT = "clinic"
OTHER = "oscar"
NO_SESSION = "sess_99999999999999999999999999"
# Each session has two answers that its user rated; only of the second is the rating taken back.
SPARE = "_spare"


def subject_of(role: Role) -> str:
    """Who comes in that role: a client secret is its user's."""
    return "user" if role in SECRETS else role


def bearer(role: Role) -> str | None:
    """The token, of a subject named as the role; of a client secret that which mints it."""
    match role:
        case "nobody":
            return None
        case "expired":
            return token(role, "admin", ttl_s=-600)
        case "user" | "secret" | "secret elsewhere":
            # Scopes give a user nothing.
            client = "lobby" if role == "secret elsewhere" else "kiosk"
            return token("user", "user", client=client, scopes=["client:*", f"client:{PRIVATE_CLIENT}"])
        case "support":
            return token(role, "support")
        case "elsewhere":
            return token(role, "support", client="lobby")
        case "everywhere":
            return token(role, "support", client="lobby", scopes=["client:*"])
        case "named":
            return token(role, "support", client="lobby", scopes=[f"client:{PRIVATE_CLIENT}"])
        case "admin":
            return token(role, "admin", client="lobby")


ROLES: tuple[Role, ...] = get_args(Role)
# For the digital human of the user's own sessions, and for another.
SECRETS: tuple[Role, ...] = ("secret", "secret elsewhere")

# Expected statuses of own, foreign, private and unknown sessions; one number where all are the same.
Cells = Mapping[Role, tuple[int, int, int, int] | int]


def anyone(ok: int = 200) -> Cells:
    """Who has a token may."""
    return {role: 401 if role in ("nobody", "expired") else ok for role in ROLES}


def staff(ok: int = 200) -> Cells:
    """Support and admins may; a user may not, whatever it names."""
    return dict(anyone(ok)) | dict.fromkeys(("user", *SECRETS), 403)


def admins(ok: int = 200) -> Cells:
    """Only admins may."""
    return {role: ok if role == "admin" else 401 if role in ("nobody", "expired") else 403 for role in ROLES}


def staff_who_see(ok: int = 200) -> Cells:
    """Support may, for its digital humans' sessions; admins for all. What is not to be seen is as if it never was."""
    return dict(staff(ok)) | {
        "support": (ok, ok, 404, 404),
        "elsewhere": (ok, 404, 404, 404),
        "everywhere": (ok, ok, 404, 404),
        "named": (ok, 404, ok, 404),
        "admin": (ok, ok, ok, 404),
    }


def who_see(ok: int) -> Cells:
    """As `staff_who_see`, and users for their own sessions."""
    return dict(staff_who_see(ok)) | dict.fromkeys(("user", *SECRETS), (ok, 404, 404, 404))


def owners(ok: int) -> Cells:
    """For one's own sessions alone, whoever one is."""
    return {role: 401 if role in ("nobody", "expired") else (ok, 404, 404, 404) for role in ROLES}


def talkers(ok: int) -> Cells:
    """For one's own sessions with the digital human that the token is for."""
    return dict(owners(ok)) | dict.fromkeys(("secret elsewhere", "elsewhere", "everywhere", "named", "admin"), 404)


class Line(Struct, frozen=True):
    """A line of the table: how the route is asked, and what each role gets."""

    cells: Cells
    path: str
    json: Any = None


NOTE = {"text": "<script>alert(1)</script>"}
RATING = {"session_id": "{session_id}", "item_id": "{item_id}", "feedback": {"rating": "up"}}

# By method and path as the application has them; several lines where a route does several things.
TABLE: Mapping[tuple[str, str], list[Line]] = {
    ("GET", "/v1/me"): [Line(anyone(), "/v1/me")],
    ("POST", "/v1/realtime/client_secrets"): [
        # A client secret mints no other.
        Line(dict(anyone()) | dict.fromkeys(SECRETS, 401), "/v1/realtime/client_secrets", {})
    ],
    ("WEBSOCKET", "/v1/realtime"): [
        Line(anyone(101), "/v1/realtime?model=demo"),
        Line(talkers(101), "/v1/realtime?conversation_id=conv_{ulid}"),
        Line(who_see(101), "/v1/realtime?replay={session_id}"),
    ],
    ("GET", "/v1/sessions"): [
        Line(anyone(), "/v1/sessions"),
        Line(anyone(), f"/v1/sessions?user={OTHER}"),
    ],
    ("GET", "/v1/sessions/{session_id}"): [Line(staff_who_see(), "/v1/sessions/{session_id}")],
    ("GET", "/v1/sessions/{session_id}/prompts/{response_id}"): [
        Line(staff_who_see(), "/v1/sessions/{session_id}/prompts/resp_{ulid}")
    ],
    ("GET", "/v1/sessions/{session_id}/export"): [Line(staff_who_see(), "/v1/sessions/{session_id}/export")],
    ("GET", "/v1/sessions/{session_id}/notes"): [Line(staff_who_see(), "/v1/sessions/{session_id}/notes")],
    ("POST", "/v1/sessions/{session_id}/notes"): [Line(staff_who_see(201), "/v1/sessions/{session_id}/notes", NOTE)],
    ("GET", "/v1/overview"): [Line(staff(), "/v1/overview")],
    ("GET", "/v1/audit"): [Line(admins(), "/v1/audit")],
    ("POST", "/v1/revocations"): [
        # What is not the caller's own is for admins. No role revokes all of its own here: the next cells would be refused.
        Line(admins(201), "/v1/revocations", {"token_id": "no-token-of-this-table"}),
        Line(admins(201), "/v1/revocations", {"user_id": "nobody-of-this-table"}),
        Line(anyone(201), "/v1/revocations", {}),
    ],
    ("GET", "/v1/feedback"): [Line(anyone(), "/v1/feedback")],
    ("POST", "/v1/feedback"): [Line(who_see(201), "/v1/feedback", RATING)],
    ("DELETE", "/v1/feedback/{feedback_id}"): [Line(owners(200), "/v1/feedback/{feedback_id}")],
}

# What anyone may have without a token: pages, their files, and whether the server lives. Development alone gives tokens away.
PUBLIC = {
    ("GET", "/"),
    ("GET", "/console"),
    ("GET", "/console/{place:path}"),
    ("GET", "/favicon.ico"),
    ("MOUNT", "/web"),
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("POST", "/dev/token"),
}


def routes_of_the_application(folder: Path) -> set[tuple[str, str]]:
    found: set[tuple[str, str]] = set()
    for route in create_app(load_settings(data_dir=folder, engine="scripted")).routes:
        match route:
            case WebSocketRoute():
                found.add(("WEBSOCKET", route.path))
            case Mount():
                found.add(("MOUNT", route.path))
            case Route():
                found |= {(method, route.path) for method in (route.methods or ()) if method != "HEAD"}
            case _:
                raise AssertionError(f"a kind of route that this table does not know: {route}")
    return found


def test_the_table_has_every_route_and_no_other(tmp_path: Path) -> None:
    assert TABLE.keys() | PUBLIC == routes_of_the_application(tmp_path)
    for lines in TABLE.values():
        assert all(line.cells.keys() == set(ROLES) for line in lines)


class House(Struct, frozen=True):
    """A server with the sessions of everybody."""

    url: str
    client: httpx.Client
    sessions: Mapping[tuple[Role, Owner], str]

    def bearer(self, role: Role) -> str | None:
        """A new one each time: some cells revoke it."""
        return _secret(self.client, role) if role in SECRETS else bearer(role)

    def ask(self, method: str, line: Line, role: Role, owner: Owner) -> httpx.Response | int:
        """The answer, or the status of an upgrade."""
        session_id = self.sessions[role, owner]
        item_id = "item_" + session_id.removeprefix("sess_")
        user_id = OTHER if owner in ("foreign", "private") else subject_of(role)
        fields = {
            "session_id": session_id,
            "ulid": session_id.removeprefix("sess_"),
            "item_id": item_id,
            "feedback_id": feedback_id(session_id, item_id + SPARE, user_id),
        }
        path = line.path.format(**fields)
        presented = self.bearer(role)
        headers = {"authorization": f"Bearer {presented}"} if presented else {}
        if method == "WEBSOCKET":
            return _upgrade(self.url.replace("http", "ws", 1) + path, headers)
        body = _filled(line.json, fields)
        return self.client.request(method, path, headers=headers, json=body)


def _upgrade(url: str, headers: Mapping[str, str]) -> int:
    try:
        with connect(url, additional_headers=dict(headers), proxy=None, open_timeout=30):
            return 101
    except InvalidStatus as refused:
        return refused.response.status_code


def _filled(value: Any, fields: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {name: _filled(inner, fields) for name, inner in value.items()}
    return (
        fields.get(match[1], value)
        if isinstance(value, str) and (match := re.fullmatch(r"\{(\w+)\}", value))
        else value
    )


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """One server for the whole table."""
    folder = tmp_path_factory.mktemp("roles")
    (folder / "var").mkdir()
    sessions = asyncio.run(_filled_store(folder / "var"))
    settings = {
        "FLUEMAN_ENGINE": "scripted",
        "FLUEMAN_DATA_DIR": str(folder / "var"),
        "FLUEMAN_JWT_SECRET": SECRET,
        "FLUEMAN_PRIVATE_CLIENTS": PRIVATE_CLIENT,
        "PYTHONPATH": str(ROOT),
    }
    removed = [option for name in os.environ if name.startswith("FLUEMAN_") for option in ("-u", name)]
    given = [f"{name}={value}" for name, value in settings.items()]
    service = Service(
        "flueman",
        folder,
        lambda port: ["env", *removed, *given, sys.executable, "-m", "server", "serve", "--port", str(port)],
        _is_ready,
    )
    service.start()
    try:
        url = f"http://127.0.0.1:{service.port}"
        with httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
            built = House(url, client, sessions)
            _wait_until_stored(built)
            yield built
    finally:
        service.stop()
    assert "Traceback" not in service.log_path.read_text()


def _secret(client: httpx.Client, role: Role) -> str:
    headers = {"authorization": f"Bearer {bearer(role)}"}
    value: str = client.post("/v1/realtime/client_secrets", headers=headers, json={}).json()["value"]
    return value


def _is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz", trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


async def _filled_store(folder: Path) -> dict[tuple[Role, Owner], str]:
    """A session for each role, and two of another person's for each, so that no cell changes what the next one sees."""
    found: dict[tuple[Role, Owner], str] = {}
    async with SqliteStore(folder / "sessions.db") as store:
        for number, (role, owner) in enumerate(itertools.product(ROLES, OWNERS)):
            if owner == "unknown":
                found[role, owner] = NO_SESSION
                continue
            session_id = f"sess_{number:026d}"
            client_id = PRIVATE_CLIENT if owner == "private" else "kiosk"
            await _hold(store, session_id, user_id=subject_of(role) if owner == "own" else OTHER, client_id=client_id)
            found[role, owner] = session_id
    return found


async def _hold(store: SqliteStore, session_id: str, *, user_id: str, client_id: str) -> None:
    now_ms = time.time_ns() // 1_000_000
    meta = SessionMeta(session_id, user_id=user_id, client_id=client_id, model="demo", created_ms=now_ms)
    epoch = await store.create(meta, "node")
    ulid = session_id.removeprefix("sess_")
    item_id = f"item_{ulid}"
    trace = Trace(
        prompt="Wie heißt du?",
        sampling=Raw(b"{}"),
        queued_ms=None,
        engine_first_token_ms=None,
        last_token_ms=None,
        prompt_version=None,
        persona=client_id,
    )
    turn = make_turn(session_id, created_ms=now_ms)
    items = [
        MessageItem(said_id, "assistant", (OutputText("Ich heiße Flueman."),)) for said_id in (item_id, item_id + SPARE)
    ]
    rated_ms = now_ms + 10
    records: list[Record] = [
        *(
            FeedbackRecord(
                feedback_id=feedback_id(session_id, item.id, user_id),
                session_id=session_id,
                item_id=item.id,
                user_id=user_id,
                role="user",
                sequence=1,
                rating="down",
                rated_ms=rated_ms,
                received_ms=rated_ms,
            )
            for item in items
        ),
        make_session(session_id, user_id=user_id, client_id=client_id, created_ms=now_ms, updated_ms=now_ms),
        turn,
        make_prediction(
            session_id,
            turn.turn_id,
            response_id=f"resp_{ulid}",
            trace=trace,
            output=Raw(msgspec.json.encode(items)),
            created_ms=now_ms,
            done_ms=now_ms + 5,
        ),
    ]
    append = Append(
        session_id=session_id,
        epoch=epoch,
        first_sequence=1,
        at_ms=now_ms,
        events=[b'{"type":"session.created"}'],
        records=[encode_record(record) for record in records],
        saved_items={},
        dropped_items=[],
        config=b'{"config":{"model":"demo"}}',
        ends=True,
    )
    assert await store.append([append]) == ["ok"]


def _wait_until_stored(house: House) -> None:
    """Until the writer has stored the last session, which it does in order."""
    last = house.sessions["admin", "private"]
    headers = {"authorization": f"Bearer {bearer('admin')}"}
    deadline_s = time.monotonic() + 60
    while True:
        found = house.client.get(f"/v1/sessions/{last}", headers=headers).json()
        if "not_stored_yet" not in found["warnings"] and found["answers"]:
            return
        assert time.monotonic() < deadline_s, found
        time.sleep(0.05)


CELLS = [
    pytest.param(method, line, role, owner, id=f"{method} {line.path} {role} {owner}")
    for (method, _), lines in TABLE.items()
    for line in lines
    for role in ROLES
    for owner in (OWNERS if re.search(r"{\w+}", f"{line.path}{line.json}") else OWNERS[:1])
]


@pytest.mark.parametrize(("method", "line", "role", "owner"), CELLS)
def test_each_role_gets_what_the_table_says(house: House, method: str, line: Line, role: Role, owner: Owner) -> None:
    cell = line.cells[role]
    expected = cell if isinstance(cell, int) else cell[OWNERS.index(owner)]

    answer = house.ask(method, line, role, owner)

    if isinstance(answer, int):
        assert answer == expected
        return
    assert answer.status_code == expected, answer.text
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    if expected >= 400:
        assert answer.json().keys() == {"error"}


@pytest.mark.parametrize("role", ["user", "support", "elsewhere", "everywhere", "named"])
@pytest.mark.parametrize("path", ["", "/export", "/notes", "/prompts/resp_{ulid}"])
def test_what_is_not_to_be_seen_is_answered_like_what_never_was(house: House, role: Role, path: str) -> None:
    answers = [
        house.ask("GET", Line(staff(), "/v1/sessions/{session_id}" + path), role, owner)
        for owner in ("private" if role != "named" else "foreign", "unknown")
    ]

    hidden, unknown = (answer.json()["error"] | {"id": ""} for answer in answers if not isinstance(answer, int))
    assert hidden == unknown


def seen_by(role: Role, house: House) -> set[str]:
    """The sessions that are in the role's lists."""
    held = {(of, owner): session_id for (of, owner), session_id in house.sessions.items() if owner != "unknown"}
    match role:
        case "nobody" | "expired" | "elsewhere":
            return set()
        case "user" | "secret" | "secret elsewhere":
            return {
                session_id for (of, owner), session_id in held.items() if owner == "own" and subject_of(of) == "user"
            }
        case "support" | "everywhere":
            return {session_id for (_, owner), session_id in held.items() if owner != "private"}
        case "named":
            return {session_id for (_, owner), session_id in held.items() if owner == "private"}
        case "admin":
            return set(held.values())


@pytest.mark.parametrize("role", [role for role in ROLES if role not in ("nobody", "expired")])
@pytest.mark.parametrize("path", ["/v1/sessions?limit=200", "/v1/feedback?limit=200"])
def test_lists_hold_what_the_role_sees_and_nothing_else(house: House, path: str, role: Role) -> None:
    answer = house.ask("GET", Line(anyone(), path), role, "own")

    assert isinstance(answer, httpx.Response)
    # Other tests open sessions of their own.
    found = {entry["session_id"] for entry in answer.json()["data"]} & set(house.sessions.values())
    assert found == seen_by(role, house)


def test_what_cannot_be_a_session_is_not_there_to_be_resumed(house: House) -> None:
    headers = {"authorization": f"Bearer {bearer('user')}"}
    for session_id in NO_SESSIONS:
        url = f"{house.url.replace('http', 'ws', 1)}/v1/realtime?conversation_id={quote(session_id)}"

        assert _upgrade(url, headers) == 404, session_id
