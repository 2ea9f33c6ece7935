"""Vectors follow the text here: a background loop that takes documents off the queue and embeds their chunks.

Above: the processes that run it (the worker, `bulkhead up`). Below: `rag.db` and an `Embedder`. No transaction is open
during inference. Everything may be done twice and nothing is lost: a document leaves the queue when no chunk of it is
without a vector, and a crash only lets its lease run out.
"""

from __future__ import annotations

import logging
from uuid import UUID

import anyio

from rag.db.listener import Wakeups
from rag.db.pool import Database, Row
from rag.db.vectors import halfvec
from rag.errors import BulkheadError, Unavailable
from rag.llm.ports import Embedder
from rag.telemetry import log_fields
from sql import load_queries

__all__ = ["EMBEDDING_CHANNEL", "embed_due", "embedding_input", "run_embedder"]

_log = logging.getLogger(__name__)
_QUERIES = load_queries("corpus")
_REASON = "the queue of chunks without vectors belongs to no tenant; it hands out ids and a seal"
EMBEDDING_CHANNEL = "bulkhead_embedding"
CLAIM = 8
LEASE_S = 30.0
"""A claimed document is offered to others after this; twice as long after each failed attempt."""
BATCH_CHUNKS = 32
"""Chunks per inference: some tenths of a second on one core, after which a waiting query has its turn."""
EMBED_TIMEOUT_S = 60.0
IDLE_S = 1.0
"""Without a wake-up the queue is looked at this often: leases run out and retries come due in silence."""
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0


async def run_embedder(database: Database, embedder: Embedder, model_id: int, *, wakeups: Wakeups) -> None:
    """Embed what comes, until cancelled. Failures are logged, and slow the loop down; they never end it.

    `wakeups` should listen to EMBEDDING_CHANNEL; without notifications the loop polls.
    """
    pause_s = FIRST_PAUSE_S
    with wakeups.subscribe(EMBEDDING_CHANNEL) as woken:
        while True:
            try:
                # after a failure one document is risked, not eight: each claim makes its next one later
                done = await embed_due(database, embedder, model_id, claim=CLAIM if pause_s == FIRST_PAUSE_S else 1)
            except BulkheadError as exc:
                _log.warning("embedding pauses for %.0f s: %s", pause_s, exc.code)
                await anyio.sleep(pause_s)
                pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
                continue
            pause_s = FIRST_PAUSE_S
            if done == 0:
                await woken.wait(timeout_s=IDLE_S)


async def embed_due(database: Database, embedder: Embedder, model_id: int, *, claim: int = CLAIM) -> int:
    """Embed up to `claim` documents that are due, and return how many were.

    Raises:
        EmbedderUnavailable: The model failed; what was claimed comes back later.
        Unavailable: The database failed.
    """
    async with database.unsafe_unscoped(reason=_REASON) as session:
        claimed = await session.fetch(_QUERIES["claim_embeddings"], wanted=claim, lease_s=LEASE_S)
    for row in claimed:
        with log_fields(document=str(row["document_id"])):
            await _embed_document(database, embedder, model_id, document_id=row["document_id"], seal=row["seal"])
    return len(claimed)


def embedding_input(title: str, text: str) -> str:
    """Return what stands for a chunk before the model: its document's title and its text, as collections like BEIR do.

    A chunk from the middle of a section often does not name what it is about; its title does.
    """
    return text if text.lstrip("# ").startswith(title) else f"{title}\n{text}"


async def _embed_document(
    database: Database, embedder: Embedder, model_id: int, *, document_id: UUID, seal: str
) -> None:
    while chunks := await _unembedded(database, model_id, document_id=document_id, seal=seal):
        try:
            with anyio.fail_after(EMBED_TIMEOUT_S):
                vectors = await embedder.embed([embedding_input(row["title"], row["text"]) for row in chunks])
        except TimeoutError as exc:
            raise Unavailable("the embedding model took too long") from exc
        async with database.sealed(seal) as session:
            await session.fetch(_QUERIES["hold_document"], document_id=document_id)
            await session.fetch(
                _QUERIES["store_vectors"],
                model_id=model_id,
                chunk_ids=[row["chunk_id"] for row in chunks],
                vectors=[halfvec(vector) for vector in vectors],
            )


async def _unembedded(database: Database, model_id: int, *, document_id: UUID, seal: str) -> list[Row]:
    """Return the next chunks without a vector; when there are none, the document leaves the queue.

    The document is held meanwhile: a put that committed between the look and the leaving would lose its place in the
    queue. A document that is gone left the queue when it was deleted; if it comes again, so will a claim.
    """
    async with database.sealed(seal) as session:
        if not await session.fetch(_QUERIES["hold_document"], document_id=document_id):
            return []
        chunks = await session.fetch(
            _QUERIES["list_unembedded"], document_id=document_id, model_id=model_id, wanted=BATCH_CHUNKS
        )
        if not chunks:
            await session.fetch(_QUERIES["finish_embedding"], document_id=document_id)
    return chunks
