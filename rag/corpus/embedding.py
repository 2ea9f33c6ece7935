"""Vectors follow the text here: a background loop that takes documents off the queue and embeds their chunks.

Above: the processes that run it (the worker, `bulkhead up`). Below: `vectors` and, beside it, `switching`, which fills
another model's vectors for what is stored already. Everything may be done twice and nothing is lost: a document leaves
the queue when no chunk of it is without a vector of its tenant's model, and a crash only lets its lease run out.
"""

from __future__ import annotations

import logging
from uuid import UUID

import anyio

from rag.corpus.switching import PACE, Pace, run_switches
from rag.corpus.vectors import (
    BATCH_CHUNKS,
    Outages,
    TenantModels,
    embed_chunks,
    embedding_input,
    hold_models,
    store_vectors,
)
from rag.db.listener import Wakeups
from rag.db.pool import Database, Row
from rag.errors import BulkheadError, EmbedderUnavailable
from rag.llm.embedders import Embedders
from rag.llm.ports import Vectors
from rag.telemetry import log_fields
from sql import load_queries

__all__ = ["EMBEDDING_CHANNEL", "embed_due", "embedding_input", "run_embedder"]

_log = logging.getLogger(__name__)
_QUERIES = load_queries("corpus")
_MODELS = load_queries("models")
_REASON = "the queue of chunks without vectors belongs to no tenant; it hands out ids and a seal"
EMBEDDING_CHANNEL = "bulkhead_embedding"
CLAIM = 8
LEASE_S = 30.0
"""A claimed document is offered to others after this; twice as long after each failed attempt."""
IDLE_S = 1.0
"""Without a wake-up the queue is looked at this often: leases run out and retries come due in silence."""
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0


async def run_embedder(database: Database, embedders: Embedders, *, wakeups: Wakeups, pace: Pace = PACE) -> None:
    """Embed what comes, and change tenants' models where that is asked for, until cancelled.

    Failures are logged, and slow the loops down; they never end them. `wakeups` should listen to EMBEDDING_CHANNEL;
    without notifications the loops poll.
    """
    with wakeups.subscribe(EMBEDDING_CHANNEL) as woken, wakeups.subscribe(EMBEDDING_CHANNEL) as woken_too:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run_switches, database, embedders, woken_too, pace)
            outages = Outages()
            pause_s = FIRST_PAUSE_S
            while True:
                try:
                    # after a failure one document is risked, not eight: each claim makes its next one later
                    claim = CLAIM if pause_s == FIRST_PAUSE_S else 1
                    done = await embed_due(database, embedders, claim=claim, outages=outages)
                except BulkheadError as exc:
                    _log.warning("embedding pauses for %.0f s: %s", pause_s, exc.code)
                    await anyio.sleep(pause_s)
                    pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
                    continue
                pause_s = FIRST_PAUSE_S
                if done == 0:
                    await woken.wait(timeout_s=IDLE_S)


async def embed_due(
    database: Database, embedders: Embedders, *, claim: int = CLAIM, outages: Outages | None = None
) -> int:
    """Embed up to `claim` documents that are due, each with its tenant's model, and return how many were embedded.

    A model that fails is not asked again until it has rested; what was claimed for it comes back later, and documents
    of tenants with other models go on.

    Args:
        database: Of the login that may claim.
        embedders: The models of this process.
        claim: Documents at most.
        outages: Which models rest, between calls. None: all may be asked.

    Raises:
        EmbedderUnavailable: No document was embedded, and a model failed.
        Unavailable: The database failed.
    """
    outages = outages or Outages()
    async with database.unsafe_unscoped(reason=_REASON) as session:
        claimed = await session.fetch(_QUERIES["claim_embeddings"], wanted=claim, lease_s=LEASE_S)
    failures: list[EmbedderUnavailable] = []
    done = 0
    for row in claimed:
        with log_fields(document=str(row["document_id"])):
            done += await _embed_document(
                database, embedders, row["seal"], row["document_id"], outages=outages, failures=failures
            )
    if failures and done == 0:
        raise failures[0]
    if failures:
        _log.warning("some documents wait for their embedding model: %s", failures[0].code)
    return done


async def _embed_document(
    database: Database,
    embedders: Embedders,
    seal: str,
    document_id: UUID,
    *,
    outages: Outages,
    failures: list[EmbedderUnavailable],
) -> bool:
    """Return whether the document is done with; add to `failures` what went wrong."""
    while True:
        models, chunks = await _unembedded(database, embedders, document_id=document_id, seal=seal)
        if not chunks:
            return True
        rest_s = outages.rest_s(models.active)
        if rest_s > 0:
            async with database.sealed(seal) as session:
                await session.fetch(_MODELS["postpone_embedding"], document_id=document_id, delay_s=rest_s)
            return False
        vectors: dict[int, Vectors] = {}
        # what is being filled gets the vectors of new text at once, or it would never catch up with steady writers
        for model_id in (models.active, models.next):
            if model_id is None or outages.rest_s(model_id) > 0:
                continue
            try:
                vectors[model_id] = await embed_chunks(embedders.get(model_id), chunks)
            except EmbedderUnavailable as exc:
                outages.failed(model_id)
                failures.append(exc)
            else:
                outages.answered(model_id)
        if vectors:
            async with database.sealed(seal) as session:
                await session.fetch(_QUERIES["hold_document"], document_id=document_id)
                await store_vectors(session, embedders, chunks, vectors)
        if models.active not in vectors:
            return False


async def _unembedded(
    database: Database, embedders: Embedders, *, document_id: UUID, seal: str
) -> tuple[TenantModels, list[Row]]:
    """Return the next chunks without a vector of the tenant's model; without any, the document leaves the queue.

    The document is held meanwhile: a put that committed between the look and the leaving would lose its place in the
    queue. A document that is gone left the queue when it was deleted; if it comes again, so will a claim.
    """
    async with database.sealed(seal) as session:
        held = await session.fetch(_QUERIES["hold_document"], document_id=document_id)
        models = await hold_models(session, embedders)
        if not held:
            return models, []
        chunks = await session.fetch(
            _QUERIES["list_unembedded"], document_id=document_id, model_id=models.active, wanted=BATCH_CHUNKS
        )
        if not chunks:
            await session.fetch(_QUERIES["finish_embedding"], document_id=document_id)
    return models, chunks
