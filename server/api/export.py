"""`GET /v1/sessions/{id}/export`: a session as JSON lines, read and sent piece by piece, never whole in memory."""

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Literal

import msgspec
import structlog
from msgspec import UNSET, Struct, UnsetType
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Send

from persistence.errors import ArchiveUnavailable, DatabaseUnavailable
from persistence.masking import mask, unmasked
from persistence.part import JournalEvent, encode_line
from persistence.recording import Hole
from persistence.summaries import Summary
from server.api.answer import HEADERS
from server.api.caller import caller
from server.api.query import Nothing, query_of
from server.api.subject import audited, subject_of
from server.api.summary import summary_of
from server.auth import AuthError
from server.personal_data import mask_summary
from server.services import services_of
from server.view import Stream, view_of
from sessions.errors import StoreUnavailable

_log = structlog.get_logger(__name__)

PATH = "/v1/sessions/{session_id}/export"
MEDIA_TYPE = "application/x-ndjson"
_CHUNK_BYTES = 64 * 1024


class _First(Struct, frozen=True):
    session: Summary
    masked: Literal[True] | UnsetType = UNSET


class _Gap(Struct, frozen=True):
    hole: Hole


class _End(Struct, frozen=True, omit_defaults=True):
    """`complete`: every event that was committed when the export reached the end is in it. `error`: why it ends before.

    `unavailable`: what follows cannot be read now; `token_revoked`: the reader may not have it any more.
    """

    num_events: int
    complete: bool
    error: Literal["unavailable", "token_revoked"] | None = None


class _Last(Struct, frozen=True):
    end: _End


async def _export(request: Request) -> Response:
    services = services_of(request)
    principal = await caller(request)
    query_of(request, Nothing)
    subject = await subject_of(request, services, principal)
    session_id = subject.meta.session_id
    is_masked = services.access.is_masked(principal, user_id=subject.meta.user_id)
    summary = await summary_of(services, subject.meta, mask if is_masked else unmasked)
    # What is away from the start is a 503, not the beginning of a file.
    await services.recording.extent(session_id)
    await audited(services, principal, subject, "session.export")
    headers = {**HEADERS, "content-disposition": f'attachment; filename="{session_id}.jsonl"'}
    recorded = view_of(services.access, principal, subject.meta)(services.recording.events(session_id))
    first = _First(mask_summary(summary), masked=True) if is_masked else _First(summary)
    lines = _lines(first, recorded, check=lambda: services.revocations.check(principal))
    return _PiecewiseResponse(_chunks(lines), headers=headers, media_type=MEDIA_TYPE)


class _PiecewiseResponse(StreamingResponse):
    """Lets go of what it reads from as soon as nobody reads."""

    def __init__(self, pieces: AsyncGenerator[bytes, None], *, headers: Mapping[str, str], media_type: str) -> None:
        super().__init__(pieces, headers=headers, media_type=media_type)
        self._pieces = pieces

    async def stream_response(self, send: Send) -> None:
        async with aclosing(self._pieces):
            await super().stream_response(send)


async def _lines(first: _First, recorded: Stream, *, check: Callable[[], None]) -> AsyncGenerator[bytes, None]:
    """The lines, as long as `check` does not raise `AuthError`: a long export may take longer than its reader is trusted."""
    yield msgspec.json.encode(first)
    num_events, num_holes = 0, 0
    try:
        async with aclosing(recorded):
            async for found in recorded:
                check()
                if isinstance(found, Hole):
                    num_holes += 1
                    yield msgspec.json.encode(_Gap(found))
                elif isinstance(found, JournalEvent):
                    num_events += 1
                    yield encode_line(found)
    except (StoreUnavailable, DatabaseUnavailable, ArchiveUnavailable) as trouble:
        _log.warning("export.cut_short", session_id=first.session.session_id, reason=type(trouble).__name__)
        yield msgspec.json.encode(_Last(_End(num_events, False, "unavailable")))
        return
    except AuthError:
        _log.info("export.revoked", session_id=first.session.session_id)
        yield msgspec.json.encode(_Last(_End(num_events, False, "token_revoked")))
        return
    yield msgspec.json.encode(_Last(_End(num_events, num_holes == 0)))


async def _chunks(lines: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """The lines in pieces worth a packet; the next is read when the reader has room for it."""
    chunk = bytearray()
    async with aclosing(lines):
        async for line in lines:
            chunk += line + b"\n"
            if len(chunk) >= _CHUNK_BYTES:
                yield bytes(chunk)
                chunk.clear()
    yield bytes(chunk)


def export_routes() -> list[Route]:
    """The route, for staff."""
    return [Route(PATH, _export, methods=["GET"])]
