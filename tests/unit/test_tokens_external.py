"""Tokens of an issuer that is not us: what is taken from them, what is not, and that no key serves two issuers."""

from __future__ import annotations

import base64
import hmac
import json
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey, generate_private_key
from hypothesis import given, settings
from hypothesis import strategies as st
from jwt.algorithms import RSAAlgorithm

from rag.errors import Unauthenticated, Unavailable
from rag.identity.claims import LEEWAY_S
from rag.identity.external import ClaimNames, ExternalIssuer
from rag.identity.jwks import MAX_KEYS, parse_jwks
from rag.identity.keys import ensure_keys, load_public_keys, load_signing_key
from rag.identity.scopes import Audience, Scope
from rag.identity.tokens import TokenIssuer, TokenVerifier
from tests.support.oauth_server import private_key, public_entry

OURS = "https://bulkhead.test"
THEIRS = "https://login.bank.test"
RESOURCE = "https://mcp.bank.test/mcp"
TENANT = UUID("8d9a1d0e-6b1f-4d33-9a54-3f6f1c1d7c11")


class Published:
    """A key source that stands still. Satisfies `rag.identity.external.KeySource`."""

    generation = 1

    def __init__(self, keys: dict[str, RSAPublicKey]) -> None:
        """`keys` by id."""
        self.keys = keys

    def knows(self, kid: str) -> bool:
        """Tell whether it is one of them."""
        return kid in self.keys

    def find(self, kid: str) -> RSAPublicKey | None:
        """Return it."""
        return self.keys.get(kid)

    async def look_again(self) -> None:
        """There is nothing new."""


@pytest.fixture(scope="session", name="certs")
def certs_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    certs = tmp_path_factory.mktemp("own-certs")
    ensure_keys(certs)
    return certs


def verifier(
    certs: Path, *, names: ClaimNames | None = None, keys: dict[str, RSAPublicKey] | None = None
) -> TokenVerifier:
    source = Published(keys or {"theirs": private_key("theirs").public_key()})
    external = ExternalIssuer(issuer=THEIRS, audience=RESOURCE, keys=source, names=names or ClaimNames())
    return TokenVerifier(keys=load_public_keys(certs), issuer=OURS, audience=Audience.MCP, external=external)


def claims(**changes: object) -> dict[str, object]:
    now = int(time.time())
    whole: dict[str, object] = {
        "iss": THEIRS,
        "aud": RESOURCE,
        "sub": "grace",
        "tenant_id": str(TENANT),
        "scope": "corpus:read openid",
        "exp": now + 60,
        "iat": now,
        "jti": "one",
    }
    return {name: value for name, value in {**whole, **changes}.items() if value is not ...}


def signed(header: dict[str, str] | None = None, **changes: Any) -> str:
    headers = {"kid": "theirs", **(header or {})}
    # not jwt.encode, which itself refuses some of what must be refused
    payload = json.dumps(claims(**changes)).encode()
    return jwt.PyJWS().encode(payload, private_key("theirs"), algorithm="RS256", headers=headers)


def test_a_token_of_the_external_issuer_proves_its_user(certs: Path) -> None:
    now = int(time.time())
    principal = verifier(certs).verify(signed(iat=now, groups=["law"], team="north"))
    assert (principal.tenant_id, principal.subject, principal.groups, principal.team) == (
        TENANT,
        "grace",
        ("law",),
        "north",
    )
    assert principal.scopes == {Scope.CORPUS_READ}
    assert (principal.token_ids, principal.actor) == (("one",), None)
    # its clock may run ahead of ours: a token from before a revocation must not seem younger than that
    assert principal.issued_at == now - LEEWAY_S


@pytest.mark.parametrize(
    "changes",
    [
        {"scope": ..., "scp": "corpus:read"},
        {"scope": ..., "scp": ["corpus:read", "profile"]},
        {"scope": ["corpus:read"]},
        {"aud": [RESOURCE]},
        {"nbf": int(time.time()) - 60},
    ],
)
def test_what_issuers_say_differently_is_understood(certs: Path, changes: dict[str, Any]) -> None:
    assert verifier(certs).verify(signed(**changes)).scopes == {Scope.CORPUS_READ}


def test_the_claims_may_have_other_names(certs: Path) -> None:
    names = ClaimNames(tenant="https://bank.test/tenant", groups="roles", team="dept", token_id="uti")
    others: dict[str, Any] = {"https://bank.test/tenant": str(TENANT), "uti": "u1", "roles": ["a"], "dept": "b"}
    token = signed(None, tenant_id="x", jti=..., **others)
    principal = verifier(certs, names=names).verify(token)
    assert (principal.tenant_id, principal.groups, principal.team, principal.token_ids) == (
        TENANT,
        ("a",),
        "b",
        ("u1",),
    )


WRONG: list[dict[str, object]] = [
    {"aud": "mcp-server"},
    {"aud": RESOURCE + "/"},
    {"aud": [RESOURCE, "https://other.bank.test"]},
    {"aud": []},
    {"aud": ...},
    {"iss": THEIRS + "/"},
    {"iss": ...},
    {"iss": [THEIRS]},
    {"sub": ...},
    {"sub": ""},
    {"sub": 7},
    {"jti": ...},
    {"jti": ""},
    {"jti": 5},
    {"tenant_id": ...},
    {"tenant_id": "acme"},
    {"tenant_id": str(TENANT).upper()},
    {"scope": ...},
    {"scope": 5},
    {"scope": ..., "scp": [5]},
    {"exp": ...},
    {"exp": time.time() - 86_400},
    {"exp": "tomorrow"},
    {"iat": ...},
    {"iat": time.time() + 86_400},
    {"nbf": time.time() + 86_400},
    {"nbf": "soon"},
    {"groups": "admins"},
    {"groups": None},
    {"groups": ["g"] * 65},
    # to name somebody else's token ids and issue time is for our own issuer alone
    {"act": {"sub": "a2a-server", "jti": ["another"], "iat": 1}},
    {"act": None},
    # bound to a key that nobody asks for here
    {"cnf": {"jkt": "x"}},
]


@pytest.mark.parametrize("changed", [pytest.param(case, id=f"{n}-{'-'.join(case)}") for n, case in enumerate(WRONG)])
def test_one_wrong_claim_refuses_the_token(certs: Path, changed: dict[str, Any]) -> None:
    assert verifier(certs).verify(signed()), "the claims are good before the change"
    with pytest.raises(Unauthenticated):
        verifier(certs).verify(signed(**changed))


@pytest.mark.parametrize("kind", ["logout+jwt", "dpop+jwt", "secevent+jwt", "id_token+jwt"])
def test_what_is_no_access_token_is_refused_though_its_signature_holds(certs: Path, kind: str) -> None:
    assert verifier(certs).verify(signed({"typ": "AT+JWT"}))
    with pytest.raises(Unauthenticated):
        verifier(certs).verify(signed({"typ": kind}))


def test_neither_issuer_s_key_signs_for_the_other(certs: Path) -> None:
    own = load_signing_key(certs)
    theirs = private_key("theirs")
    # under each kid that either set knows, and with both sets holding a key of the same id
    both = verifier(certs, keys={"theirs": theirs.public_key(), own.kid: private_key("shadow").public_key()})
    good = {"aud": "mcp-server", "nbf": int(time.time())}
    assert both.verify(jwt.encode(claims(iss=OURS, **good), own.key, algorithm="RS256", headers={"kid": own.kid}))
    for key, issuer, more in ((theirs, OURS, good), (private_key("shadow"), OURS, good), (own.key, THEIRS, {})):
        for kid in ("theirs", own.kid):
            token = jwt.encode(claims(iss=issuer, **more), key, algorithm="RS256", headers={"kid": kid})
            with pytest.raises(Unauthenticated):
                both.verify(token)


def test_each_issuer_s_tokens_need_its_own_audience(certs: Path) -> None:
    issuer = TokenIssuer(signing_key=load_signing_key(certs), issuer=OURS)
    own = issuer.issue(tenant_id=TENANT, subject="a", audience=Audience.MCP, scopes=[], lifetime_s=60)
    assert verifier(certs).verify(own)
    key = load_signing_key(certs)
    crossed = {**jwt.decode(own, options={"verify_signature": False}), "aud": RESOURCE}
    with pytest.raises(Unauthenticated):
        verifier(certs).verify(jwt.encode(crossed, key.key, algorithm="RS256", headers={"kid": key.kid}))


def test_a_second_issuer_changes_nothing_about_ours(certs: Path) -> None:
    issuer = TokenIssuer(signing_key=load_signing_key(certs), issuer=OURS)
    first = issuer.issue(tenant_id=TENANT, subject="a", audience=Audience.A2A, scopes=list(Scope), lifetime_s=60)
    at_a2a = TokenVerifier(keys=load_public_keys(certs), issuer=OURS, audience=Audience.A2A)
    original = at_a2a.verify(first)
    exchanged = issuer.exchange(original, actor="a2a-server", audience=Audience.MCP, scopes=[Scope.CORPUS_READ])
    assert set(original.token_ids) < set(verifier(certs).verify(exchanged).token_ids)


def test_alg_none_and_hs256_with_the_public_key_are_refused(certs: Path) -> None:
    def part(value: object) -> bytes:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=")

    public = private_key("theirs").public_key()
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    for alg in ("none", "None", "HS256", "RS384", "PS256"):
        body = part({"alg": alg, "kid": "theirs"}) + b"." + part(claims())
        mac = base64.urlsafe_b64encode(hmac.digest(pem, body, "sha256")).rstrip(b"=")
        for signature in (b"", mac):
            with pytest.raises(Unauthenticated):
                verifier(certs).verify((body + b"." + signature).decode())


def test_a_key_that_the_token_brings_along_is_not_used(certs: Path) -> None:
    mallory = private_key("mallory")
    brought = {"jwk": public_entry("mallory"), "jku": "http://127.0.0.1:1/keys", "x5u": "http://127.0.0.1:1/x"}
    for kid in ("theirs", "mallory", "../theirs"):
        token = jwt.encode(claims(), mallory, algorithm="RS256", headers={"kid": kid, **brought})
        with pytest.raises(Unauthenticated):
            verifier(certs).verify(token)


def test_deeply_nested_claims_are_refused_like_any_others(certs: Path) -> None:
    body = base64.urlsafe_b64encode(b'{"iss":' + b"[" * 4000).rstrip(b"=").decode()
    header = base64.urlsafe_b64encode(b'{"alg":"RS256","kid":"theirs"}').rstrip(b"=").decode()
    with pytest.raises(Unauthenticated):
        verifier(certs).verify(f"{header}.{body}.AAAA")


# --- key sets -------------------------------------------------------------------------------------------------------


def test_keys_of_other_kinds_and_purposes_are_left_out() -> None:
    entries = [
        public_entry("good"),
        {key: value for key, value in public_entry("unnamed-alg").items() if key not in {"alg", "use"}},
        public_entry("encrypts", use="enc"),
        public_entry("pss", alg="PS256"),
        public_entry("wraps", key_ops=["wrapKey"]),
        public_entry("x", kid=5),
        {key: value for key, value in public_entry("no-id").items() if key != "kid"},
        {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA", "kid": "ec", "alg": "ES256"},
        {"kty": "OKP", "crv": "Ed25519", "x": "AA", "kid": "ed"},
        {"kty": "quantum", "kid": "later"},
    ]
    assert set(parse_jwks(json.dumps({"keys": entries, "more": 1}).encode())) == {"good", "unnamed-alg"}
    assert parse_jwks(b'{"keys": []}') == {}


def weak(bits: int) -> dict[str, Any]:
    key = generate_private_key(public_exponent=65537, key_size=bits)
    return {**RSAAlgorithm.to_jwk(key.public_key(), as_dict=True), "kid": "weak", "alg": "RS256", "key_ops": ["verify"]}


POISONED: dict[str, object] = {
    "hmac": {"keys": [public_entry("good"), {"kty": "oct", "k": "AAAA", "kid": "secret"}]},
    "hmac without its secret": {"keys": [public_entry("good"), {"kty": "oct", "kid": "secret"}]},
    "private": {"keys": [{**RSAAlgorithm.to_jwk(private_key("good"), as_dict=True), "kid": "good"}]},
    "private of another kind": {"keys": [{"kty": "EC", "crv": "P-256", "x": "A", "y": "A", "d": "A", "kid": "e"}]},
    "short": {"keys": [weak(1024)]},
    "exponent of one": {"keys": [public_entry("good", e="AQ")]},
    "no modulus": {"keys": [public_entry("good", n="")]},
    "modulus is a number": {"keys": [public_entry("good", n=5)]},
    "huge": {"keys": [public_entry("good", n="_" * 2000)]},
    "twice the same id": {"keys": [public_entry("good"), public_entry("other", kid="good")]},
    "too many": {"keys": [public_entry("good", kid=str(n)) for n in range(MAX_KEYS + 1)]},
    "keys is an object": {"keys": {"good": public_entry("good")}},
    "a key is a text": {"keys": ["good"]},
    "a list": [public_entry("good")],
    "no keys": {"error": "maintenance"},
    "nothing": None,
}


@pytest.mark.parametrize("name", POISONED)
def test_a_poisoned_key_set_is_refused_whole(name: str) -> None:
    with pytest.raises(Unavailable):
        parse_jwks(json.dumps(POISONED[name]).encode())


@pytest.mark.parametrize("document", [b"", b"<html>login</html>", b"\xff\xfe", b"[" * 200_000, b'{"keys":' * 50_000])
def test_what_is_no_json_is_refused(document: bytes) -> None:
    with pytest.raises(Unavailable):
        parse_jwks(document)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None)
@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["kty", "kid", "alg", "use", "key_ops", "n", "e", "d", "x5c"]),
            st.sampled_from(["RSA", "RS256", "sig", "AQAB", "verify", ["verify"], "A" * 344, "_" * 342]) | _JSON,
        ),
        max_size=3,
    )
)
def test_no_key_set_breaks_the_reader(entries: list[dict[str, object]]) -> None:
    try:
        keys = parse_jwks(json.dumps({"keys": entries}).encode())
    except Unavailable:
        return
    assert all(2048 <= key.key_size <= 8192 for key in keys.values())
