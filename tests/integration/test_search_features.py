"""What a search engineer tries first: codes, phrases, titles, filters, readers, fusion, twins, freshness, caches."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import anyio
import numpy as np
import pytest

from rag.corpus.embedding import embed_due
from rag.corpus.store import (
    NewDocument,
    Outcome,
    Stored,
    delete_document,
    get_document,
    list_documents,
    put_document,
)
from rag.db.pool import Database
from rag.errors import Conflict, Forbidden, InvalidInput, NotFound
from rag.identity.principal import Principal
from rag.llm.minilm import MiniLmEmbedder, load_minilm
from rag.llm.rerank import Scores
from rag.retrieval.cache import LocalResultCache
from rag.retrieval.filters import parse_filter
from rag.retrieval.search import Retriever, search
from rag.retrieval.values import Fusion, Mode, SearchRequest, SearchResult
from sql import Query
from tests.support.retrieval import only, retriever
from tests.support.world import World

pytestmark = pytest.mark.anyio
BOUND_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A tenant, a pool, and the real model."""

    database: Database
    mine: Principal
    minilm: MiniLmEmbedder
    retriever: Retriever

    async def put(self, source: str, text: str, *, as_: Principal | None = None, **more: object) -> Stored:
        """Store one plain document."""
        document = NewDocument(**{"source": source, "title": "Law", "text": text, **more})  # pyright: ignore[reportArgumentType]
        return await put_document(self.database, as_ or self.mine, document)

    async def embed(self) -> None:
        """Make all vectors that are due."""
        while await embed_due(self.database, only(self.minilm)):
            pass

    async def ask(self, query: str, *, as_: Principal | None = None, **more: object) -> SearchResult:
        """Search."""
        request = SearchRequest(query=query, **more)  # pyright: ignore[reportArgumentType]
        return await search(self.retriever, as_ or self.mine, request)

    async def words(self, query: str, *, as_: Principal | None = None, **more: object) -> list[str]:
        """Return the sources that a keyword search finds, best first."""
        return [hit.source for hit in (await self.ask(query, as_=as_, mode=Mode.KEYWORD, **more)).hits]


@pytest.fixture(name="place")
async def place_fixture(world: World) -> AsyncIterator[Place]:
    """One tenant on an open database."""
    mine = world.principal(await world.tenant("mine"))
    minilm = load_minilm()
    async with world.database(claims=True) as database:
        yield Place(database=database, mine=mine, minilm=minilm, retriever=retriever(database, minilm))
    await minilm.aclose()


def member(principal: Principal, *groups: str, user: str = "bob") -> Principal:
    """Return another user of the same tenant, in these groups."""
    return dataclasses.replace(principal, subject=user, groups=groups)


@pytest.mark.parametrize(
    ("query", "best"),
    [
        ("10b-5", "rule"),
        ("Rule 10b–5", "rule"),  # an en dash, as PDF has it
        ("§ 78j(b)", "act"),
        ("§78j(b)", "act"),
        ("78j", "act"),
        ("17 CFR 240.10b-5", "cfr"),
        ("1681s-2(a)", "credit"),
        ("COVID-19", "health"),
    ],
)
async def test_codes_and_section_numbers_are_found_exactly(place: Place, query: str, best: str) -> None:
    texts = {
        "rule": "Employment of manipulative devices is treated in Rule 10b-5 and its successors.",
        "near": "Rule 10 and part b, and the number 5, and section 78 of part j and letter b.",
        "act": "Liability under § 78j(b)(1) of the Act is implied by the courts.",
        "other": "Liability under section 78n(a) of the Act is express.",
        "cfr": "See 17 CFR 240.10b-5 for the text.",
        "credit": "Furnishers have duties under section 1681s-2(a)(1) of title 15.",
        "credit2": "Furnishers have rights under section 1681s(a)(2) of title 15.",
        "health": "Measures against Covid-19 were taken, among others.",
        "year": "In 19 cases measures were taken.",
    }
    for source, text in texts.items():
        await place.put(source, text)
    assert (await place.words(query))[0] == best


async def test_a_quoted_phrase_must_occur_word_for_word_in_every_hit(place: Place) -> None:
    await place.put("case", "The court in Smith v.\nJones held otherwise.")
    await place.put("both", "Jones sued Smith; Smith v. Brown and Jones v. Brown followed.")
    await place.put("title", "Of other things.", title="Smith v. Jones")
    await place.embed()
    for mode in Mode:
        found = await place.ask('"Smith v. Jones"', mode=mode)
        assert {hit.source for hit in found.hits} == {"case", "title"}
    assert await place.words('"smith V jones" brown') == ["title", "case"] or ["case", "title"]
    assert set(await place.words("Smith v. Jones")) == {"case", "both", "title"}
    assert await place.words('"Jones v. Smith"') == []
    assert set(await place.words('"Jones v. Smith"', phrases=False)) == {"case", "both", "title"}


async def test_a_word_of_the_title_counts_more_than_one_of_the_text(place: Place) -> None:
    await place.put("text", "harbour rules for ships", title="On anchors")
    await place.put("title", "anchor rules for ships", title="On harbours")
    assert await place.words("harbour") == ["title", "text"]


async def test_filters_hold_in_both_legs_and_keep_the_recall(place: Place) -> None:
    for number in range(120):
        metadata = {"year": 1900 + number, "court": "district" if number % 40 == 7 else "appeals"}
        await place.put(f"law/{number:03}", f"The harbour and its ships, paragraph {number}.", metadata=metadata)
    await place.embed()
    district = parse_filter({"metadata": {"court": "district"}})
    for mode in Mode:
        found = await place.ask("ships in the harbour", mode=mode, filter=district)
        assert {hit.source for hit in found.hits} == {"law/007", "law/047", "law/087"}
        assert found.report.chunks == 3
    one = parse_filter(
        {"all": [{"field": "metadata.year", "gte": 1950, "lt": 1951}, {"field": "source", "prefix": "law/"}]}
    )
    assert await place.words("ships", filter=one) == ["law/050"]
    assert await place.words("ships", filter=parse_filter({"field": "created_at", "lt": "2000-01-01"})) == []
    # rarity is the tenant's, whatever the filter leaves
    terms = (await place.ask("ships", mode=Mode.KEYWORD)).report.terms
    assert (await place.ask("ships", mode=Mode.KEYWORD, filter=one)).report.terms == terms


async def test_a_document_with_groups_is_seen_by_their_members_alone(place: Place) -> None:
    lawyer, clerk = member(place.mine, "legal", "staff"), member(place.mine, "staff", user="eve")
    await place.put("open", "The merger is public.")
    stored = await place.put("deal", "The merger is secret.", as_=lawyer, groups=("legal", "board"))
    await place.embed()
    for mode in Mode:
        assert {hit.source for hit in (await place.ask("merger", as_=lawyer, mode=mode)).hits} == {"open", "deal"}
        for outsider in (clerk, place.mine):
            found = await place.ask("secret merger", as_=outsider, mode=mode)
            assert [hit.source for hit in found.hits] == ["open"]
            # neither its words nor its number show in any statistic
            assert (found.report.chunks, "secret" in found.report.terms) == (1, False)
    with pytest.raises(NotFound):
        await get_document(place.database, clerk, stored.document_id)
    with pytest.raises(NotFound):
        await delete_document(place.database, clerk, stored.document_id)
    assert [one.source for one in (await list_documents(place.database, clerk)).documents] == ["open"]
    with pytest.raises(Conflict):
        await place.put("deal", "Overwritten.", as_=clerk)
    with pytest.raises(Forbidden):
        await place.put("mine", "For others only.", as_=clerk, groups=("legal",))
    assert (await get_document(place.database, lawyer, stored.document_id)).document.groups == ("board", "legal")


async def test_taking_a_group_away_holds_from_the_next_statement_on_and_keeps_the_vectors(place: Place) -> None:
    lawyer, clerk = member(place.mine, "legal", "staff"), member(place.mine, "staff", user="eve")
    await place.put("deal", "The merger is secret.", as_=lawyer, groups=("staff",))
    await place.embed()
    cached = retriever(place.database, place.minilm, cache=LocalResultCache())
    request = SearchRequest(query="secret merger")
    for _ in range(2):
        assert len((await search(cached, clerk, request)).hits) == 1
    again = await place.put("deal", "The merger is secret.", as_=lawyer, groups=("legal",))
    assert (again.outcome, again.version) == (Outcome.UPDATED, 2)
    assert (await search(cached, clerk, request)).hits == ()
    (hit,) = (await search(cached, lawyer, request)).hits
    assert (hit.explain.vector_imputed, hit.explain.vector_rank) == (False, 1)
    assert (
        await place.put("deal", "The merger is secret.", as_=lawyer, groups=("legal",))
    ).outcome is Outcome.UNCHANGED
    # who does not speak of readers does not change them
    assert (await place.put("deal", "The merger is secret.", as_=lawyer)).outcome is Outcome.UNCHANGED
    assert (await place.put("deal", "The merger is off.", as_=lawyer)).outcome is Outcome.UPDATED
    assert (await search(cached, clerk, request)).hits == ()
    assert (await place.put("deal", "The merger is off.", as_=lawyer, groups=())).outcome is Outcome.UPDATED
    assert len((await search(cached, clerk, request)).hits) == 1


async def test_statistics_of_a_caller_do_not_depend_on_documents_that_it_may_not_read(place: Place) -> None:
    lawyer = member(place.mine, "legal")
    for number in range(10):
        await place.put(f"{number}", f"The harbour {'and its ships ' * (number % 3)}.")
    await place.embed()
    before = await place.ask("harbour ships", limit=50)
    for number in range(30):
        await place.put(f"hidden/{number}", "harbour " * (number + 1), as_=lawyer, groups=("legal",))
    await place.embed()
    after = await place.ask("harbour ships", limit=50)
    assert (after.hits, after.version) == (before.hits, before.version)


async def test_ranks_alone_decide_under_rrf(place: Place) -> None:
    for number in range(30):
        await place.put(f"{number:02}", f"The harbour {number} {'and its ships ' * (number % 4)}.")
    await place.embed()
    found = await place.ask("harbour ships", fusion=Fusion.RRF, limit=30, bm25_weight=1, vector_weight=3)
    assert len(found.hits) == 30
    for hit in found.hits:
        why = hit.explain
        assert why.bm25_rank is not None
        assert why.vector_rank is not None
        assert hit.score == pytest.approx(0.25 / (60 + why.bm25_rank) + 0.75 / (60 + why.vector_rank), abs=2e-6)


async def test_chunks_that_say_the_same_are_one_hit_with_all_its_spans(place: Place) -> None:
    clause = "## Notice\n\n" + "The tenant shall give notice to the landlord in writing and in good time. " * 12
    text = f"{clause}\n\n## Water\n\n{'Ships sail the sea in summer. ' * 30}\n\n{clause}"
    await place.put("lease", text, media_type="text/markdown")
    await place.put("other", "A notice to the landlord.")
    await place.embed()
    found = await place.ask("notice to the landlord in writing", limit=10)
    lease = [hit for hit in found.hits if hit.source == "lease" and "landlord" in hit.text]
    assert len(lease) == 1
    (twin,) = lease[0].duplicates
    assert "landlord" in text[twin.start : twin.end]
    assert twin.chunk != lease[0].chunk


async def test_a_put_returns_the_version_at_which_a_search_finds_it_by_both_legs(place: Place) -> None:
    await place.put("1", "The first law of the harbour.")
    stored = await place.put("2", "A second law of ships.")
    assert stored.corpus_version == 2
    late = await place.ask("ships", min_version=stored.corpus_version, wait_s=0.2)
    assert (late.stale, late.version, late.hits[0].source) == (True, 2, "2")
    fresh: SearchResult | None = None
    with anyio.fail_after(BOUND_S):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(place.embed)
            fresh = await place.ask("ships", min_version=stored.corpus_version, wait_s=BOUND_S)
    assert fresh is not None
    assert (fresh.stale, fresh.hits[0].explain.vector_imputed) == (False, False)
    assert (await place.ask("ships", min_version=3, wait_s=0)).stale
    document_id = stored.document_id
    assert await delete_document(place.database, place.mine, document_id) == 3
    assert not (await place.ask("ships", min_version=3)).stale


async def test_a_kept_result_is_given_again_until_a_write_outdates_it(place: Place) -> None:
    cached = retriever(place.database, place.minilm, cache=LocalResultCache())
    request = SearchRequest(query="harbour ships")
    await place.put("1", "The first law of the harbour.")
    for _ in range(2):  # a vector is still to come: the answer may change without a write
        assert not (await search(cached, place.mine, request)).report.cached
    await place.embed()
    first = await search(cached, place.mine, request)
    second = await search(cached, place.mine, request)
    assert (first.report.cached, second.report.cached, second.hits) == (False, True, first.hits)
    assert not (await search(cached, place.mine, SearchRequest(query="harbour ships", limit=9))).report.cached
    await place.put("2", "Ships in the harbour.")
    await place.embed()
    third = await search(cached, place.mine, request)
    assert (third.report.cached, len(third.hits)) == (False, 2)


async def test_nothing_is_kept_for_a_tenant_that_forbids_it(world: World, place: Place) -> None:
    await place.put("1", "The first law of the harbour.")
    await place.embed()
    forbid = Query(
        name="forbid",
        description="",
        text="update rag.tenant set cache_results = false where tenant_id = $1",
        parameters=("tenant_id",),
    )
    async with world.operator() as operator, operator.database.unsafe_unscoped(reason="test") as session:
        await session.fetch(forbid, tenant_id=place.mine.tenant_id)
    cached = retriever(place.database, place.minilm, cache=LocalResultCache())
    for _ in range(3):
        assert not (await search(cached, place.mine, SearchRequest(query="harbour"))).report.cached


class Backwards:
    """A reranker that prefers what came last."""

    async def rerank(self, query: str, texts: Sequence[str]) -> Scores:
        return np.arange(len(texts), dtype=np.float64)


class Late:
    """A reranker that does not answer."""

    async def rerank(self, query: str, texts: Sequence[str]) -> Scores:
        await anyio.sleep_forever()
        raise AssertionError


async def test_a_reranker_orders_the_hits_and_a_late_one_is_left_out(place: Place) -> None:
    for number in range(20):
        await place.put(f"{number:02}", f"The harbour {number} {'and its ships ' * (number % 4)}.")
    request = SearchRequest(query="harbour ships", mode=Mode.KEYWORD, limit=5)
    plain = await search(place.retriever, place.mine, dataclasses.replace(request, limit=20))
    turned = await search(retriever(place.database, place.minilm, reranker=Backwards()), place.mine, request)
    assert [hit.source for hit in turned.hits] == [hit.source for hit in plain.hits][::-1][:5]
    assert [hit.explain.rerank_score for hit in turned.hits] == [19, 18, 17, 16, 15]
    late = await search(retriever(place.database, place.minilm, reranker=Late()), place.mine, request)
    assert (late.degraded, late.hits) == (("rerank",), plain.hits[:5])


async def test_at_most_so_many_hits_are_of_one_document(place: Place) -> None:
    sections = "\n\n".join(f"## Part {n}\n\n{f'Harbour rule {n} of ships. ' * 30}" for n in range(6))
    await place.put("long", sections, media_type="text/markdown")
    await place.put("short", "One rule of the harbour.")
    assert (await place.words("harbour rule")).count("long") == 6
    assert sorted(await place.words("harbour rule", max_per_document=1)) == ["long", "short"]
    assert (await place.words("harbour rule", max_per_document=2)).count("long") == 2


async def test_a_tenants_language_says_which_forms_are_one_word(world: World, place: Place) -> None:
    async with world.operator() as operator:
        german = world.principal(await operator.create_tenant("german", language="german"))
    for principal in (german, place.mine):
        await place.put("1", "Die Häuser am Hafen wurden verkauft.", as_=principal, title="Recht")
    assert await place.words("Haus verkaufen", as_=german) == ["1"]
    assert await place.words("Haus verkaufen") == []


async def test_a_tenants_own_weights_hold_where_a_request_names_none(world: World, place: Place) -> None:
    for number in range(20):
        await place.put(f"{number:02}", f"The harbour {number} {'and its ships ' * (number % 4)}.")
    await place.embed()
    default = (await place.ask("harbour ships", limit=20)).hits
    async with world.operator() as operator:
        await operator.set_weights(place.mine.tenant_id, (1.0, 0.0))
        own = (await place.ask("harbour ships", limit=20)).hits
        assert [hit.explain.vector_part for hit in own] == [0.0] * 20
        assert own != default
        named = await place.ask("harbour ships", limit=20, bm25_weight=0.2, vector_weight=0.8)
        assert [hit.score for hit in named.hits] == [hit.score for hit in default]
        for wrong in ((-1.0, 1.0), (0.0, 0.0), (float("nan"), 1.0)):
            with pytest.raises(InvalidInput):
                await operator.set_weights(place.mine.tenant_id, wrong)
        await operator.set_weights(place.mine.tenant_id, None)
    assert (await place.ask("harbour ships", limit=20)).hits == default
