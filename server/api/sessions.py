"""`GET /v1/sessions`: the sessions that fit, newest first, of those that the caller may see."""

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from persistence.first_texts import first_texts
from persistence.masking import BULLET, mask
from persistence.search import SessionFilter, find_sessions
from persistence.summaries import Summary
from server.access import Access
from server.api.answer import answer
from server.api.at_once import at_once
from server.api.caller import EVERYONE, caller
from server.api.cursor import decode_cursor, encode_cursor
from server.api.query import Limit, Milliseconds, Name, query_of
from server.auth import Principal
from server.personal_data import mask_summary
from server.services import Services, services_of
from sessions.wire_errors import BadEvent

PATH = "/v1/sessions"
_LIST = "sessions"
_MAX_TEXT_CHARS = 200


class _Query(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    user: Name | None = None
    client: Name | None = None
    model: Name | None = None
    status: Literal["active", "idle", "ended"] | None = None
    rating: Literal["up", "down", "none"] | None = None
    text: Annotated[str, Meta(min_length=1, max_length=_MAX_TEXT_CHARS)] | None = None
    from_ms: Milliseconds | None = None
    to_ms: Milliseconds | None = None
    min_first_token_ms: Milliseconds | None = None
    has_errors: bool = False
    has_interruptions: bool = False
    limit: Limit = 50
    after: str | None = None


class _Page(Struct, frozen=True):
    """`searched_to_ms`: all sessions since then were looked at; None once all were. `next` then goes on before it.

    `masked`: personal data in it is covered.
    """

    data: list[Summary]
    next: str | None
    searched_to_ms: int | None
    masked: Literal[True] | UnsetType = UNSET


async def _list(request: Request) -> Response:
    services = services_of(request)
    principal = await caller(request, EVERYONE)
    asked = query_of(request, _Query)
    if asked.from_ms is not None and asked.to_ms is not None and asked.to_ms <= asked.from_ms:
        raise BadEvent("invalid_value", "to_ms must be later than from_ms.", "to_ms")
    after = None if asked.after is None else decode_cursor(asked.after, int, of=_LIST)
    wanted = _filter(asked, principal, services.access)
    if wanted is None:
        return answer(_Page([], None, None))
    # Each waits for a disk, the one for the database's, the other for the store's.
    async with at_once() as tasks:
        finding = tasks.create_task(find_sessions(services.database, wanted, after=after, limit=asked.limit))
        if principal.role != "user":
            tasks.create_task(services.audit.write(principal, "session.search", detail=_detail(asked)))
    page = finding.result()
    next_page = None if page.next is None else encode_cursor(page.next, of=_LIST)
    shown = await _shown(services, principal, page.data)
    is_masked = services.access.is_masked(principal) and principal.role != "user"
    return answer(_Page(shown, next_page, page.searched_to_ms, True if is_masked else UNSET))


async def _shown(services: Services, principal: Principal, found: list[Summary]) -> list[Summary]:
    """The sessions as the principal may see them. What is kept for lists has no personal data, so that nobody can search for any."""
    access = services.access
    masked = {each.session_id for each in found if access.is_masked(principal, user_id=each.user_id)}
    texts = await first_texts(
        services.database,
        [each.session_id for each in found if each.session_id not in masked and BULLET in (each.first_text or "")],
    )
    return [
        mask_summary(each)
        if each.session_id in masked
        else msgspec.structs.replace(each, first_text=texts.get(each.session_id, each.first_text))
        for each in found
    ]


def _filter(asked: _Query, principal: Principal, access: Access) -> SessionFilter | None:
    """What is asked for, of what the principal sees; None where the two have nothing in common."""
    sight = access.sight(principal)
    if sight.user_id is not None and asked.user not in (None, sight.user_id):
        return None
    is_own = asked.user == principal.subject
    return SessionFilter(
        user_id=sight.user_id or asked.user,
        client_id=asked.client,
        model=asked.model,
        status=asked.status,
        rating=asked.rating,
        # What was kept before personal data was masked is not found by it either.
        text=mask(asked.text) if asked.text is not None and access.is_masked(principal) else asked.text,
        from_ms=asked.from_ms,
        to_ms=asked.to_ms,
        min_first_token_ms=asked.min_first_token_ms,
        has_errors=asked.has_errors,
        has_interruptions=asked.has_interruptions,
        # One's own sessions are seen wherever they were held.
        clients=None if is_own else sight.clients,
        hidden_clients=frozenset() if is_own else sight.hidden_clients,
    )


def _detail(asked: _Query) -> dict[str, str | int | bool]:
    """What was asked for, without what nobody set."""
    fields: dict[str, str | int | bool | None] = msgspec.structs.asdict(asked) | {"after": asked.after is not None}
    return {name: value for name, value in fields.items() if value not in (None, False)}


def session_routes() -> list[Route]:
    """The route, for everyone: of what there is, each is shown what it may see."""
    return [Route(PATH, _list, methods=["GET"])]
