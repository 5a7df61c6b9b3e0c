"""Settings: every bad variable named at once, no value shown, production strict; `.env.example` stays equal to the fields.

Write it anew after a change: `python -m tests.server.test_settings > .env.example`.
"""

import os
import stat
from collections.abc import Mapping
from pathlib import Path

import pytest
from pydantic.fields import FieldInfo

from server.settings import DEMO_MODEL, ROOT, Settings, SettingsError, load_settings, variable

PRODUCTION = {
    "environment": "production",
    "jwt_secret": "0123456789abcdef0123456789abcdef",
    "redis_url": "redis://localhost/0",
    "database_url": "mysql+aiomysql://u:p@localhost/flueman",
}
WEBHOOK = {
    "feedback_webhook_url": "https://hooks.example/ratings?to=us",
    "feedback_webhook_secret": "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("FLUEMAN_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def problems_of(**overrides: object) -> dict[str, str]:
    with pytest.raises(SettingsError) as caught:
        load_settings(**overrides)
    return {problem.variable: problem.reason for problem in caught.value.problems}


def test_development_starts_with_nothing_set(tmp_path: Path) -> None:
    settings = load_settings()

    assert settings.environment == "development"
    assert settings.database_url == "sqlite+aiosqlite:///var/flueman.db"
    assert settings.archive_url == "var/archive"
    assert settings.is_embedded
    assert settings.served_model_name == "demo"
    assert settings.model_aliases == {"gpt-realtime": None}
    assert settings.algorithms == ("HS256",)


def test_the_development_key_is_made_once_and_private() -> None:
    first = load_settings()
    second = load_settings()

    assert first.jwt_secret == second.jwt_secret
    assert first.jwt_secret is not None
    assert len(first.jwt_secret.get_secret_value()) == 64
    assert stat.S_IMODE(Path("var/jwt_secret").stat().st_mode) == 0o600
    assert [path.name for path in Path("var").iterdir()] == ["jwt_secret"]


def test_a_damaged_development_key_is_not_used() -> None:
    Path("var").mkdir()
    Path("var/jwt_secret").write_text("short")

    assert "damaged" in problems_of()["FLUEMAN_DATA_DIR"]


def test_every_bad_variable_is_named_at_once_and_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = {
        "FLUEMAN_PRT": "1",
        "FLUEMAN_PORT": "canary-port",
        "FLUEMAN_ENGINE": "canary-engine",
        "FLUEMAN_JWT_SECRET": "canary-secret",
        "FLUEMAN_REDIS_URL": "http://user:canary-redis@host",
        "FLUEMAN_ALLOWED_ORIGINS": "https://a.example, *",
        "FLUEMAN_MODEL_ALIASES": "{canary",
        "FLUEMAN_JWT_ALGORITHMS": "HS256,none",
        "FLUEMAN_MAX_FRAME_BYTES": "1048576",
        "FLUEMAN_WORKERS": "2",
    }
    for name, value in bad.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(SettingsError) as caught:
        load_settings()

    # FLUEMAN_WORKERS does not fit the embedded store; whether it fits Redis and the engine cannot be known while those are bad.
    assert {problem.variable for problem in caught.value.problems} == bad.keys() - {"FLUEMAN_WORKERS"}
    assert "canary" not in str(caught.value)
    assert "did you mean FLUEMAN_PORT?" in str(caught.value)
    assert len(str(caught.value).splitlines()) == len(caught.value.problems)


def test_a_misfit_is_named_beside_a_bad_variable_it_has_nothing_to_do_with() -> None:
    assert problems_of(**{**PRODUCTION, "port": "x", "database_url": None}).keys() == {
        "FLUEMAN_PORT",
        "FLUEMAN_DATABASE_URL",
    }


def test_a_bad_environment_does_not_hide_the_rest() -> None:
    assert problems_of(environment="staging", port="x").keys() == {"FLUEMAN_ENVIRONMENT", "FLUEMAN_PORT"}


def test_unknown_variables_in_the_env_file_are_refused() -> None:
    Path(".env").write_text("OTHER=1\nFLUEMAN_HOTS=0.0.0.0\n")

    assert problems_of() == {"FLUEMAN_HOTS": "is no setting; did you mean FLUEMAN_HOST?"}


def test_the_env_file_is_read_and_the_environment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("OTHER=1\nFLUEMAN_PORT=1234\nFLUEMAN_HOST=::1\n")
    monkeypatch.setenv("FLUEMAN_PORT", "4321")
    monkeypatch.setenv("FLUEMAN_REDIS_URL", "")

    settings = load_settings()

    assert (settings.host, settings.port, settings.redis_url) == ("::1", 4321, None)


def test_production_needs_what_keeps_and_what_guards() -> None:
    assert problems_of(environment="production").keys() == {
        "FLUEMAN_JWT_SECRET",
        "FLUEMAN_REDIS_URL",
        "FLUEMAN_DATABASE_URL",
    }
    assert load_settings(**PRODUCTION).model_aliases == {}
    assert load_settings(**PRODUCTION).allowed_origins == ()


def test_production_makes_no_key() -> None:
    load_settings(**PRODUCTION)

    assert not Path("var").exists()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"workers": 2}, {"FLUEMAN_WORKERS"}),
        ({"workers": 2, "engine": "scripted"}, {"FLUEMAN_WORKERS"}),
        ({"workers": 2, "redis_url": "redis://r", "engine": "vllm"}, {"FLUEMAN_WORKERS"}),
        ({"workers": 2, "redis_url": "redis://r", "engine": "scripted"}, set()),
        ({"engine": "openai"}, {"FLUEMAN_OPENAI_BASE_URL", "FLUEMAN_MODEL"}),
        ({"engine": "openai", "openai_base_url": "http://vllm/v1", "model": "m"}, set()),
        ({"jwt_secret": "a" * 64}, {"FLUEMAN_JWT_SECRET"}),
        ({"jwt_algorithms": "RS256"}, {"FLUEMAN_JWT_ALGORITHMS"}),
        ({"jwks_url": "http://issuer.example/jwks"}, {"FLUEMAN_JWKS_URL"}),
        ({"jwks_url": "missing.json"}, {"FLUEMAN_JWKS_URL"}),
        ({"jwks_url": "https://issuer.example/jwks"}, set()),
        ({"jwks_url": "http://127.0.0.1:1/jwks"}, set()),
        ({**PRODUCTION, "jwks_url": "http://127.0.0.1:1/jwks"}, {"FLUEMAN_JWKS_URL"}),
        ({"allowed_origins": "https://a.example/"}, {"FLUEMAN_ALLOWED_ORIGINS"}),
        ({"allowed_origins": "null"}, {"FLUEMAN_ALLOWED_ORIGINS"}),
        ({"allowed_origins": "https://A.example"}, {"FLUEMAN_ALLOWED_ORIGINS"}),
        ({"allowed_origins": "https://a.example:8443, http://localhost:3000"}, set()),
        ({"feedback_reasons": "무례함, too long"}, set()),
        ({"feedback_reasons": "rude,other,rude"}, {"FLUEMAN_FEEDBACK_REASONS"}),
        ({"feedback_reasons": "x" * 65}, {"FLUEMAN_FEEDBACK_REASONS"}),
        ({"feedback_reasons": '["\\u001b[2J"]'}, {"FLUEMAN_FEEDBACK_REASONS"}),
        ({**WEBHOOK}, set()),
        ({**WEBHOOK, "feedback_webhook_networks": "10.0.0.0/8, fd00::/8"}, set()),
        ({**PRODUCTION, **WEBHOOK}, set()),
        ({**WEBHOOK, "feedback_webhook_url": "http://127.0.0.1:1/"}, set()),
        ({**PRODUCTION, **WEBHOOK, "feedback_webhook_url": "http://hooks.example/"}, {"FLUEMAN_FEEDBACK_WEBHOOK_URL"}),
        ({**WEBHOOK, "feedback_webhook_url": "ftp://hooks.example/"}, {"FLUEMAN_FEEDBACK_WEBHOOK_URL"}),
        ({**WEBHOOK, "feedback_webhook_url": "https://me:word@hooks.example/"}, {"FLUEMAN_FEEDBACK_WEBHOOK_URL"}),
        ({**WEBHOOK, "feedback_webhook_url": "https://hooks.example:99999/"}, {"FLUEMAN_FEEDBACK_WEBHOOK_URL"}),
        ({**WEBHOOK, "feedback_webhook_url": None}, {"FLUEMAN_FEEDBACK_WEBHOOK_SECRET"}),
        ({**WEBHOOK, "feedback_webhook_secret": None}, {"FLUEMAN_FEEDBACK_WEBHOOK_SECRET"}),
        ({**WEBHOOK, "feedback_webhook_secret": "whsec_c2hvcnQ="}, {"FLUEMAN_FEEDBACK_WEBHOOK_SECRET"}),
        ({**WEBHOOK, "feedback_webhook_secret": "A" * 44}, {"FLUEMAN_FEEDBACK_WEBHOOK_SECRET"}),
        ({**WEBHOOK, "feedback_webhook_networks": "10.0.0.1/8"}, {"FLUEMAN_FEEDBACK_WEBHOOK_NETWORKS"}),
        ({"feedback_webhook_networks": "10.0.0.0/8"}, {"FLUEMAN_FEEDBACK_WEBHOOK_NETWORKS"}),
        ({"archive_url": "s3:///prefix"}, {"FLUEMAN_ARCHIVE_URL"}),
        ({"database_url": "postgresql://x"}, {"FLUEMAN_DATABASE_URL"}),
        ({"ping_interval_s": "nan"}, {"FLUEMAN_PING_INTERVAL_S"}),
    ],
)
def test_settings_must_fit_together(changes: Mapping[str, object], named: set[str]) -> None:
    if not named:
        load_settings(**changes)
        return

    assert problems_of(**changes).keys() == named


def test_names_are_read_from_commas_or_json() -> None:
    settings = load_settings(
        model_aliases="gpt-realtime=big, gpt-realtime-mini", allowed_origins='["https://a.example"]'
    )

    assert settings.model_aliases == {"gpt-realtime": "big", "gpt-realtime-mini": None}
    assert settings.allowed_origins == ("https://a.example",)


def test_secrets_do_not_show_in_the_settings_text() -> None:
    settings = load_settings(
        **{**PRODUCTION, "database_url": "mysql+aiomysql://u:canary@h/d", "redis_url": "redis://:canary@h"},
        **WEBHOOK,
    )

    assert "canary" not in repr(settings)
    assert WEBHOOK["feedback_webhook_url"] not in repr(settings)
    assert WEBHOOK["feedback_webhook_secret"] not in repr(settings)
    assert PRODUCTION["jwt_secret"] not in repr(settings)


def test_the_example_lists_every_setting() -> None:
    assert (ROOT / ".env.example").read_text() == env_example()


def env_example() -> str:
    """The text of `.env.example`: each variable with its default, commented out, and one line about it."""
    lines = [
        "# Flueman's settings. Copy to .env and uncomment what you change; the environment wins over .env. Unknown FLUEMAN_* are refused."
    ]
    for name, field in Settings.model_fields.items():
        assert field.description, name
        lines.append(f"\n# {field.description}\n# {variable(name)}={_shown_default(field)}".rstrip())
    return "\n".join(lines) + "\n"


def _shown_default(field: FieldInfo) -> str:
    default = field.default
    if field.default_factory is not None or default is None or default == () or default == DEMO_MODEL:
        return ""
    if isinstance(default, tuple):
        return ",".join(default)
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:g}" if isinstance(default, float) else str(default)


if __name__ == "__main__":
    print(env_example(), end="")
