"""The tool `hybrid_search`: passages by words and by meaning, each with the reason for its place."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mcp_server.tools.tool import Arguments, Output, Tool
from rag.identity.principal import Principal
from rag.identity.scopes import Scope
from rag.retrieval.search import DEFAULT_WEIGHTS, MAX_LIMIT, MAX_QUERY_CHARS, Hit, Mode, SearchRequest, search
from rag.runtime import Runtime

__all__ = ["HYBRID_SEARCH"]

MAX_WEIGHT = 1_000_000


class SearchArguments(Arguments):
    """Arguments of `hybrid_search`."""

    query: Annotated[
        str,
        Field(
            min_length=1,
            max_length=MAX_QUERY_CHARS,
            description="What to look for: a question, a phrase, or the exact words that must occur.",
        ),
    ]
    limit: Annotated[int, Field(ge=1, le=MAX_LIMIT, description="How many passages to return at most.")] = 10
    bm25_weight: Annotated[
        float,
        Field(ge=0, le=MAX_WEIGHT, description="Weight of exact words, relative to vector_weight; hybrid mode only."),
    ] = DEFAULT_WEIGHTS[0]
    vector_weight: Annotated[
        float, Field(ge=0, le=MAX_WEIGHT, description="Weight of meaning, relative to bm25_weight; hybrid mode only.")
    ] = DEFAULT_WEIGHTS[1]
    mode: Annotated[
        Literal["hybrid", "keyword", "semantic"],
        Field(description="hybrid: words and meaning; keyword: words alone (BM25); semantic: meaning alone."),
    ] = "hybrid"


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
    terms: Annotated[list[str], Field(description="Word stems of the query that occur in the passage.")]


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
    explain: ExplainOutput


class SearchOutput(Output):
    """Result of `hybrid_search`."""

    hits: Annotated[list[HitOutput], Field(description="Best first.")]
    degraded: Annotated[
        list[str], Field(description="Legs that could not take part: 'dense' when meaning could not be searched.")
    ]


async def run(runtime: Runtime, principal: Principal, arguments: SearchArguments) -> SearchOutput:
    """Search the caller's tenant."""
    request = SearchRequest(
        query=arguments.query,
        limit=arguments.limit,
        bm25_weight=arguments.bm25_weight,
        vector_weight=arguments.vector_weight,
        mode=Mode(arguments.mode),
    )
    result = await search(runtime.database, runtime.embedder, runtime.embedding_model, principal, request)
    return SearchOutput(hits=[_hit(hit) for hit in result.hits], degraded=list(result.degraded))


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
        explain=ExplainOutput(
            bm25_rank=why.bm25_rank,
            bm25_score=why.bm25_score,
            bm25_part=why.bm25_part,
            vector_rank=why.vector_rank,
            vector_score=why.vector_score,
            vector_part=why.vector_part,
            vector_imputed=why.vector_imputed,
            terms=list(why.terms),
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
)
