"""The plans that search and paging stand on, asserted under row-level security as the app role runs them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anyio
import asyncpg
import orjson
import pytest

from rag.corpus.store import NewDocument, put_document
from rag.db.pool import Database
from rag.identity.principal import Principal
from rag.llm.minilm import load_minilm
from rag.retrieval.search import search
from rag.retrieval.values import Mode, SearchRequest
from sql import Query, load_queries
from tests.support.retrieval import retriever
from tests.support.world import World

pytestmark = pytest.mark.anyio
POSTINGS = Query(
    name="postings",
    description="The lexical leg's access, as rag.search_v2 does it.",
    text="select p.chunk_ids from rag.posting p where p.tenant_id = $1 and p.term = $2",
    parameters=("tenant_id", "term"),
)


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
    tombstones = "insert into rag.tombstone select $1, -number from generate_series(1, $2::integer) number"
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
