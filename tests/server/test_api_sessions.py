"""Finding sessions over REST: of those that the caller may see, page by page, and only by what can be asked for."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sessions.records import Record
from tests.persistence.builders import CREATED_MS, make_prediction, make_session, make_turn
from tests.server.console import WAIT_S, Console, open_console, token

ADMIN = token("ada", "admin", client="none")


def session_id(number: int) -> str:
    return f"sess_{number:026d}"


def make_records(number: int, *, user_id: str = "anna", client_id: str = "kiosk", text: str = "Hallo") -> list[Record]:
    """A session with one turn and its answer, created as many seconds later as its number."""
    found = session_id(number)
    created_ms = CREATED_MS + 1000 * number
    turn = make_turn(found, text=text, created_ms=created_ms)
    return [
        make_session(found, user_id=user_id, client_id=client_id, created_ms=created_ms, updated_ms=created_ms),
        turn,
        make_prediction(found, turn.turn_id, created_ms=created_ms, first_token_ms=None, done_ms=created_ms),
    ]


async def fill(console: Console, sessions: Sequence[list[Record]]) -> None:
    """Store them, and wait until all can be found."""
    for records in sessions:
        await console.enqueue(*records)
    async with asyncio.timeout(WAIT_S):
        while len((await find(console, "limit=200", ADMIN))["data"]) < len(sessions):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def find(console: Console, query: str, bearer: str) -> dict[str, Any]:
    answer = await console.get(f"/v1/sessions?{query}", bearer)
    assert answer.status_code == 200, answer.text
    page: dict[str, Any] = answer.json()
    return page


def ids(page: dict[str, Any]) -> list[str]:
    return [found["session_id"] for found in page["data"]]


async def test_pages_follow_each_other_from_the_newest_to_the_oldest(tmp_path: Path) -> None:
    async with open_console(tmp_path) as console:
        await fill(console, [make_records(number) for number in range(1, 8)])

        first = await find(console, "limit=3", ADMIN)
        second = await find(console, f"limit=3&after={first['next']}", ADMIN)
        third = await find(console, f"limit=3&after={second['next']}", ADMIN)

    assert ids(first) + ids(second) + ids(third) == [session_id(number) for number in range(7, 0, -1)]
    assert (third["next"], third["searched_to_ms"]) == (None, None)


@pytest.mark.parametrize(
    ("bearer", "query", "expected"),
    [
        (ADMIN, "", {1, 2, 3, 4}),
        (token("anna", "user"), "", {1, 3}),
        (token("anna", "user"), "user=anna", {1, 3}),
        (token("anna", "user"), "user=oscar", set()),
        (token("anna", "user", scopes=["client:*"]), "client=lobby", set()),
        (token("ann", client="kiosk"), "", {1, 2}),
        (token("ann", client="kiosk"), "user=oscar", {2}),
        (token("ann", client="kiosk"), "client=lobby", set()),
        (token("ann", client="kiosk"), "client=clinic", set()),
        (token("ann", client="none", scopes=["client:*"]), "", {1, 2, 4}),
        (token("ann", client="none", scopes=["client:*", "client:clinic"]), "", {1, 2, 3, 4}),
        (token("ann", client="clinic"), "", set()),
        (token("anna", client="kiosk"), "user=anna", {1, 3}),
        (ADMIN, "user=anna&client=kiosk", {1}),
        (ADMIN, "model=other", set()),
    ],
)
async def test_each_finds_what_it_may_see(tmp_path: Path, bearer: str, query: str, expected: set[int]) -> None:
    async with open_console(tmp_path, private_clients="clinic") as console:
        await fill(
            console,
            [
                make_records(1, user_id="anna", client_id="kiosk"),
                make_records(2, user_id="oscar", client_id="kiosk"),
                make_records(3, user_id="anna", client_id="clinic"),
                make_records(4, user_id="oscar", client_id="lobby"),
            ],
        )

        page = await find(console, query, bearer)

    assert set(ids(page)) == {session_id(number) for number in expected}


async def test_what_was_said_is_found_and_comes_back_as_it_was_said(tmp_path: Path) -> None:
    said = "<b onclick=alert(1)>Regenschirm</b> \x1b[31m\u202e 🙂"
    async with open_console(tmp_path) as console:
        await fill(console, [make_records(1, text=said), make_records(2, text="Sonne")])

        answer = await console.get("/v1/sessions?text=regenschirm", ADMIN)

    (found,) = answer.json()["data"]
    assert found["first_text"] == said
    assert "Regenschirm" in found["snippet"]
    assert (answer.headers["content-type"], answer.headers["x-content-type-options"]) == ("application/json", "nosniff")
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("query", "code", "param"),
    [
        ("limit=0", "integer_below_min_value", "limit"),
        ("limit=201", "integer_above_max_value", "limit"),
        ("rating=best", "invalid_value", "rating"),
        ("status=gone", "invalid_value", "status"),
        ("text=", "string_below_min_length", "text"),
        ("text=" + "a" * 201, "string_above_max_length", "text"),
        ("from_ms=2&to_ms=2", "invalid_value", "to_ms"),
        ("user_id=oscar", "unknown_parameter", "user_id"),
        ("after=MTIz", "invalid_value", "after"),
        ("after=", "invalid_value", "after"),
    ],
)
async def test_what_cannot_be_asked_is_named_and_is_no_look(tmp_path: Path, query: str, code: str, param: str) -> None:
    async with open_console(tmp_path, writer="none") as console:
        answer = await console.get(f"/v1/sessions?{query}", token())
        trail = await console.trail()

    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"], trail) == (400, code, param, [])


async def test_staffs_searches_are_in_the_trail_with_what_was_asked_and_users_are_not(tmp_path: Path) -> None:
    async with open_console(tmp_path, writer="none") as console:
        await find(console, "text=knee+pain&rating=down&has_errors=true", token())
        (entry,) = await console.trail()

        await find(console, "text=knee", token("anna", "user"))
        assert await console.trail() == []

    assert bytes(entry.detail) == b'{"rating":"down","text":"knee pain","has_errors":true,"limit":50}'
