"""Search against a second implementation, written from retrieval.md alone: the same hits, order and scores."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from secrets import token_hex

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rag.corpus.embedding import embed_due, embedding_input
from rag.corpus.store import NewDocument, delete_document, document_id_of, put_document
from rag.db.pool import Database
from rag.llm.ports import Vectors
from rag.retrieval.search import search
from rag.retrieval.values import Mode, SearchRequest
from tests.support.retrieval import only, retriever
from tests.support.world import World

pytestmark = pytest.mark.anyio
TITLE = "law"
TITLE_WEIGHT = 2
"""A word of the title counts so often; its length counts once."""
WORDS = ("ship", "court", "oath")
"""Words that are their own stems, so that this side needs no stemmer."""
DIRECTIONS = ((1, 0, 0), (0, 1, 0), (1, 1, 0), (-1, 0, 0), (2, -1, 0), (-1, -2, 0), (0, 0, 1))
"""Vectors whose cosines come out the same in any floating point."""


class Pointing:
    """An embedder of exact vectors: a text points where its first word says, each further word turns it on."""

    model = "all-MiniLM-L6-v2"
    dimension = 384

    async def embed(self, texts: Sequence[str]) -> Vectors:
        vectors = np.zeros((len(texts), self.dimension), dtype=np.float32)
        for row, text in zip(vectors, texts, strict=True):
            row[:3] = direction(text)
        return vectors

    async def aclose(self) -> None:
        """Hold nothing."""


def direction(text: str) -> tuple[int, int, int]:
    """Return where `text` points."""
    return DIRECTIONS[sum(map(ord, text)) % len(DIRECTIONS)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """One put (or, without words, one deletion) and whether the embedder runs after it."""

    source: str
    words: tuple[str, ...]
    embedded: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """A chunk that stands, and its vector if it has one."""

    source: str
    words: tuple[str, ...]
    vector: tuple[int, int, int] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """What the second implementation says of a chunk."""

    source: str
    score: float
    points: int
    cosine: int | None
    imputed: bool


WRITES = st.lists(
    st.builds(
        Write,
        source=st.sampled_from("abcdef"),
        words=st.lists(st.sampled_from(WORDS), max_size=4).map(tuple),
        embedded=st.booleans(),
    ),
    min_size=1,
    max_size=10,
)
WEIGHTS = st.sampled_from((0.0, -0.0, 5e-324, 1e-9, 0.2, 0.8, 1.0, 3, 1e6))
REQUESTS = st.builds(
    SearchRequest,
    query=st.lists(st.sampled_from((*WORDS, TITLE, "absent", "the")), min_size=1, max_size=4).map(" ".join),
    limit=st.sampled_from((1, 2, 3, 50)),
    bm25_weight=WEIGHTS,
    vector_weight=st.one_of(st.just(0.5), WEIGHTS.filter(bool)),
    mode=st.sampled_from(Mode),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A database that each example adds a tenant of its own to."""

    world: World
    database: Database


@pytest.fixture(name="place")
async def place_fixture(world: World) -> AsyncIterator[Place]:
    """An open pool."""
    async with world.database(claims=True) as database:
        yield Place(world=world, database=database)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(writes=WRITES, requests=st.lists(REQUESTS, min_size=1, max_size=6))
async def test_hits_order_and_scores_are_those_of_a_second_implementation(
    place: Place, writes: list[Write], requests: list[SearchRequest]
) -> None:
    principal = place.world.principal(await place.world.tenant(f"t-{token_hex(8)}"))
    live: dict[str, Live] = {}
    embedder = Pointing()
    for write in writes:
        text = " ".join(write.words)
        known = live.get(write.source)
        if write.words and (known is None or known.words != write.words):
            live.pop(write.source, None)
            live[write.source] = Live(source=write.source, words=write.words, vector=None)
            await put_document(place.database, principal, NewDocument(source=write.source, title=TITLE, text=text))
        elif not write.words and live.pop(write.source, None) is not None:
            await delete_document(place.database, principal, document_id_of(principal.tenant_id, write.source))
        if write.embedded:
            while await embed_due(place.database, only(embedder)):
                pass
            live = {name: pointed(chunk) for name, chunk in live.items()}
    for request in requests:
        found = await search(retriever(place.database, embedder), principal, request)
        assert found.degraded == ()
        expected = ranked(list(live.values()), request)
        assert [
            (
                hit.source,
                hit.score,
                round(hit.explain.bm25_score * 1e6),
                None if hit.explain.vector_score is None else round(hit.explain.vector_score * 1e6),
                hit.explain.vector_imputed,
            )
            for hit in found.hits
        ] == [(one.source, one.score, one.points, one.cosine, one.imputed) for one in expected]


def pointed(chunk: Live) -> Live:
    """Return `chunk` with its vector."""
    return Live(source=chunk.source, words=chunk.words, vector=direction(embedding_input(TITLE, " ".join(chunk.words))))


def ranked(live: list[Live], request: SearchRequest) -> list[Scored]:
    """Search `live`, which stands in the order of writing, by retrieval.md 2 and 4."""
    weights = request.weights()
    assert weights is not None
    lexical_weight, dense_weight = weights
    points = bm25(live, Counter(request.query.split())) if lexical_weight > 0 else {}
    cosines = {
        chunk.source: cosine(direction(request.query), chunk.vector)
        for chunk in live
        if chunk.vector is not None and dense_weight > 0
    }
    candidates = [chunk for chunk in live if chunk.source in points or chunk.source in cosines]
    if not points or not cosines:
        lexical_weight, dense_weight = (1.0, 0.0) if not cosines else (0.0, 1.0)
    share = lexical_weight / (lexical_weight + dense_weight)
    most = max(points.values(), default=0)
    nearest = max(cosines.values(), default=-1_000_000) + 1_000_000
    scored: list[Scored] = []
    for chunk in candidates:
        words = points.get(chunk.source, 0) / most if most > 0 else 0.0
        near = cosines.get(chunk.source)
        meaning = (near + 1_000_000) / nearest if near is not None and nearest > 0 else 0.0
        scored.append(
            Scored(
                source=chunk.source,
                score=share * words + (1 - share) * (words if near is None else meaning),
                points=points.get(chunk.source, 0),
                cosine=near,
                imputed=near is None and share < 1,
            )
        )
    scored.sort(key=lambda one: -one.score)  # stable: equal ones stay in the order of writing
    return [
        Scored(source=s.source, score=round(s.score, 6), points=s.points, cosine=s.cosine, imputed=s.imputed)
        for s in scored[: request.limit]
    ]


def bm25(live: list[Live], asked: Counter[str]) -> dict[str, int]:
    """Return the score, in millionths, of each chunk that holds a word that is asked for."""
    bags = {chunk.source: Counter((TITLE, *chunk.words)) for chunk in live}
    mean = sum(bag.total() for bag in bags.values()) / max(len(bags), 1)
    points: dict[str, int] = {}
    for word, times in asked.items():
        holders = [source for source, bag in bags.items() if bag[word]]
        idf = math.log(1 + (len(bags) - len(holders) + 0.5) / (len(holders) + 0.5))
        for source in holders:
            tf, length = bags[source][word] + (TITLE_WEIGHT - 1) * (word == TITLE), bags[source].total()
            part = 1_000_000 * idf * times * (1.2 + 1) * tf / (tf + 1.2 * (1 - 0.75) + 1.2 * 0.75 / mean * length)
            points[source] = points.get(source, 0) + round(part)
    return points


def cosine(one: tuple[int, int, int], other: tuple[int, int, int]) -> int:
    """Return the cosine in millionths."""
    dot = sum(a * b for a, b in zip(one, other, strict=True))
    distance = 1 - dot / math.sqrt(float(sum(a * a for a in one) * sum(b * b for b in other)))
    return round(1_000_000 * (1 - distance))
