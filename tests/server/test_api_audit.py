"""The audit log over REST: pages without overlap, filters, and the reading itself an entry."""

from pathlib import Path

import pytest
from msgspec import Raw

from sessions.records import AuditRecord
from tests.server.console import Console, open_console, token

ADMIN = token("ada", "admin")


def make_entry(number: int, **changes: object) -> AuditRecord:
    fields: dict[str, object] = {
        "audit_id": f"audit_{number:026d}",
        "actor_id": "ann",
        "role": "support",
        "client_id": "kiosk",
        "action": "session.view",
        "session_id": f"sess_{number:026d}",
        "detail": Raw(b'{"text":"<b>\\u001b"}'),
        "at_ms": 1_795_391_998_123 + number,
    }
    return AuditRecord(**(fields | changes))  # type: ignore[arg-type]


async def pages(console: Console, query: str) -> list[list[int]]:
    """The numbers of the entries on each page."""
    found, after = [], ""
    while True:
        page = (await console.get(f"/v1/audit?{query}{after}", ADMIN)).json()
        found.append([entry["number"] for entry in page["data"]])
        if page["next"] is None:
            return found
        after = f"&after={page['next']}"


async def test_pages_go_back_in_time_without_a_gap_while_new_entries_come(tmp_path: Path) -> None:
    async with open_console(tmp_path) as console:
        await console.enqueue(*(make_entry(number) for number in range(1, 8)))
        await console.settled()

        found = await pages(console, "actor=ann&limit=3")

    assert found == [[7, 6, 5], [4, 3, 2], [1]]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("actor=bob", [2]),
        ("action=session.export", [3]),
        (f"session_id=sess_{1:026d}", [1]),
        ("actor=bob&action=session.export", []),
    ],
)
async def test_entries_are_found_by_who_what_and_whose(tmp_path: Path, query: str, expected: list[int]) -> None:
    async with open_console(tmp_path) as console:
        await console.enqueue(make_entry(1), make_entry(2, actor_id="bob"), make_entry(3, action="session.export"))
        await console.settled()

        found = await pages(console, query)

    assert found == [expected]


async def test_an_entry_is_shown_as_it_was_written_and_the_look_is_the_next(tmp_path: Path) -> None:
    async with open_console(tmp_path) as console:
        await console.enqueue(make_entry(1))
        await console.settled()

        first = (await console.get("/v1/audit", ADMIN)).json()["data"]
        await console.settled()
        second = (await console.get("/v1/audit", ADMIN)).json()["data"]

    assert (first[0]["detail"], first[0]["role"], len(first[0]["hash"])) == ({"text": "<b>\x1b"}, "support", 64)
    assert [entry["action"] for entry in second] == ["audit.read", "session.view"]
    assert (second[0]["actor_id"], second[0]["number"]) == ("ada", 2)


@pytest.mark.parametrize("after", ["", "1", "MTIz", "null"])
async def test_a_made_up_cursor_is_refused(tmp_path: Path, after: str) -> None:
    async with open_console(tmp_path, writer="none") as console:
        answer = await console.get(f"/v1/audit?after={after}", ADMIN)

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "after")
