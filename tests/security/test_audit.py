"""Whoever looks at what is not their own is written down, and who reads of that; what is done to the log afterwards is found."""

import asyncio
import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.security.conftest import PATIENCE_S, Target
from tests.server.test_cli import run_cli


async def get(target: Target, path: str, role: str, **parameters: str) -> dict[str, Any]:
    """As a member of staff of that role."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{target.port}", timeout=PATIENCE_S) as client:
        headers = {"authorization": f"Bearer {target.token(f'the-{role}', role=role)}"}
        answered = await client.get(path, params=parameters, headers=headers)
    assert answered.status_code == 200, answered.text
    found: dict[str, Any] = answered.json()
    return found


async def audited(target: Target, action: str, session_id: str | None = None) -> dict[str, Any]:
    """The newest entry of that action, once the writer has stored it."""
    wanted = {"action": action} | ({} if session_id is None else {"session_id": session_id})
    async with asyncio.timeout(PATIENCE_S):
        while not (entries := (await get(target, "/v1/audit", "admin", **wanted))["data"]):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    entry: dict[str, Any] = entries[0]
    return entry


@pytest.fixture
async def log(target: Target, tmp_path: Path) -> Path:
    """A copy of a server's database in which some were looked at by staff, and the log of that by an admin."""
    async with target.session("mia") as client:
        await client.is_answered()
    async with target.session("noa") as client:
        await client.is_answered()
    for _ in range(3):
        await get(target, "/v1/sessions", "support")
    await audited(target, "session.search")
    await audited(target, "audit.read")
    (tmp_path / "var").mkdir()
    copy = tmp_path / "var" / "flueman.db"
    source = target.service.directory / "var" / "flueman.db"
    with contextlib.closing(sqlite3.connect(source)) as original, contextlib.closing(sqlite3.connect(copy)) as copied:
        original.backup(copied)
    return copy


async def test_who_looks_at_anothers_session_and_who_reads_of_that_is_written_down(target: Target) -> None:
    async with target.connect(target.token("mia")) as client:
        session_id = (await client.until("session.created"))["session"]["id"]

    await get(target, f"/v1/sessions/{session_id}", "support")

    entry = await audited(target, "session.view", session_id)
    assert (entry["actor_id"], entry["role"], entry["session_id"]) == ("the-support", "support", session_id)
    reader = await audited(target, "audit.read", session_id)
    assert (reader["actor_id"], reader["role"]) == ("the-admin", "admin")


async def test_a_log_that_nobody_touched_is_intact(log: Path) -> None:
    done = run_cli(log.parents[1], "audit", "verify")
    again = run_cli(log.parents[1], "audit", "verify", "--known", done.stdout.strip())

    assert (done.returncode, done.stderr) == (0, "")
    assert (again.returncode, again.stdout) == (0, done.stdout)


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE audit_logs SET actor_id = 'somebody else' WHERE number = 2", "row 2 of the audit log was changed"),
        ("DELETE FROM audit_logs WHERE number = 2", "row 2 of the audit log is missing"),
        ("DELETE FROM audit_logs WHERE number >= 2", "row 2 of the audit log is missing, as are all after it"),
    ],
)
async def test_a_row_that_was_edited_or_deleted_is_named(log: Path, statement: str, said: str) -> None:
    with contextlib.closing(sqlite3.connect(log)) as database:
        assert database.execute(statement).rowcount >= 1
        database.commit()

    done = run_cli(log.parents[1], "audit", "verify")

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"flueman: {said}\n"


async def test_a_log_written_anew_is_found_by_whoever_kept_what_was_printed(log: Path) -> None:
    known = run_cli(log.parents[1], "audit", "verify").stdout.strip()
    with contextlib.closing(sqlite3.connect(log)) as database:
        database.executescript(f"DELETE FROM audit_logs; UPDATE audit_head SET number = 0, hash = '{'0' * 64}'")

    silent = run_cli(log.parents[1], "audit", "verify")
    found = run_cli(log.parents[1], "audit", "verify", "--known", known)

    assert silent.returncode == 0
    assert (found.returncode, found.stderr) == (1, "flueman: row 1 of the audit log is missing, as are all after it\n")


def test_a_database_without_tables_is_said_plainly(tmp_path: Path) -> None:
    done = run_cli(tmp_path, "audit", "verify")

    assert done.returncode == 1
    assert done.stderr.startswith("flueman: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("known", ["", "7", "7:xyz", "-1:" + "0" * 64, "7:" + "0" * 63])
def test_a_malformed_known_end_is_refused(tmp_path: Path, known: str) -> None:
    done = run_cli(tmp_path, "audit", "verify", f"--known={known}")

    assert done.returncode == 2
    assert "NUMBER:HASH" in done.stderr
