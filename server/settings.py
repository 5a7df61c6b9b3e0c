"""Settings: every `FLUEMAN_*` variable, its default, its bounds and how it must fit the others.

Read once at start; only `server.wiring` and the command line look at them. A bad setting stops the start, and `SettingsError` names
every bad variable at once, without its value.
"""

import difflib
import os
import subprocess
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from server.development_key import kept_key
from server.setting_values import (
    PUBLIC_KEY_ALGORITHMS,
    SECRET_ALGORITHMS,
    exact_origins,
    folder_or_s3,
    json_object,
    known_algorithms,
    listed,
    long_enough,
    mapped,
    schemes,
    short_words,
)
from server.webhook_settings import receiver_url, signing_secret, some_networks

PREFIX = "FLUEMAN_"
TEST_PREFIX = "FLUEMAN_TEST_"  # read by the tests alone
ROOT = Path(__file__).resolve().parent.parent
DEMO_MODEL = str(ROOT / "engine" / "demo_model")
LOOPBACK = ("127.0.0.1", "localhost", "::1")

DEFAULT_PUBLIC_KEY_ALGORITHMS = ("EdDSA", "ES256", "RS256")


class Problem(NamedTuple):
    """One bad variable and the reason; the first names the variable, `others` are those it does not fit."""

    variable: str
    reason: str
    others: tuple[str, ...] = ()


class SettingsError(Exception):
    """The settings are unusable; the text has one `FLUEMAN_X: reason` line for each bad variable and no value of any."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(f"{problem.variable}: {problem.reason}" for problem in self.problems))


def _build_id() -> str:
    """The git commit of the working tree, else the installed version."""
    if (ROOT / ".git").exists():
        command = ["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"]
        try:
            return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()  # noqa: S603
        except (OSError, subprocess.SubprocessError):
            pass
    try:
        return version("flueman")
    except PackageNotFoundError:
        return "unknown"


def _default_aliases(data: dict[str, Any]) -> dict[str, str | None]:
    return {"gpt-realtime": None} if data["environment"] == "development" else {}


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(listed)]
Secret = Annotated[SecretStr, AfterValidator(long_enough)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Settings(BaseSettings):
    """All settings, validated. Build them with `load_settings`, which also names unknown variables and fills in development secrets."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=".env",
        env_ignore_empty=True,
        frozen=True,
        extra="ignore",
        hide_input_in_errors=True,
    )

    environment: Literal["development", "production"] = Field(
        "development", description="production refuses what would lose data or let anyone in"
    )
    build_id: str = Field(
        default_factory=_build_id,
        max_length=64,
        description="names this build in logs and health; default the git commit",
    )

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    workers: Annotated[int, Field(ge=1, le=64)] = Field(
        1, description="server processes; more than one needs Redis and engine=openai|scripted"
    )
    resume_grace_s: Seconds = Field(
        60.0, description="how long an answer goes on for a client that dropped and may resume"
    )
    lease_s: Seconds = Field(
        1.5,
        description="after so long without a sign of life a node's sessions are adopted by others; renewed every third",
    )
    stop_grace_s: Seconds = Field(30.0, description="how long open answers may finish after SIGTERM")

    data_dir: Path = Field(Path("var"), description="folder for all that the embedded default writes")
    database_url: Annotated[str, AfterValidator(schemes("sqlite+aiosqlite", "mysql+aiomysql"))] = Field(
        default_factory=lambda data: f"sqlite+aiosqlite:///{data['data_dir'] / 'flueman.db'}",
        repr=False,
        description="tables: mysql+aiomysql://user:password@host/db, ?ssl_ca=FILE or ?ssl=true demands TLS; default SQLite under data_dir",
    )
    redis_url: Annotated[str, AfterValidator(schemes("redis", "rediss", "unix"))] | None = Field(
        None, repr=False, description="journal and sessions: redis://…; default the embedded SQLite store"
    )
    redis_shards: Annotated[int, Field(ge=1, le=1024)] = Field(
        1, description="hash tags that sessions spread over, on one Redis; a cluster is not served yet"
    )
    archive_url: Annotated[str, AfterValidator(folder_or_s3)] = Field(
        default_factory=lambda data: str(data["data_dir"] / "archive"),
        repr=False,
        description="archive: a folder or s3://bucket/prefix?endpoint=…&region=…; default a folder under data_dir",
    )
    store_timeout_s: Seconds = Field(5.0, description="longest wait for one answer of the store")
    store_patience_s: Seconds = Field(
        30.0, description="how long commits are retried while the store is away; then connections are closed, to resume"
    )
    max_outbox_records: Count = Field(
        1_000_000, description="records waiting for the writer before new turns are refused"
    )
    database_timeout_s: Seconds = Field(10.0, description="longest wait for one answer of the database")
    retention_s: Seconds = Field(86_400.0, description="how long an ended, archived session stays in the store")
    writer: Literal["inline", "none"] = Field(
        "inline", description="inline: the server also runs a writer; none: `flueman write` runs elsewhere"
    )

    engine: Literal["local", "vllm", "openai", "scripted"] = Field(
        "local", description="who generates: CPU, vLLM here, an endpoint, or a script"
    )
    model: str = Field(
        DEMO_MODEL, min_length=1, description="folder or hub name of the model; default the shipped demo model"
    )
    model_name: Annotated[str, Field(min_length=1, max_length=128)] | None = Field(
        None, description="the name sessions ask for; default the model's own (demo model and script: demo)"
    )
    model_aliases: Annotated[dict[str, str | None], NoDecode, BeforeValidator(mapped)] = Field(
        default_factory=_default_aliases,
        description="further names: alias=name,… (a lone alias means the served model); development default gpt-realtime",
    )
    max_model_len: Annotated[int, Field(ge=256)] | None = Field(
        None, description="context length in tokens; default the model's own"
    )
    tool_parser: str = Field("hermes", description="how the model writes tool calls (a vLLM tool parser's name)")
    vllm_args: Annotated[dict[str, Any], NoDecode, BeforeValidator(json_object)] = Field(
        default_factory=dict,
        description='JSON object of further AsyncEngineArgs for engine=vllm, such as {"gpu_memory_utilization": 0.9}',
    )
    openai_base_url: Annotated[str, AfterValidator(schemes("http", "https"))] | None = Field(
        None, repr=False, description="endpoint for engine=openai, such as http://vllm:8000/v1"
    )
    openai_api_key: SecretStr | None = Field(None, description="key for that endpoint, if it wants one")
    scripted_tokens_per_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        30.0, description="pace of engine=scripted; 0 as fast as it can"
    )
    scripted_tokens: Count = Field(40, description="length of its answers")

    jwt_secret: Secret | None = Field(
        None, description="key of HS256 tokens, 32 bytes or more; made and kept in data_dir in development"
    )
    jwks_url: str | None = Field(None, description="public keys of the token issuer: https://… or a file")
    jwt_issuer: str = Field("flueman", min_length=1, description="required `iss`")
    jwt_audience: str = Field("flueman", min_length=1, description="required `aud`")
    jwt_algorithms: Annotated[Names, AfterValidator(known_algorithms)] = Field(
        (), description="accepted algorithms; default HS256 with a secret and EdDSA,ES256,RS256 with a JWKS"
    )
    jwt_max_ttl_s: Seconds = Field(86_400.0, description="longest life of a token, exp - iat")
    client_secret_key: Secret | None = Field(None, description="key of ek_ client secrets; default jwt_secret")
    allowed_origins: Annotated[Names, AfterValidator(exact_origins)] = Field(
        (), description="exact origins of browsers that may connect; development also allows its own pages"
    )

    private_clients: Names = Field(
        (),
        description="digital humans whose sessions support sees only with the scope client:<name>; client:* is not enough",
    )
    mask_personal_data: bool = Field(
        default_factory=lambda data: data.get("environment") == "production",
        description=(
            "support and admins see others' e-mail addresses, numbers and ids masked unless their token has the scope personal_data,"
            " and nobody can search for them; default true in production"
        ),
    )

    max_sessions: Count = Field(2_000, description="live sessions on one node; more are refused with 503")
    max_connections_per_user: Count = Field(20, description="connections of one user on one node")
    max_connections_per_address: Annotated[int, Field(ge=0)] = Field(
        0, description="connections of one address on one node; 0 no cap"
    )
    max_session_s: Seconds = Field(3_600.0, description="longest connection; then it is closed")
    max_responses_per_session: Count = Field(
        4, description="answers of one session that may run at once, out-of-band ones included"
    )
    handshake_timeout_s: Seconds = Field(10.0, description="deadline for the request that opens a connection")
    ping_interval_s: Seconds = Field(20.0, description="pause between pings")
    ping_timeout_s: Seconds = Field(20.0, description="longest wait for a pong")
    max_frame_bytes: Annotated[int, Field(ge=4_096, le=960 * 1024)] = Field(
        256 * 1024, description="largest client message; under 1 MiB, since it is echoed and clients refuse more"
    )
    max_fragments: Count = Field(64, description="most frames that one message may come in")
    events_per_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        100.0, description="client events a connection may send, on average"
    )
    events_burst: Count = Field(200, description="client events it may send at once")
    max_output_bytes: Annotated[int, Field(ge=65_536)] = Field(
        1024 * 1024, description="unsent bytes of a connection before it is closed"
    )
    max_instructions_chars: Count = Field(32_768, description="longest instructions")
    max_item_chars: Count = Field(65_536, description="longest text of one item")
    max_items: Count = Field(2_000, description="most items of one dialogue")
    keep_prompts: bool = Field(
        True, description="each answer is stored with the exact text that its model read, up to 1 MiB"
    )
    feedback_reasons: Annotated[Names, AfterValidator(short_words)] = Field(
        ("inaccurate", "unsafe", "off-topic", "too-long", "too-slow", "other"),
        description="reasons that a rating may give",
    )
    feedback_webhook_url: Annotated[str, AfterValidator(receiver_url)] | None = Field(
        None,
        repr=False,
        description=(
            "is told of each new, changed and withdrawn rating, at least once, in production by https, no redirect followed;"
            " personal data in it is masked where FLUEMAN_MASK_PERSONAL_DATA is true"
        ),
    )
    feedback_webhook_secret: Annotated[SecretStr, AfterValidator(signing_secret)] | None = Field(
        None,
        description=(
            "signs that as standardwebhooks.com has it, whsec_ and base64 of 24 to 64 bytes:"
            " verify by any of its libraries, drop a webhook-id seen before, keep the greatest data.version of each feedback_id"
        ),
    )
    feedback_webhook_networks: Annotated[Names, AfterValidator(some_networks)] = Field(
        (),
        description=(
            "private networks that the name in that URL may stand for, such as 10.1.0.0/16: others are refused;"
            " an address in the URL itself needs none"
        ),
    )

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least severe line that is logged"
    )
    log_format: Literal["json", "console"] = Field("json", description="json lines, or console for eyes")

    @property
    def is_production(self) -> bool:
        """Whether the strict rules hold."""
        return self.environment == "production"

    @property
    def is_embedded(self) -> bool:
        """Whether the store is the embedded one, which one process owns."""
        return self.redis_url is None

    @property
    def served_model_name(self) -> str | None:
        """The name sessions ask for, or None where only the engine knows it."""
        if self.model_name is not None:
            return self.model_name
        return "demo" if self.engine == "scripted" or self.model == DEMO_MODEL else None

    @property
    def algorithms(self) -> tuple[str, ...]:
        """The token algorithms in force: those set, else those that the configured keys are for."""
        if self.jwt_algorithms:
            return self.jwt_algorithms
        of_secret = ("HS256",) if self.jwt_secret is not None else ()
        return of_secret + (DEFAULT_PUBLIC_KEY_ALGORITHMS if self.jwks_url is not None else ())

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        # Not a ValueError: pydantic would keep only one of the problems.
        if problems := [
            *_production_problems(self),
            *_key_problems(self),
            *_process_problems(self),
            *_engine_problems(self),
            *_webhook_problems(self),
        ]:
            raise SettingsError(problems)
        return self


def _production_problems(settings: Settings) -> Iterable[Problem]:
    if not settings.is_production:
        return
    because = (variable("environment"),)
    if settings.jwt_secret is None and settings.jwks_url is None:
        yield Problem(
            variable("jwt_secret"), "production needs this or FLUEMAN_JWKS_URL", (variable("jwks_url"), *because)
        )
    if settings.redis_url is None:
        yield Problem(
            variable("redis_url"), "production needs Redis: the embedded store belongs to one process", because
        )
    if settings.database_url.startswith("sqlite"):
        yield Problem(variable("database_url"), "production needs MySQL, not SQLite", because)


def _key_problems(settings: Settings) -> Iterable[Problem]:
    if settings.jwks_url is not None and (
        reason := _bad_jwks_url(settings.jwks_url, development=not settings.is_production)
    ):
        yield Problem(variable("jwks_url"), reason)
    keyless_hs = settings.is_production and settings.jwt_secret is None
    if keyless_hs and any(name in SECRET_ALGORITHMS for name in settings.jwt_algorithms):
        yield Problem(
            variable("jwt_algorithms"),
            "has an HS algorithm, but FLUEMAN_JWT_SECRET is not set",
            (variable("jwt_secret"),),
        )
    if settings.jwks_url is None and any(name in PUBLIC_KEY_ALGORITHMS for name in settings.jwt_algorithms):
        yield Problem(
            variable("jwt_algorithms"),
            "has a public key algorithm, but FLUEMAN_JWKS_URL is not set",
            (variable("jwks_url"),),
        )


def _bad_jwks_url(url: str, *, development: bool) -> str | None:
    parts = urlsplit(url)
    if parts.scheme == "https" and parts.hostname:
        return None
    if parts.scheme == "http":
        return (
            None
            if development and parts.hostname in LOOPBACK
            else "must be https (http only for this machine, in development)"
        )
    if parts.scheme not in ("", "file"):
        return "must be https://… or a file"
    return None if Path(parts.path).is_file() else "no such file"


def _process_problems(settings: Settings) -> Iterable[Problem]:
    if settings.workers == 1:
        return
    if settings.is_embedded:
        reason = "more than one worker needs FLUEMAN_REDIS_URL: the embedded store belongs to one process"
        yield Problem(variable("workers"), reason, (variable("redis_url"),))
    if settings.engine in ("local", "vllm"):
        reason = f"more than one worker would load the model once each with engine={settings.engine}; use FLUEMAN_ENGINE=openai"
        yield Problem(variable("workers"), reason, (variable("engine"),))


def _engine_problems(settings: Settings) -> Iterable[Problem]:
    if settings.engine == "openai":
        if settings.openai_base_url is None:
            yield Problem(variable("openai_base_url"), "engine=openai needs it", (variable("engine"),))
        if settings.model == DEMO_MODEL:
            yield Problem(
                variable("model"), "engine=openai needs the model's name at that endpoint", (variable("engine"),)
            )


def _webhook_problems(settings: Settings) -> Iterable[Problem]:
    url, secret = variable("feedback_webhook_url"), variable("feedback_webhook_secret")
    if settings.feedback_webhook_url is None:
        for name in ("feedback_webhook_secret", "feedback_webhook_networks"):
            if getattr(settings, name):
                yield Problem(variable(name), f"is of no use without {url}", (url,))
        return
    if settings.feedback_webhook_secret is None:
        yield Problem(secret, f"{url} needs it", (url,))
    if settings.is_production and urlsplit(settings.feedback_webhook_url).scheme != "https":
        yield Problem(url, "must be https in production", (variable("environment"),))


def variable(field: str) -> str:
    """The environment variable of a field."""
    return PREFIX + field.upper()


def load_settings(**overrides: object) -> Settings:
    """The settings of this process from `overrides`, the environment and `.env`, in this order; `SettingsError` names all that is bad.

    In development a missing signing key is made once and kept in `data_dir`.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    if unknown := given.keys() - Settings.model_fields.keys():
        raise TypeError(f"no such settings: {sorted(unknown)}")
    problems = [*_unknown_variables()]
    settings = _validated(given, problems)
    if problems or settings is None:
        raise SettingsError(problems)
    return settings if settings.is_production else _with_development_keys(settings)


def _validated(given: dict[str, object], problems: list[Problem]) -> Settings | None:
    """The settings, with what is bad added to `problems`. Bad fields are tried again as defaults, so that misfits of others show too."""
    try:
        return _construct(given)
    except SettingsError as error:
        problems.extend(error.problems)
        return None
    except ValidationError as error:
        fields = {
            str(detail["loc"][0]): _reason(detail["msg"])
            for detail in error.errors(include_input=False, include_url=False)
        }
    bad = {name for name in fields if not fields[name].startswith("The default factory")}
    problems.extend(Problem(variable(name), fields[name]) for name in Settings.model_fields if name in bad)
    try:
        _construct(given | {name: _default(Settings.model_fields[name]) for name in bad})
    except SettingsError as error:
        blamed = {variable(name) for name in bad}
        problems.extend(problem for problem in error.problems if blamed.isdisjoint((problem.variable, *problem.others)))
    return None


def _construct(given: dict[str, object]) -> Settings:
    return Settings(**given)  # type: ignore[arg-type]


def _default(field: FieldInfo) -> object:
    return field.get_default(
        call_default_factory=True, validated_data={"data_dir": Path("var"), "environment": "development"}
    )


def _reason(message: str) -> str:
    return message.removeprefix("Value error, ")


def _unknown_variables() -> Iterable[Problem]:
    """Variables with our prefix that no field reads: a typo there would silently leave a default in force."""
    known = [variable(field) for field in Settings.model_fields]
    for name in sorted({*os.environ, *dotenv_values(".env")}):
        if not name.upper().startswith(PREFIX) or name.upper().startswith(TEST_PREFIX) or name.upper() in known:
            continue
        near = difflib.get_close_matches(name.upper(), known, n=1)
        yield Problem(name, f"is no setting; did you mean {near[0]}?" if near else "is no setting")


def _with_development_keys(settings: Settings) -> Settings:
    needs: Sequence[str] = [
        *(["jwt_secret"] if settings.jwt_secret is None and settings.jwks_url is None else []),
        *(["client_secret_key"] if settings.client_secret_key is None and settings.jwt_secret is None else []),
    ]
    if not needs:
        return settings
    path = settings.data_dir / "jwt_secret"
    try:
        key = SecretStr(kept_key(path))
    except OSError as error:
        raise SettingsError(
            [Problem(variable("data_dir"), f"cannot keep the development key there: {error.strerror}")]
        ) from error
    except ValueError as error:
        raise SettingsError(
            [Problem(variable("data_dir"), f"{path} is damaged; delete it to have a new key made")]
        ) from error
    return settings.model_copy(update=dict.fromkeys(needs, key))
