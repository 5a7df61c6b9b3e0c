"""The session that a route is about: found for whoever may see it, and unknown to everyone else."""

import re

from msgspec import Struct
from starlette.requests import Request

from server.access import is_foreign
from server.auth import Principal
from server.services import Services
from sessions.errors import SessionNotFound
from sessions.store import SessionMeta

_SESSION_ID = re.compile(r"sess_[0-9A-Za-z_-]{1,59}", re.ASCII)


class Subject(Struct, frozen=True):
    """A session that the principal may see; `is_foreign`: looking at it is to be written to the audit trail first."""

    meta: SessionMeta
    is_foreign: bool


async def subject_of(request: Request, services: Services, principal: Principal) -> Subject:
    """The session that the path names, as `find_subject` has it."""
    return await find_subject(services, principal, request.path_params["session_id"])


async def find_subject(services: Services, principal: Principal, session_id: str) -> Subject:
    """The session of that id; `SessionNotFound` alike for one that never was and one that is not to be seen."""
    if _SESSION_ID.fullmatch(session_id) is None:
        raise SessionNotFound(session_id)
    meta = await services.recording.meta(session_id)
    if meta is None or not services.access.may_see(principal, user_id=meta.user_id, client_id=meta.client_id):
        raise SessionNotFound(session_id)
    return Subject(meta, is_foreign(principal, meta.user_id))


async def audited(
    services: Services, principal: Principal, subject: Subject, action: str, **detail: str | int | None
) -> str | None:
    """The id of the entry about this look at another's session, which the outbox holds by now; None at one's own."""
    if not subject.is_foreign:
        return None
    return await services.audit.write(principal, action, session_id=subject.meta.session_id, detail=detail)
