"""`GET` and `POST /v1/sessions/{id}/notes`: what staff wrote beside a session, for each other."""

import asyncio
from typing import Annotated

from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from persistence.notes import StoredNote, notes_of_session
from server.api.answer import answer
from server.api.caller import caller
from server.api.query import Nothing, body_of, query_of
from server.api.subject import audited, subject_of
from server.identifiers import new_id
from server.personal_data import mask_notes
from server.services import services_of
from sessions.records import NoteRecord, encode_record
from sessions.wire_errors import BadEvent

PATH = "/v1/sessions/{session_id}/notes"
MAX_TEXT_CHARS = 5_000
MAX_POSITION_MS = 10**12


class _NewNote(Struct, frozen=True, forbid_unknown_fields=True):
    text: Annotated[str, Meta(max_length=MAX_TEXT_CHARS)]
    position_ms: Annotated[int, Meta(ge=0, le=MAX_POSITION_MS)] | None = None


class _Created(Struct, frozen=True):
    note: StoredNote
    audit_id: str


class _Notes(Struct, frozen=True):
    data: list[StoredNote]


async def _list(request: Request) -> Response:
    """The notes that are stored, oldest first; one that was just created may follow a moment later."""
    services = services_of(request)
    principal = await caller(request)
    query_of(request, Nothing)
    subject = await subject_of(request, services, principal)
    found = await notes_of_session(services.database, subject.meta.session_id)
    if services.access.is_masked(principal, user_id=subject.meta.user_id):
        found = await asyncio.to_thread(mask_notes, found)
    await audited(services, principal, subject, "session.view", part="notes")
    return answer(_Notes(list(found)))


async def _create(request: Request) -> Response:
    """The note, once the outbox holds it."""
    services = services_of(request)
    principal = await caller(request)
    query_of(request, Nothing)
    subject = await subject_of(request, services, principal)
    asked = await body_of(request, _NewNote)
    if not asked.text.strip():
        raise BadEvent("invalid_value", "A note needs a text.", "text")
    session_id = subject.meta.session_id
    note = StoredNote(
        note_id=new_id("note_"),
        author_id=principal.subject,
        text=asked.text,
        position_ms=asked.position_ms,
        created_ms=services.node.now_ms(),
    )
    record = NoteRecord(
        note_id=note.note_id,
        session_id=session_id,
        author_id=note.author_id,
        text=note.text,
        position_ms=note.position_ms,
        created_ms=note.created_ms,
    )
    audit_id = await services.audit.write(
        principal,
        "note.create",
        session_id=session_id,
        detail={"note_id": note.note_id},
        records=[encode_record(record)],
    )
    return answer(_Created(note, audit_id), status=201)


def note_routes() -> list[Route]:
    """The routes, for staff."""
    return [Route(PATH, _list, methods=["GET"]), Route(PATH, _create, methods=["POST"])]
