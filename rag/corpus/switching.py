"""A tenant changes its embedding model here: step by step, beside its searches, by any number of workers.

Above: `embedding`, which runs it in the worker. Below: `vectors`, `rag.db` and the functions of
sql/migrations/0012_embedding_models.sql. A step takes the next chunks that have a vector of the old model alone and
makes the new one; when there are none left it switches, and once searches have moved over it deletes the old vectors,
some at a time. A crash loses one step: what it had taken is found missing at the end, and the walk begins again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import anyio

from rag.corpus.vectors import BATCH_CHUNKS, embed_chunks, hold_models, store_vectors
from rag.db.listener import Subscription
from rag.db.pool import Database, Row, Session
from rag.errors import BulkheadError, EmbedderUnavailable
from rag.llm.embedders import Embedders
from sql import load_queries

__all__ = ["PACE", "Pace", "run_switches", "switch_due"]

_log = logging.getLogger(__name__)
_QUERIES = load_queries("models")
_REASON = "the queue of changing tenants belongs to no tenant; it hands out a seal"
SWEEP = 2000
"""Vectors deleted in one transaction."""
IDLE_S = 5.0
"""Without a wake-up the queue is looked at this often."""
PAUSE_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """When a step is not followed by the next at once; seconds."""

    grace_s: float = 60.0
    """From the switch to the first deletion. Searches in flight keep their snapshot and need none of it; a tenant that
    changes its mind goes back without embedding anything."""
    missing_s: float = 1.0
    """Until the walk begins again: what is missing is mostly on its way in another worker."""
    graph_s: float = 5.0
    """Between two looks for the graph that a large tenant's switch waits for."""


PACE = Pace()


async def run_switches(database: Database, embedders: Embedders, woken: Subscription, pace: Pace) -> None:
    """Take every step that is due, until cancelled; failures are logged and slow the loop down."""
    while True:
        try:
            busy = await switch_due(database, embedders, pace=pace)
        except EmbedderUnavailable as exc:
            # the step put itself off, later and later; other tenants' models may be well
            _log.warning("filling another embedding model comes to nothing for now: %s", exc.code)
            continue
        except BulkheadError as exc:
            _log.warning("changing embedding models pauses for %.0f s: %s", PAUSE_S, exc.code)
            await anyio.sleep(PAUSE_S)
            continue
        if not busy:
            await woken.wait(timeout_s=IDLE_S)


async def switch_due(database: Database, embedders: Embedders, *, pace: Pace = PACE) -> bool:
    """Take one step of the tenant that has waited longest; False when none is due.

    Raises:
        EmbedderUnavailable: The new model failed, or this process is not configured for it; the step comes back later.
        Unavailable: The database failed.
    """
    async with database.unsafe_unscoped(reason=_REASON) as session:
        seal = await session.fetch_value(_QUERIES["claim_switch"])
    if seal is None:
        return False
    async with database.sealed(seal) as session:
        taken = await _take(session, embedders, pace)
    if taken is None:
        return True
    model_id, chunks = taken
    try:
        vectors = await embed_chunks(embedders.get(model_id), chunks)
    except EmbedderUnavailable:
        async with database.sealed(seal) as session:
            await session.fetch(_QUERIES["fail_switch"], after=chunks[0]["chunk_id"] - 1)
        raise
    async with database.sealed(seal) as session:
        document_ids = {row["document_id"] for row in chunks}
        await session.fetch(_QUERIES["hold_documents"], document_ids=list(document_ids))
        await store_vectors(session, embedders, chunks, {model_id: vectors})
    return True


async def _take(session: Session, embedders: Embedders, pace: Pace) -> tuple[int, Sequence[Row]] | None:
    """Return the model to fill and the chunks taken for it; None where the step was another one, and is done."""
    after = await session.fetch_value(_QUERIES["hold_switch"])
    if after is None:  # another worker took the last step meanwhile
        return None
    models = await hold_models(session, embedders)
    if models.next is None:
        if not await session.fetch_value(_QUERIES["sweep_vectors"], wanted=SWEEP):
            await session.fetch(_QUERIES["finish_switch"])
        return None
    chunks = await session.fetch(
        _QUERIES["list_unfilled"], active=models.active, next=models.next, after=after, wanted=BATCH_CHUNKS
    )
    if chunks:
        await session.fetch(_QUERIES["move_switch"], after=chunks[-1]["chunk_id"], delay_s=0.0)
        return models.next, chunks
    match await session.fetch_value(_QUERIES["switch_model"]):
        case "switched":
            _log.info("a tenant's embedding model was changed")
            await session.fetch(_QUERIES["move_switch"], after=0, delay_s=pace.grace_s)
        case "graph":
            await session.fetch(_QUERIES["move_switch"], after=after, delay_s=pace.graph_s)
        case _:
            await session.fetch(_QUERIES["move_switch"], after=0, delay_s=pace.missing_s)
    return None
