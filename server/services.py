"""What the running application shares with its routes: built once by `server.wiring`, read by everything else."""

from collections.abc import Mapping
from typing import TypedDict

from msgspec import Struct
from starlette.requests import HTTPConnection

from persistence.archive import Archive
from persistence.database import Database
from persistence.recording import Recording
from server.access import Access, AuditTrail
from server.admission import Admission
from server.auth import Authenticator
from server.client_secrets import ClientSecrets
from server.development_tokens import DevelopmentTokens
from server.health import Health
from server.node import Node
from server.request_log import RequestLog
from server.revocations import Revocations
from server.websocket_protocol import ConnectionLimits
from sessions.store import Store


class EventLimits(Struct, frozen=True):
    """How many client events a connection may send."""

    events_per_s: float
    events_burst: int


class Services(Struct, frozen=True):
    """The node, what stands at its door, and where it remembers.

    `models` maps every name a session may ask for to the served model's name.
    """

    node: Node
    authenticator: Authenticator
    revocations: Revocations
    client_secrets: ClientSecrets | None
    development_tokens: DevelopmentTokens | None
    admission: Admission
    requests: RequestLog
    health: Health
    store: Store
    database: Database
    archive: Archive
    recording: Recording
    access: Access
    audit: AuditTrail
    models: Mapping[str, str]
    served_model: str
    allowed_origins: frozenset[str]
    event_limits: EventLimits
    max_session_s: float
    is_development: bool


class State(TypedDict):
    """The lifespan's state, which uvicorn hands to every protocol and request."""

    services: Services
    connection_limits: ConnectionLimits


def services_of(connection: HTTPConnection) -> Services:
    """The services that serve this request."""
    services: Services = connection.state.services
    return services
