"""The overview: of the digital humans that the caller works for, in days; who looked is in the trail before anything is shown."""

import json
from pathlib import Path

import pytest
from sqlalchemy import insert

from persistence.search_tables import rollups
from tests.server.console import Console, open_console, token

MONDAY_MS = 1_795_392_000_000  # 2026-11-23
DAY_MS = 24 * 3600 * 1000
PATH = f"/v1/overview?from_ms={MONDAY_MS}&to_ms={MONDAY_MS + DAY_MS}"


async def fill(console: Console, *clients: str) -> None:
    """One answer on Monday for each digital human, more for each that follows."""
    rows = [
        {
            "day": "2026-11-23",
            "client_id": client,
            "model": "demo",
            "num_sessions": 10**number,
            "num_answers": 0,
            "num_errors": 0,
            "num_interruptions": 0,
            "num_up": 0,
            "num_down": 0,
            "first_tokens": "{}",
        }
        for number, client in enumerate(clients)
    ]
    async with console.services.database.transaction() as connection:
        await connection.execute(insert(rollups), rows)


@pytest.mark.parametrize(
    ("bearer", "expected"),
    [
        (token("ada", "admin", client="none"), 111),
        (token(client="kiosk"), 1),
        (token(client="kiosk", scopes=["client:lobby"]), 11),
        (token(client="none", scopes=["client:*"]), 11),
        (token(client="clinic"), 0),
        (token(client="none", scopes=["client:*", "client:clinic"]), 111),
    ],
)
async def test_the_sums_are_of_what_the_caller_may_see(tmp_path: Path, bearer: str, expected: int) -> None:
    async with open_console(tmp_path, writer="none", private_clients="clinic") as console:
        await fill(console, "kiosk", "lobby", "clinic")

        days = (await console.get(PATH, bearer)).json()["days"]

    assert sum(day["num_sessions"] for day in days) == expected


async def test_a_look_is_in_the_trail(tmp_path: Path) -> None:
    async with open_console(tmp_path, writer="none") as console:
        await console.get(f"{PATH}&client=kiosk", token())

        (entry,) = await console.trail()

    assert (entry.actor_id, entry.action, entry.session_id) == ("ann", "overview.read", None)
    assert json.loads(bytes(entry.detail)) == {
        "from_ms": MONDAY_MS,
        "to_ms": MONDAY_MS + DAY_MS,
        "model": None,
        "client": "kiosk",
    }


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("from_ms=5&to_ms=4", "to_ms"),
        (f"from_ms=0&to_ms={367 * DAY_MS}", "from_ms"),
        ("from_ms=now", "from_ms"),
        ("day=1", "day"),
        ("client=", "client"),
    ],
)
async def test_a_bad_span_is_named(tmp_path: Path, query: str, param: str) -> None:
    async with open_console(tmp_path, writer="none") as console:
        answer = await console.get(f"/v1/overview?{query}", token())
        trail = await console.trail()

    assert (answer.status_code, answer.json()["error"]["param"], trail) == (400, param, [])


async def test_without_a_span_it_is_the_last_thirty_days(tmp_path: Path) -> None:
    async with open_console(tmp_path, writer="none") as console:
        answer = await console.get("/v1/overview", token())
        (entry,) = await console.trail()

    span = json.loads(bytes(entry.detail))
    assert answer.json() == {"days": []}
    assert span["to_ms"] - span["from_ms"] == 30 * DAY_MS
