"""The composition root: settings in, one frozen Runtime out. It is passed, never imported as an instance.

Above: the processes (both faces, the worker). Below: every domain package and adapter.
"""

from __future__ import annotations

import hmac
import logging
import ssl
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from http.cookiejar import CookieJar, DefaultCookiePolicy

import anyio
import httpx

from rag.audit.log import AuditLog, open_audit
from rag.clock import Clock, system_clock
from rag.db.gates import check_role
from rag.db.listener import Wakeups, listener
from rag.db.pool import IDLE_IN_TRANSACTION_S, Database, open_database
from rag.errors import BulkheadError, EmbedderUnavailable, Misconfigured, Unavailable
from rag.identity.external import ClaimNames, ExternalIssuer
from rag.identity.jwks import fetch_jwks
from rag.identity.keys import load_public_keys, load_signing_key
from rag.identity.remote_keys import remote_keys
from rag.identity.scopes import Audience
from rag.identity.seal import Sealer, SealKeys, load_seal_keys
from rag.identity.tokens import TokenIssuer, TokenVerifier
from rag.identity.verified import VerifiedTokens
from rag.limits.limiter import Limiter, open_limiter
from rag.limits.tiers import TierCache, one_rate
from rag.llm.configured import ConfiguredModel, configured_models
from rag.llm.embedders import Embedders
from rag.llm.minilm import DeferredMiniLm, load_minilm
from rag.llm.openai_embeddings import OpenAiEmbedder
from rag.llm.ports import Embedder, Vectors
from rag.llm.rerank import HttpReranker, Reranker, Shape
from rag.retrieval.cache import ResultCache, open_result_cache
from rag.retrieval.recall import recall_sampler
from rag.retrieval.search import Retriever
from rag.settings import Settings
from rag.telemetry import telemetry
from sql import load_queries

__all__ = ["CONNECTIONS", "Runtime", "first_of_ours", "http_client", "open_runtime", "run_process", "token_issuer"]

_log = logging.getLogger(__name__)
_QUERIES = load_queries("models")
CONNECTIONS = 100
"""Of one HTTP client at a time."""
KEPT_IDLE_S = 2.0
"""uvicorn, and vLLM with it, closes what was idle for 5 seconds, as httpx would: a request that meets that end may have
been read, so that a model call would be paid for and lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """What a process of ours works with."""

    settings: Settings
    database: Database
    embedders: Embedders
    retriever: Retriever
    limiter: Limiter
    audit: AuditLog
    verifier: VerifiedTokens
    cursor_key: bytes = field(repr=False)
    """Signs paging cursors; the same on every replica."""
    clock: Clock
    wakeups: Wakeups
    """Of the channels that the process asked to listen to; without any nobody is woken."""
    stopping: anyio.Event = field(default_factory=anyio.Event)
    """Set, and everybody woken, when the process is told to end: whoever waits answers with what there is."""


def first_of_ours(exc: BaseException) -> BulkheadError | None:
    """Return the error of ours that `exc` is or wraps, to be told in one line; None where there is a defect in it."""
    # task groups wrap what their children raise; a defect beside an error of ours must not be hidden by it
    if isinstance(exc, BaseExceptionGroup):
        found = [first_of_ours(child) for child in exc.exceptions]
        return found[0] if all(found) else None
    if isinstance(exc, OSError) and exc.strerror:  # what the network raises is ours by now: this is a file or the disk
        return Misconfigured(f"{exc.filename or 'the file system'}: {exc.strerror}; mend it, or choose another path")
    return exc if isinstance(exc, BulkheadError) else None


def run_process(service: str, serve: Callable[[Settings], Awaitable[None]]) -> None:
    """Run one process of ours to its end: settings from the environment, JSON logs, spans, an event loop.

    A refusal to start is one line on standard error and status 1; a defect keeps its traceback.
    """
    try:
        settings = Settings.from_process()
        with telemetry(settings, service=service):
            anyio.run(serve, settings, backend_options={"use_uvloop": True})
    except (BulkheadError, OSError, BaseExceptionGroup) as exc:
        refusal = first_of_ours(exc)
        if not isinstance(refusal, Misconfigured | Unavailable):
            raise
        sys.exit(f"{refusal.code}: {refusal.message}")


@asynccontextmanager
async def open_runtime(
    settings: Settings,
    *,
    audience: Audience,
    application: str,
    embeds: bool = True,
    claims: bool = False,
    listens: Sequence[str] = (),
    clock: Clock = system_clock,
) -> AsyncGenerator[Runtime]:
    """Open everything that a process which serves tenants needs, and close it when the block ends.

    A process that never embeds says so and is spared the models: its embedders refuse. `claims` is the worker. With
    channels that it `listens` to, a connection is held for `Runtime.wakeups`.

    Raises:
        Misconfigured: A setting is missing, the database login is too powerful, the schema or a model does not fit.
        Unavailable: The database is not reachable.
    """
    if settings.database_url is None or settings.seal_keys_file is None:
        raise Misconfigured("a server needs BULKHEAD_DATABASE_URL and BULKHEAD_SEAL_KEYS_FILE; `bulkhead up` sets both")
    _check_tls(settings)
    keys = load_seal_keys(settings.seal_keys_file)
    public_keys = load_public_keys(settings.certs_dir)
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(
            open_database(
                settings.database_url,
                sealer=Sealer(keys=keys, clock=clock),
                pool_size=settings.pool_size,
                application=application,
                # a worker that stands still in a transaction holds its run's row, and its lease is no use to others
                idle_in_transaction_s=settings.lease_s if claims else IDLE_IN_TRANSACTION_S,
            )
        )
        await check_role(database, claims=claims)
        embedders = await _embedders(stack, database, settings, embeds=embeds)
        per_minute = settings.request_limit_per_minute
        share = settings.mcp_workers if audience is Audience.MCP else 1
        tiers = TierCache(database) if per_minute is None else one_rate(per_minute)
        limiter = await stack.enter_async_context(open_limiter(settings, tiers, share=share))
        # connections of its own: an answer must not wait for its entry until somebody's slow statement has ended
        writers = max(1, settings.pool_size // 2)
        pen = await stack.enter_async_context(
            open_database(
                settings.database_url,
                sealer=database.sealer,
                pool_size=writers,
                application=f"{application}-audit",
            )
        )
        audit = await stack.enter_async_context(
            open_audit(pen, keys=keys, connections=writers, all_durable=settings.audit_durability == "all")
        )
        verifier = TokenVerifier(
            keys=public_keys,
            issuer=settings.issuer,
            audience=audience,
            # the worker lets nobody in
            external=None if claims else await _external_issuer(stack, settings, audience, clock),
            clock=clock,
        )
        wakeups = Wakeups()
        if listens:
            listening = listener(database.dsn, listens, application=f"{application}-listen")
            wakeups = await stack.enter_async_context(listening)
        yield Runtime(
            settings=settings,
            database=database,
            embedders=embedders,
            retriever=Retriever(
                database=database,
                embedders=embedders,
                cache=await _result_cache(stack, settings, keys),
                reranker=await _reranker(stack, settings),
                recall=await stack.enter_async_context(recall_sampler(database)) if embeds else None,
            ),
            limiter=limiter,
            audit=audit,
            verifier=VerifiedTokens(verifier, clock=clock),
            cursor_key=_cursor_key(keys),
            clock=clock,
            wakeups=wakeups,
        )


def token_issuer(settings: Settings, *, clock: Clock = system_clock) -> TokenIssuer:
    """Return the issuer of this installation: the CLI's, and the worker's for exchanged tokens.

    Raises:
        Misconfigured: There is no usable signing key.
    """
    return TokenIssuer(signing_key=load_signing_key(settings.certs_dir), issuer=settings.issuer, clock=clock)


def http_client(settings: Settings, *, connections: int = CONNECTIONS) -> httpx.AsyncClient:
    """Return a client that trusts the system's authorities and, if configured, the installation's own.

    It opens up to `connections` at a time, and keeps as many for the next request.

    Raises:
        Misconfigured: The authority's file cannot be used.
    """
    context = ssl.create_default_context()
    if settings.ca_certificate is not None:
        try:
            context.load_verify_locations(cafile=str(settings.ca_certificate))
        except OSError as exc:  # ssl.SSLError is one
            raise Misconfigured("BULKHEAD_CA_CERTIFICATE does not name a readable file of PEM certificates") from exc
    limits = httpx.Limits(
        max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=KEPT_IDLE_S
    )
    # shared by all tenants' calls: what a server says to one of them is sent back with none
    no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=[]))
    return httpx.AsyncClient(verify=context, limits=limits, cookies=no_cookies)


def _check_tls(settings: Settings) -> None:
    """Refuse files that the HTTP server would otherwise stumble over, with a traceback, once everything is open."""
    if settings.tls_certificate is None or settings.tls_key is None:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.tls_certificate, settings.tls_key)
    except OSError as exc:
        raise Misconfigured(
            "BULKHEAD_TLS_CERTIFICATE and BULKHEAD_TLS_KEY do not name a readable PEM certificate and its key"
        ) from exc


class _NoEmbedder:
    """Satisfies `rag.llm.ports.Embedder` in a process that was opened without one."""

    def __init__(self, model: ConfiguredModel) -> None:
        self.model = model.name
        self.dimension = model.dimension

    async def embed(self, texts: Sequence[str]) -> Vectors:
        del texts
        raise EmbedderUnavailable("this process embeds nothing")

    async def aclose(self) -> None:
        """Nothing is open."""


async def _embedders(stack: AsyncExitStack, database: Database, settings: Settings, *, embeds: bool) -> Embedders:
    default, *others = configured_models(settings)
    async with database.unsafe_unscoped(reason="models belong to no tenant") as session:
        rows = await session.fetch(_QUERIES["list_models"])
    ids = {(str(row["name"]), int(row["dimension"])): int(row["model_id"]) for row in rows}
    by_id: dict[int, Embedder] = {}
    for model in (default, *others):
        model_id = ids.get((model.name, model.dimension))
        if model_id is None:
            raise Misconfigured(
                f"the database does not know the embedding model {model.name} with {model.dimension} dimensions; "
                "run `bulkhead migrate`"
            )
        by_id[model_id] = (
            await _embedder(stack, settings, model, first=model is default) if embeds else _NoEmbedder(model)
        )
    return Embedders(by_id=by_id, default_id=ids[default.name, default.dimension])


async def _embedder(stack: AsyncExitStack, settings: Settings, model: ConfiguredModel, *, first: bool) -> Embedder:
    if model.url is None:
        built_in = load_minilm if first else DeferredMiniLm
        embedder = built_in(threads=settings.embedder_threads)
        if (embedder.model, embedder.dimension) != (model.name, model.dimension):
            raise Misconfigured(
                f"without BULKHEAD_EMBEDDINGS_URL the model is {embedder.model} with {embedder.dimension} dimensions; "
                "unset BULKHEAD_EMBEDDINGS_MODEL and BULKHEAD_EMBEDDINGS_DIMENSION, or set the URL"
            )
        stack.push_async_callback(embedder.aclose)
        return embedder
    client = await stack.enter_async_context(http_client(settings))
    remote = OpenAiEmbedder(
        client=client, base_url=model.url, model=model.name, dimension=model.dimension, api_key=model.api_key
    )
    try:
        await remote.check()
    except Misconfigured as exc:
        raise Misconfigured(f"{model.name}: {exc.message}") from exc
    except EmbedderUnavailable:
        # a wrong model is refused at start, an absent one is not: until it is back, the lexical leg answers alone
        _log.warning("an embedding server does not answer; searches that need it are lexical until it does")
    return remote


async def _result_cache(stack: AsyncExitStack, settings: Settings, keys: SealKeys) -> ResultCache | None:
    if settings.search_cache == "off":
        return None
    secret = hmac.digest(keys.keys[keys.active], b"bulkhead result cache v1", "sha256")
    return await stack.enter_async_context(
        open_result_cache(redis_url=settings.redis_url, secret=secret, installation=settings.issuer)
    )


async def _reranker(stack: AsyncExitStack, settings: Settings) -> Reranker | None:
    if settings.rerank_url is None:
        return None
    return HttpReranker(
        client=await stack.enter_async_context(http_client(settings)),
        base_url=settings.rerank_url,
        shape=Shape(settings.rerank_shape),
        model=settings.rerank_model,
        api_key=settings.rerank_api_key,
    )


async def _external_issuer(
    stack: AsyncExitStack, settings: Settings, audience: Audience, clock: Clock
) -> ExternalIssuer | None:
    if settings.external_issuer is None or settings.jwks_url is None:
        return None
    client = await stack.enter_async_context(http_client(settings))
    fetch = partial(fetch_jwks, client, settings.jwks_url)
    return ExternalIssuer(
        issuer=settings.external_issuer,
        audience=settings.external_mcp_audience if audience is Audience.MCP else settings.external_a2a_audience,
        keys=await stack.enter_async_context(remote_keys(fetch, keep_s=settings.jwks_keep_s, clock=clock)),
        names=ClaimNames(
            tenant=settings.tenant_claim,
            groups=settings.groups_claim,
            team=settings.team_claim,
            token_id=settings.token_id_claim,
        ),
    )


def _cursor_key(keys: SealKeys) -> bytes:
    # its own key by purpose, so that neither can be used as the other's oracle
    return hmac.digest(keys.keys[keys.active], b"bulkhead cursor v1", "sha256")
