"""The overview: of the digital humans that the caller works for, in days; who looked is in the trail before anything is shown."""

import asyncio
import json
from pathlib import Path

import pytest

from tests.persistence.builders import make_session
from tests.server.console import WAIT_S, Console, open_console, token

MONDAY_MS = 1_795_392_000_000  # 2026-11-23
DAY_MS = 24 * 3600 * 1000
PATH = f"/v1/overview?from_ms={MONDAY_MS}&to_ms={MONDAY_MS + DAY_MS}"


async def fill(console: Console, **num_sessions: int) -> None:
    """So many sessions on Monday of each digital human, and all of them counted."""
    for client_id, count in num_sessions.items():
        for number in range(count):
            session_id = f"sess_{client_id}{number}"
            await console.enqueue(
                make_session(session_id, client_id=client_id, created_ms=MONDAY_MS, updated_ms=MONDAY_MS)
            )
    async with asyncio.timeout(WAIT_S):
        while await counted(console, token("ada", "admin")) < sum(num_sessions.values()):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def counted(console: Console, bearer: str) -> int:
    days = (await console.get(PATH, bearer)).json()["days"]
    return sum(day["num_sessions"] for day in days)


@pytest.mark.parametrize(
    ("bearer", "expected"),
    [
        (token("ada", "admin", client="none"), 7),
        (token(client="kiosk"), 1),
        (token(client="kiosk", scopes=["client:lobby"]), 3),
        (token(client="none", scopes=["client:*"]), 3),
        (token(client="clinic"), 0),
        (token(client="*"), 0),
        (token(client="none", scopes=["client:*", "client:clinic"]), 7),
    ],
)
async def test_the_sums_are_of_what_the_caller_may_see(tmp_path: Path, bearer: str, expected: int) -> None:
    async with open_console(tmp_path, private_clients="clinic") as console:
        await fill(console, kiosk=1, lobby=2, clinic=4)

        assert await counted(console, bearer) == expected


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


@pytest.mark.parametrize("bearer", [token(client="none", scopes=["client:*"]), token("ada", "admin")])
async def test_the_name_under_which_all_are_added_up_is_nobodys(tmp_path: Path, bearer: str) -> None:
    async with open_console(tmp_path, private_clients="clinic") as console:
        await fill(console, kiosk=1, clinic=4)

        answer = await console.get(f"{PATH}&client=*", bearer)

    assert answer.json() == {"days": []}


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
