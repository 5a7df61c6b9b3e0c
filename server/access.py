"""Who may look at whose sessions, and the trail of those who did. Decides by the principal alone; reads no session and no table."""

from collections.abc import Callable, Mapping, Sequence

import msgspec
from msgspec import Struct

from server.auth import Principal, Role
from server.identifiers import new_id
from sessions.records import AuditRecord, encode_record
from sessions.store import Store

STAFF: frozenset[Role] = frozenset({"support", "admin"})
ALL_CLIENTS_SCOPE = "client:*"
PERSONAL_DATA_SCOPE = "personal_data"
_CLIENT_SCOPE = "client:"

Fact = str | int | float | bool | None


class Sight(Struct, frozen=True):
    """Which sessions a principal sees, for a query over many; `Access.may_see` says the same of one.

    `user_id`: only that user's. `clients`: only those digital humans', None: of every one. `hidden_clients`: not of these.
    """

    user_id: str | None = None
    clients: frozenset[str] | None = None
    hidden_clients: frozenset[str] = frozenset()


class Access(Struct, frozen=True):
    """The rules. `private_clients`: digital humans whose sessions support sees only where its token names them in a scope.

    `masks_personal_data`: of what others said, nobody sees personal data without the scope for it, admins included.
    """

    private_clients: frozenset[str] = frozenset()
    masks_personal_data: bool = False

    def may_see(self, principal: Principal, *, user_id: str, client_id: str) -> bool:
        """Whether the principal may look at a session of that user with that digital human; if not, it is to be told of none."""
        if principal.subject == user_id or principal.role == "admin":
            return True
        if principal.role != "support":
            return False
        if client_id in self.private_clients:
            return client_id in _named_clients(principal)
        return (
            client_id == principal.client_id
            or ALL_CLIENTS_SCOPE in principal.scopes
            or client_id in _named_clients(principal)
        )

    def is_masked(self, principal: Principal, *, user_id: str | None = None) -> bool:
        """Whether personal data in what that user said, None: in what anybody said, is not for the principal."""
        return self.masks_personal_data and principal.subject != user_id and PERSONAL_DATA_SCOPE not in principal.scopes

    def sight(self, principal: Principal) -> Sight:
        """What `may_see` allows among the sessions of others; a user sees only its own."""
        match principal.role:
            case "user":
                return Sight(user_id=principal.subject)
            case "admin":
                return Sight()
            case "support":
                named = _named_clients(principal)
                if ALL_CLIENTS_SCOPE in principal.scopes:
                    return Sight(hidden_clients=self.private_clients - named)
                return Sight(clients=named | ({principal.client_id} - self.private_clients))


def _named_clients(principal: Principal) -> frozenset[str]:
    """The digital humans that the token's scopes name one by one."""
    scopes = principal.scopes - {ALL_CLIENTS_SCOPE}
    return frozenset(scope.removeprefix(_CLIENT_SCOPE) for scope in scopes if scope.startswith(_CLIENT_SCOPE))


def is_foreign(principal: Principal, user_id: str) -> bool:
    """Whether a session of that user is another's: then looking at it is written to the audit trail first."""
    return principal.subject != user_id


class AuditTrail:
    """Writes down who looked at what: an entry is in the outbox before anything is shown.

    A list is looked for meanwhile, so that an entry may also be of one that could then not be shown.
    """

    def __init__(self, store: Store, *, now_ms: Callable[[], int]) -> None:
        self._store = store
        self._now_ms = now_ms

    async def write(
        self,
        principal: Principal,
        action: str,
        *,
        session_id: str | None = None,
        detail: Mapping[str, Fact] | None = None,
        records: Sequence[bytes] = (),
    ) -> str:
        """The entry's id, once the outbox holds it; `StoreUnavailable` otherwise, and then nothing may be shown.

        `records` are what the entry is about: they go to the outbox in one call with it.
        """
        audit_id = new_id("audit_")
        record = AuditRecord(
            audit_id=audit_id,
            actor_id=principal.subject,
            role=principal.role,
            client_id=principal.client_id,
            action=action,
            session_id=session_id,
            detail=msgspec.Raw(msgspec.json.encode(detail or {})),
            at_ms=self._now_ms(),
        )
        await self._store.enqueue([encode_record(record), *records])
        return audit_id
