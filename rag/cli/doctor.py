"""`bulkhead doctor`: looks at every dependency, says what is wrong and what to do. It changes nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum

import anyio
import click
import httpx
import redis.asyncio
from redis.exceptions import RedisError
from rich.markup import escape
from rich.table import Table

from rag.cli.common import json_option, operator, print_json, results, settings_of
from rag.db.embedded import embedded_postgres
from rag.db.gates import check_role
from rag.db.migrate import pending_migrations
from rag.db.pool import open_database
from rag.errors import BulkheadError, Misconfigured, SealRefused, Unavailable
from rag.identity.keys import load_public_keys, load_signing_key
from rag.identity.principal import Principal
from rag.identity.seal import Sealer, load_seal_keys
from rag.installation import DATABASE, SEAL_KEYS_NAME, embedded_is_running, embedded_settings
from rag.llm.configured import ConfiguredModel, configured_models
from rag.llm.minilm import load_minilm
from rag.llm.openai_embeddings import OpenAiEmbedder
from rag.llm.rerank import HttpReranker, Shape
from rag.runtime import http_client
from rag.settings import Settings
from sql import load_queries

__all__ = ["Finding", "Verdict", "doctor", "examine"]

LOOK_BOUND_S = 15.0
_QUERIES = load_queries("health")


class Verdict(StrEnum):
    """How a dependency is."""

    OK = "ok"
    OFF = "off"
    """Not configured, and not needed."""
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One dependency: what was seen, and what to do where it failed."""

    name: str
    verdict: Verdict
    seen: str
    advice: str = ""


@click.command()
@json_option
@click.pass_context
def doctor(context: click.Context, as_json: bool) -> None:
    """Check every dependency and say what to do."""
    try:
        settings = settings_of(context)
    except Misconfigured as exc:
        findings = [Finding(name="settings", verdict=Verdict.FAILED, seen=exc.message, advice="mend the environment")]
    else:
        findings = _with_database(settings)
    if as_json:
        print_json([{"name": f.name, "verdict": f.verdict.value, "seen": f.seen, "advice": f.advice} for f in findings])
    else:
        _show(findings)
    sys.exit(1 if any(finding.verdict is Verdict.FAILED for finding in findings) else 0)


def _with_database(settings: Settings) -> list[Finding]:
    """Look at the embedded server only where it runs, and without migrating it: a doctor changes nothing."""
    if settings.database_url is not None or not embedded_is_running(settings.data_dir):
        return anyio.run(examine, settings)
    try:
        with embedded_postgres(settings.data_dir) as server:
            return anyio.run(examine, embedded_settings(settings, server, database=DATABASE))
    except BulkheadError as exc:
        return [Finding(name="database", verdict=Verdict.FAILED, seen=exc.message, advice="mend this, then look again")]


async def examine(settings: Settings) -> list[Finding]:
    """Return one finding for each dependency, in the order in which they depend on each other."""
    looks: list[tuple[str, str, Callable[[Settings], Awaitable[str | None]]]] = [
        ("python", "install Python 3.11 or newer", _python),
        ("signing keys", "run `bulkhead up` or `bulkhead migrate` to make them", _keys),
        ("database", "run `bulkhead up`, or set BULKHEAD_DATABASE_URL", _database),
        ("schema", "run `bulkhead migrate`, or the version of Bulkhead that this database was made for", _schema),
        ("seal keys", "run `bulkhead migrate`", _seal),
        ("redis", "start it, or unset BULKHEAD_REDIS_URL to limit per process", _redis),
        ("search cache", "", _cache),
        ("embeddings", "start the server, or unset BULKHEAD_EMBEDDINGS_URL for the model on the CPU", _embeddings),
        ("language model", "start it, or unset BULKHEAD_LLM_URL for extractive answers", _language_model),
        ("reranker", "start it, or unset BULKHEAD_RERANK_URL: searches go without it", _reranker),
        ("maintenance", "run `bulkhead up` or `bulkhead maintain`: large tenants' searches get slower", _maintenance),
        ("mcp server", "run `bulkhead up`", _mcp),
        ("a2a server", "run `bulkhead up`", _a2a),
    ]
    return [await _look(settings, name, advice, look) for name, advice, look in looks]


async def _look(
    settings: Settings, name: str, advice: str, look: Callable[[Settings], Awaitable[str | None]]
) -> Finding:
    try:
        with anyio.fail_after(LOOK_BOUND_S):
            seen = await look(settings)
    except BulkheadError as exc:
        return Finding(name=name, verdict=Verdict.FAILED, seen=exc.message, advice=advice)
    except (OSError, TimeoutError, RedisError, httpx.HTTPError) as exc:
        seen = f"does not answer ({type(exc).__name__})"
        return Finding(name=name, verdict=Verdict.FAILED, seen=seen, advice=advice)
    if seen is None:
        return Finding(name=name, verdict=Verdict.OFF, seen="not configured")
    return Finding(name=name, verdict=Verdict.OK, seen=seen)


async def _python(_: Settings) -> str:
    return sys.version.split()[0]


async def _keys(settings: Settings) -> str:
    count = len(load_public_keys(settings.certs_dir))
    try:
        load_signing_key(settings.certs_dir)
    except Misconfigured:
        return f"{count} public, none to sign with (fine where another issuer signs)"
    return f"{count} public, the newest signs"


async def _database(settings: Settings) -> str:
    if settings.database_url is None:
        raise Misconfigured(f"the embedded PostgreSQL is not running on {settings.data_dir}")
    async with open_database(settings.database_url, sealer=None, pool_size=1, application="doctor") as database:
        await check_role(database)
    return "reachable, and the login is harmless"


async def _schema(settings: Settings) -> str:
    if settings.database_url is None:
        raise Misconfigured("unknown while the database does not run")
    if settings.owner_database_url is None:
        return "not looked at: BULKHEAD_OWNER_DATABASE_URL is not set here, as is right for a server"
    pending = await pending_migrations(settings.owner_database_url)
    if pending:
        raise Misconfigured(f"{len(pending)} migrations are missing")
    return "up to date"


async def _seal(settings: Settings) -> str:
    keys = load_seal_keys(settings.seal_keys_file or settings.data_dir / SEAL_KEYS_NAME)
    seen = f"{len(keys.keys)} in the file"
    if settings.database_url is None or settings.maintenance_database_url is None:
        return seen
    async with operator(settings) as verbs:
        tenants = await verbs.list_tenants()
    if not tenants:
        return seen
    now = time.time()
    nobody = Principal(
        tenant_id=tenants[0].tenant_id,
        subject="doctor",
        scopes=frozenset(),
        token_ids=("doctor",),
        issued_at=now,
        expires_at=now + LOOK_BOUND_S,
    )
    sealer = Sealer(keys=keys)
    async with open_database(settings.database_url, sealer=sealer, pool_size=1, application="doctor") as database:
        try:
            async with database.tenant(nobody):
                return f"{seen}, and the database accepts the active one"
        except SealRefused as exc:
            raise Misconfigured(f"{seen}, and the database refuses the active one") from exc


async def _redis(settings: Settings) -> str | None:
    if settings.redis_url is None:
        return None
    async with redis.asyncio.Redis.from_url(settings.redis_url, socket_timeout=2.0) as client:
        await client.ping()  # pyright: ignore[reportGeneralTypeIssues]  # typed as sync or async
    return "answers"


async def _cache(settings: Settings) -> str | None:
    if settings.search_cache == "off":
        return None
    return "kept in Redis, encrypted" if settings.redis_url is not None else "kept in each process"


async def _reranker(settings: Settings) -> str | None:
    if settings.rerank_url is None:
        return None
    async with http_client(settings) as client:
        await HttpReranker(
            client=client,
            base_url=settings.rerank_url,
            shape=Shape(settings.rerank_shape),
            model=settings.rerank_model,
            api_key=settings.rerank_api_key,
        ).check()
    return f"scores, {settings.rerank_model or 'its own model'}"


async def _maintenance(settings: Settings) -> str:
    if settings.database_url is None:
        raise Misconfigured("unknown while the database does not run")
    if settings.maintenance_database_url is None:
        return "not looked at: BULKHEAD_MAINTENANCE_DATABASE_URL is not set here, as is right for a server"
    async with operator(settings) as verbs, verbs.database.unsafe_unscoped(reason="looks at locks only") as session:
        if not await session.fetch_value(_QUERIES["maintained"]):
            raise Misconfigured("no process looks after the vector indexes")
    return "a process looks after the vector indexes"


async def _embeddings(settings: Settings) -> str:
    default, *others = configured_models(settings)
    seen = [await _embedding_model(settings, default)]
    # the built-in model beside another default is loaded when a tenant needs it, and by nobody else
    seen += [await _embedding_model(settings, model) for model in others if model.url is not None]
    return "; ".join(seen)


async def _embedding_model(settings: Settings, model: ConfiguredModel) -> str:
    if model.url is None:
        embedder = load_minilm()
        await embedder.embed(["a probe"])
        await embedder.aclose()
        return f"{embedder.model} on the CPU"
    async with http_client(settings) as client:
        remote = OpenAiEmbedder(
            client=client, base_url=model.url, model=model.name, dimension=model.dimension, api_key=model.api_key
        )
        try:
            await remote.check()
        except BulkheadError as exc:
            raise type(exc)(f"{model.name}: {exc.message}") from exc
    return f"{model.name}, {model.dimension} dimensions"


async def _language_model(settings: Settings) -> str | None:
    if settings.llm_url is None:
        return None
    headers = {"Authorization": f"Bearer {settings.llm_api_key}"} if settings.llm_api_key else {}
    async with http_client(settings) as client:
        answer = await client.get(f"{settings.llm_url.rstrip('/')}/models", headers=headers, timeout=5.0)
        if answer.status_code != 200:
            raise Unavailable(f"GET /models answered {answer.status_code}")
        names = [str(model.get("id")) for model in answer.json().get("data", [])]
    if settings.llm_model not in names:
        raise Misconfigured(f"it serves {', '.join(names) or 'nothing'}, not {settings.llm_model}")
    return f"serves {settings.llm_model}"


async def _mcp(settings: Settings) -> str:
    return await _ready(settings, settings.mcp_url.removesuffix("/mcp"))


async def _a2a(settings: Settings) -> str:
    return await _ready(settings, settings.a2a_url)


async def _ready(settings: Settings, base: str) -> str:
    async with http_client(settings) as client:
        answer = await client.get(f"{base}/readyz", timeout=5.0)
    if answer.status_code != 200:
        raise Misconfigured(f"{base}/readyz answers {answer.status_code}")
    return f"ready at {base}"


def _show(findings: list[Finding]) -> None:
    table = Table("", "dependency", "seen", "what to do")
    marks = {Verdict.OK: "[green]ok[/]", Verdict.OFF: "[dim]off[/]", Verdict.FAILED: "[bold red]failed[/]"}
    for finding in findings:
        advice = finding.advice if finding.verdict is Verdict.FAILED else ""
        table.add_row(marks[finding.verdict], finding.name, escape(finding.seen), escape(advice))
    results().print(table)
