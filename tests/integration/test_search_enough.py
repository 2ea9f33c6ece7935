"""While so many chunks match that the caller may read, a search returns as many hits as were asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rag.corpus.vector_indexes import GraphPolicy, maintain
from rag.db.pool import Database
from rag.db.vectors import halfvec
from rag.identity.principal import Principal
from rag.llm.ports import Vectors
from rag.retrieval.filters import parse_filter, to_jsonpath
from rag.retrieval.search import search
from rag.retrieval.values import Mode, SearchRequest
from sql import Query, load_queries
from tests.support.graphs import DIMENSION, clustered, maintenance
from tests.support.index import put, stored
from tests.support.retrieval import retriever
from tests.support.world import World

pytestmark = pytest.mark.anyio
SEARCH = load_queries("retrieval")["search"]
EMBED = Query(
    name="embed",
    description="Vectors for a document's chunks, in their order.",
    text="""
    insert into rag.embedding (tenant_id, model_id, chunk_id, document_id, vector, audience)
    select c.tenant_id, 1, c.chunk_id, c.document_id, v.vector, c.audience
    from rag.document d
    cross join unnest($2::public.halfvec[]) with ordinality as v (vector, n)
    join rag.chunk c on c.tenant_id = d.tenant_id and c.chunk_id = d.ordinal << 20 | (v.n - 1)
    where d.tenant_id = rag.current_tenant() and d.source = $1
    """,
    parameters=("source", "vectors"),
)
LEGS: dict[str, tuple[float, float]] = {"keyword": (1.0, 0.0), "semantic": (0.0, 1.0), "hybrid": (0.2, 0.8)}


class Pointing:
    """An embedder for which every query points in one direction."""

    model = "all-MiniLM-L6-v2"
    dimension = DIMENSION

    async def embed(self, texts: Sequence[str]) -> Vectors:
        return np.repeat(pointing(0), len(texts), axis=0)

    async def aclose(self) -> None:
        """Hold nothing."""


def pointing(degrees: float, *, count: int = 1, noise: float = 0.0, seed: int = 0) -> NDArray[np.float32]:
    """Return vectors at an angle to the queries', each turned a little out of the others' plane."""
    found = np.zeros((count, DIMENSION), dtype=np.float32)
    found[:, 0], found[:, 1] = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    found[:, 2:] = noise * np.random.default_rng(seed).normal(size=(count, DIMENSION - 2)) / np.sqrt(DIMENSION)
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(name="database")
async def database_fixture(world: World) -> AsyncIterator[Database]:
    """One open pool."""
    async with world.database() as database:
        yield database


async def add(
    database: Database,
    principal: Principal,
    source: str,
    chunks: Sequence[str],
    vectors: NDArray[np.float32],
    *,
    groups: Sequence[str] = (),
) -> None:
    """Write a document and the vectors of its first chunks."""
    await put(database, principal, source, chunks, groups=groups)
    async with database.tenant(principal) as session:
        await session.fetch(EMBED, source=source, vectors=[halfvec(vector) for vector in vectors])


async def ask(database: Database, principal: Principal, leg: str, **more: object) -> dict[str, Any]:
    """Search by one leg or both."""
    lexical, dense = LEGS[leg]
    asked: dict[str, object] = {
        "query": "harbour ship",
        "phrases": None,
        "phrase_words": None,
        "query_vector": halfvec(pointing(0)[0]) if dense else None,
        "model_id": 1,
        "wanted": 10,
        "candidates": 100,
        "lexical_weight": lexical,
        "dense_weight": dense,
        "fusion": "convex",
        "filter": None,
        "per_document": None,
    }
    (found,) = await database.fetch_sealed(SEARCH, principal, **(asked | more))
    return dict(found)


@pytest.mark.parametrize("leg", LEGS)
async def test_one_long_document_leaves_room_for_others_where_few_of_each_are_wanted(
    world: World, database: Database, leg: str
) -> None:
    principal = world.principal(await world.tenant("acme"))
    long = [f"harbour ship rule {number}" for number in range(700)]
    await add(database, principal, "long", long, pointing(10, count=700, noise=1.0))
    for number in range(12):
        text = f"harbour and other things that nobody asked for {number}"
        await add(database, principal, f"{number:02}", [text, text], pointing(80, count=2, noise=1.0, seed=number))
    for most in (1, 3):
        found = await ask(database, principal, leg, per_document=most, wanted=13)
        sources = [hit["source"] for hit in found["hits"]]
        assert len(sources) == 13
        assert sources[:most] == ["long"] * most
        assert max(map(sources.count, sources)) <= most
    # the same where the words decide by phrases, and where the longest lists are too long to be read
    if leg != "semantic":
        phrase = {"phrases": ["harbour"], "phrase_words": "harbour"}
        assert len((await ask(database, principal, leg, per_document=1, wanted=13, **phrase))["hits"]) == 13


@pytest.mark.parametrize("mode", Mode)
async def test_chunks_that_all_say_the_same_do_not_hide_other_documents(
    world: World, database: Database, mode: Mode
) -> None:
    principal = world.principal(await world.tenant("acme"))
    await add(database, principal, "form", ["harbour ship"] * 250, pointing(10, count=250, noise=0.01))
    for number in range(12):
        text = f"harbour and other things that nobody asked for {number}"
        await add(database, principal, f"{number:02}", [text], pointing(80, noise=1.0, seed=number))
    found = await search(retriever(database, Pointing()), principal, SearchRequest(query="harbour ship", mode=mode))
    assert len(found.hits) == 10
    assert [hit.source for hit in found.hits].count("form") == 1
    assert found.hits[0].duplicates


async def test_a_graph_makes_up_for_what_groups_a_filter_and_missing_vectors_take_out(
    world: World, database: Database
) -> None:
    """A caller in no group reads 5 400 of 20 000 chunks, and the nearest are all among the others."""
    principal = world.principal(await world.tenant("acme"))
    lawyer = dataclasses.replace(principal, groups=("legal",))
    for number in range(20):
        hidden = number >= 6
        vectors = clustered(700 if hidden else 900, seed=number)
        vectors[:, 0] += 0.3 if hidden else 0.0
        await add(
            database,
            lawyer,
            f"{number}",
            ["v"] * len(vectors),
            vectors if hidden or number % 2 else vectors[:450],
            groups=("legal",) if hidden else (),
        )
    async with maintenance(world) as session:
        await maintain(session, GraphPolicy(build_at=5001))
    assert await stored(world, "select 1 from rag.vector_index where ready")
    for who, plan in ((lawyer, "hnsw"), (principal, "hnsw")):
        found = await ask(database, who, "semantic", wanted=50)
        assert (len(found["hits"]), found["report"]["dense_plan"]) == (50, plan)
    # 900 of 5 400 chunks, and 450 vectors; one document more than the exact search by documents takes
    for sources, least in ((["1"], 50), (["0"], 50), ([str(n) for n in range(6)], 50)):
        named = to_jsonpath(parse_filter({"field": "source", "in": sources}))
        assert len((await ask(database, principal, "semantic", wanted=50, filter=named))["hits"]) == least
