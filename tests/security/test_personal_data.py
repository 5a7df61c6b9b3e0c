"""A canary of each kind of personal data, said wherever something can be said: nobody sees one who is not granted it, and no log has it.

A route that is read by nobody here fails: whoever adds one says what it shows.
"""

import asyncio
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import httpx
import msgspec
import pytest
from msgspec import Raw, Struct
from starlette.routing import Mount, Route

from persistence.part import JournalEvent
from server.app import create_app
from server.settings import ROOT, load_settings
from sessions.records import Record, encode_record
from sessions.sqlite_store import SqliteStore
from sessions.store import Append, SessionMeta
from tests.persistence.builders import (
    make_feedback,
    make_heard,
    make_note,
    make_prediction,
    make_session,
    make_trace,
    make_turn,
)
from tests.persistence.test_masked_events import deltas, event, message, spoken
from tests.server.console import SECRET, token
from tests.server.watcher import watching
from tests.services import Service

Reader = Literal["user", "support", "admin", "granted support", "granted admin"]
READERS: tuple[Reader, ...] = ("user", "support", "admin", "granted support", "granted admin")

USER = "kim.minsu@example.com"
SAID = "010-2345-6789"
ANSWERED = "4111 1111 1111 1111"
CALLED = "DE89 3704 0044 0532 0130 00"
RETURNED = "192.168.77.203"
FAILED = "lee.jiwoo@example.org"
INSTRUCTED = "+82 10-9876-5432"
PROMPTED = "02-765-4321"
COMMENTED = "900101-1234567"
REVIEWED = "219-09-9998"
NOTED = "park@example.net"
SEARCHED = "010-5555-4444"
CANARIES = (USER, SAID, ANSWERED, CALLED, RETURNED, FAILED, INSTRUCTED, PROMPTED, COMMENTED, REVIEWED, NOTED, SEARCHED)

SESSION_ID = "sess_01KAQ3V5Z9X8Y7W6V5T4S3R2Q1"
RESPONSE_ID = "resp_01KAQ3V5Z9X8Y7W6V5T4S3R2Q1"
IN_DIALOGUE = (SAID, ANSWERED, CALLED, RETURNED, INSTRUCTED, COMMENTED)

# What each route shows to whoever may see everything; those that the user may read show the user's own.
SHOWN: dict[str, tuple[str, ...]] = {
    "/v1/sessions": (USER, SAID),
    "/v1/sessions?text=cheesecake": (USER, SAID),
    f"/v1/sessions/{SESSION_ID}": (
        USER,
        SAID,
        ANSWERED,
        CALLED,
        FAILED,
        INSTRUCTED,
        PROMPTED,
        COMMENTED,
        REVIEWED,
        NOTED,
    ),
    f"/v1/sessions/{SESSION_ID}/prompts/{RESPONSE_ID}": (PROMPTED,),
    f"/v1/sessions/{SESSION_ID}/export": (USER, SAID, ANSWERED, CALLED, RETURNED, INSTRUCTED, COMMENTED),
    f"/v1/sessions/{SESSION_ID}/notes": (NOTED,),
    "/v1/feedback": (USER, COMMENTED, REVIEWED),
    "/v1/audit?action=session.search": (SEARCHED,),
    "/v1/overview": (),
    "/v1/me": (),
}
OWN = {"/v1/sessions": (USER, SAID), "/v1/feedback": (USER, COMMENTED), "/v1/me": (USER,)}
# Of what people said they hold nothing.
PUBLIC = {"/", "/console", "/console/{place:path}", "/favicon.ico", "/healthz", "/readyz"}


class House(Struct, frozen=True):
    """The server, whose log is kept."""

    port: int
    client: httpx.Client
    log_path: Path

    def get(self, path: str, reader: Reader) -> httpx.Response:
        return self.client.get(path, headers={"authorization": f"Bearer {bearer(reader)}"})


def bearer(reader: Reader) -> str:
    scopes = ["personal_data"] if reader.startswith("granted") else []
    if reader == "user":
        return token(USER, "user")
    return token("sam", "admin" if reader.endswith("admin") else "support", scopes=scopes)


def said_in(body: str) -> set[str]:
    return {canary for canary in CANARIES if canary in body}


def journal() -> list[bytes]:
    """A dialogue in which each of them says something personal, the answer in pieces of three characters."""
    answer = f"Sure, the card is {ANSWERED}, and the cheesecake is 4,500원."
    arguments = msgspec.json.encode({"iban": CALLED}).decode()
    call = {"type": "function_call", "id": "item_3", "call_id": "call_1", "name": "pay", "arguments": arguments}
    place = {"response_id": RESPONSE_ID, "item_id": "item_3", "output_index": 1, "call_id": "call_1"}
    output = {"type": "function_call_output", "id": "item_4", "call_id": "call_1", "output": f"from {RETURNED}"}
    return [
        event(
            "session.created", session={"id": SESSION_ID, "instructions": f"The user can be reached at {INSTRUCTED}."}
        ),
        event("conversation.item.added", previous_item_id=None, item=message("item_1", f"Call {SAID}", "user")),
        *spoken([answer[start : start + 3] for start in range(0, len(answer), 3)], "item_2", RESPONSE_ID),
        event("response.output_item.added", response_id=RESPONSE_ID, output_index=1, item=call | {"arguments": ""}),
        *(event("response.function_call_arguments.delta", **place, delta=char) for char in arguments),
        event("response.function_call_arguments.done", **place, name="pay", arguments=arguments),
        event("response.output_item.done", response_id=RESPONSE_ID, output_index=1, item=call),
        event("conversation.item.added", previous_item_id="item_3", item=output),
        event("avatar.feedback.created", feedback={"id": "fb_1", "item_id": "item_2", "comment": f"not {COMMENTED}"}),
        event("error", error={"type": "invalid_request_error", "message": f"no such user {USER}"}),
    ]


async def fill(folder: Path) -> None:
    """The one session, ended, and all that is written about it."""
    now_ms = time.time_ns() // 1_000_000
    turn = make_turn(SESSION_ID, text=f"Call {SAID}", created_ms=now_ms)
    rated: dict[str, Any] = {"item_id": "item_2", "rated_ms": now_ms, "received_ms": now_ms}
    answer = f"Sure, the card is {ANSWERED}, and the cheesecake is 4,500원."
    call = {"type": "function_call", "id": "item_3", "arguments": msgspec.json.encode({"iban": CALLED}).decode()}
    records: list[Record] = [
        make_session(SESSION_ID, user_id=USER, created_ms=now_ms, updated_ms=now_ms),
        turn,
        make_prediction(
            SESSION_ID,
            turn.turn_id,
            response_id=RESPONSE_ID,
            text=answer,
            output=Raw(msgspec.json.encode([message("item_2", answer), call])),
            request=Raw(msgspec.json.encode({"instructions": f"The user can be reached at {INSTRUCTED}."})),
            error=f"no mail reached {FAILED}",
            status="failed",
            trace=make_trace(prompt=f"<|user|>{PROMPTED}<|assistant|>"),
            created_ms=now_ms,
            first_token_ms=now_ms,
            done_ms=now_ms,
        ),
        # It ends within the card's number.
        make_heard(SESSION_ID, RESPONSE_ID, heard_text=answer[:30], heard_chars=30),
        make_feedback(SESSION_ID, user_id=USER, comment=f"that is not {COMMENTED}", **rated),
        make_feedback(SESSION_ID, user_id="jo", role="support", comment=f"leaks {REVIEWED}", **rated),
        make_note(SESSION_ID, text=f"wrote to {NOTED}"),
    ]
    async with SqliteStore(folder / "sessions.db") as store:
        epoch = await store.create(SessionMeta(SESSION_ID, USER, "kiosk", "demo", now_ms), "node")
        append = Append(SESSION_ID, epoch, 1, now_ms, journal(), [*map(encode_record, records)], {}, [], ends=True)
        assert await store.append([append]) == ["ok"]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A server with the setting on, once everything is stored and found, and support has searched for a number."""
    folder = tmp_path_factory.mktemp("personal")
    (folder / "var").mkdir()
    asyncio.run(fill(folder / "var"))
    settings = {
        "FLUEMAN_ENGINE": "scripted",
        "FLUEMAN_DATA_DIR": str(folder / "var"),
        "FLUEMAN_JWT_SECRET": SECRET,
        "FLUEMAN_MASK_PERSONAL_DATA": "true",
        "FLUEMAN_LOG_LEVEL": "debug",
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
        with httpx.Client(base_url=f"http://127.0.0.1:{service.port}", timeout=30, trust_env=False) as client:
            house = House(service.port, client, service.log_path)
            _wait_until(lambda: house.get("/v1/sessions?text=cheesecake", "granted admin").json()["data"])
            house.get(f"/v1/sessions?text={SEARCHED}", "support")
            _wait_until(lambda: house.get("/v1/audit?action=session.search", "granted admin").json()["data"])
            _wait_until(lambda: SEARCHED in house.get("/v1/audit?action=session.search", "granted admin").text)
            yield house
    finally:
        service.stop()


def _is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz", trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def _wait_until(is_so: Any) -> None:
    deadline_s = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline_s
        time.sleep(0.1)


def test_every_route_that_is_read_is_read_here(tmp_path: Path) -> None:
    routes = create_app(load_settings(data_dir=tmp_path, engine="scripted")).routes
    read = {
        route.path
        for route in routes
        if (isinstance(route, Route) and "GET" in (route.methods or ())) and not isinstance(route, Mount)
    }
    paths = {path.partition("?")[0] for path in SHOWN}

    templates = {path.replace(SESSION_ID, "{session_id}").replace(RESPONSE_ID, "{response_id}") for path in paths}
    assert read == templates | PUBLIC


@pytest.mark.parametrize("path", SHOWN)
@pytest.mark.parametrize("reader", ["support", "admin"])
def test_who_is_not_granted_it_sees_no_personal_data(house: House, reader: Reader, path: str) -> None:
    answer = house.get(path, reader)

    if path.startswith("/v1/audit") and reader == "support":
        assert answer.status_code == 403
        return
    assert answer.status_code == 200, answer.text
    assert said_in(answer.text) == set()
    if SHOWN[path]:
        assert "•" in answer.text
    lines = [msgspec.json.decode(line) for line in answer.text.splitlines()] if path.endswith("/export") else []
    assert not any(char.isdigit() for char in "".join(_delta(line) for line in lines).replace("4,500원", ""))


def _delta(line: dict[str, Any]) -> str:
    found: str = line.get("event", {}).get("delta", "")
    return found


@pytest.mark.parametrize("path", SHOWN)
@pytest.mark.parametrize("reader", ["granted support", "granted admin"])
def test_who_is_granted_it_sees_all_of_it(house: House, reader: Reader, path: str) -> None:
    if path.startswith("/v1/audit") and reader == "granted support":
        return

    answer = house.get(path, reader)

    assert answer.status_code == 200, answer.text
    assert said_in(answer.text) >= set(SHOWN[path])
    assert '"masked":true' not in answer.text


@pytest.mark.parametrize("path", OWN)
def test_users_see_what_they_said_themselves(house: House, path: str) -> None:
    answer = house.get(path, "user")

    assert answer.status_code == 200, answer.text
    assert said_in(answer.text) == set(OWN[path])


@pytest.mark.parametrize("path", [path for path in SHOWN if path.startswith("/v1/sessions")])
def test_what_is_masked_says_so(house: House, path: str) -> None:
    if path.endswith("/notes") or "/prompts/" in path:
        return

    assert '"masked":true' in house.get(path, "support").text


def test_what_was_heard_of_a_number_is_masked_as_in_the_whole(house: House) -> None:
    answers = house.get(f"/v1/sessions/{SESSION_ID}", "support").json()["answers"]

    assert answers[0]["heard_text"] == "Sure, the card is " + 12 * "•"


@pytest.mark.parametrize("reader", READERS)
async def test_a_replay_shows_it_to_whoever_may_see_it(house: House, reader: Reader) -> None:
    async with watching(house.port, SESSION_ID, bearer(reader), speed=100) as watcher:
        begun = await watcher.until("avatar.replay.updated")
        await watcher.until("avatar.replay.done")

    shown = b"".join(watcher.recorded).decode()
    spoken_text = deltas([JournalEvent(0, 0, frame) for frame in watcher.recorded])
    if reader in ("support", "admin"):
        assert said_in(shown) == set()
        assert not any(char.isdigit() for char in spoken_text.replace("4,500원", ""))
        assert begun["replay"]["masked"] is True
    else:
        assert said_in(shown) >= {*IN_DIALOGUE}
        assert ANSWERED in spoken_text
        assert "masked" not in begun["replay"]
    assert len(watcher.recorded) == len(journal())


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("text", [SAID, SAID.replace("-", " "), "6789", "2345", ANSWERED, "1111", USER])
def test_nobody_finds_a_session_by_it(house: House, reader: Reader, text: str) -> None:
    assert house.get(f"/v1/sessions?text={text}", reader).json()["data"] == []


async def test_no_log_holds_any_of_it(house: House) -> None:
    """The user's own id is one, and is logged."""
    for path in SHOWN:
        house.get(path, "user")
    async with watching(house.port, SESSION_ID, bearer("user"), speed=100) as watcher:
        await watcher.until("avatar.replay.done")

    log = house.log_path.read_text()

    assert '"event": "replay.opened"' in log or '"event":"replay.opened"' in log
    assert "•" in log or "\\u2022" in log
    assert said_in(log) == set()
