"""Export: every event as it was committed, line by line, as fast as its reader and no faster; what is missing is said. P8, P9."""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from starlette.types import Message

from persistence.errors import ArchiveUnavailable
from persistence.part import JournalEvent
from persistence.recording import Hole, Recorded, Recording
from sessions.records import Record
from tests.persistence.builders import make_archive, make_events, make_session
from tests.server.console import Console, open_console, token

SESSION_ID = "sess_01K00000000000000000000001"
PATH = f"/v1/sessions/{SESSION_ID}/export"


class Tape(Recording):
    """A recording that plays what it is given, counts it, and fails where it is told to."""

    def __init__(self, console: Console, found: list[Recorded | Exception], *, times: int = 1) -> None:
        super().__init__(console.services.store, console.services.database, console.services.archive)
        self._found = found * times
        self.num_read = 0
        self.is_closed = False
        self.before: dict[int, Callable[[], Awaitable[object]]] = {}

    async def events(self, session_id: str, after: int = 0) -> AsyncGenerator[Recorded, None]:
        try:
            for found in self._found:
                if isinstance(found, Exception):
                    raise found
                self.num_read += 1
                if self.num_read in self.before:
                    await self.before[self.num_read]()
                yield found
        finally:
            self.is_closed = True


def with_tape(console: Console, found: list[Recorded | Exception], *, times: int = 1) -> Tape:
    tape = Tape(console, found, times=times)
    console.services = msgspec.structs.replace(console.services, recording=tape)
    return tape


def lines_of(text: str) -> list[dict[str, Any]]:
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("is_archived", [False, True])
async def test_the_events_come_byte_for_byte_between_the_session_and_the_end(tmp_path: Path, is_archived: bool) -> None:
    """P8: from the journal, and from the archive."""
    events = make_events(500)
    records: list[Record] = [make_session(SESSION_ID), *([make_archive(SESSION_ID, 500)] if is_archived else [])]
    async with open_console(tmp_path) as console:
        await console.seed(SESSION_ID, events, records)
        await console.settled()

        answer = await console.get(PATH, token())

    first, *middle, last = answer.content.splitlines()
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.headers["content-disposition"] == f'attachment; filename="{SESSION_ID}.jsonl"'
    assert (answer.headers["cache-control"], answer.headers["x-content-type-options"]) == ("no-store", "nosniff")
    assert json.loads(first)["session"]["session_id"] == SESSION_ID
    assert [line.partition(b'"event":')[2][:-1] for line in middle] == events
    assert [json.loads(line)["sequence"] for line in middle] == list(range(1, 501))
    assert json.loads(last) == {"end": {"num_events": 500, "complete": True}}


async def test_what_cannot_be_shown_is_said_and_the_rest_is_there(tmp_path: Path) -> None:
    """P9."""
    async with open_console(tmp_path, writer="none") as console:
        await console.seed(SESSION_ID)
        with_tape(console, [JournalEvent(1, 5, b'{"a":1}'), Hole(2, 9, "damaged"), JournalEvent(10, 6, b'{"a":2}')])

        answer = await console.get(PATH, token())

    _, *lines = lines_of(answer.text)
    assert lines == [
        {"sequence": 1, "at_ms": 5, "event": {"a": 1}},
        {"hole": {"first": 2, "last": 9, "reason": "damaged"}},
        {"sequence": 10, "at_ms": 6, "event": {"a": 2}},
        {"end": {"num_events": 2, "complete": False}},
    ]


async def test_a_damaged_archive_is_a_hole_in_the_export(tmp_path: Path) -> None:
    """P9."""
    async with open_console(tmp_path) as console:
        await console.seed(SESSION_ID, make_events(30), [make_session(SESSION_ID), make_archive(SESSION_ID, 30)])
        await console.settled()
        (part,) = (tmp_path / "archive" / "sessions").rglob("*.zst")
        part.write_bytes(b"no archive")

        answer = await console.get(PATH, token())

    _, *lines = lines_of(answer.text)
    assert lines == [
        {"hole": {"first": 1, "last": 30, "reason": "damaged"}},
        {"end": {"num_events": 0, "complete": False}},
    ]


async def test_what_goes_away_on_the_way_ends_the_export_and_not_as_if_it_were_whole(tmp_path: Path) -> None:
    """P9."""
    async with open_console(tmp_path, writer="none") as console:
        await console.seed(SESSION_ID)
        with_tape(console, [JournalEvent(1, 5, b"{}"), ArchiveUnavailable("away")])

        answer = await console.get(PATH, token())

    assert lines_of(answer.text)[-1] == {"end": {"num_events": 1, "complete": False, "error": "unavailable"}}


async def test_a_revoked_token_ends_the_export_that_it_began(tmp_path: Path) -> None:
    """What was asked for before is not read on for who may not have it any more."""
    async with open_console(tmp_path, writer="none") as console:
        await console.seed(SESSION_ID)
        tape = with_tape(console, [JournalEvent(number, 5, b"{}") for number in range(1, 4)])
        tape.before = {3: lambda: console.services.revocations.revoke_user("ann")}

        answer = await console.get(PATH, token())

    assert [line.get("sequence") for line in lines_of(answer.text)[1:-1]] == [1, 2]
    assert lines_of(answer.text)[-1] == {"end": {"num_events": 2, "complete": False, "error": "token_revoked"}}


async def test_the_next_events_are_read_when_the_reader_has_room_and_none_once_it_has_left(tmp_path: Path) -> None:
    """P7: 300 MB, of which a few pieces are in memory."""
    async with open_console(tmp_path, writer="none") as console:
        await console.seed(SESSION_ID)
        tape = with_tape(console, [JournalEvent(1, 5, b'{"text":"%b"}' % (b"a" * 10_000))], times=30_000)
        reader = Reader(num_chunks=3)

        await asyncio.wait_for(console(_scope(), reader.receive, reader.send), 30)

    assert reader.largest <= 80_000
    assert 0 < tape.num_read <= 3 * 8
    assert tape.is_closed


class Reader:
    """Takes so many pieces, then no more for a while, then leaves."""

    def __init__(self, num_chunks: int) -> None:
        self._num_left = num_chunks
        self._is_full = asyncio.Event()
        self._was_asked = False
        self.largest = 0

    async def receive(self) -> Message:
        if not self._was_asked:
            self._was_asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._is_full.wait()
        for _ in range(100):
            await asyncio.sleep(0)
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.largest = max(self.largest, len(message.get("body", b"")))
        if message["type"] == "http.response.body":
            self._num_left -= 1
        if self._num_left == 0:
            self._is_full.set()
            await asyncio.Event().wait()


def _scope() -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": PATH,
        "raw_path": PATH.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"authorization", f"Bearer {token()}".encode())],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
    }
