"""The command line: `flueman serve | write | migrate | replay | outbox | audit | token`. Reads the settings, does one thing."""

import argparse
import asyncio
import os
import re
import sys
import time
from collections.abc import Awaitable, Callable, Sequence

from msgspec.json import encode

from server.settings import Settings, SettingsError, load_settings
from sessions.errors import SessionError
from sessions.store import Store

EXIT_FAILED = 1
EXIT_BAD_SETTINGS = 2
EXIT_INTERRUPTED = 130

_EPILOG = """\
Settings are FLUEMAN_* variables, in the environment or in .env; .env.example lists them all. With none set, `flueman serve` keeps
everything under ./var: SQLite for sessions and tables, a folder for the archive, the shipped demo model on the CPU.
"""

_OUTBOX = (
    "A record that is refused again and again, by the database or the archive, becomes a dead letter: "
    "kept with its error until it is retried. The embedded store is open to one process: stop the server first."
)

_REPLAY = (
    "A session that goes on is followed until it ends; with --jsonl what there is by now is printed. The status is 1 when some of it "
    "cannot be shown. Written to the audit log. The embedded store is open to one process: stop the server first."
)

_AUDIT = (
    "Each row of the audit log is chained to the one before by a hash. Whoever can write to the database could write the whole log anew: "
    "keep what `verify` prints somewhere else, and hold later logs against it with --known."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit status: 0 done, 1 failed, 2 bad settings or arguments."""
    parsed = _parser().parse_args(arguments)
    overrides = {name: getattr(parsed, name, None) for name in ("host", "port", "workers")}
    try:
        settings = load_settings(**overrides)
    except SettingsError as error:
        print(f"These settings are wrong (see .env.example):\n{error}", file=sys.stderr)
        return EXIT_BAD_SETTINGS
    try:
        if not settings.is_production:
            settings.data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(
            f"flueman: cannot make the folder {settings.data_dir} (FLUEMAN_DATA_DIR): {error.strerror}", file=sys.stderr
        )
        return EXIT_BAD_SETTINGS
    command: Callable[[Settings, argparse.Namespace], int] = parsed.command
    return command(settings, parsed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="flueman",
        description="The server behind a digital human.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="serve HTTP and WebSockets until SIGTERM", description=_serve.__doc__)
    serve.add_argument("--host", help="address to listen on (FLUEMAN_HOST, default 127.0.0.1)")
    serve.add_argument("--port", type=int, help="port to listen on (FLUEMAN_PORT, default 8000)")
    serve.add_argument("--workers", type=int, help="server processes (FLUEMAN_WORKERS, default 1)")
    serve.set_defaults(command=_serve)

    write = commands.add_parser(
        "write", help="run the writer alone: outbox to database and archive", description=_write.__doc__
    )
    write.set_defaults(command=_write)

    migrate = commands.add_parser(
        "migrate", help="bring the database to the newest schema", description=_migrate.__doc__
    )
    migrate.set_defaults(command=_migrate)

    replay = commands.add_parser(
        "replay", help="show a stored session at its own pace, or as JSON lines", description=_REPLAY
    )
    replay.add_argument("session", metavar="SESSION", help="its id, sess_…")
    replay.add_argument("--speed", type=_speed, default=1.0, metavar="N", help="0.1 to 100 times its pace, default 1")
    replay.add_argument("--max-silence-ms", type=_count, metavar="N", help="cut longer silences to that")
    replay.add_argument("--jsonl", action="store_true", help="one JSON line an event, without waiting")
    replay.add_argument("--mask", action="store_true", help="cover personal data, as support sees it")
    replay.set_defaults(command=_replay)

    outbox = commands.add_parser(
        "outbox", help="records that could not be stored: see them, have them tried again", description=_OUTBOX
    )
    deeds = outbox.add_subparsers(title="commands", required=True, metavar="COMMAND")
    dead = deeds.add_parser("dead", help="list the dead letters, oldest first", description=_dead.__doc__)
    dead.add_argument("--limit", type=_count, default=100, metavar="N", help="how many at most, default 100")
    dead.set_defaults(command=_dead)
    retry = deeds.add_parser("retry", help="put dead letters back, to be stored", description=_retry.__doc__)
    retry.add_argument("--limit", type=_count, metavar="N", help="how many at most, oldest first; default all")
    retry.set_defaults(command=_retry)

    audit = commands.add_parser(
        "audit", help="the log of who looked at what: see that nobody changed it", description=_AUDIT
    )
    checks = audit.add_subparsers(title="commands", required=True, metavar="COMMAND")
    verify = checks.add_parser("verify", help="compute every hash of the log anew", description=_verify_audit.__doc__)
    verify.add_argument(
        "--known", type=_audit_end, metavar="NUMBER:HASH", help="what it printed before; the log must still hold it"
    )
    verify.set_defaults(command=_verify_audit)

    token = commands.add_parser("token", help="print an access token", description=_token.__doc__)
    token.add_argument("--sub", required=True, metavar="NAME", help="the user it speaks for")
    token.add_argument("--role", choices=("user", "support", "admin"), default="user", help="default user")
    token.add_argument("--ttl-s", type=int, default=3_600, metavar="SECONDS", help="life in seconds, default 3600")
    token.add_argument("--client", default="default", metavar="NAME", help="the digital human it speaks to")
    token.add_argument("--scope", action="append", default=[], metavar="NAME", help="a scope; may be repeated")
    token.set_defaults(command=_token)
    return parser


def _serve(settings: Settings, _: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT. In development the database is migrated first."""
    from server.serve import CannotListen, Crashed, run

    if not settings.is_production and (status := _migrate(settings, _)) != 0:
        return status
    try:
        run(settings)
    except CannotListen as error:
        print(f"flueman: {error}", file=sys.stderr)
        return EXIT_FAILED
    except Crashed:
        print("flueman: the server stopped because of an error; the log says which", file=sys.stderr)
        return EXIT_FAILED
    return 0


def _write(settings: Settings, _: argparse.Namespace) -> int:
    """Take records from the outbox to the database and the archive, until SIGTERM. Any number of writers may run."""
    import structlog

    from persistence.errors import PersistenceError
    from server.logs import configure_logs
    from server.wiring import run_writer

    configure_logs(level=settings.log_level, format=settings.log_format)
    try:
        asyncio.run(run_writer(settings))
    except (SessionError, PersistenceError) as error:
        # What it needs to begin is away; whoever started it will start it again.
        structlog.get_logger(__name__).error("start.failed", reason=str(error))
        return 1
    return 0


def _migrate(settings: Settings, _: argparse.Namespace) -> int:
    """Bring the database to the newest schema. The previous release can go on running."""
    from server.wiring import run_migrations

    run_migrations(settings)
    return 0


def _speed(text: str) -> float:
    from sessions.replay_events import MAX_SPEED, MIN_SPEED

    try:
        speed = float(text)
    except ValueError:
        speed = 0.0
    if not MIN_SPEED <= speed <= MAX_SPEED:
        raise argparse.ArgumentTypeError(f"must be from {MIN_SPEED:g} to {MAX_SPEED:g}")
    return speed


def _replay(settings: Settings, arguments: argparse.Namespace) -> int:
    """Show a session."""
    from persistence.errors import PersistenceError
    from server.logs import configure_logs
    from server.replay_cli import NoSuchSession, Wanted, replay

    configure_logs(level=settings.log_level, format=settings.log_format, stream=sys.stderr)
    wanted = Wanted(
        session_id=arguments.session,
        speed=arguments.speed,
        max_silence_ms=arguments.max_silence_ms,
        as_json=arguments.jsonl,
        is_masked=arguments.mask,
    )
    try:
        holes = asyncio.run(replay(settings, wanted, sys.stdout))
        sys.stdout.flush()
    except (SessionError, PersistenceError, NoSuchSession) as error:
        print(f"flueman: {error}", file=sys.stderr)
        return EXIT_FAILED
    except BrokenPipeError:
        # Whoever read has seen enough. What is left must not be flushed at the end, which would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    for hole in holes:
        print(f"flueman: events {hole.first} to {hole.last} cannot be shown: {hole.reason}", file=sys.stderr)
    return EXIT_FAILED if holes else 0


def _count(text: str) -> int:
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError("must be a whole number above 0")
    return int(text)


def _dead(settings: Settings, arguments: argparse.Namespace) -> int:
    """Print a JSON line for each dead letter: its error, how often it was tried, its kind and its session. Never what it says."""
    from server.outbox import dead_letters

    async def show(store: Store) -> None:
        for note in await dead_letters(store, arguments.limit):
            print(encode(note).decode())

    return _on_store(settings, show)


def _retry(settings: Settings, arguments: argparse.Namespace) -> int:
    """Put dead letters back into the outbox, where a writer takes them, and print how many as a JSON line."""
    from server.outbox import revive

    async def put_back(store: Store) -> None:
        num_revived = 0
        try:
            async for num_more in revive(store, arguments.limit):
                num_revived += num_more
        finally:
            print(encode({"revived": num_revived}).decode())

    return _on_store(settings, put_back)


def _on_store(settings: Settings, work: Callable[[Store], Awaitable[None]]) -> int:
    """Do this with the store open; one plain line when it cannot be had."""
    from server.logs import configure_logs
    from server.wiring import make_store

    async def with_store() -> None:
        async with make_store(settings) as store:
            await work(store)

    # What the store logs is no part of the answer.
    configure_logs(level=settings.log_level, format=settings.log_format, stream=sys.stderr)
    try:
        asyncio.run(with_store())
    except SessionError as error:
        print(f"flueman: {error}", file=sys.stderr)
        return EXIT_FAILED
    return 0


def _audit_end(text: str) -> tuple[int, str]:
    number, _, hash = text.partition(":")
    if not (number.isdecimal() and re.fullmatch("[0-9a-f]{64}", hash)):
        raise argparse.ArgumentTypeError("must be NUMBER:HASH as `audit verify` printed them")
    return int(number), hash


def _verify_audit(settings: Settings, arguments: argparse.Namespace) -> int:
    """Read the whole audit log; print the number and hash of its last row, or fail and name the first row that is not as it was written."""
    from persistence.audit import AuditEnd, BrokenRow, verify
    from persistence.database import open_database
    from persistence.errors import PersistenceError

    known = None if arguments.known is None else AuditEnd(*arguments.known)

    async def check() -> AuditEnd | BrokenRow:
        async with open_database(settings.database_url, timeout_s=settings.database_timeout_s) as database:
            return await verify(database, known)

    try:
        found = asyncio.run(check())
    except PersistenceError as error:
        print(f"flueman: {error}", file=sys.stderr)
        return EXIT_FAILED
    if isinstance(found, BrokenRow):
        print(f"flueman: row {found.number} of the audit log {found.reason}", file=sys.stderr)
        return EXIT_FAILED
    print(f"{found.number}:{found.hash}")
    return 0


def _token(settings: Settings, arguments: argparse.Namespace) -> int:
    """Print an access token, signed with FLUEMAN_JWT_SECRET (in development the key kept in the data folder)."""
    from server.tokens import AuthError, claimed_name, mint

    if settings.jwt_secret is None:
        print(
            "flueman: there is no FLUEMAN_JWT_SECRET to sign with; tokens come from the issuer of FLUEMAN_JWKS_URL",
            file=sys.stderr,
        )
        return EXIT_FAILED
    if not 1 <= arguments.ttl_s <= settings.jwt_max_ttl_s:
        print(f"flueman: --ttl-s must be 1 to {settings.jwt_max_ttl_s:.0f} (FLUEMAN_JWT_MAX_TTL_S)", file=sys.stderr)
        return EXIT_BAD_SETTINGS
    try:
        claimed_name({"--sub": arguments.sub}, "--sub")
        claimed_name({"--client": arguments.client}, "--client")
    except AuthError as error:
        print(f"flueman: {error.message}", file=sys.stderr)
        return EXIT_BAD_SETTINGS
    print(
        mint(
            settings.jwt_secret.get_secret_value().encode(),
            subject=arguments.sub,
            role=arguments.role,
            client_id=arguments.client,
            scopes=frozenset(arguments.scope),
            issuer=settings.jwt_issuer,
            audience=settings.jwt_audience,
            now=time.time(),
            ttl_s=arguments.ttl_s,
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
