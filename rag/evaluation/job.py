"""One evaluation on an open installation: whose tenant, what is loaded, what is asked, what is cleaned up.

Above: the command line. Below: the rest of this package, `rag.runtime`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio

from rag.corpus.store import pending_embeddings
from rag.db.pool import Database, open_database
from rag.errors import InvalidInput, Misconfigured
from rag.evaluation.collection import Collection, corpus_file, read_documents
from rag.evaluation.evaluate import LATENCY_CHUNKS, LATENCY_QUESTIONS, evaluate, legs_json
from rag.evaluation.legs import DEPTH, Searcher
from rag.evaluation.load import Loaded, Progress, compact_all, embed_all, put_all, remove_all, remove_others, sources_of
from rag.evaluation.scratch import scratch_tenant
from rag.evaluation.tuning import Tuning, enough, tune, tuning_json
from rag.identity.principal import Principal
from rag.identity.scopes import Audience, Scope
from rag.retrieval.search import Retriever
from rag.retrieval.values import DEFAULT_WEIGHTS
from rag.runtime import Runtime, token_issuer
from rag.tenants.operator import Operator, Tenant

__all__ = ["Job", "Outcome", "run_job"]

SUBJECT = "bulkhead-eval"
TOKEN_LIFETIME_S = 24 * 3600.0
"""Longer than any evaluation; the database checks the revocation list in each transaction all the same."""
CLEAN_UP_BOUND_S = 600.0
MAX_SHOWN_CHARS = 40
APPLICATION = "bulkhead-eval"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is to be done."""

    collection: Collection
    tenant: str | None = None
    """Name or id of a loaded tenant. None: the collection's documents go into a scratch tenant."""
    keep: bool = False
    """Leave the documents in the scratch tenant."""
    tune: bool = False
    phrases: bool = False
    """Quotes in a question ask for a phrase."""
    store: bool = False
    """Give the tenant the weights that tuning found, if they are safe."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came out."""

    tenant: Tenant
    tuning: Tuning | None
    report: dict[str, object]
    """The JSON of `--json` without the fields that the command line knows itself."""
    notes: tuple[str, ...]
    """What a reader of the numbers must know about them."""


async def run_job(runtime: Runtime, operator: Operator, job: Job, *, progress: Progress) -> Outcome:
    """Load if need be, ask, measure, tune if asked, and clean up, also when this is interrupted.

    Raises:
        InvalidInput: The collection is malformed, has no documents, too few questions for tuning, or is not what the
            tenant holds.
        NotFound: There is no such tenant.
        Misconfigured: BULKHEAD_WORKER_DATABASE_URL is missing where documents have to be embedded.
        Conflict: Too many evaluations of this collection are running.
        Unavailable: The database or the embedder failed.
    """
    if job.tune:
        enough(len(job.collection.questions))
    if job.tenant is not None:
        tenant = await operator.find_tenant(job.tenant)
        outcome = await _measured(runtime, tenant, job, None, progress)
        if job.store and outcome.tuning is not None and outcome.tuning.safe:
            await operator.set_weights(tenant.tenant_id, outcome.tuning.weights)
        return outcome
    if corpus_file(job.collection.folder) is None:
        raise InvalidInput(
            f"there is no corpus.jsonl and no corpus.jsonl.gz in {job.collection.name}; "
            "name the tenant that holds the documents with --tenant"
        )
    locks = runtime.settings.data_dir / "eval"
    await anyio.Path(locks).mkdir(parents=True, exist_ok=True)
    async with (
        scratch_tenant(operator, job.collection.name, locks=Path(locks)) as tenant,
        _loaded(runtime, tenant, job, progress) as loaded,
    ):
        return await _measured(runtime, tenant, job, loaded, progress)


@asynccontextmanager
async def _loaded(runtime: Runtime, tenant: Tenant, job: Job, progress: Progress) -> AsyncGenerator[Loaded]:
    """Make the tenant hold exactly the collection's documents, embedded; empty it at the end unless it is kept."""
    principal = await _principal(runtime, tenant)
    try:
        async with _worker(runtime) as worker:
            documents = read_documents(job.collection.folder)
            loaded = await put_all(runtime.database, principal, documents, progress=progress)
            # of an earlier run that was kept or killed
            await remove_others(runtime.database, principal, loaded.sources, progress=progress)
            await embed_all(runtime.database, worker, runtime.embedders, principal, progress=progress)
            await compact_all(worker, progress=progress)
        yield loaded
    finally:
        if not job.keep:
            with anyio.fail_after(CLEAN_UP_BOUND_S, shield=True):
                await remove_all(runtime.database, principal, progress=progress)


async def _measured(runtime: Runtime, tenant: Tenant, job: Job, loaded: Loaded | None, progress: Progress) -> Outcome:
    principal = await _principal(runtime, tenant)
    collection = job.collection
    present = loaded.sources if loaded else {source async for source in sources_of(runtime.database, principal)}
    missing = _missing(collection, present)
    waiting = await pending_embeddings(runtime.database, principal)
    searcher = Searcher(retriever=_retriever(runtime), principal=principal, phrases=job.phrases)
    evaluation = await evaluate(searcher, collection, progress=progress)
    tuning = await tune(searcher, collection, progress=progress) if job.tune else None
    refusals = dict(loaded.refused) if loaded else {}
    report: dict[str, object] = {
        "collection": collection.name,
        **legs_json(evaluation),
        "documents": {
            "stored": len(present),
            "refused": len(refusals),
            "chunks": loaded.chunks if loaded else None,
            "relevant_but_missing": missing,
        },
        "tenant": tenant.name,
        "settings": _settings(runtime, tenant, collection),
    }
    if tuning is not None:
        report["tuning"] = tuning_json(tuning)
    degraded = sum(result.degraded for result in evaluation.legs.values())
    refused = max(result.refused for result in evaluation.legs.values())
    found = {
        f"{collection.unknown} judged queries are not in the file of queries: they were not asked": collection.unknown,
        f"{missing} relevant documents are not in the tenant": missing,
        f"{waiting} documents still wait for vectors": waiting,
        f"{degraded} searches were answered without vectors: the embedder was too slow": degraded,
        f"{refused} questions are such as the search refuses, and count as 0": refused,
        f"{len(refusals)} documents were refused: {_first(refusals)}": len(refusals),
    }
    return Outcome(tenant=tenant, tuning=tuning, report=report, notes=tuple(note for note, so in found.items() if so))


def _first(refusals: Mapping[str, str]) -> str:
    """Return one of the refusals as an example, the same on every run."""
    source = min(refusals, default="")
    shown = source if len(source) <= MAX_SHOWN_CHARS else source[: MAX_SHOWN_CHARS - 1] + "…"
    return f"{shown}: {refusals.get(source)}"


def _missing(collection: Collection, present: set[str]) -> int:
    relevant = {
        document for grades in collection.judgements.values() for document, grade in grades.items() if grade > 0
    }
    missing = len(relevant - present)
    if missing == len(relevant):
        raise InvalidInput(
            "the tenant holds none of the relevant documents: the judgements must name documents by their source"
        )
    return missing


def _settings(runtime: Runtime, tenant: Tenant, collection: Collection) -> dict[str, object]:
    return {
        "split": collection.split,
        "language": tenant.language,
        "default_weights": {"bm25_weight": DEFAULT_WEIGHTS[0], "vector_weight": DEFAULT_WEIGHTS[1]},
        "embedding_model": runtime.embedders.default.model,
        "embedder_threads": None if runtime.settings.embeddings_url else runtime.settings.embedder_threads,
        "depth": DEPTH,
        "latency": {"concurrency": 1, "limit": LATENCY_CHUNKS, "questions_at_most": LATENCY_QUESTIONS},
    }


def _retriever(runtime: Runtime) -> Retriever:
    """Return the search of this installation without a cache: what is measured is the search."""
    return Retriever(database=runtime.database, embedders=runtime.embedders)


async def _principal(runtime: Runtime, tenant: Tenant) -> Principal:
    token = token_issuer(runtime.settings, clock=runtime.clock).issue(
        tenant_id=tenant.tenant_id,
        subject=SUBJECT,
        audience=Audience.MCP,
        scopes=[Scope.CORPUS_READ, Scope.CORPUS_WRITE],
        lifetime_s=TOKEN_LIFETIME_S,
    )
    return await runtime.verifier.verify(token)


@asynccontextmanager
async def _worker(runtime: Runtime) -> AsyncGenerator[Database]:
    url = runtime.settings.worker_database_url
    if url is None:
        raise Misconfigured("embedding a collection needs BULKHEAD_WORKER_DATABASE_URL, or a loaded tenant: --tenant")
    async with open_database(url, sealer=None, pool_size=3, application=f"{APPLICATION}-embed") as database:
        yield database
