"""Tokens, credentials and origins: what is let in, and everything that must not be. Keeps P7."""

import base64
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from starlette.datastructures import Headers
from starlette.types import Scope

from server.auth import Authenticator, Principal, check_origin, credentials
from server.client_secrets import ClientSecrets, SessionTooLarge
from server.jwks import Jwks
from server.tokens import MAX_TOKEN_BYTES, AuthError, mint

NOW = 1_800_000_000
SECRET = b"0123456789abcdef0123456789abcdef"
# NIST SP 800-186, 3.2.1.3.
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()


def claims(**changes: object) -> dict[str, object]:
    """Good claims with changes; a change to None takes the claim out."""
    good: dict[str, object] = {
        "iss": "flueman",
        "aud": "flueman",
        "sub": "mia",
        "iat": NOW,
        "exp": NOW + 600,
        "jti": "t1",
    }
    return {name: value for name, value in (good | changes).items() if value is not None}


def signed(payload: Mapping[str, object], key: Any = SECRET, algorithm: str = "HS256", **header: object) -> str:
    # Not jwt.encode: that refuses some of the bad claims that others could sign.
    return jwt.api_jws.encode(json.dumps(payload).encode(), key, algorithm, header)


def raw_token(header: bytes, payload: bytes, signature: bytes = b"x") -> str:
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in (header, payload, signature))


def jwk(public_key: Any, kid: str | None, **more: object) -> dict[str, object]:
    algorithm = jwt.algorithms.RSAAlgorithm
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        algorithm = jwt.algorithms.ECAlgorithm  # type: ignore[assignment]
    if isinstance(public_key, ed25519.Ed25519PublicKey):
        algorithm = jwt.algorithms.OKPAlgorithm  # type: ignore[assignment]
    return {**json.loads(algorithm.to_jwk(public_key)), **({"kid": kid} if kid else {}), **more}


def jwks_of(*keys: dict[str, object]) -> Jwks:
    async def fetch() -> bytes:
        return json.dumps({"keys": keys}).encode()

    return Jwks(fetch)


def make_authenticator(*, keys: Jwks | None = None, **changes: Any) -> Authenticator:
    defaults: dict[str, Any] = {
        "algorithms": ("HS256", "EdDSA", "ES256", "RS256"),
        "secret": SECRET,
        "keys": keys,
        "issuer": "flueman",
        "audience": "flueman",
        "max_ttl_s": 3_600,
        "clock": lambda: float(NOW),
        "client_secrets": CLIENT_SECRETS.verify,
    }
    return Authenticator(**(defaults | changes))


CLIENT_SECRETS = ClientSecrets(SECRET, issuer="flueman", audience="flueman", clock=lambda: float(NOW))


async def refused(token: str, authenticator: Authenticator | None = None) -> AuthError:
    with pytest.raises(AuthError) as caught:
        await (authenticator or make_authenticator()).authenticate(token)
    return caught.value


async def test_a_good_token_becomes_a_principal() -> None:
    token = signed(claims(role="support", scope="replay:read export", client="lobby"))

    assert await make_authenticator().authenticate(token) == Principal(
        subject="mia",
        role="support",
        scopes=frozenset({"replay:read", "export"}),
        client_id="lobby",
        expires_at=NOW + 600,
        token_id="t1",
        issued_at=NOW,
    )


async def test_a_minted_token_is_good() -> None:
    token = mint(
        SECRET,
        subject="mia",
        role="admin",
        client_id="c",
        scopes=frozenset({"a"}),
        issuer="flueman",
        audience="flueman",
        now=NOW,
        ttl_s=60,
    )

    principal = await make_authenticator().authenticate(token)

    assert (principal.subject, principal.role, principal.scopes, principal.expires_at) == (
        "mia",
        "admin",
        frozenset({"a"}),
        NOW + 60,
    )
    assert len(principal.token_id) >= 16


@pytest.mark.parametrize(
    "changes",
    [
        {"exp": None},
        {"iat": None},
        {"sub": None},
        {"iss": None},
        {"aud": None},
        {"jti": None},
        {"exp": str(NOW + 600)},
        {"exp": NOW + 600.5},
        {"exp": 1e300},
        {"exp": True},
        {"exp": float("inf")},
        {"exp": -1},
        {"exp": 10**30},
        {"iat": str(NOW)},
        {"iat": NOW + 0.5},
        {"iat": NOW + 60, "exp": NOW + 120},
        {"iat": NOW - 3_600, "exp": NOW + 1},
        {"nbf": NOW + 60},
        {"nbf": "now"},
        {"nbf": 1.5},
        {"exp": NOW + 3_601},
        {"exp": NOW},
        {"iss": "other"},
        {"iss": ["flueman"]},
        {"aud": "other"},
        {"aud": ["other"]},
        {"aud": 1},
        {"sub": ""},
        {"sub": 7},
        {"sub": "a" * 129},
        {"sub": "mia\nrole=admin"},
        {"sub": "mia\x1b[2J"},
        {"sub": "mia\x00"},
        {"sub": "\u202eaim"},
        {"sub": "\ud800"},
        {"sub": " mia"},
        {"jti": 5},
        {"jti": "a" * 200},
        {"role": "root"},
        {"role": ["admin"]},
        {"role": ""},
        {"scope": 5},
        {"scope": [1]},
        {"scope": ["a b"]},
        {"scope": ["x"] * 65},
        {"scope": {"a": 1}},
        {"client": ""},
        {"client": "a\r\nb"},
        {"client": {}},
    ],
    ids=repr,
)
async def test_a_weak_or_odd_claim_is_refused(changes: dict[str, object]) -> None:
    error = await refused(signed(claims(**changes)))

    assert (error.status, error.code) == (401, "invalid_api_key")
    assert error.headers["www-authenticate"].startswith("Bearer ")


async def test_an_expired_token_is_told_apart_within_the_leeway() -> None:
    token = signed(claims(iat=NOW - 600, exp=NOW))

    assert (await make_authenticator(clock=lambda: NOW + 9.9).authenticate(token)).subject == "mia"
    assert (await refused(token, make_authenticator(clock=lambda: NOW + 10.0))).code == "token_expired"


async def test_an_audience_list_that_names_us_is_accepted() -> None:
    assert (await make_authenticator().authenticate(signed(claims(aud=["other", "flueman"])))).subject == "mia"


async def test_a_token_signed_with_another_secret_is_refused() -> None:
    await refused(signed(claims(), b"another secret of thirty-two byte"))


@pytest.mark.parametrize(
    "algorithm", ["none", "None", "NONE", "nOnE", "HS384", "HS512", "RS256", "", "HS256 ", None, 5, ["HS256"]]
)
async def test_no_algorithm_off_the_list_is_accepted(algorithm: object) -> None:
    header = json.dumps({"typ": "JWT", "alg": algorithm}).encode()
    payload = json.dumps(claims()).encode()

    await refused(raw_token(header, payload, b""))
    await refused(raw_token(header, payload))
    await refused(raw_token(header, payload), make_authenticator(keys=jwks_of(jwk(RSA.public_key(), "k"))))


async def test_none_is_refused_even_when_the_settings_list_it() -> None:
    token = raw_token(b'{"alg":"none"}', json.dumps(claims()).encode(), b"x")

    await refused(token, make_authenticator(algorithms=("none", "HS256"), keys=jwks_of(jwk(RSA.public_key(), "k"))))


def hmac_token(key: bytes, header: dict[str, object]) -> str:
    """An HS256 token under any bytes: PyJWT itself refuses to sign with a PEM."""
    import hashlib
    import hmac

    head, body, _ = raw_token(json.dumps(header).encode(), json.dumps(claims()).encode()).split(".")
    signature = hmac.digest(key, f"{head}.{body}".encode(), hashlib.sha256)
    return f"{head}.{body}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


async def test_a_public_key_is_no_hmac_secret() -> None:
    public = RSA.public_key()
    spki = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    guesses = [
        public.public_bytes(*spki),
        public.public_bytes(*spki).strip(),
        public.public_bytes(serialization.Encoding.DER, spki[1]),
    ]
    authenticator = make_authenticator(secret=None, algorithms=("HS256", "RS256"), keys=jwks_of(jwk(public, "k")))

    for guess in guesses:
        error = await refused(hmac_token(guess, {"alg": "HS256", "kid": "k"}), authenticator)
        assert "algorithm" in error.message


async def test_the_secret_verifies_no_public_key_algorithm() -> None:
    await refused(signed(claims(), RSA, "RS256"), make_authenticator(keys=None))


@pytest.mark.parametrize(
    ("key", "algorithm"), [(RSA, "RS256"), (EC, "ES256"), (ED, "EdDSA")], ids=["RS256", "ES256", "EdDSA"]
)
async def test_tokens_of_an_issuer_are_accepted_by_their_key(key: Any, algorithm: str) -> None:
    keys = jwks_of(jwk(RSA.public_key(), "r"), jwk(EC.public_key(), "e"), jwk(ED.public_key(), "d"))
    kid = {"RS256": "r", "ES256": "e", "EdDSA": "d"}[algorithm]

    principal = await make_authenticator(secret=None, keys=keys).authenticate(
        signed(claims(jti=None), key, algorithm, kid=kid)
    )

    assert principal.subject == "mia"
    assert len(principal.token_id) == 64  # named by its hash where the issuer gives no jti


async def test_a_token_without_an_id_is_named_by_what_is_signed() -> None:
    """Anybody can turn a signature by ECDSA, r and s, into r and n - s, which verifies too: a revoked token would be another."""
    authenticator = make_authenticator(secret=None, keys=jwks_of(jwk(EC.public_key(), "e")))
    token = signed(claims(jti=None), EC, "ES256", kid="e")
    head, _, signature = token.rpartition(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    turned = raw[:32] + (P256_ORDER - int.from_bytes(raw[32:])).to_bytes(32)
    other = f"{head}.{base64.urlsafe_b64encode(turned).decode().rstrip('=')}"

    ids = {(await authenticator.authenticate(bearer)).token_id for bearer in (token, other)}

    assert ids == {hashlib.sha256(head.encode()).hexdigest()}


async def test_an_algorithm_must_fit_its_key() -> None:
    keys = jwks_of(jwk(RSA.public_key(), "r", alg="RS256"), jwk(EC.public_key(), "e"))
    authenticator = make_authenticator(secret=None, algorithms=("RS256", "PS256", "ES256"), keys=keys)

    assert "fit" in (await refused(signed(claims(), RSA, "PS256", kid="r"), authenticator)).message
    assert "fit" in (await refused(signed(claims(), EC, "ES256", kid="r"), authenticator)).message
    assert "fit" in (await refused(signed(claims(), RSA, "RS256", kid="e"), authenticator)).message
    await refused(signed(claims(), OTHER_RSA, "RS256", kid="r"), authenticator)


@pytest.mark.parametrize(
    "kid",
    [
        "../../etc/passwd",
        "' OR 1=1 --",
        "https://evil.example/jwks",
        "",
        "k\x00",
        "a" * 1_000,
        7,
        None,
        ["k"],
        {"k": 1},
    ],
    ids=repr,
)
async def test_a_kid_is_only_looked_up(kid: object) -> None:
    keys = jwks_of(jwk(RSA.public_key(), "k"), jwk(EC.public_key(), "e"))
    good = signed(claims(), RSA, "RS256")
    header = json.dumps({"alg": "RS256", "kid": kid}).encode()
    token = raw_token(header, b"x").split(".")[0] + "." + good.split(".", 1)[1]

    await refused(token, make_authenticator(secret=None, keys=keys))


@pytest.mark.parametrize(
    "header",
    [
        {"jku": "https://evil.example/jwks"},
        {"jwk": {"kty": "oct", "k": "AAAA"}},
        {"x5u": "https://evil.example/cert"},
        {"x5c": ["AAAA"]},
        {"crit": ["exp"]},
        {"crit": []},
        {"b64": False},
        {"zip": "DEF"},
    ],
    ids=repr,
)
async def test_headers_that_touch_keys_are_refused_on_a_well_signed_token(header: dict[str, Any]) -> None:
    head = json.dumps({"alg": "HS256", **header}).encode()
    assert (await make_authenticator().authenticate(hmac_token(SECRET, {"alg": "HS256"}))).subject == "mia"

    await refused(hmac_token(SECRET, json.loads(head)))


@pytest.mark.parametrize(
    "token",
    [
        "",
        ".",
        "..",
        "a.b",
        "a.b.c",
        "a.b.c.d",
        "ek_",
        "ek_a.b.c",
        "é.é.é",
        "a" * 9_000,
        raw_token(b"[" * 4_000, b"{}"),
        raw_token(b'{"alg":"HS256"}', b"[" * 4_000),
        raw_token(b'{"alg":"HS256"}', b"\xff\xfe"),
        raw_token(b"\xff", b"{}"),
        raw_token(b"null", b"{}"),
        raw_token(b"[]", b"{}"),
        raw_token(b'"HS256"', b"{}"),
    ],
    ids=lambda token: token[:12],
)
async def test_what_is_no_token_is_refused_and_nothing_breaks(token: str) -> None:
    assert (await refused(token)).code == "invalid_api_key"
    assert (await refused("ek_" + token)).code == "invalid_api_key"


@pytest.mark.parametrize(
    "payload", [b"[" * 4_000, b'{"sub":' * 500 + b"1" + b"}" * 500, b"[]", b"null", b"1", b"\xff", b'{"exp":NaN}']
)
async def test_a_well_signed_payload_that_is_no_claims_is_refused(payload: bytes) -> None:
    await refused(jwt.api_jws.encode(payload, SECRET, "HS256"))


async def test_size_is_checked_before_anything_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    def parse(token: str) -> dict[str, object]:
        raise AssertionError("parsed")

    monkeypatch.setattr(jwt, "get_unverified_header", parse)

    error = await refused("a." * (MAX_TOKEN_BYTES // 2) + "a")

    assert "longer" in error.message


async def test_a_refusal_quotes_nothing_of_the_token() -> None:
    for token in (
        "canary.canary.canary",
        signed(claims(sub="canary\n")),
        signed(claims(role="canary")),
        signed(claims(iss="canary")),
    ):
        error = await refused(token)

        assert "canary" not in error.message + str(error.headers)


def scope_of(
    *headers: tuple[str, str], query: str = "", subprotocols: list[str] | None = None, type: str = "websocket"
) -> Scope:
    encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    return {"type": type, "headers": encoded, "query_string": query.encode(), "subprotocols": subprotocols or []}


def test_a_bearer_header_is_taken() -> None:
    assert credentials(scope_of(("authorization", "Bearer abc"))).token == "abc"
    assert credentials(scope_of(("authorization", "bearer  abc "))).token == "abc"
    assert credentials(scope_of(("authorization", "Bearer abc"))).subprotocol is None


def test_a_browsers_subprotocol_is_taken_and_only_realtime_echoed() -> None:
    found = credentials(
        scope_of(subprotocols=["realtime", "openai-insecure-api-key.ek_a.b.c", "openai-beta.realtime-v1"])
    )

    assert (found.token, found.subprotocol) == ("ek_a.b.c", "realtime")
    assert credentials(scope_of(subprotocols=["openai-insecure-api-key.abc"])).subprotocol is None


@pytest.mark.parametrize(
    "scope",
    [
        scope_of(),
        scope_of(("authorization", "")),
        scope_of(("authorization", "Bearer")),
        scope_of(("authorization", "Basic dTpw")),
        scope_of(("authorization", "Bearer a b")),
        scope_of(("authorization", "Bearer a\x00b")),
        scope_of(("authorization", "Bearer é")),
        scope_of(("authorization", "Bearer a"), ("authorization", "Bearer b")),
        scope_of(("authorization", "Bearer a"), subprotocols=["openai-insecure-api-key.b"]),
        scope_of(subprotocols=["openai-insecure-api-key.a", "openai-insecure-api-key.b"]),
        scope_of(subprotocols=["realtime"]),
    ],
)
def test_no_token_or_more_than_one_is_refused(scope: Scope) -> None:
    with pytest.raises(AuthError) as caught:
        credentials(scope)

    assert caught.value.status == 401


@pytest.mark.parametrize(
    "name", ["token", "access_token", "Access_Token", "api_key", "api-key", "jwt", "authorization", "to%6ben", "key"]
)
def test_a_token_in_the_url_is_refused_even_beside_a_good_one(name: str) -> None:
    with pytest.raises(AuthError) as caught:
        credentials(scope_of(("authorization", "Bearer abc"), query=f"model=demo&{name}=canary"))

    assert (caught.value.status, caught.value.code) == (400, "token_in_url")
    assert "canary" not in caught.value.message


def test_other_parameters_are_no_credentials() -> None:
    query = "model=demo&conversation_id=conv_1&starting_after=5&replay=sess_1"

    assert credentials(scope_of(("authorization", "Bearer abc"), query=query)).token == "abc"


ALLOWED = frozenset({"https://avatar.example"})


@pytest.mark.parametrize(
    ("headers", "development"),
    [
        ([], False),
        ([("origin", "https://avatar.example")], False),
        ([("origin", "http://127.0.0.1:8000"), ("host", "127.0.0.1:8000")], True),
        ([("origin", "http://localhost:8000"), ("host", "localhost:8000")], True),
        ([("origin", "http://[::1]:8000"), ("host", "[::1]:8000")], True),
    ],
)
def test_allowed_origins_pass(headers: list[tuple[str, str]], development: bool) -> None:
    check_origin(Headers(raw=[(n.encode(), v.encode()) for n, v in headers]), ALLOWED, development=development)


@pytest.mark.parametrize(
    "headers",
    [
        [("origin", "https://evil.example")],
        [("origin", "null")],
        [("origin", "")],
        [("origin", "https://avatar.example.evil.example")],
        [("origin", "https://evil-avatar.example")],
        [("origin", "http://avatar.example")],
        [("origin", "https://avatar.example:444")],
        [("origin", "https://avatar.example/")],
        [("origin", "https://avatar.example, https://evil.example")],
        [("origin", "HTTPS://AVATAR.EXAMPLE")],
        [("origin", "https://avatar.example"), ("origin", "https://evil.example")],
        [("origin", "https://avatar.example@evil.example")],
        [("origin", "http://127.0.0.1:9999"), ("host", "127.0.0.1:8000")],
        [("origin", "http://evil.example:8000"), ("host", "evil.example:8000")],
        [("origin", "http://127.0.0.1:8000@evil.example"), ("host", "127.0.0.1:8000@evil.example")],
        [("origin", "http://[::1"), ("host", "[::1")],
        [("origin", "file://"), ("host", "")],
    ],
    ids=repr,
)
@pytest.mark.parametrize("development", [True, False])
def test_other_origins_are_refused(headers: list[tuple[str, str]], development: bool) -> None:
    with pytest.raises(AuthError) as caught:
        check_origin(Headers(raw=[(n.encode(), v.encode()) for n, v in headers]), ALLOWED, development=development)

    assert caught.value.status == 403


def test_production_has_no_pages_of_its_own() -> None:
    headers = Headers({"origin": "http://127.0.0.1:8000", "host": "127.0.0.1:8000"})

    with pytest.raises(AuthError):
        check_origin(headers, frozenset(), development=False)


PRINCIPAL = Principal(
    subject="mia",
    role="user",
    scopes=frozenset({"s"}),
    client_id="lobby",
    expires_at=NOW + 3_600,
    token_id="t1",
    issued_at=NOW - 7,
)


async def test_a_client_secret_speaks_for_its_user_with_its_session() -> None:
    secret = CLIENT_SECRETS.mint(PRINCIPAL, b'{"type":"realtime","instructions":"\xc3\xa9"}', ttl_s=60)

    principal = await make_authenticator().authenticate(secret.value)

    assert secret.value.startswith("ek_")
    assert secret.expires_at == NOW + 60
    assert (principal.subject, principal.client_id, principal.role, principal.scopes) == (
        "mia",
        "lobby",
        "user",
        frozenset("s"),
    )
    assert (
        principal.expires_at == NOW + 3_600
    )  # a session outlives the secret that opened it, not the token that minted it
    assert (principal.parent_token_id, principal.token_id != "t1") == ("t1", True)
    assert (
        principal.issued_at == PRINCIPAL.issued_at
    )  # what was issued to a user up to then includes what it minted since
    assert json.loads(principal.session_config or b"") == {"type": "realtime", "instructions": "é"}


async def test_a_client_secret_of_staff_has_no_power_of_staff() -> None:
    staff = Principal("a", "admin", frozenset({"export"}), "c", expires_at=NOW + 60, token_id="t", issued_at=NOW)

    principal = await make_authenticator().authenticate(CLIENT_SECRETS.mint(staff, b"{}", ttl_s=600).value)

    assert (principal.role, principal.scopes) == ("user", frozenset())


async def test_a_client_secret_ends_with_its_token_at_the_latest() -> None:
    short = Principal("a", "user", frozenset(), "c", expires_at=NOW + 30, token_id="t", issued_at=NOW)

    assert CLIENT_SECRETS.mint(short, b"{}", ttl_s=600).expires_at == NOW + 30


async def test_an_expired_client_secret_is_refused() -> None:
    secret = CLIENT_SECRETS.mint(PRINCIPAL, b"{}", ttl_s=60)
    later = ClientSecrets(SECRET, issuer="flueman", audience="flueman", clock=lambda: NOW + 70.0)

    with pytest.raises(AuthError) as caught:
        later.verify(secret.value)

    assert caught.value.code == "token_expired"


async def test_a_client_secret_is_no_access_token_and_the_other_way_round() -> None:
    secret = CLIENT_SECRETS.mint(PRINCIPAL, b"{}", ttl_s=60).value
    authenticator = make_authenticator()

    for token in (secret, secret.removeprefix("ek_")):
        with pytest.raises(AuthError):
            await authenticator.authenticate_jwt(token)
    await refused("ek_" + signed(claims()))
    await refused(
        "ek_" + signed(claims(aud="flueman/client_secrets", parent="t", parent_exp=NOW + 60, client="c"), typ="ek+jwt")
    )


async def test_a_client_secret_of_the_release_before_is_as_old_as_itself() -> None:
    """It does not say how old the token is that minted it."""
    wanted: dict[str, object] = {"aud": "flueman/client_secrets", "client": "c", "parent": "t1", "parent_exp": NOW + 60}
    old, malformed = (
        "ek_" + signed(claims(**wanted, iat=NOW - 3, **more), CLIENT_SECRETS._key, typ="ek+jwt")
        for more in ({}, {"parent_iat": "0"})
    )

    assert (await make_authenticator().authenticate(old)).issued_at == NOW - 3
    await refused(malformed)


async def test_a_client_secret_of_another_key_is_refused() -> None:
    other = ClientSecrets(
        b"another secret of thirty-two byte", issuer="flueman", audience="flueman", clock=lambda: float(NOW)
    )

    await refused(other.mint(PRINCIPAL, b"{}", ttl_s=60).value)


def test_a_session_that_would_not_fit_a_header_is_refused() -> None:
    fits = CLIENT_SECRETS.mint(PRINCIPAL, b'"' + b"a" * 5_000 + b'"', ttl_s=60)

    assert len(fits.value) < MAX_TOKEN_BYTES
    with pytest.raises(SessionTooLarge):
        CLIENT_SECRETS.mint(PRINCIPAL, b'"' + b"a" * 6_000 + b'"', ttl_s=60)
