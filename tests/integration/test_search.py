"""Search finds new words at once, ranks the same on every run, explains itself, and knows no other tenant."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from rag.corpus.embedding import embed_due
from rag.corpus.store import NewDocument, delete_document, document_id_of, put_document
from rag.db.pool import Database
from rag.errors import EmbedderUnavailable, InvalidInput
from rag.identity.principal import Principal
from rag.llm.minilm import MiniLmEmbedder, load_minilm
from rag.retrieval.search import search
from rag.retrieval.values import Mode, SearchRequest, SearchResult
from tests.support.retrieval import only, retriever
from tests.support.world import World

pytestmark = pytest.mark.anyio
NEIGHBOURS = 300
SUBJECTS = ("insider trading", "a patent on seeds", "a medical record", "a bankrupt railway", "an oath of office")
VERBS = ("is governed by", "was amended under", "shall be read with", "does not affect", "is exempt from")
OBJECTS = ("the commission's rules", "chapter eleven", "the interstate compact", "the district court", "this title")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A database with two tenants."""

    database: Database
    mine: Principal
    theirs: Principal


@pytest.fixture(name="place")
async def place_fixture(world: World) -> AsyncIterator[Place]:
    """Two tenants and a pool."""
    mine, theirs = await world.tenant("mine"), await world.tenant("theirs")
    async with world.database(claims=True) as database:
        yield Place(database=database, mine=world.principal(mine), theirs=world.principal(theirs))


@pytest.fixture(scope="module", name="minilm")
async def minilm_fixture() -> AsyncIterator[MiniLmEmbedder]:
    """The real default model."""
    embedder = load_minilm()
    yield embedder
    await embedder.aclose()


@pytest.fixture(scope="module", name="stopped")
async def stopped_fixture() -> MiniLmEmbedder:
    """The real model after it was closed: it refuses."""
    embedder = load_minilm()
    await embedder.aclose()
    return embedder


async def put(place: Place, text: str, *, source: str, title: str = "Law", principal: Principal | None = None) -> None:
    """Store one plain document."""
    document = NewDocument(source=source, title=title, text=text)
    await put_document(place.database, principal or place.mine, document)


async def fill(place: Place, minilm: MiniLmEmbedder, *, number: int = 25, principal: Principal | None = None) -> None:
    """Store and embed documents that all speak of law."""
    for i in range(number):
        text = f"{SUBJECTS[i % 5]} {VERBS[i // 5 % 5]} {OBJECTS[i // 25 % 5]}, paragraph {i}."
        await put(place, text, source=f"law/{i:04}.txt", principal=principal)
    while await embed_due(place.database, only(minilm), claim=50):
        pass


async def ask(place: Place, embedder: MiniLmEmbedder, query: str, **more: object) -> SearchResult:
    """Search as the first tenant."""
    request = SearchRequest(query=query, **more)  # pyright: ignore[reportArgumentType]
    return await search(retriever(place.database, embedder), place.mine, request)


def sources(result: SearchResult) -> list[str]:
    """Return the hits' sources, best first."""
    return [hit.source for hit in result.hits]


def told(result: SearchResult) -> str:
    """Return every byte of an answer but how long it took."""
    return repr(dataclasses.replace(result, report=dataclasses.replace(result.report, timings_ms={})))


async def test_new_words_rank_first_among_embedded_neighbours_while_the_embedder_is_down(
    place: Place, minilm: MiniLmEmbedder, stopped: MiniLmEmbedder
) -> None:
    await fill(place, minilm, number=NEIGHBOURS)
    text = "A trustee of the interstate compact shall keep the medical record of a bankrupt oath for seven winters."
    await put(place, text, source="new.txt")
    down = await ask(place, stopped, text)
    assert (sources(down)[0], down.degraded) == ("new.txt", ("dense",))
    # the query has a vector again, the new chunk still has none: it must not be buried
    up = await ask(place, minilm, text)
    assert (sources(up)[0], up.degraded) == ("new.txt", ())
    first = up.hits[0].explain
    assert (first.vector_imputed, first.vector_score, first.vector_rank) == (True, None, None)
    await embed_due(place.database, only(minilm))
    embedded = (await ask(place, minilm, text)).hits[0]
    assert (embedded.source, embedded.explain.vector_imputed, embedded.explain.vector_rank) == ("new.txt", False, 1)


async def test_each_hit_is_the_exact_span_of_its_document_and_explains_its_score(
    place: Place, minilm: MiniLmEmbedder
) -> None:
    await fill(place, minilm)
    result = await ask(place, minilm, "insider trading rules", limit=50)
    assert len(result.hits) == 25
    for hit in result.hits:
        assert hit.text == f"{hit.text[:-1]}."
        assert hit.end - hit.start == len(hit.text)
        assert hit.score == pytest.approx(hit.explain.bm25_part + hit.explain.vector_part, abs=2e-6)
        assert 0 <= hit.score <= 1
    best = result.hits[0]
    assert best.explain.bm25_rank == 1
    assert [term.term for term in best.explain.terms] == ["insid", "rule", "trade"]
    for term in best.explain.terms:
        assert term.idf == result.report.terms[term.term] > 0
    assert (result.report.lexical_plan, result.report.dense_plan, result.report.chunks) == ("full", "exact", 25)
    assert set(result.report.timings_ms) == {"embed", "filter", "dense", "rank"}
    assert [hit.score for hit in result.hits] == sorted((hit.score for hit in result.hits), reverse=True)
    assert sorted(hit.explain.vector_rank or 0 for hit in result.hits) == list(range(1, 26))


async def test_keyword_mode_needs_no_embedder_and_semantic_mode_cannot_do_without(
    place: Place, minilm: MiniLmEmbedder, stopped: MiniLmEmbedder
) -> None:
    await fill(place, minilm)
    keyword = await ask(place, stopped, "railway", mode=Mode.KEYWORD)
    assert keyword.degraded == ()
    assert {"railway" in hit.text for hit in keyword.hits} == {True}
    assert keyword.hits[0].explain.vector_score is None
    for alone in ({"mode": Mode.SEMANTIC}, {"bm25_weight": 0, "vector_weight": 1}):
        with pytest.raises(EmbedderUnavailable):
            await ask(place, stopped, "railway", **alone)
    semantic = await ask(place, minilm, "doctors and their patients", mode=Mode.SEMANTIC, limit=3)
    assert {"medical record" in hit.text for hit in semantic.hits} == {True}
    assert semantic.hits[0].explain.bm25_rank is None


async def test_weights_count_relative_to_each_other_and_zero_switches_a_leg_off(
    place: Place, minilm: MiniLmEmbedder, stopped: MiniLmEmbedder
) -> None:
    await fill(place, minilm)
    one = await ask(place, minilm, "patent law", bm25_weight=0.2, vector_weight=0.8)
    assert one.hits == (await ask(place, minilm, "patent law", bm25_weight=2000, vector_weight=8000)).hits
    assert one.hits == (await ask(place, minilm, "patent law")).hits
    lexical = await ask(place, stopped, "patent law", bm25_weight=1, vector_weight=0)
    assert lexical.hits == (await ask(place, stopped, "patent law", mode=Mode.KEYWORD)).hits
    dense = await ask(place, minilm, "patent law", bm25_weight=0, vector_weight=3)
    assert dense.hits == (await ask(place, minilm, "patent law", mode=Mode.SEMANTIC)).hits
    assert dense.hits == (await ask(place, minilm, "patent law", bm25_weight=5e-324, vector_weight=3)).hits


async def test_equal_documents_keep_one_order_on_every_run(place: Place, minilm: MiniLmEmbedder) -> None:
    for number in (3, 1, 2):
        await put(place, "The very same words.", source=f"{number}.txt")
    await embed_due(place.database, only(minilm))
    results = [await ask(place, minilm, "same words") for _ in range(12)]
    assert all(result.hits == results[0].hits for result in results)
    assert sources(results[0]) == ["3.txt", "1.txt", "2.txt"]
    assert len({hit.score for hit in results[0].hits}) == 1


async def test_another_tenants_documents_change_no_byte_of_an_answer(place: Place, minilm: MiniLmEmbedder) -> None:
    await fill(place, minilm)
    queries = ("insider trading", "court", "paragraph 7", "chapter eleven bankrupt railway")
    alone = [await ask(place, minilm, query, limit=50) for query in queries]
    await fill(place, minilm, number=60, principal=place.theirs)
    await put(place, "insider insider insider trading " * 20, source="x.txt", principal=place.theirs)
    beside = [await ask(place, minilm, query, limit=50) for query in queries]
    assert [told(result) for result in beside] == [told(result) for result in alone]


async def test_what_was_replaced_or_deleted_leaves_no_trace_in_any_score(place: Place, stopped: MiniLmEmbedder) -> None:
    async def scores() -> dict[str, float]:
        found = await ask(place, stopped, "lantern ships harbour", mode=Mode.KEYWORD, limit=50)
        return {hit.source: hit.explain.bm25_score for hit in found.hits}

    for number in range(6):
        await put(place, f"Ships carry a lantern. {'Harbour lights. ' * number}", source=f"{number}")
    before = await scores()
    for edition in range(5):
        await put(place, f"lantern lantern lantern harbour edition {edition}", source="3")
    await put(place, "ships " * 50, source="passing")
    assert await scores() != before
    await put(place, f"Ships carry a lantern. {'Harbour lights. ' * 3}", source="3")
    await delete_document(place.database, place.mine, document_id_of(place.mine.tenant_id, "passing"))
    assert await scores() == before


async def test_a_tenant_finds_nothing_of_another_through_any_mode(place: Place, minilm: MiniLmEmbedder) -> None:
    text = "The quick brown securities statute jumps over the lazy broker."
    await put(place, text, source="secret.txt", principal=place.theirs)
    await embed_due(place.database, only(minilm))
    for mode in Mode:
        assert (await ask(place, minilm, text, mode=mode)).hits == ()
    request = SearchRequest(query=text)
    assert len((await search(retriever(place.database, minilm), place.theirs, request)).hits) == 1


@pytest.mark.parametrize("query", ["the of and", "😀😀", "'; drop table rag.chunk; --", "§§§", "%_\\", "a" * 4000])
async def test_odd_queries_have_an_answer(place: Place, minilm: MiniLmEmbedder, query: str) -> None:
    await fill(place, minilm)
    for mode in Mode:
        result = await ask(place, minilm, query, mode=mode)
        assert len(result.hits) == (0 if mode is Mode.KEYWORD else 10)


@pytest.mark.parametrize(
    "fields",
    [
        {"query": ""},
        {"query": " \n"},
        {"query": "x" * 4001},
        {"query": "a\0b"},
        {"query": "\udc00"},
        {"limit": 0},
        {"limit": -1},
        {"limit": 51},
        {"bm25_weight": -0.1},
        {"vector_weight": float("nan")},
        {"vector_weight": float("inf")},
        {"bm25_weight": 0, "vector_weight": 0},
    ],
)
def test_requests_without_an_answer_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        SearchRequest(**{"query": "fine", **fields})  # pyright: ignore[reportArgumentType]


async def test_an_empty_corpus_answers_nothing(place: Place, minilm: MiniLmEmbedder) -> None:
    for mode in Mode:
        assert (await ask(place, minilm, "anything", mode=mode)).hits == ()
