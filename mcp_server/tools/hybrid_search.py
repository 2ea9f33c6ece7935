"""The tool `hybrid_search`: passages by words and by meaning, each with the reason for its place."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from mcp_server.call import Call
from mcp_server.tools.tool import Arguments, Output, Tool
from rag.identity.scopes import Scope
from rag.retrieval.filters import parse_filter
from rag.retrieval.search import search
from rag.retrieval.values import (
    MAX_LIMIT,
    MAX_QUERY_CHARS,
    MAX_VERSION,
    Fusion,
    Hit,
    Mode,
    Report,
    SearchRequest,
)

__all__ = ["FILTER_HELP", "HYBRID_SEARCH"]

FILTER_HELP = (
    'Only documents that match. Leaf: {"field": "metadata.year", "gte": 2020, "lt": 2025}; fields are source, title, '
    "media_type, created_at, updated_at and metadata.NAME; tests are eq, in, gt, gte, lt, lte, prefix, exists. "
    'Combine with {"all": [...]}, {"any": [...]}, {"not": {...}}. Short form: {"metadata": {"court": "district"}}.'
)

MAX_WEIGHT = 1_000_000


class SearchArguments(Arguments):
    """Arguments of `hybrid_search`."""

    query: Annotated[
        str,
        Field(
            min_length=1,
            max_length=MAX_QUERY_CHARS,
            description="What to look for: a question or words. A phrase in double quotes must occur in every hit, "
            "word for word; codes such as 10b-5 or 78j(b) are found exactly.",
        ),
    ]
    phrases: Annotated[
        bool, Field(description="false: double quotes in the query are punctuation and ask for no phrase.")
    ] = True
    limit: Annotated[int, Field(ge=1, le=MAX_LIMIT, description="How many passages to return at most.")] = 10
    bm25_weight: Annotated[
        Annotated[float, Field(ge=0, le=MAX_WEIGHT)] | None,
        Field(
            description="Weight of exact words, relative to vector_weight; hybrid mode only. Default: your tenant's."
        ),
    ] = None
    vector_weight: Annotated[
        Annotated[float, Field(ge=0, le=MAX_WEIGHT)] | None,
        Field(description="Weight of meaning, relative to bm25_weight; hybrid mode only. Default: your tenant's."),
    ] = None
    mode: Annotated[
        Literal["hybrid", "keyword", "semantic"],
        Field(description="hybrid: words and meaning; keyword: words alone (BM25); semantic: meaning alone."),
    ] = "hybrid"
    fusion: Annotated[
        Literal["convex", "rrf"],
        Field(description="How words and meaning become one order: by scores, or by ranks alone (RRF, k = 60)."),
    ] = "convex"
    filter: Annotated[dict[str, Any] | None, Field(description=FILTER_HELP)] = None
    max_per_document: Annotated[
        Annotated[int, Field(ge=1, le=MAX_LIMIT)] | None,
        Field(description="So many passages of one document at most; 1 to see many documents. Default: any number."),
    ] = None
    min_version: Annotated[
        Annotated[int, Field(ge=0, le=MAX_VERSION)] | None,
        Field(
            description="A corpus_version that a write returned: wait briefly until that write is found by both legs."
        ),
    ] = None
    rerank: Annotated[bool, Field(description="Let the reranker order the hits, where one is configured.")] = True


class TermOutput(Output):
    """One term of the query that occurs in a passage."""

    term: Annotated[str, Field(description="A word's stem, or an exact code with a leading =.")]
    idf: Annotated[float, Field(description="How rare it is among the passages that you may read.")]
    frequency: Annotated[int, Field(description="How often it occurs; the title counts twice.")]


class ExplainOutput(Output):
    """Why a passage has its score."""

    bm25_rank: Annotated[int | None, Field(description="Place by words, from 1; null: not among the best 100.")]
    bm25_score: float
    bm25_part: Annotated[float, Field(description="What the words contribute to the score.")]
    vector_rank: Annotated[int | None, Field(description="Place by meaning, from 1; null: not among the best 100.")]
    vector_score: Annotated[float | None, Field(description="Cosine similarity; null: no vector takes part.")]
    vector_part: Annotated[float, Field(description="What the meaning contributes to the score.")]
    vector_imputed: Annotated[
        bool, Field(description="The passage is new and its vector is still being made: vector_part is an estimate.")
    ]
    terms: Annotated[list[TermOutput], Field(description="Terms of the query that occur in the passage.")]
    rerank_score: Annotated[
        float | None, Field(description="The reranker's, on its own scale; the hits are in its order.")
    ]


class SpanOutput(Output):
    """A passage by its place."""

    chunk: int
    start: int
    end: int


class HitOutput(Output):
    """One passage."""

    document_id: Annotated[str, Field(description="For retrieve_document.")]
    source: Annotated[str, Field(description="The name under which the document was put in.")]
    title: str
    version: int
    chunk: Annotated[int, Field(description="Number of the passage in its document, from 0.")]
    heading: Annotated[str, Field(description="The headings that the passage stands under, outermost first.")]
    start: Annotated[int, Field(description="First character in the document's text, from 0.")]
    end: Annotated[int, Field(description="One past the last character.")]
    text: str
    score: Annotated[float, Field(description="0 to 1, comparable within one answer only.")]
    duplicates: Annotated[
        list[SpanOutput], Field(description="Passages of the same document that say the same, left out for this one.")
    ]
    explain: ExplainOutput


class ReportOutput(Output):
    """How the search was run."""

    lexical_plan: Annotated[
        str, Field(description="full, pruned (of the longest lists only the best passages), or off.")
    ]
    dense_plan: Annotated[str, Field(description="exact, hnsw, exact after hnsw, or off.")]
    chunks: Annotated[int, Field(description="Passages that you may read and that the filter leaves.")]
    terms: Annotated[dict[str, float], Field(description="Terms of the query that occur, with their idf.")]
    expanded: Annotated[
        dict[str, list[str]],
        Field(description="Words that occur nowhere, and the near ones that were searched for instead."),
    ]
    timings_ms: dict[str, float]
    cached: bool


class SearchOutput(Output):
    """Result of `hybrid_search`."""

    hits: Annotated[list[HitOutput], Field(description="Best first.")]
    degraded: Annotated[
        list[str],
        Field(description="What could not take part: 'dense' when meaning could not be searched, 'rerank' when late."),
    ]
    corpus_version: Annotated[int, Field(description="The version of the collection that was searched.")]
    stale: Annotated[bool, Field(description="min_version was not reached in time; the newest writes may be missing.")]
    report: ReportOutput

    def documents_used(self) -> tuple[str, ...]:
        """See `Output.documents_used`."""
        return tuple({hit.document_id: None for hit in self.hits})


async def run(call: Call, arguments: SearchArguments) -> SearchOutput:
    """Search the caller's tenant."""
    request = SearchRequest(
        query=arguments.query,
        phrases=arguments.phrases,
        limit=arguments.limit,
        bm25_weight=arguments.bm25_weight,
        vector_weight=arguments.vector_weight,
        mode=Mode(arguments.mode),
        fusion=Fusion(arguments.fusion),
        filter=None if arguments.filter is None else parse_filter(arguments.filter),
        max_per_document=arguments.max_per_document,
        min_version=arguments.min_version,
        rerank=arguments.rerank,
    )
    result = await search(call.runtime.retriever, call.principal, request)
    return SearchOutput(
        hits=[_hit(hit) for hit in result.hits],
        degraded=list(result.degraded),
        corpus_version=result.version,
        stale=result.stale,
        report=_report(result.report),
    )


def _report(report: Report) -> ReportOutput:
    return ReportOutput(
        lexical_plan=report.lexical_plan,
        dense_plan=report.dense_plan,
        chunks=report.chunks,
        terms=dict(report.terms),
        expanded={word: list(near) for word, near in report.expanded.items()},
        timings_ms=dict(report.timings_ms),
        cached=report.cached,
    )


def _hit(hit: Hit) -> HitOutput:
    why = hit.explain
    return HitOutput(
        document_id=str(hit.document_id),
        source=hit.source,
        title=hit.title,
        version=hit.version,
        chunk=hit.chunk,
        heading=hit.heading,
        start=hit.start,
        end=hit.end,
        text=hit.text,
        score=hit.score,
        duplicates=[SpanOutput(chunk=span.chunk, start=span.start, end=span.end) for span in hit.duplicates],
        explain=ExplainOutput(
            bm25_rank=why.bm25_rank,
            bm25_score=why.bm25_score,
            bm25_part=why.bm25_part,
            vector_rank=why.vector_rank,
            vector_score=why.vector_score,
            vector_part=why.vector_part,
            vector_imputed=why.vector_imputed,
            terms=[TermOutput(term=term.term, idf=term.idf, frequency=term.frequency) for term in why.terms],
            rerank_score=why.rerank_score,
        ),
    )


HYBRID_SEARCH = Tool(
    name="hybrid_search",
    title="Search passages",
    description=(
        "Search the documents of your organisation for passages that answer a question or contain given words. "
        "Combines exact words (BM25) and meaning (vectors). Returns passages best first, each with its document, "
        "its exact character span and an explanation of its score. Use it first for any question about the documents; "
        "quote passages by document_id, start and end; call retrieve_document for more of the text around one."
    ),
    scope=Scope.CORPUS_READ,
    arguments=SearchArguments,
    output=SearchOutput,
    run=run,
    read_only=True,
    cost=2,
)
