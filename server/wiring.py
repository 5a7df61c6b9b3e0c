"""Builds everything once from the settings, in the order in which it depends on each other, and takes it down in reverse."""

import asyncio
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import structlog

from engine.base import Engine
from persistence.archive import Archive, open_archive
from persistence.database import Database, open_database
from persistence.masking import mask, unmasked
from persistence.recording import Recording
from persistence.summarizer import Summarizer
from persistence.writer import Writer
from server.access import Access, AuditTrail
from server.admission import Admission
from server.auth import Authenticator
from server.background import Worker, running, running_beside, running_writer, settle
from server.client_secrets import MAX_TTL_S, ClientSecrets
from server.development_tokens import DevelopmentTokens
from server.health import Check, Health
from server.identifiers import new_id
from server.jwks import open_jwks
from server.model_version import model_version
from server.node import Node
from server.request_log import RequestLog
from server.revocations import Revocations
from server.services import EventLimits, Services
from server.settings import Settings
from server.webhook import announcing, make_deliverer
from sessions.journal import Journal
from sessions.store import Store

_log = structlog.get_logger(__name__)


def now_ms() -> int:
    """Milliseconds since the epoch, UTC."""
    return time.time_ns() // 1_000_000


@asynccontextmanager
async def open_services(settings: Settings) -> AsyncIterator[Services]:
    """All that the application needs, running; leaving ends it in order: answers, journal, request log, writer, engine, stores."""
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(make_store(settings))
        database = await stack.enter_async_context(
            open_database(settings.database_url, timeout_s=settings.database_timeout_s)
        )
        archive = await stack.enter_async_context(open_archive(settings.archive_url))
        engine = await stack.enter_async_context(make_engine(settings))
        name = f"{socket.gethostname()}:{os.getpid()}:{new_id('')[-6:]}"
        checks = _checks(engine, store, database, archive)
        if settings.writer == "inline":
            writer = Writer(
                store, database, archive, consumer=name, announce=announcing(settings, now_ms=now_ms), now_ms=now_ms
            )
            await stack.enter_async_context(running_writer(writer, store))
            checks["writer"] = _failure_check(writer.failure)
            summarizer = _summarizer(settings, database)
            await stack.enter_async_context(running_beside(summarizer))
            checks["summarizer"] = _failure_check(summarizer.failure)
            if deliverer := make_deliverer(settings, database, now_ms=now_ms):
                await stack.enter_async_context(running_beside(deliverer))
                checks["webhook"] = _failure_check(deliverer.failure)
        journal = Journal(store, now_ms=now_ms, patience_s=settings.store_patience_s)
        requests = RequestLog(store)
        checks["journal"] = _failure_check(journal.failure)
        revocations = Revocations(store, longest_s=max(settings.jwt_max_ttl_s, MAX_TTL_S))
        # Before anyone is let in.
        await revocations.load()
        await stack.enter_async_context(running(journal.run(), requests.run(), revocations.follow()))
        answers = asyncio.TaskGroup()
        node = Node(
            store=store,
            journal=journal,
            engine=engine,
            limits=settings,
            name=name,
            model_version=model_version(settings.model),
            now_ms=now_ms,
            tasks=answers,
        )
        stack.push_async_callback(node.surrender)
        stack.push_async_callback(settle, journal, requests)
        await stack.enter_async_context(answers)
        # The lease is renewed until the last session is handed over; what others adopt before would be theirs and ours.
        await stack.enter_async_context(running(node.run()))
        stack.callback(node.shut_down)
        yield await _services(
            settings,
            stack,
            node=node,
            revocations=revocations,
            requests=requests,
            checks=checks,
            store=store,
            database=database,
            archive=archive,
        )


async def run_writer(settings: Settings) -> None:
    """The writer alone, until SIGTERM or SIGINT: then it stores what it has taken, which would wait long for another writer."""
    async with (
        make_store(settings) as store,
        open_database(settings.database_url, timeout_s=settings.database_timeout_s) as database,
        open_archive(settings.archive_url) as archive,
    ):
        consumer = f"{socket.gethostname()}:{os.getpid()}"
        writer = Writer(
            store, database, archive, consumer=consumer, announce=announcing(settings, now_ms=now_ms), now_ms=now_ms
        )
        workers: list[Worker] = [writer, _summarizer(settings, database)]
        if deliverer := make_deliverer(settings, database, now_ms=now_ms):
            workers.append(deliverer)

        def stop() -> None:
            for worker in workers:
                worker.stop()

        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop)
        async with asyncio.TaskGroup() as tasks:
            for worker in workers:
                tasks.create_task(worker.run())


def _summarizer(settings: Settings, database: Database) -> Summarizer:
    return Summarizer(database, mask=mask if settings.mask_personal_data else unmasked, now_ms=now_ms)


def make_store(settings: Settings) -> Store:
    """The store that the settings name; open it with `async with`."""
    if settings.redis_url is None:
        from sessions.sqlite_store import SqliteStore

        return SqliteStore(
            settings.data_dir / "sessions.db", retention_s=settings.retention_s, timeout_s=settings.store_timeout_s
        )
    from sessions.redis_store import RedisStore

    return RedisStore(
        settings.redis_url,
        num_shards=settings.redis_shards,
        production=settings.is_production,
        retention_s=settings.retention_s,
        timeout_s=settings.store_timeout_s,
    )


def make_engine(settings: Settings) -> Engine:
    """The engine that the settings name; open it with `async with`. Only the one that is used is imported."""
    match settings.engine:
        case "scripted":
            from engine.scripted import ScriptedEngine

            return ScriptedEngine(
                settings.served_model_name or "demo",
                tokens_per_s=settings.scripted_tokens_per_s,
                num_tokens=settings.scripted_tokens,
            )
        case "local":
            from engine.local import LocalEngine

            return LocalEngine(settings.model, settings.served_model_name, max_model_len=settings.max_model_len)
        case "vllm":
            from engine.vllm import VllmEngine

            return VllmEngine(
                settings.model,
                settings.served_model_name,
                max_model_len=settings.max_model_len,
                tool_parser=settings.tool_parser,
                engine_args=settings.vllm_args,
            )
        case "openai":
            from engine.openai import OpenAIEngine

            assert settings.openai_base_url is not None
            key = settings.openai_api_key
            return OpenAIEngine(
                settings.openai_base_url,
                key.get_secret_value() if key else None,
                settings.model,
                settings.served_model_name,
            )


async def _services(
    settings: Settings,
    stack: AsyncExitStack,
    *,
    node: Node,
    revocations: Revocations,
    requests: RequestLog,
    checks: dict[str, Check],
    store: Store,
    database: Database,
    archive: Archive,
) -> Services:
    client_key = settings.client_secret_key or settings.jwt_secret
    client_secrets = (
        ClientSecrets(
            client_key.get_secret_value().encode(), issuer=settings.jwt_issuer, audience=settings.jwt_audience
        )
        if client_key is not None
        else None
    )
    keys = await stack.enter_async_context(open_jwks(settings.jwks_url)) if settings.jwks_url else None
    served = node.engine.model_name
    health = Health(
        checks,
        build_id=settings.build_id,
        is_draining=lambda: node.is_draining,
        num_sessions=lambda: node.num_sessions,
        lag=store.lag,
    )
    return Services(
        node=node,
        authenticator=Authenticator(
            algorithms=settings.algorithms,
            secret=settings.jwt_secret.get_secret_value().encode() if settings.jwt_secret else None,
            keys=keys,
            issuer=settings.jwt_issuer,
            audience=settings.jwt_audience,
            max_ttl_s=settings.jwt_max_ttl_s,
            client_secrets=client_secrets.verify if client_secrets else None,
            check=revocations.check,
        ),
        revocations=revocations,
        client_secrets=client_secrets,
        development_tokens=_development_tokens(settings),
        admission=Admission(
            max_per_user=settings.max_connections_per_user, max_per_address=settings.max_connections_per_address
        ),
        requests=requests,
        health=health,
        store=store,
        database=database,
        archive=archive,
        recording=Recording(store, database, archive),
        access=Access(frozenset(settings.private_clients), masks_personal_data=settings.mask_personal_data),
        audit=AuditTrail(store, now_ms=now_ms),
        models={served: served} | {alias: name or served for alias, name in settings.model_aliases.items()},
        served_model=served,
        allowed_origins=frozenset(settings.allowed_origins),
        event_limits=EventLimits(settings.events_per_s, settings.events_burst),
        max_session_s=settings.max_session_s,
        is_development=not settings.is_production,
    )


def _development_tokens(settings: Settings) -> DevelopmentTokens | None:
    if settings.is_production or settings.jwt_secret is None or "HS256" not in settings.algorithms:
        return None
    return DevelopmentTokens(
        settings.jwt_secret.get_secret_value().encode(),
        issuer=settings.jwt_issuer,
        audience=settings.jwt_audience,
        max_ttl_s=settings.jwt_max_ttl_s,
    )


def _checks(engine: Engine, store: Store, database: Database, archive: Archive) -> dict[str, Check]:
    return {
        "engine": _failure_check(engine.failure),
        "store": _call_check(store.ping),
        "database": _call_check(database.check),
        "archive": _call_check(archive.check),
    }


def _failure_check(failure: Callable[[], str | None]) -> Check:
    async def check() -> str | None:
        return failure()

    return check


def _call_check(call: Callable[[], Awaitable[None]]) -> Check:
    async def check() -> str | None:
        await call()
        return None

    return check


def run_migrations(settings: Settings) -> None:
    """Bring the database to the newest schema."""
    from migrations import upgrade

    upgrade(settings.database_url)
