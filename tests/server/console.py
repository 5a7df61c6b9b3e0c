"""The application without a socket: its own embedded store, tables and archive, a writer at work, and who asks it what."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from starlette.types import Receive, Scope, Send

from migrations import upgrade_database
from server.app import create_app
from server.auth import Role
from server.services import Services
from server.settings import Settings, load_settings
from server.tokens import mint
from server.wiring import open_services
from sessions.records import AuditRecord, Record, decode_record, encode_record
from tests.persistence.builders import journal_events

SECRET = "0123456789abcdef0123456789abcdef"
WAIT_S = 30.0


class Console:
    """The application and its insides."""

    def __init__(self, settings: Settings, services: Services) -> None:
        self.settings = settings
        self.services = services
        self.app = create_app(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = {"services": self.services, **scope.get("state", {})}
        await self.app({**scope, "state": state}, receive, send)

    async def get(self, path: str, bearer: str | None = None, **options: Any) -> httpx.Response:
        """The answer to GET."""
        return await self.request("GET", path, bearer, **options)

    async def post(self, path: str, bearer: str | None = None, **options: Any) -> httpx.Response:
        """The answer to POST."""
        return await self.request("POST", path, bearer, **options)

    async def request(self, method: str, path: str, bearer: str | None = None, **options: Any) -> httpx.Response:
        """The answer, as a caller on this machine gets it; an exception in the application is the test's."""
        headers = {**({"authorization": f"Bearer {bearer}"} if bearer else {}), **options.pop("headers", {})}
        transport = httpx.ASGITransport(app=self, raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
            return await client.request(method, path, headers=headers, **options)

    async def seed(self, session_id: str, events: Sequence[bytes] = (), records: Sequence[Record] = ()) -> None:
        """A session of anna's at the kiosk with these events in its journal, and records that the tables soon hold."""
        # Whoever owns no lease is dead, and its sessions are adopted.
        await self.services.store.renew("node", lease_s=3600)
        await journal_events(self.services.store, session_id, events or [b'{"type":"session.created"}'], records)

    async def enqueue(self, *records: Record) -> None:
        """Put records into the outbox."""
        await self.services.store.enqueue([encode_record(record) for record in records])

    async def settled(self) -> None:
        """Wait until the writer has stored all there is."""
        async with asyncio.timeout(WAIT_S):
            while (await self.services.store.lag()).pending:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def trail(self) -> list[AuditRecord]:
        """What the outbox holds of the audit trail; only where no writer takes it."""
        deliveries = await self.services.store.take("test", 1000, 0)
        await self.services.store.acknowledge([delivery.receipt for delivery in deliveries])
        records = [decode_record(delivery.record) for delivery in deliveries]
        return [record for record in records if isinstance(record, AuditRecord)]


def token(
    subject: str = "ann",
    role: Role = "support",
    *,
    client: str = "kiosk",
    scopes: Sequence[str] = (),
    ttl_s: int = 21_600,
) -> str:
    """An access token of that server; a negative `ttl_s` has expired. Some are made as modules are collected, long before their tests."""
    now = time.time()
    return mint(
        SECRET.encode(),
        subject=subject,
        role=role,
        client_id=client,
        scopes=frozenset(scopes),
        issuer="flueman",
        audience="flueman",
        now=now if ttl_s > 0 else now + 2 * ttl_s,
        ttl_s=abs(ttl_s),
    )


@asynccontextmanager
async def open_console(folder: Path, **settings: object) -> AsyncIterator[Console]:
    """The application in an empty folder. `writer="none"`: what is in the outbox stays there."""
    loaded = load_settings(
        **({"data_dir": folder, "engine": "scripted", "scripted_tokens_per_s": 0.0, "jwt_secret": SECRET} | settings)
    )
    await upgrade_database(loaded.database_url)
    async with open_services(loaded) as services:
        # One round of the loop: what has not begun cannot be stopped.
        await asyncio.sleep(0)
        yield Console(loaded, services)
