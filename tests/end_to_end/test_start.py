"""Starts that cannot be: each ends at once, by itself, and says why. (A port in use: `tests/server/test_cli.py`.)"""

import shutil
from pathlib import Path

import pytest

from server.settings import DEMO_MODEL
from tests.end_to_end.conftest import COMMON
from tests.end_to_end.processes import run_command
from tests.services import free_port


def test_every_wrong_setting_is_named_at_once_and_no_value_is_shown(tmp_path: Path) -> None:
    wrong = {
        "FLUEMAN_PORT": "99999",
        "FLUEMAN_ENGINE": "steam",
        "FLUEMAN_DATABASE_URL": "postgres://canary@host/db",
        "FLUEMAN_REDIS_URL": "http://canary",
        "FLUEMAN_JWT_SECRET": "canary",
        "FLUEMAN_STOP_GRACE_S": "-1",
        "FLUEMAN_ALLOWED_ORIGINS": "*",
        "FLUEMAN_LOG_LEVLE": "debug",
    }

    done = run_command(tmp_path, wrong, "serve")

    assert done.returncode == 2
    assert {line.partition(":")[0] for line in done.stderr.splitlines()[1:]} == set(wrong)
    assert "canary" not in done.stderr


def local(folder: Path, model: Path) -> dict[str, str]:
    """Settings for a model that runs here."""
    port = str(free_port())
    return COMMON | {
        "FLUEMAN_ENGINE": "local",
        "FLUEMAN_DATA_DIR": str(folder / "var"),
        "FLUEMAN_MODEL": str(model),
        "FLUEMAN_PORT": port,
    }


def test_a_missing_model_folder_is_named_and_nothing_is_served(tmp_path: Path) -> None:
    done = run_command(tmp_path, local(tmp_path, tmp_path / "no-such-model"), "serve")

    assert done.returncode not in (0, 2)
    assert f"cannot load the model '{tmp_path / 'no-such-model'}': there is no such folder" in done.stderr + done.stdout
    assert '"event": "listening"' not in done.stderr + done.stdout


def test_a_damaged_model_is_named_and_nothing_is_served(tmp_path: Path) -> None:
    if not (Path(DEMO_MODEL) / "config.json").is_file():
        pytest.skip("the demo model is not built here")
    damaged = shutil.copytree(DEMO_MODEL, tmp_path / "damaged", ignore=shutil.ignore_patterns("build"))
    for weights in damaged.glob("*.safetensors"):
        weights.write_bytes(weights.read_bytes()[:1000])

    done = run_command(tmp_path, local(tmp_path, damaged), "serve")

    assert done.returncode not in (0, 2)
    assert f"cannot load the model '{damaged}'" in done.stderr + done.stdout
    assert '"event": "listening"' not in done.stderr + done.stdout
