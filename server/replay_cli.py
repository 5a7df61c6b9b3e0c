"""`flueman replay`: a session's events in a terminal, at their own pace for eyes, or as JSON lines as fast as they can be read.

What people and models said is shown with every control character escaped: nothing in a session may speak to the terminal. JSON lines
that go to a file or a pipe are as they were recorded, byte for byte.
"""

import asyncio
import getpass
import os
import time
from contextlib import aclosing
from typing import TextIO

import msgspec
from msgspec import Struct

from persistence.archive import open_archive
from persistence.database import open_database
from persistence.masked_events import masked_events
from persistence.part import JournalEvent, encode_line
from persistence.recording import Edge, Extent, Hole, Recording
from server.access import AuditTrail
from server.auth import Principal
from server.settings import Settings
from server.transcript import Transcript, escaped_json
from server.view import Stream
from server.wiring import make_store, now_ms
from sessions.playback import Playback


class NoSuchSession(Exception):
    """There is no session of that id."""

    def __init__(self, session_id: str) -> None:
        super().__init__(f"there is no session {session_id!r}")


class Wanted(Struct, frozen=True, kw_only=True):
    """What to show, and how."""

    session_id: str
    speed: float
    max_silence_ms: int | None
    as_json: bool
    is_masked: bool = False


async def replay(settings: Settings, wanted: Wanted, out: TextIO) -> list[Hole]:
    """Show the session; what of it could not be shown. `NoSuchSession`, or the `…Unavailable` errors.

    A session that lives is followed until it ends, but as JSON lines, which end with what there is.
    """
    async with (
        make_store(settings) as store,
        open_database(settings.database_url, timeout_s=settings.database_timeout_s) as database,
        open_archive(settings.archive_url) as archive,
    ):
        recording = Recording(store, database, archive)
        extent = await recording.extent(wanted.session_id)
        if extent is None:
            raise NoSuchSession(wanted.session_id)
        # Whoever has the keys to the stores could do without us; this one is written down like any other.
        await AuditTrail(store, now_ms=now_ms).write(_operator(), "session.replay", session_id=wanted.session_id)
        if wanted.as_json:
            return await _print_lines(_seen(recording.events(wanted.session_id), wanted), out)
        return await _perform(recording, extent, wanted, out)


def _operator() -> Principal:
    """Who sits at the terminal."""
    try:
        name = getpass.getuser()
    except (OSError, KeyError):
        # A container's user may have no name.
        name = str(os.getuid())
    now = int(time.time())
    return Principal(
        subject=f"cli:{name}",
        role="admin",
        scopes=frozenset(),
        client_id="cli",
        expires_at=now,
        token_id="cli",  # noqa: S106
        issued_at=now,
    )


def _seen(stream: Stream, wanted: Wanted) -> Stream:
    """Whole, unless it is for others' eyes: who has a shell here can read the stores."""
    return masked_events(stream) if wanted.is_masked else stream


async def _print_lines(events: Stream, out: TextIO) -> list[Hole]:
    holes, is_terminal = [], out.isatty()
    async with aclosing(events) as stream:
        async for found in stream:
            if isinstance(found, Hole):
                holes.append(found)
                line = b'{"hole":%b}' % msgspec.json.encode(found)
            elif isinstance(found, JournalEvent):
                line = encode_line(found)
            else:
                continue
            text = line.decode()
            print(escaped_json(text) if is_terminal else text, file=out)
    return holes


async def _perform(recording: Recording, extent: Extent, wanted: Wanted, out: TextIO) -> list[Hole]:
    """Show each event when it is due."""
    loop = asyncio.get_running_loop()
    playback = Playback(speed=wanted.speed, is_paused=False, max_silence_ms=wanted.max_silence_ms, now_s=loop.time())
    transcript, holes = Transcript(), []
    async with aclosing(_seen(recording.follow(wanted.session_id), wanted)) as stream:
        async for found in stream:
            match found:
                case JournalEvent():
                    position_ms = max(0, found.at_ms - extent.first_ms)
                    due_s = playback.due_s(position_ms)
                    assert due_s is not None
                    await asyncio.sleep(max(0.0, due_s - loop.time()))
                    playback.passed(position_ms, loop.time())
                    out.write(transcript.event(position_ms, found.event))
                case Hole():
                    holes.append(found)
                    out.write(transcript.note(f"events {found.first} to {found.last} cannot be shown: {found.reason}"))
                case Edge():
                    playback.seek(max(0, now_ms() - extent.first_ms), loop.time())
            out.flush()
    out.write(transcript.note("end"))
    return holes
