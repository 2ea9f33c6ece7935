"""A tenant's lexical index from outside: documents of given chunks, searches as comparable values, what stands stored.

Above: the tests of compaction. Below: the SQL functions that the store and the retriever call, without model or parser.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid5

import asyncpg

from rag.db.pool import Database
from rag.identity.principal import Principal
from sql import Query, load_queries
from tests.support.world import World

__all__ = ["Hits", "delete", "index_faults", "lexical_hits", "put", "stored", "vocabulary"]

Hits = list[tuple[Any, ...]]
_PUT = Query(
    name="put",
    description="",
    text=(
        "select corpus_version from rag.put_document_v2($1, $2, $3, 'text/plain', '{}', $4, $5, "
        "array_to_string($6::text[], ' '), array(select n from generate_series(0, cardinality($6) - 1) n), "
        "array(select n from generate_series(1, cardinality($6)) n), "
        "array_fill(''::text, array[cardinality($6)]), $6)"
    ),
    parameters=("document", "source", "title", "groups", "hash", "chunks"),
)
_FIND = Query(
    name="find",
    description="",
    text="select document_id from rag.document where tenant_id = rag.current_tenant() and source = $1",
    parameters=("source",),
)
_SEARCH = load_queries("retrieval")["search"]
_DELETE = load_queries("corpus")["delete_document"]


async def put(
    database: Database,
    principal: Principal,
    source: str,
    chunks: Sequence[str],
    *,
    title: str = "Trees",
    groups: Sequence[str] = (),
) -> int:
    """Write one document of exactly these chunks and return the corpus version."""
    document, hashed = uuid5(principal.tenant_id, source), hashlib.sha256("\0".join((title, *chunks)).encode()).digest()
    async with database.tenant(principal) as session:
        version = await session.fetch_value(
            _PUT,
            document=document,
            source=source,
            title=title,
            groups=list(groups),
            hash=hashed,
            chunks=list(chunks),
        )
    return int(version)


async def delete(database: Database, principal: Principal, source: str) -> None:
    """Delete the document of that source."""
    async with database.tenant(principal) as session:
        document = await session.fetch_value(_FIND, source=source)
        await session.fetch(_DELETE, document_id=document)


async def lexical_hits(database: Database, principal: Principal, query: str, *, limit: int = 50) -> Hits:
    """Return each hit with its scores and terms, and the version, without the ids that differ between two tenants."""
    (found,) = await database.fetch_sealed(
        _SEARCH,
        principal,
        query=query,
        phrases=None,
        phrase_words=None,
        query_vector=None,
        model_id=1,
        wanted=limit,
        candidates=100,
        lexical_weight=1.0,
        dense_weight=0.0,
        fusion="convex",
        filter=None,
        per_document=None,
    )
    return [
        (
            hit["source"],
            hit["chunk"],
            hit["text"],
            hit["score"],
            hit["bm25_rank"],
            hit["bm25_score"],
            tuple((term["term"], term["frequency"], term["idf"]) for term in hit["terms"]),
        )
        for hit in found["hits"]
    ]


async def stored(world: World, query: str, *parameters: object) -> list[asyncpg.Record]:
    """Return rows past row-level security: what the tables hold, not what a caller sees."""
    connection = await asyncpg.connect(world.superuser_url)
    try:
        return list(await connection.fetch(query, *parameters))
    finally:
        await connection.close()


async def vocabulary(world: World, tenant_id: UUID) -> tuple[set[tuple[str, int]], set[tuple[str, str]]]:
    """Return the terms with their document frequencies, and the spellings."""
    terms = await stored(world, "select term, df from rag.term where tenant_id = $1", tenant_id)
    spellings = await stored(world, "select variant, term from rag.spelling where tenant_id = $1", tenant_id)
    return {(row[0], row[1]) for row in terms}, {(row[0], row[1]) for row in spellings}


async def index_faults(world: World, tenant_id: UUID) -> list[str]:
    """Say what is wrong with a tenant's base blocks and the vocabulary beside them; nothing, when all is well."""
    rows = await stored(
        world,
        """
        with block as (
            select p.*,
                lead(p.first_chunk) over w as next_first,
                row_number() over w = count(*) over (partition by p.term, p.audience) as ends
            from rag.posting p
            where p.tenant_id = $1 and not p.fresh
            window w as (partition by p.term, p.audience order by p.first_chunk)
        )
        select format('%s of %s from %s: overlaps the next', b.term, b.audience, b.first_chunk) as fault
        from block b
        where b.last_chunk >= b.next_first
        union all
        select format('%s from %s: not ascending', b.term, b.first_chunk)
        from block b
        where b.chunk_ids <> array(select distinct c from unnest(b.chunk_ids) c order by c)
        union all
        select format('%s from %s: holds %s, less than half', b.term, b.first_chunk, b.postings)
        from block b
        where not b.ends and b.postings < 64
        union all
        select format('%s: holds chunk %s, which has no tombstone and does not exist', b.term, c)
        from block b
        cross join lateral unnest(b.chunk_ids) c
        where not exists (select from rag.chunk k where k.tenant_id = $1 and k.chunk_id = c)
            and not exists (select from rag.tombstone t where t.tenant_id = $1 and t.ordinal = c >> 20)
        union all
        select format('%s: df %s, but %s postings', coalesce(t.term, b.term), t.df, b.postings)
        from (select * from rag.term where tenant_id = $1) t
        full join (select term, audience, sum(postings) as postings from block group by term, audience) b
            on b.term = t.term and b.audience = t.audience
        where t.df is distinct from b.postings
        union all
        select format('%s is spelt %s', s.term, s.variant)
        from (
            select t.audience, t.term, rag.variants_v1(t.term) as variant
            from rag.term t
            where t.tenant_id = $1 and t.df >= 2 and t.term ~ '^[[:alpha:]]{4,24}$'
        ) t
        full join (select * from rag.spelling where tenant_id = $1) s
            on s.audience = t.audience and s.term = t.term and s.variant = t.variant
        where s.term is null or t.term is null
        """,
        tenant_id,
    )
    return [str(row["fault"]) for row in rows]
