"""The command line: help, tokens, and failures that say what is wrong without a trace."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from server.auth import Authenticator
from server.outbox import DeadLetterNote, dead_letters, revive
from server.settings import ROOT
from sessions.records import TurnRecord, encode_record
from sessions.redis_store import RedisStore
from sessions.sqlite_store import SqliteStore
from sessions.store import Store
from tests.services import RedisServer

SESSION = "sess_01JD0000000000000000000000"
SAID = "what nobody else may read"
SECRET = "0123456789abcdef0123456789abcdef"


def run_cli(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command's result, run in that folder with no settings but these."""
    clean_environment = {name: value for name, value in os.environ.items() if not name.startswith("FLUEMAN_")}
    return subprocess.run(
        [sys.executable, "-m", "server", *arguments],
        env=clean_environment | {"PYTHONPATH": str(ROOT)} | environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_bad_settings_are_listed_and_the_status_is_2(tmp_path: Path) -> None:
    done = run_cli(tmp_path, "serve", FLUEMAN_PRT="1", FLUEMAN_JWT_SECRET="canary")

    assert done.returncode == 2
    assert "FLUEMAN_PRT: is no setting; did you mean FLUEMAN_PORT?\n" in done.stderr
    assert "FLUEMAN_JWT_SECRET: must have" in done.stderr
    assert "canary" not in done.stderr
    assert "Traceback" not in done.stderr


def test_help_says_what_there_is(tmp_path: Path) -> None:
    done = run_cli(tmp_path, "--help")

    assert done.returncode == 0
    for command in ("serve", "write", "migrate", "outbox", "audit", "token", ".env.example"):
        assert command in done.stdout


async def test_a_token_from_the_cli_is_good_and_signed_with_the_kept_key(tmp_path: Path) -> None:
    done = run_cli(
        tmp_path,
        "token",
        "--sub",
        "mia",
        "--role",
        "support",
        "--ttl-s",
        "60",
        "--client",
        "lobby",
        "--scope",
        "export",
    )

    assert done.returncode == 0, done.stderr
    secret = (tmp_path / "var" / "jwt_secret").read_bytes()
    authenticator = Authenticator(
        algorithms=("HS256",), secret=secret, keys=None, issuer="flueman", audience="flueman", max_ttl_s=60
    )
    principal = await authenticator.authenticate(done.stdout.strip())
    assert (principal.subject, principal.role, principal.client_id) == ("mia", "support", "lobby")
    assert principal.scopes == {"export"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--sub", "mia\n"], "--sub is missing or malformed"),
        (["--sub", "mia", "--ttl-s", "0"], "--ttl-s must be 1 to 86400"),
        (["--sub", "mia", "--ttl-s", "86401"], "--ttl-s must be 1 to 86400"),
        (["--sub", "mia", "--role", "root"], "invalid choice: 'root'"),
        ([], "--sub"),
    ],
)
def test_a_token_that_would_be_refused_is_not_minted(tmp_path: Path, arguments: list[str], said: str) -> None:
    done = run_cli(tmp_path, "token", *arguments)

    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


def test_a_port_in_use_is_said_plainly(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        done = run_cli(tmp_path, "serve", "--port", str(port), FLUEMAN_ENGINE="scripted")

    assert done.returncode == 1
    assert (
        done.stderr
        == f"flueman: cannot listen on 127.0.0.1:{port}: another program listens there; choose another --port\n"
    )


def test_migrate_makes_the_data_folder_also_when_a_key_is_given(tmp_path: Path) -> None:
    done = run_cli(
        tmp_path, "migrate", FLUEMAN_JWT_SECRET="0123456789abcdef0123456789abcdef", FLUEMAN_DATA_DIR="deep/var"
    )

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "deep/var/flueman.db").exists()


def test_a_data_folder_that_cannot_be_made_is_said_plainly(tmp_path: Path) -> None:
    (tmp_path / "var").write_text("a file")

    done = run_cli(tmp_path, "migrate", FLUEMAN_JWT_SECRET="0123456789abcdef0123456789abcdef")

    assert done.returncode == 2
    assert "FLUEMAN_DATA_DIR" in done.stderr
    assert "Traceback" not in done.stderr


async def bury(store: Store, *records: bytes) -> None:
    """Make dead letters of these, one after the other."""
    for number, record in enumerate(records, 1):
        await store.enqueue([record])
        [delivery] = await store.take("writer", 1, 0)
        await store.bury(delivery, f"IntegrityError {number}")


def turn_of(session_id: str) -> bytes:
    return encode_record(TurnRecord("turn_1", session_id, 3, 1, "item_1", SAID, 4))


def json_lines(done: subprocess.CompletedProcess[str]) -> list[Any]:
    assert done.returncode == 0, done.stderr
    return [msgspec.json.decode(line) for line in done.stdout.splitlines()]


async def test_dead_letters_are_listed_with_their_errors_and_never_with_what_they_say(store: Store) -> None:
    """P3: what could not be stored is still there, and somebody can see why."""
    nonsense = [SAID.encode(), b'{"record":"%s","session_id":"%s"}' % (SAID.encode(), SAID.encode()), b'{"record":7}']

    await bury(store, turn_of(SESSION), *nonsense, b'{"record":"of_a_later_release","session_id":null}')

    notes = await dead_letters(store, 10)
    assert notes[0] == DeadLetterNote("IntegrityError 1", 1, "turn", SESSION)
    assert [(note.kind, note.session_id) for note in notes[1:]] == [(None, None)] * 3 + [("of_a_later_release", None)]
    assert SAID not in repr(notes)
    assert len(await dead_letters(store, 2)) == 2


@pytest.mark.parametrize(("limit", "num_revived"), [(None, 250), (3, 3), (1000, 250)])
async def test_dead_letters_go_back_oldest_first_and_only_those_that_are_dead_now(
    sqlite_store: SqliteStore, limit: int | None, num_revived: int
) -> None:
    """Also while a writer buries them again at once."""
    await bury(sqlite_store, *(b"%d" % number for number in range(250)))
    found: list[bytes] = []

    async for _ in revive(sqlite_store, limit):
        for delivery in await sqlite_store.take("writer", 1000, 0):
            found.append(delivery.record)
            await sqlite_store.bury(delivery, "again")

    assert found == [b"%d" % number for number in range(num_revived)]
    assert (await sqlite_store.lag()).dead == 250


async def test_the_cli_lists_and_retries_the_dead_letters_of_redis(own_redis: RedisServer, tmp_path: Path) -> None:
    """P3."""
    settings = {"FLUEMAN_REDIS_URL": own_redis.url, "FLUEMAN_JWT_SECRET": SECRET}
    async with RedisStore(own_redis.url) as store:
        await bury(store, turn_of(SESSION), turn_of(SESSION), b"junk")

        listed = json_lines(run_cli(tmp_path, "outbox", "dead", "--limit", "1", **settings))
        some = json_lines(run_cli(tmp_path, "outbox", "retry", "--limit", "2", **settings))
        rest = json_lines(run_cli(tmp_path, "outbox", "retry", **settings))
        none = json_lines(run_cli(tmp_path, "outbox", "dead", **settings))

        assert listed == [{"error": "IntegrityError 1", "deliveries": 1, "kind": "turn", "session_id": SESSION}]
        assert (some, rest, none) == ([{"revived": 2}], [{"revived": 1}], [])
        records = [delivery.record for delivery in await store.take("writer", 10, 0)]
    assert records == [turn_of(SESSION), turn_of(SESSION), b"junk"]


async def test_an_embedded_store_that_a_server_has_open_is_said_plainly(tmp_path: Path) -> None:
    (tmp_path / "var").mkdir()
    async with SqliteStore(tmp_path / "var" / "sessions.db"):
        done = run_cli(tmp_path, "outbox", "dead", FLUEMAN_JWT_SECRET=SECRET)

    assert (done.returncode, done.stdout) == (1, "")
    assert "another process uses the store" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("limit", ["0", "-1", "many"])
def test_a_limit_that_is_no_count_is_refused(tmp_path: Path, limit: str) -> None:
    done = run_cli(tmp_path, "outbox", "retry", "--limit", limit)

    assert done.returncode == 2
    assert "must be a whole number above 0" in done.stderr
