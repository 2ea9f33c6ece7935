"""Tenants with many vectors, and the maintenance of their graphs, for tests that ask nothing of texts or models.

Above: the tests of vector indexes and their recall. The vectors are clustered, as those of real texts are, and random.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rag.db.maintenance import MaintenanceSession, open_maintenance
from rag.db.pool import Database
from rag.db.vectors import halfvec
from rag.identity.principal import Principal
from sql import Query, load_queries
from tests.support.world import World

__all__ = ["DIMENSION", "clustered", "dense_search", "fill", "maintenance"]

DIMENSION = 384
MODEL = 1
CHUNKS_PER_DOCUMENT = 100
BATCH = 2_000
Matrix = NDArray[np.float32]
# three statements: a row's policy sees what stood before its statement, and a chunk needs its document
_DOCUMENTS = Query(
    name="documents",
    description="Documents of one-word chunks, as one write.",
    text="""
    with document as (
        insert into rag.document (
            tenant_id, document_id, source, title, media_type, content_hash, text, chunks, ordinal, audience
        )
        select rag.current_tenant(), gen_random_uuid(), gen_random_uuid()::text, 'V', 'text/plain', '', 'v', c.chunks,
            nextval('rag.ordinal_seq'), 0
        from unnest($1::integer[]) as c (chunks)
        returning document_id, ordinal, chunks
    ),
    change as (
        insert into rag.corpus_change (tenant_id, audience, chunks, terms, writes)
        select rag.current_tenant(), 0, sum(d.chunks), sum(d.chunks), count(*) from document d
    )
    select d.document_id, d.ordinal, d.chunks from document d order by d.ordinal
    """,
    parameters=("chunks",),
)
_CHUNKS = Query(
    name="chunks",
    description="The chunks of those documents.",
    text="""
    insert into rag.chunk (tenant_id, chunk_id, document_id, number, start_char, end_char, heading, text, audience)
    select rag.current_tenant(), c.chunk_id, c.document_id, c.chunk_id & 1048575, 0, 1, '', 'v', 0
    from unnest($1::uuid[], $2::bigint[]) as c (document_id, chunk_id)
    """,
    parameters=("documents", "chunks"),
)
_VECTORS = Query(
    name="vectors",
    description="Their vectors.",
    text="""
    insert into rag.embedding (tenant_id, model_id, chunk_id, document_id, vector, audience)
    select rag.current_tenant(), 1, c.chunk_id, c.document_id, c.vector, 0
    from unnest($1::uuid[], $2::bigint[], $3::public.halfvec[]) as c (document_id, chunk_id, vector)
    """,
    parameters=("documents", "chunks", "vectors"),
)
_SEARCH = load_queries("retrieval")["search"]


def clustered(count: int, *, seed: int, clusters: int = 64) -> Matrix:
    """Return unit vectors around some centres."""
    chance = np.random.default_rng(seed)
    centres = chance.normal(size=(clusters, DIMENSION))
    found = centres[chance.integers(clusters, size=count)] + 0.7 * chance.normal(size=(count, DIMENSION))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


async def fill(database: Database, principal: Principal, vectors: Matrix) -> None:
    """Give the tenant a chunk for each vector."""
    for start in range(0, len(vectors), BATCH):
        async with database.tenant(principal) as session:
            batch = [halfvec(vector) for vector in vectors[start : start + BATCH]]
            counts = [min(CHUNKS_PER_DOCUMENT, len(batch) - at) for at in range(0, len(batch), CHUNKS_PER_DOCUMENT)]
            placed = [
                (row["document_id"], row["ordinal"] << 20 | number)
                for row in await session.fetch(_DOCUMENTS, chunks=counts)
                for number in range(row["chunks"])
            ]
            documents, chunks = [document for document, _ in placed], [chunk for _, chunk in placed]
            await session.fetch(_CHUNKS, documents=documents, chunks=chunks)
            await session.fetch(_VECTORS, documents=documents, chunks=chunks, vectors=batch)


async def dense_search(
    database: Database, principal: Principal, vector: Matrix, *, limit: int = 10
) -> tuple[str, list[float]]:
    """Return the plan of the dense leg and the cosines of the hits, best first."""
    (found,) = await database.fetch_sealed(
        _SEARCH,
        principal,
        query="",
        phrases=None,
        phrase_words=None,
        query_vector=halfvec(vector),
        model_id=MODEL,
        wanted=limit,
        candidates=100,
        lexical_weight=0.0,
        dense_weight=1.0,
        fusion="convex",
        filter=None,
        per_document=None,
    )
    hits: list[dict[str, Any]] = found["hits"]
    return found["report"]["dense_plan"], [hit["vector_score"] for hit in hits]


@asynccontextmanager
async def maintenance(world: World) -> AsyncGenerator[MaintenanceSession]:
    """Open a session as the maintenance process does."""
    assert world.settings.maintenance_database_url is not None
    async with open_maintenance(world.settings.maintenance_database_url, application="test-maintenance") as session:
        yield session
