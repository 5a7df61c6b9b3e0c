"""The command line: help, tokens, and failures that say what is wrong without a trace."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from server.auth import Authenticator
from server.settings import ROOT


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
    for command in ("serve", "write", "migrate", "token", ".env.example"):
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
