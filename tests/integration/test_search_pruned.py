"""Of the longest lists only the best chunks' postings are read: what is found has the score that all would give it."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest

from rag.corpus.compaction import compact_due
from rag.db.pool import Database
from rag.identity.principal import Principal
from rag.retrieval.filters import parse_filter, to_jsonpath
from sql import Query, load_queries
from tests.support.index import delete, put
from tests.support.world import World

pytestmark = pytest.mark.anyio
SEARCH = load_queries("retrieval")["search"]
BUDGETED = Query(
    name="budgeted",
    description="The search with its last argument, which no caller gives.",
    text=SEARCH.text.replace(") r", f", posting_budget => ${len(SEARCH.parameters) + 1}) r"),
    parameters=(*SEARCH.parameters, "posting_budget"),
)
EVERYTHING = 2**62
WORDS = (
    "harbour",
    "ship",
    "court",
    "lantern",
    "oath",
    "patent",
    "railway",
    "seed",
    "record",
    "pilot",
    "tariff",
    "levy",
)
QUERIES = ("harbour ship patent", "ship ship levy harbour court", "levy tariff", "law harbour pilot", "harbour absent")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A tenant whose postings are partly compacted, partly fresh and partly dead."""

    database: Database
    writer: Principal
    outsider: Principal

    async def ask(self, query: str, *, budget: int, as_: Principal | None = None, **more: object) -> dict[str, Any]:
        """Search by words."""
        asked: dict[str, object] = {
            "query": query,
            "phrases": None,
            "phrase_words": None,
            "query_vector": None,
            "model_id": 1,
            "wanted": 10,
            "candidates": 100,
            "lexical_weight": 1.0,
            "dense_weight": 0.0,
            "fusion": "convex",
            "filter": None,
            "per_document": None,
        }
        (found,) = await self.database.fetch_sealed(
            BUDGETED, as_ or self.writer, **(asked | {"posting_budget": budget} | more)
        )
        return dict(found)


@pytest.fixture(name="place")
async def place_fixture(world: World) -> AsyncIterator[Place]:
    """Some 3 000 chunks, of which a fifth is for a group alone and a fifth dead."""
    outsider = world.principal(await world.tenant("acme"))
    writer = dataclasses.replace(outsider, groups=("legal",))
    chance = random.Random(4)
    weights = [1 / (place + 1) for place in range(len(WORDS))]
    async with world.database(claims=True) as database:

        def chunks() -> Sequence[str]:
            return [" ".join(chance.choices(WORDS, weights, k=chance.randint(3, 12))) for _ in range(40)]

        for number in range(75):
            await put(
                database, writer, f"{number}", chunks(), title="Law", groups=("legal",) if number % 5 == 3 else ()
            )
            if number == 50:
                while await compact_due(database, settle_s=0.0):
                    pass
        for number in range(0, 75, 8):
            await delete(database, writer, f"{number}")
        for number in range(1, 75, 16):
            await put(database, writer, f"{number}", chunks(), title="Law")
        yield Place(database=database, writer=writer, outsider=outsider)


def scores(found: dict[str, Any]) -> dict[tuple[str, int], tuple[float, str]]:
    """Return what each hit has of the words."""
    return {(hit["source"], hit["chunk"]): (hit["bm25_score"], repr(hit["terms"])) for hit in found["hits"]}


async def test_what_a_pruned_search_finds_has_its_full_score(place: Place) -> None:
    pruned = 0
    for query, reader in product(QUERIES, (place.writer, place.outsider)):
        every = await place.ask(query, budget=EVERYTHING, as_=reader, wanted=5000, candidates=5000)
        full = await place.ask(query, budget=EVERYTHING, as_=reader)
        assert full["report"]["lexical_plan"] == "full"
        for budget in (1, 600, 1500):
            found = await place.ask(query, budget=budget, as_=reader)
            pruned += found["report"]["lexical_plan"] == "pruned"
            assert found["report"]["terms"] == full["report"]["terms"]
            assert len(found["hits"]) == 10
            assert scores(found).items() <= scores(every).items()
            assert len(scores(found).keys() & scores(full).keys()) >= 9
            order = [(-hit["bm25_score"], hit["bm25_rank"]) for hit in found["hits"]]
            assert order == sorted(order)
    assert pruned >= 10


async def test_a_rare_word_beside_a_frequent_one_does_not_hide_what_the_frequent_one_finds(place: Place) -> None:
    await put(place.database, place.writer, "rare", ["zephyr harbour"], title="Law")
    found = await place.ask("zephyr harbour", budget=1)
    assert len(found["hits"]) == 10
    assert found["hits"][0]["source"] == "rare"


async def test_a_filter_that_the_rarer_words_chunks_do_not_pass_leaves_the_others(place: Place) -> None:
    for number in range(12):
        await put(place.database, place.writer, f"only{number}", ["harbour and nothing else"], title="Law")
    only = to_jsonpath(parse_filter({"field": "source", "prefix": "only"}))
    for query, per_document in product(("harbour ship", "harbour court"), (None, 1)):
        found = await place.ask(query, budget=1, filter=only, per_document=per_document)
        assert len(found["hits"]) == 10
        full = await place.ask(query, budget=EVERYTHING, filter=only, per_document=per_document)
        assert found["hits"] == full["hits"]
