"""Tokens: what verifies, and everything that must not."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import RSAAlgorithm

from rag.errors import InvalidInput, Misconfigured, Unauthenticated
from rag.identity.keys import ensure_keys, load_public_keys, load_signing_key, rotate
from rag.identity.principal import MAX_NAME
from rag.identity.scopes import Audience, Scope
from rag.identity.seal import ensure_seal_keys
from rag.identity.tokens import MAX_TOKEN_CHARS, TokenIssuer, TokenVerifier

ISSUER = "https://issuer.test"
TENANT = UUID("8d9a1d0e-6b1f-4d33-9a54-3f6f1c1d7c11")


@pytest.fixture(scope="session", name="certs")
def certs_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    certs = tmp_path_factory.mktemp("certs")
    ensure_keys(certs)
    return certs


def verifier(certs: Path, audience: Audience = Audience.MCP) -> TokenVerifier:
    return TokenVerifier(keys=load_public_keys(certs), issuer=ISSUER, audience=audience)


def issue(certs: Path, audience: Audience = Audience.MCP, lifetime_s: float = 60, **options: Any) -> str:
    issuer = TokenIssuer(signing_key=load_signing_key(certs), issuer=options.pop("issuer", ISSUER))
    return issuer.issue(
        tenant_id=TENANT,
        subject="ada",
        audience=audience,
        scopes=[Scope.CORPUS_READ],
        lifetime_s=lifetime_s,
        **options,
    )


def signed(certs: Path, claims: dict[str, object], **header: str) -> str:
    key = load_signing_key(certs)
    return jwt.encode(claims, key.key, algorithm="RS256", headers={"kid": key.kid, **header})


def claims(**changes: object) -> dict[str, object]:
    now = time.time()
    whole: dict[str, object] = {
        "iss": ISSUER,
        "aud": "mcp-server",
        "sub": "ada",
        "tenant_id": str(TENANT),
        "scope": "corpus:read",
        "exp": now + 60,
        "nbf": now,
        "iat": now,
        "jti": "one",
    }
    return {name: value for name, value in {**whole, **changes}.items() if value is not ...}


def test_an_issued_token_verifies_to_what_was_asked_for(certs: Path) -> None:
    principal = verifier(certs).verify(issue(certs, groups=["b", "a"], team="law"))
    assert (principal.tenant_id, principal.subject, principal.team) == (TENANT, "ada", "law")
    assert principal.scopes == {Scope.CORPUS_READ}
    assert principal.groups == ("a", "b")
    assert principal.actor is None


def test_the_audiences_are_not_interchangeable(certs: Path) -> None:
    for given_to, shown_at in ((Audience.MCP, Audience.A2A), (Audience.A2A, Audience.MCP)):
        token = issue(certs, given_to)
        assert verifier(certs, given_to).verify(token)
        with pytest.raises(Unauthenticated):
            verifier(certs, shown_at).verify(token)


WRONG: list[dict[str, object]] = [
    {"aud": ["mcp-server", "a2a-server"]},
    {"aud": ["mcp-server"]},
    {"aud": ...},
    {"iss": "https://other.test"},
    {"iss": ...},
    {"exp": time.time() - 86_400},
    {"exp": ...},
    {"exp": "tomorrow"},
    {"exp": True},
    {"exp": float("inf")},
    {"nbf": time.time() + 86_400},
    {"nbf": ...},
    {"iat": time.time() + 86_400},
    {"iat": ...},
    {"jti": ...},
    {"jti": ""},
    {"sub": ...},
    {"sub": ""},
    {"sub": "x" * (MAX_NAME + 1)},
    {"sub": "nul\0byte"},
    {"sub": 7},
    {"tenant_id": ...},
    {"tenant_id": "acme' or '1'='1"},
    {"tenant_id": f"{{{TENANT}}}"},
    {"tenant_id": str(TENANT).upper() + " "},
    {"tenant_id": "'; drop table rag.document; --"},
    {"scope": ...},
    {"scope": ["corpus:read"]},
    {"groups": "admins"},
    {"groups": [7]},
    {"groups": ["g"] * 65},
    {"act": "a2a-server"},
    {"act": {"jti": ["x"]}},
]


@pytest.mark.parametrize("changed", [pytest.param(case, id=f"{n}-{'-'.join(case)}") for n, case in enumerate(WRONG)])
def test_one_wrong_claim_refuses_the_token(certs: Path, changed: dict[str, object]) -> None:
    assert verifier(certs).verify(signed(certs, claims())), "the claims are good before the change"
    with pytest.raises(Unauthenticated):
        verifier(certs).verify(signed(certs, claims(**changed)))


def test_alg_none_is_refused(certs: Path) -> None:
    kid = load_signing_key(certs).kid
    for alg in ("none", "None", "NONE"):
        header = base64.urlsafe_b64encode(json.dumps({"alg": alg, "kid": kid, "typ": "JWT"}).encode()).rstrip(b"=")
        body = base64.urlsafe_b64encode(json.dumps(claims()).encode()).rstrip(b"=")
        for signature in (b"", b"AAAA"):
            with pytest.raises(Unauthenticated):
                verifier(certs).verify(b".".join((header, body, signature)).decode())


def test_hs256_signed_with_the_public_key_is_refused(certs: Path) -> None:
    key = load_signing_key(certs)
    public = key.key.public_key()
    shapes = [
        public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
        public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo),
    ]
    for secret in shapes:
        header = base64.urlsafe_b64encode(json.dumps({"alg": "HS256", "kid": key.kid}).encode()).rstrip(b"=")
        body = base64.urlsafe_b64encode(json.dumps(claims()).encode()).rstrip(b"=")
        mac = hmac.digest(secret, header + b"." + body, hashlib.sha256)
        token = b".".join((header, body, base64.urlsafe_b64encode(mac).rstrip(b"="))).decode()
        with pytest.raises(Unauthenticated):
            verifier(certs).verify(token)


def test_a_key_that_the_token_brings_along_is_not_used(certs: Path) -> None:
    own = generate_private_key(public_exponent=65537, key_size=2048)
    brought = json.loads(RSAAlgorithm.to_jwk(own.public_key()))
    kid = load_signing_key(certs).kid
    for headers in ({"kid": kid, "jwk": brought}, {"kid": "other", "jwk": brought}, {"jku": "http://evil.test"}):
        with pytest.raises(Unauthenticated):
            verifier(certs).verify(jwt.encode(claims(), own, algorithm="RS256", headers=headers))


def test_a_token_longer_than_the_bound_is_refused(certs: Path) -> None:
    token = signed(certs, claims(padding="x" * MAX_TOKEN_CHARS))
    with pytest.raises(Unauthenticated):
        verifier(certs).verify(token)


@given(st.text(max_size=200) | st.from_regex(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*", fullmatch=True))
def test_no_text_verifies_or_breaks_the_verifier(certs: Path, text: str) -> None:
    with pytest.raises(Unauthenticated):
        verifier(certs).verify(text)


def test_after_a_rotation_both_keys_verify_and_the_new_one_signs(tmp_path: Path) -> None:
    ensure_keys(tmp_path)
    old = issue(tmp_path)
    kid = rotate(tmp_path)
    new = issue(tmp_path)
    assert jwt.get_unverified_header(new)["kid"] == kid
    for token in (old, new):
        assert verifier(tmp_path).verify(token)


def test_private_keys_are_readable_by_their_owner_alone(tmp_path: Path) -> None:
    ensure_keys(tmp_path)
    key = next(tmp_path.glob("signing-*.pem"))
    assert key.stat().st_mode & 0o777 == 0o600
    key.chmod(0o644)
    with pytest.raises(Misconfigured, match="readable by others"):
        load_signing_key(tmp_path)


def test_a_token_says_exactly_when_it_was_issued(certs: Path) -> None:
    """Rounded up, `iat` would lie after a revocation that came later than the token, and the token would outlive it."""
    moment = time.time() // 1 + 0.0006
    issuer = TokenIssuer(signing_key=load_signing_key(certs), issuer=ISSUER, clock=lambda: moment)
    token = issuer.issue(tenant_id=TENANT, subject="ada", audience=Audience.MCP, scopes=[], lifetime_s=60)
    assert verifier(certs).verify(token).issued_at == moment


def test_many_first_starts_agree_on_one_key(tmp_path: Path) -> None:
    starts = 16
    together = threading.Barrier(starts)

    def start(_: int) -> tuple[str, str]:
        together.wait(timeout=30)
        ensure_keys(tmp_path)
        return load_signing_key(tmp_path).kid, ensure_seal_keys(tmp_path / "seal-keys.json").active

    with ThreadPoolExecutor(max_workers=starts) as pool:
        made = set(pool.map(start, range(starts)))
    assert len(made) == 1
    assert set(load_public_keys(tmp_path)) == {kid for kid, _ in made}


@pytest.mark.parametrize(
    "keys",
    [
        ["not an object"],
        [{}],
        [{"kty": "oct", "k": "AAAA", "kid": "a"}],
        [{"kty": "RSA", "n": "AQ", "e": "AQAB", "kid": "a"}],
        [{"kty": "RSA", "n": 5, "e": "AQAB", "kid": "a"}],
    ],
)
def test_a_damaged_key_set_is_refused_with_a_reason(tmp_path: Path, keys: list[object]) -> None:
    (tmp_path / "jwks.json").write_text(json.dumps({"keys": keys}))
    with pytest.raises(Misconfigured):
        load_public_keys(tmp_path)


def test_a_public_key_that_is_too_short_is_refused(tmp_path: Path) -> None:
    weak = generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505  # what must be refused
    entry = {**RSAAlgorithm.to_jwk(weak.public_key(), as_dict=True), "kid": "weak"}
    (tmp_path / "jwks.json").write_text(json.dumps({"keys": [entry]}))
    with pytest.raises(Misconfigured, match="2048 bits"):
        load_public_keys(tmp_path)


def test_a_damaged_signing_key_is_refused_with_a_reason(tmp_path: Path) -> None:
    ensure_keys(tmp_path)
    next(tmp_path.glob("signing-*.pem")).write_text("-----BEGIN PRIVATE KEY-----")
    with pytest.raises(Misconfigured, match="not a private key"):
        load_signing_key(tmp_path)


def test_an_exchange_never_widens_and_keeps_the_oldest_issue_time(certs: Path) -> None:
    issuer = TokenIssuer(signing_key=load_signing_key(certs), issuer=ISSUER)
    original = verifier(certs, Audience.A2A).verify(issue(certs, Audience.A2A))
    token = issuer.exchange(original, actor="a2a-server", audience=Audience.MCP, scopes=list(Scope))
    exchanged = verifier(certs).verify(token)
    assert exchanged.scopes == original.scopes
    assert exchanged.issued_at == original.issued_at
    assert set(original.token_ids) < set(exchanged.token_ids)
    assert exchanged.expires_at - time.time() <= 300


def test_a_name_with_a_line_break_is_no_name(certs: Path) -> None:
    with pytest.raises(Unauthenticated) as caught:
        verifier(certs).verify(signed(certs, claims(sub="a\nb")))
    assert isinstance(caught.value.__cause__, InvalidInput)
