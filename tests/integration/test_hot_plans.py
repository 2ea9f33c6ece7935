"""The plans that search and paging stand on, asserted under row-level security as the app role runs them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import anyio
import asyncpg
import orjson
import pytest

from rag.corpus.store import NewDocument, put_document
from rag.db.pool import Database
from rag.db.vectors import halfvec
from rag.identity.principal import Principal
from rag.llm.minilm import load_minilm
from rag.retrieval.filters import parse_filter, to_jsonpath
from rag.retrieval.search import search
from rag.retrieval.values import Mode, SearchRequest
from rag.tenants.operator import Tenant
from sql import Query, load_queries
from tests.support.graphs import clustered
from tests.support.retrieval import retriever
from tests.support.world import World

pytestmark = pytest.mark.anyio
POSTINGS = Query(
    name="postings",
    description="The lexical leg's access, as rag.search_v2 does it.",
    text="select p.chunk_ids from rag.posting p where p.tenant_id = $1 and p.term = $2",
    parameters=("tenant_id", "term"),
)
SEARCH = load_queries("retrieval")["search"]
BUDGETED = Query(
    name="budgeted",
    description="The search with its last argument, which no caller gives; what it has read is told at its end.",
    text=SEARCH.text.replace(") r", f", posting_budget => ${len(SEARCH.parameters) + 1}) r").replace(
        "select ", "select pg_stat_force_next_flush() is null, ", 1
    ),
    parameters=(*SEARCH.parameters, "posting_budget"),
)
DOCUMENTS = Query(
    name="documents",
    description="",
    text="""
    insert into rag.document (
        tenant_id, document_id, source, title, media_type, metadata, content_hash, text, chunks, ordinal, audience
    )
    select rag.current_tenant(), gen_random_uuid(), n::text, 'Law', 'text/plain', jsonb_build_object('part', n % 100),
        '', 'v', $2, nextval('rag.ordinal_seq'), 0
    from generate_series(1, $1::integer) n
    returning ordinal
    """,
    parameters=("documents", "each"),
)
CHUNKS = Query(
    name="chunks",
    description="",
    text="""
    insert into rag.chunk (tenant_id, chunk_id, document_id, number, start_char, end_char, heading, text, audience)
    select d.tenant_id, d.ordinal << 20 | (c.n - 1) % $2, d.document_id, (c.n - 1) % $2, c.n, c.n + 1, '', c.text, 0
    from unnest($1::text[]) with ordinality as c (text, n)
    join rag.document d on d.tenant_id = rag.current_tenant() and d.source = ((c.n - 1) / $2 + 1)::text
    """,
    parameters=("texts", "each"),
)
VECTORS = Query(
    name="vectors",
    description="",
    text="""
    insert into rag.embedding (tenant_id, model_id, chunk_id, document_id, vector, audience)
    select d.tenant_id, 1, d.ordinal << 20 | (c.n - 1) % $2, d.document_id, c.vector, 0
    from unnest($1::public.halfvec[]) with ordinality as c (vector, n)
    join rag.document d on d.tenant_id = rag.current_tenant() and d.source = ((c.n - 1) / $2 + 1)::text
    """,
    parameters=("vectors", "each"),
)
POSTED = Query(
    name="posted",
    description="",
    text="select rag.index_ordinals_v1(rag.current_tenant(), $1::bigint[])",
    parameters=("ordinals",),
)
EACH = 4
SMALL, LARGE = 2_000, 4_000
LISTS = SMALL // 128 + 2
"""Blocks of one term's postings."""
WORDS = (
    "harbour",
    "ship",
    "lantern",
    "oath",
    "court",
    "patent",
    "railway",
    "seed",
    "record",
    "pilot",
    "tariff",
    "levy",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hot:
    """A search of the small tenant, and how many rows of each table it may read: index entries, every look-up told."""

    most: dict[str, int]
    lexical: float = 0.0
    dense: float = 0.0
    more: Mapping[str, object] = field(default_factory=dict[str, object])


# Of two terms all blocks, for df and scores and by their keys for what the hits hold; candidates' vectors; the hits.
# A document stands twice, until a vacuum: its length is written after it.
WORDS_MOST = {"posting": 2 * 4 * LISTS, "chunk": 20, "document": 40, "embedding": 100}
VECTORS_MOST = {"chunk": 20, "document": 40, "embedding": SMALL + 100}
BOTH_MOST = {**WORDS_MOST, "embedding": SMALL + 200}
ONE_PERCENT = {"filter": to_jsonpath(parse_filter({"metadata": {"part": 7}}))}
HOT = {
    "keyword": Hot(lexical=1.0, most=WORDS_MOST),
    "semantic": Hot(dense=1.0, most=VECTORS_MOST),
    "hybrid": Hot(lexical=0.2, dense=0.8, most=BOTH_MOST),
    "of 1 %": Hot(
        lexical=0.2,
        dense=0.8,
        # each document is looked at; of the vectors those of 20 chunks, once to rank and once to score
        most={**WORDS_MOST, "document": 2 * SMALL // EACH + 40, "embedding": 40},
        more=ONE_PERCENT,
    ),
    "phrase": Hot(
        lexical=0.2,
        dense=0.8,
        most={**WORDS_MOST, "chunk": 400, "document": 800},
        more={"phrases": ["harbour[^[:alnum:]]+ship"], "phrase_words": "harbour ship"},
    ),
    "two of a document": Hot(
        lexical=0.2, dense=0.8, most={**BOTH_MOST, "embedding": SMALL + 400}, more={"per_document": 2}
    ),
    "pruned": Hot(lexical=0.2, dense=0.8, most=BOTH_MOST, more={"posting_budget": 1}),
}


MANY_DOCUMENTS = """
    insert into rag.document (
        tenant_id, document_id, source, title, media_type, content_hash, text, chunks, ordinal, audience
    )
    select $1, gen_random_uuid(), 'x' || n, 'Ships', 'text/plain', '', 'ships', 0, -n, 0 from generate_series(1, 5000) n
"""


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield every node of a plan."""
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


async def plan_of(database: Database, principal: Principal, query: Query, **parameters: object) -> list[dict[str, Any]]:
    """Return the plan's nodes once a pooled connection has run the statement often enough to go generic."""
    explained = Query(
        name=query.name,
        description="",
        text=f"explain (format json) {query.text}",
        parameters=query.parameters,
    )
    async with database.tenant(principal) as session:
        for _ in range(7):
            await session.fetch(query, **parameters)
        found = await session.fetch_value(explained, **parameters)
    return list(nodes(orjson.loads(found)[0]["Plan"]))


async def test_the_lists_and_postings_of_a_tenant_are_read_through_their_indexes(world: World) -> None:
    principal = world.principal(await world.tenant("acme"))
    async with world.database(pool_size=1) as database:
        for number in range(120):
            text = f"Section {number} speaks of ships, lanterns and harbour {number % 7}."
            await put_document(database, principal, NewDocument(source=f"{number:04}", title="Ships", text=text))
        # so many that statistics, should they be collected meanwhile, speak for the index too
        admin = await asyncpg.connect(world.superuser_url)
        await admin.execute(MANY_DOCUMENTS, principal.tenant_id)
        await admin.execute("analyze")
        await admin.close()
        listing = await plan_of(
            database,
            principal,
            load_queries("corpus")["list_documents"],
            tenant_id=principal.tenant_id,
            after="0050",
            wanted=11,
        )
        index = next(node for node in listing if "Index Name" in node)
        assert index["Index Name"] == "document_source_unique"
        assert "source" in index["Index Cond"]
        assert not any(node["Node Type"] in {"Sort", "Seq Scan"} for node in listing)
        postings = await plan_of(database, principal, POSTINGS, tenant_id=principal.tenant_id, term="lantern")
        access = next(node for node in postings if "Relation Name" in node)
        # one partition only, by the leading part of the key; were it a Seq Scan, a search would read the whole tenant
        assert access["Node Type"] in {"Index Scan", "Bitmap Heap Scan"}
        assert sum("Relation Name" in node for node in postings) == 1
        conditions = " ".join(str(node.get("Index Cond", "")) for node in postings)
        assert "tenant_id = " in conditions
        assert "term = " in conditions


async def test_tombstones_that_the_statistics_do_not_know_do_not_slow_a_search(world: World) -> None:
    crowd, quiet = await world.tenant("crowd"), await world.tenant("quiet")
    text = " ".join(f"The ship {number} with a lantern left the harbour at night." for number in range(8000))
    tombstones = "insert into rag.tombstone select $1, -number, 0 from generate_series(1, $2::integer) number"
    request = SearchRequest(query="ship lantern harbour night", mode=Mode.KEYWORD)
    embedder = load_minilm()
    admin = await asyncpg.connect(world.superuser_url)
    async with world.database(pool_size=1) as database:
        principal = world.principal(quiet)
        await put_document(database, principal, NewDocument(source="log", title="Log", text=text))
        # what the planner knows: all tombstones are the other tenant's
        await admin.execute(tombstones, crowd.tenant_id, 3500)
        await admin.execute("vacuum analyze rag.tombstone, rag.posting")
        before = await search(retriever(database, embedder), principal, request)
        await admin.execute(tombstones, quiet.tenant_id, 100_000)
        await admin.close()
        # each of some 1800 postings against each tombstone took seconds; one look-up each takes milliseconds
        with anyio.fail_after(1.0):
            after = await search(retriever(database, embedder), principal, request)
        assert after.hits == before.hits


async def neighbours(world: World) -> tuple[Tenant, Tenant]:
    """Return two tenants whose rows share their partitions."""
    admin = await asyncpg.connect(world.superuser_url)
    try:
        places: dict[int, Tenant] = {}
        for number in range(17):
            tenant = await world.tenant(f"t{number}")
            place = await admin.fetchval(
                "select r from generate_series(0, 15) r "
                "where satisfies_hash_partition('rag.posting'::regclass, 16, r, $1::uuid)",
                tenant.tenant_id,
            )
            if place in places:
                return places[place], tenant
            places[place] = tenant
    finally:
        await admin.close()
    raise AssertionError("seventeen tenants in sixteen partitions")


async def load(database: Database, principal: Principal, chunks: int, *, seed: int) -> None:
    """Give the tenant embedded chunks of twelve words, the first of them frequent, in documents of four."""
    chance = random.Random(seed)
    weights = [1 / (place + 1) for place in range(len(WORDS))]
    texts = [" ".join(chance.choices(WORDS, weights, k=6)) for _ in range(chunks)]
    vectors = [halfvec(vector) for vector in clustered(chunks, seed=seed)]
    async with database.tenant(principal) as session:
        made = await session.fetch(DOCUMENTS, documents=chunks // EACH, each=EACH)
        await session.fetch(CHUNKS, texts=texts, each=EACH)
        await session.fetch(VECTORS, vectors=vectors, each=EACH)
        await session.fetch(POSTED, ordinals=[row["ordinal"] for row in made])


async def read(admin: asyncpg.Connection) -> dict[str, int]:
    """Return the rows read of each table so far, partitions together, and `seq` for scans of whole tables."""
    await admin.execute("select pg_stat_clear_snapshot()")
    rows = await admin.fetch(
        """
        select regexp_replace(i.relname, '_[0-9]{2}$', '') as name, sum(i.idx_tup_read)::bigint as rows
        from pg_stat_all_indexes i where i.schemaname = 'rag' group by 1
        union all
        select 'seq', sum(t.seq_scan)::bigint from pg_stat_all_tables t where t.schemaname = 'rag'
        """
    )
    return {row["name"]: row["rows"] for row in rows}


async def rows_read(world: World, principal: Principal) -> dict[str, dict[str, int]]:
    """Return what each hot search reads, on a connection that has planned nothing before."""
    found: dict[str, dict[str, int]] = {}
    admin = await asyncpg.connect(world.superuser_url)
    try:
        async with world.database(pool_size=1) as database:
            for name, hot in HOT.items():
                asked: dict[str, object] = {
                    "query": "harbour ship",
                    "phrases": None,
                    "phrase_words": None,
                    "query_vector": halfvec(clustered(1, seed=3)[0]) if hot.dense else None,
                    "model_id": 1,
                    "wanted": 10,
                    "candidates": 100,
                    "lexical_weight": hot.lexical,
                    "dense_weight": hot.dense,
                    "fusion": "convex",
                    "filter": None,
                    "per_document": None,
                    "posting_budget": 60_000,
                }
                before = await read(admin)
                (answer,) = await database.fetch_sealed(BUDGETED, principal, **(asked | dict(hot.more)))
                assert len(answer["hits"]) == 10
                assert answer["report"]["lexical_plan"] == (
                    "pruned" if name == "pruned" else "full" if hot.lexical else "off"
                )
                after = await read(admin)
                found[name] = {table: after[table] - before[table] for table in after if after[table] > before[table]}
    finally:
        await admin.close()
    return found


@pytest.mark.parametrize("analyzed", ["never", "while empty", "when full"])
async def test_a_search_reads_few_rows_of_its_tenant_whatever_the_statistics_say(world: World, analyzed: str) -> None:
    tenant, larger = await neighbours(world)
    admin = await asyncpg.connect(world.superuser_url)
    try:
        if analyzed == "while empty":
            await admin.execute("analyze")
        async with world.database() as database:
            await load(database, world.principal(tenant), SMALL, seed=1)
            await load(database, world.principal(larger), LARGE, seed=2)
        if analyzed == "when full":
            await admin.execute("analyze")
    finally:
        await admin.close()
    for name, tables in (await rows_read(world, world.principal(tenant))).items():
        assert "seq" not in tables, (name, tables)
        for table, most in HOT[name].most.items():
            assert tables.get(table, 0) <= most, (name, table, tables)
        # what is one row or a few for each tenant
        assert sum(rows for table, rows in tables.items() if table not in HOT[name].most) <= 50, (name, tables)
