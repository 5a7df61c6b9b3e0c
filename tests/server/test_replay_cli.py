"""`flueman replay`: JSON lines byte for byte, text that is inert, at its pace; what is wrong in a line. P8"""

import asyncio
import io
import json
import os
import pty
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrations import upgrade_database
from persistence.part import encode_line
from persistence.recording import Hole
from server.replay_cli import NoSuchSession, Wanted, replay
from server.settings import Settings, load_settings
from server.transcript import Transcript, escaped, escaped_json
from sessions.records import AuditRecord, decode_record
from sessions.sqlite_store import SqliteStore
from sessions.store import Append
from tests.persistence.builders import CREATED_MS, journal_events, make_events, new_id
from tests.persistence.test_recording import as_recorded
from tests.server.test_cli import run_cli


async def make_settings(folder: Path) -> Settings:
    settings = load_settings(data_dir=folder / "var")
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    await upgrade_database(settings.database_url)
    return settings


async def seed(settings: Settings, events: list[bytes], *, first: int = 1) -> str:
    """An ended session in the embedded store."""
    session_id = new_id("sess")
    async with SqliteStore(settings.data_dir / "sessions.db") as store:
        await journal_events(store, session_id, events)
        epoch = await store.epoch(session_id)
        assert epoch is not None
        await store.append([Append(session_id, epoch, len(events) + 1, CREATED_MS, [], [], {}, [], ends=True)])
    return session_id


async def records(settings: Settings) -> list[AuditRecord]:
    async with SqliteStore(settings.data_dir / "sessions.db") as store:
        found = [decode_record(delivery.record) for delivery in await store.take("test", 100, 0)]
    return [record for record in found if isinstance(record, AuditRecord)]


def wanted(session_id: str, **changes: Any) -> Wanted:
    fields: dict[str, Any] = {"speed": 100.0, "max_silence_ms": None, "as_json": False} | changes
    return Wanted(session_id=session_id, **fields)


async def test_json_lines_hold_every_event_byte_for_byte_and_the_look_is_written_down(tmp_path: Path) -> None:
    """P8"""
    settings, events, out = await make_settings(tmp_path), make_events(40), io.StringIO()
    session_id = await seed(settings, events)

    holes = await replay(settings, wanted(session_id, as_json=True), out)

    assert holes == []
    assert out.getvalue().encode().splitlines() == [encode_line(event) for event in as_recorded(events)]
    (entry,) = await records(settings)
    assert (entry.action, entry.session_id, entry.role) == ("session.replay", session_id, "admin")
    assert entry.actor_id.startswith("cli:")


# What JSON lets stand in a string and a terminal acts on, and what neither minds.
LOUD = "".join(map(chr, [*range(0x7F, 0xA0), 0x61C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A)]))
QUIET = "«Wie spät?» \\u009b \U0001f40b この"


async def test_json_lines_are_inert_on_a_terminal_and_as_they_were_through_a_pipe(tmp_path: Path) -> None:
    settings = await make_settings(tmp_path)
    events = [json.dumps({"text": f"{QUIET}{LOUD}"}, ensure_ascii=False).encode()]
    session_id = await seed(settings, events)

    on_terminal = await asyncio.to_thread(run_on_terminal, tmp_path, "replay", session_id, "--jsonl")
    piped = await asyncio.to_thread(run_cli, tmp_path, "replay", session_id, "--jsonl")

    (line,) = [encode_line(event).decode() for event in as_recorded(events)]
    (shown,) = on_terminal.splitlines()
    assert shown.isprintable()
    assert QUIET in json.loads(shown)["event"]["text"]
    assert "«Wie spät?»" in shown
    assert json.loads(shown) == json.loads(line)
    # Not by lines: some of those characters end one.
    assert piped.stdout == f"{line}\n"


def run_on_terminal(folder: Path, *arguments: str) -> str:
    """What the command writes to a terminal."""
    ours, theirs = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FLUEMAN_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "server", *arguments],
        env=environment | {"PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONUTF8": "1"},
        cwd=folder,
        stdout=theirs,
    )
    os.close(theirs)
    written = b""
    with open(ours, "rb", buffering=0) as terminal, suppress(OSError):
        # The end of a terminal is an error.
        while piece := terminal.read(65536):
            written += piece
    assert process.wait() == 0
    return written.decode()


@given(st.text())
def test_what_is_escaped_for_a_terminal_is_the_same_json(text: str) -> None:
    line = json.dumps(text, ensure_ascii=False)

    shown = escaped_json(line)

    assert shown.isprintable()
    assert json.loads(shown) == text


async def test_an_unknown_session_is_said_and_not_written_down(tmp_path: Path) -> None:
    settings = await make_settings(tmp_path)

    with pytest.raises(NoSuchSession):
        await replay(settings, wanted("sess_nobody"), io.StringIO())

    assert await records(settings) == []


def dialogue() -> list[bytes]:
    esc = "\x1b]0;owned\x07\u202etxt\r"
    return [
        json.dumps(event).encode()
        for event in [
            {"type": "session.created"},
            {
                "type": "conversation.item.done",
                "item": {
                    "id": "i1",
                    "type": "message",
                    "role": "user",
                    "content": [{"type": "input_text", "text": f"hi {esc}"}],
                },
            },
            {"type": "response.output_text.delta", "item_id": "i2", "delta": "Hel"},
            {"type": "response.output_text.delta", "item_id": "i2", "delta": f"lo{esc}"},
            {"type": "response.output_text.done", "item_id": "i2", "text": "Hello"},
            {"type": "response.output_item.done", "item": {"type": "function_call", "name": "look", "arguments": "{}"}},
            {
                "type": "response.done",
                "response": {"status": "cancelled", "status_details": {"reason": "client_cancelled"}},
            },
            {"type": "avatar.feedback.created", "feedback": {"rating": "down", "reason": "unsafe", "comment": esc}},
            {"type": "error", "error": {"code": "invalid_value", "message": esc}},
        ]
    ]


async def test_a_transcript_tells_who_said_what_when_and_is_inert(tmp_path: Path) -> None:
    settings, out = await make_settings(tmp_path), io.StringIO()
    session_id = await seed(settings, dialogue())

    await replay(settings, wanted(session_id), out)

    shown = "\\x1b]0;owned\\x07\\u202etxt\\r"
    assert out.getvalue().splitlines() == [
        "[0:00:00.000] session begins",
        f"[0:00:00.000] user: hi {shown}",
        f"[0:00:00.000] assistant: Hello{shown}",
        "[0:00:00.000] calls look({})",
        "[0:00:00.000] answer cancelled (client_cancelled)",
        f"[0:00:00.007] rates down: unsafe: {shown}",
        f"[0:00:00.007] error invalid_value: {shown}",
        "-- end",
    ]


@given(st.text())
def test_nothing_in_a_text_speaks_to_the_terminal(text: str) -> None:
    assert all(char.isprintable() or char == "\n" for char in escaped(text))


@given(
    st.binary() | st.recursive(st.none() | st.text() | st.integers(), st.lists).map(lambda x: json.dumps(x).encode())
)
def test_a_transcript_survives_any_event(event: bytes) -> None:
    Transcript().event(0, event)


async def test_what_cannot_be_shown_is_said_where_it_is_and_fails(tmp_path: Path) -> None:
    settings = await make_settings(tmp_path)
    session_id = await seed(settings, make_events(21))
    async with SqliteStore(settings.data_dir / "sessions.db") as store:
        await store.trim(session_id, 14, final=False)
    out = io.StringIO()

    holes = await replay(settings, wanted(session_id, as_json=True), out)
    done = await asyncio.to_thread(run_cli, tmp_path, "replay", session_id, "--speed", "100")

    assert holes == [Hole(1, 14, "missing")]
    assert json.loads(out.getvalue().splitlines()[0]) == {"hole": {"first": 1, "last": 14, "reason": "missing"}}
    assert len(out.getvalue().splitlines()) == 8
    assert done.returncode == 1
    assert "-- events 1 to 14 cannot be shown: missing\n" in done.stdout
    assert "flueman: events 1 to 14 cannot be shown: missing\n" in done.stderr


async def test_failures_are_one_line(tmp_path: Path) -> None:
    settings = await make_settings(tmp_path)
    async with SqliteStore(settings.data_dir / "sessions.db"):
        in_use = await asyncio.to_thread(run_cli, tmp_path, "replay", "sess_x")
    unknown = await asyncio.to_thread(run_cli, tmp_path, "replay", "sess_\x1b[31m")
    wrong = await asyncio.to_thread(run_cli, tmp_path, "replay", "sess_x", "--speed", "0")

    assert (in_use.returncode, unknown.returncode, wrong.returncode) == (1, 1, 2)
    assert "another process uses the store" in in_use.stderr
    assert unknown.stderr == "flueman: there is no session 'sess_\\x1b[31m'\n"
    assert "must be from 0.1 to 100" in wrong.stderr
    assert "Traceback" not in in_use.stderr + unknown.stderr + wrong.stderr


async def test_a_reader_that_has_seen_enough_is_no_failure(tmp_path: Path) -> None:
    settings = await make_settings(tmp_path)
    session_id = await seed(settings, make_events(3000))
    command = f"{sys.executable} -m server replay {session_id} --jsonl | head -n 1; echo status ${{PIPESTATUS[0]}}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FLUEMAN_")}

    done = await asyncio.to_thread(
        subprocess.run,
        ["bash", "-c", command],
        env=environment | {"PYTHONPATH": str(Path(__file__).parents[2])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.stdout.splitlines()[1] == "status 0"
    assert done.stderr == ""
