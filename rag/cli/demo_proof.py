"""The last act of `bulkhead demo`: attempts to get through the walls, each with what came back.

Nothing here is canned: every row is a request that was sent, or a statement that psql ran as the servers' own login.
A proof that does not hold ends the demo with an error.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import subprocess
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit, urlunsplit

import anyio
import httpx
from cryptography.hazmat.primitives import serialization

from rag.cli.common import operator
from rag.db.embedded import pg_binary
from rag.identity.keys import load_signing_key
from rag.identity.scopes import Audience, Scope
from rag.identity.seal import load_seal_keys
from rag.identity.tokens import TokenIssuer
from rag.runtime import http_client, token_issuer
from rag.settings import Settings
from rag.tenants.operator import Tenant

__all__ = ["Proof", "forged_statements", "refused_tokens"]

PSQL_BOUND_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """One attempt: what was tried, what came back, and whether the wall held."""

    attempt: str
    answer: str
    held: bool


async def refused_tokens(settings: Settings, tenant: Tenant) -> list[Proof]:
    """Knock at both doors with tokens that must not open them, and with one that must until it is revoked."""
    issuer = token_issuer(settings)
    good = _issue(issuer, tenant, Audience.MCP)
    async with http_client(settings) as client:
        proofs = [
            await _knock(client, settings, Audience.MCP, good, "a good token", opens=True),
            await _knock(client, settings, Audience.MCP, None, "no token", opens=False),
        ]
        for audience in Audience:
            other = _issue(issuer, tenant, Audience.A2A if audience is Audience.MCP else Audience.MCP)
            proofs.append(await _knock(client, settings, audience, other, "a token for the other server", opens=False))
        expired = TokenIssuer(signing_key=issuer.signing_key, issuer=settings.issuer, clock=lambda: time.time() - 7200)
        for name, token in (
            ("an expired token", _issue(expired, tenant, Audience.MCP)),
            ("alg none, no signature", _unsigned(good)),
            ("HS256 keyed with our public key", _public_key_as_secret(good, settings)),
            ("another tenant's id written into a good token", _tampered(good)),
        ):
            proofs.append(await _knock(client, settings, Audience.MCP, token, name, opens=False))
        revoked = _issue(issuer, tenant, Audience.MCP)
        before = await _search(client, settings, revoked)
        async with operator(settings) as verbs:
            await verbs.revoke_token(tenant.tenant_id, _claims(revoked)["jti"])
        after = await _search(client, settings, revoked)
        still = await _search(client, settings, good)
        proofs.append(
            Proof(
                attempt="a search, then `bulkhead token revoke`, then the same search",
                answer=f"{before}, then {after}; another token of the user: {still}",
                held=(before, after, still) == ("answered", "refused", "answered"),
            )
        )
    return proofs


async def forged_statements(settings: Settings, victim: Tenant) -> list[Proof]:
    """Run SQL as the servers' own login: without a context, with a forged seal, and to break out."""
    payload = json.dumps(
        {
            "tenant": str(victim.tenant_id),
            "sub": "mallory",
            "groups": [],
            "jti": ["x"],
            "iat": time.time(),
            "exp": time.time() + 600,
        }
    )
    mac = hmac.digest(secrets.token_bytes(32), payload.encode(), "sha256").hex()
    assert settings.seal_keys_file is not None
    # the real key's name, as an attacker might know it, over a guessed key
    forged = f"{load_seal_keys(settings.seal_keys_file).active}.{mac}.{payload}"
    attempts: Iterable[tuple[str, list[str]]] = (
        ("select title from rag.document", ["select title from rag.document"]),
        (
            f"the same with a forged seal for {victim.name}",
            [f"select set_config('app.context', '{forged}', false)", "select title from rag.document"],
        ),
        ("select * from seal.key", ["select * from seal.key"]),
        ("claim another tenant's seal from the queue", ["select seal from queue.claim_embeddings_v2(1, 0)"]),
        ("truncate rag.document", ["truncate rag.document cascade"]),
        ("set role bulkhead_owner", ["set role bulkhead_owner"]),
        (
            "alter table rag.document disable row level security",
            ["alter table rag.document disable row level security"],
        ),
    )
    proofs: list[Proof] = []
    for attempt, statements in attempts:
        status, text = await anyio.to_thread.run_sync(_psql, settings, statements)
        proofs.append(Proof(attempt=attempt, answer=text, held=status != 0 and "ERROR" in text))
    return proofs


def _psql(settings: Settings, statements: list[str]) -> tuple[int, str]:
    assert settings.database_url is not None
    parts = urlsplit(settings.database_url)
    # the password goes by the environment: an argument list is readable by every user of the machine
    without = urlunsplit(parts._replace(netloc=parts.netloc.replace(f":{parts.password}@", "@")))
    commands = [word for statement in statements for word in ("-c", statement)]
    done = subprocess.run(
        [str(pg_binary("psql")), "-X", "-q", "-t", "-v", "ON_ERROR_STOP=1", without, *commands],
        env={"PGPASSWORD": unquote(parts.password or "")},
        capture_output=True,
        text=True,
        timeout=PSQL_BOUND_S,
        check=False,
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith(("ERROR", "DETAIL"))]
    return done.returncode, " ".join(lines) or f"{len(done.stdout.splitlines())} rows"


def _issue(issuer: TokenIssuer, tenant: Tenant, audience: Audience) -> str:
    return issuer.issue(
        tenant_id=tenant.tenant_id,
        subject="demo",
        audience=audience,
        scopes=[Scope.CORPUS_READ, Scope.TASKS_RUN],
        lifetime_s=300,
    )


async def _knock(
    client: httpx.AsyncClient, settings: Settings, door: Audience, token: str | None, attempt: str, *, opens: bool
) -> Proof:
    if door is Audience.MCP:
        url, body = settings.mcp_url, _rpc("tools/list", {})
    else:
        url, body = f"{settings.a2a_url}/a2a/jsonrpc", _rpc("ListTasks", {})
    answer = await client.post(url, json=body, headers=_headers(token))
    return Proof(
        attempt=f"{door.value}: {attempt}",
        answer=f"HTTP {answer.status_code}",
        held=answer.status_code == (200 if opens else 401),
    )


async def _search(client: httpx.AsyncClient, settings: Settings, token: str) -> str:
    body = _rpc("tools/call", {"name": "hybrid_search", "arguments": {"query": "records", "mode": "keyword"}})
    answer = await client.post(settings.mcp_url, json=body, headers=_headers(token))
    return "answered" if answer.status_code == 200 and '"hits"' in answer.text else "refused"


def _rpc(method: str, params: Mapping[str, object]) -> dict[str, object]:
    return {"jsonrpc": "2.0", "id": 1, "method": method, "params": dict(params)}


def _headers(token: str | None) -> dict[str, str]:
    headers = {
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": "2025-11-25",
        "A2A-Version": "1.0",
    }
    return headers if token is None else {**headers, "Authorization": f"Bearer {token}"}


def _claims(token: str) -> dict[str, str]:
    body = token.split(".")[1]
    return json.loads(urlsafe_b64decode(body + "=" * (-len(body) % 4)))


def _encoded(value: object) -> str:
    return urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def _unsigned(token: str) -> str:
    return f"{_encoded({'alg': 'none', 'typ': 'JWT'})}.{token.split('.')[1]}."


def _public_key_as_secret(token: str, settings: Settings) -> str:
    key = load_signing_key(settings.certs_dir)
    secret = key.key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    signed = f"{_encoded({'alg': 'HS256', 'kid': key.kid, 'typ': 'JWT'})}.{token.split('.')[1]}"
    mac = urlsafe_b64encode(hmac.digest(secret, signed.encode(), hashlib.sha256)).rstrip(b"=").decode()
    return f"{signed}.{mac}"


def _tampered(token: str) -> str:
    header, _, signature = token.split(".")
    return f"{header}.{_encoded({**_claims(token), 'tenant_id': '00000000-0000-4000-8000-000000000000'})}.{signature}"
