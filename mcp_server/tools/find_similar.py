"""The tool `find_similar`: documents like a document, or passages like a passage."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import Field

from mcp_server.call import Call
from mcp_server.tools.documents import excerpt
from mcp_server.tools.hybrid_search import FILTER_HELP
from mcp_server.tools.tool import Arguments, Output, Tool
from rag.corpus.store import MAX_CHUNKS
from rag.identity.scopes import Scope
from rag.retrieval.filters import parse_filter
from rag.retrieval.similar import SimilarRequest, find_similar
from rag.retrieval.values import MAX_LIMIT, Hit

__all__ = ["FIND_SIMILAR"]

MAX_EXCERPT_CHARS = 600


class SimilarArguments(Arguments):
    """Arguments of `find_similar`."""

    document_id: Annotated[
        UUID, Field(strict=False, description="What the others are to be like; as a search or list_documents returned.")
    ]
    chunk: Annotated[
        Annotated[int, Field(ge=0, lt=MAX_CHUNKS)] | None,
        Field(description="Number of one passage in it, as a search hit tells. Default: the document as a whole."),
    ] = None
    of: Annotated[
        Literal["documents", "passages"],
        Field(description="documents: each document once, by its nearest passage; passages: every near passage."),
    ] = "documents"
    limit: Annotated[int, Field(ge=1, le=MAX_LIMIT, description="How many to return at most.")] = 10
    filter: Annotated[dict[str, Any] | None, Field(description=FILTER_HELP)] = None


class SimilarOutput(Output):
    """One passage of another document."""

    document_id: Annotated[str, Field(description="For retrieve_document.")]
    source: str
    title: str
    version: int
    chunk: Annotated[int, Field(description="Number of the passage in its document, from 0.")]
    heading: Annotated[str, Field(description="The headings that the passage stands under, outermost first.")]
    start: Annotated[int, Field(description="First character in the document's text, from 0.")]
    end: Annotated[int, Field(description="One past the last character.")]
    excerpt: Annotated[str, Field(description="The beginning of the passage.")]
    similarity: Annotated[
        float | None,
        Field(description="Cosine, at most 1; comparable between answers. null: found by words, not by meaning."),
    ]


class SimilarsOutput(Output):
    """Result of `find_similar`."""

    similar: Annotated[list[SimilarOutput], Field(description="Most alike first; never of the document itself.")]
    by: Annotated[
        Literal["meaning", "words"],
        Field(description="meaning: by vectors. words: its vectors are still being made, so BM25 stood in for them."),
    ]
    degraded: Annotated[
        list[str],
        Field(description="'dense' when words had to do; 'partial' when some of its passages have no vector yet."),
    ]
    corpus_version: Annotated[int, Field(description="The version of the collection that was searched.")]

    def documents_used(self) -> tuple[str, ...]:
        """See `Output.documents_used`."""
        return tuple({found.document_id: None for found in self.similar})


async def run(call: Call, arguments: SimilarArguments) -> SimilarsOutput:
    """Search the caller's tenant."""
    request = SimilarRequest(
        document_id=arguments.document_id,
        chunk=arguments.chunk,
        limit=arguments.limit,
        passages=arguments.of == "passages",
        filter=None if arguments.filter is None else parse_filter(arguments.filter),
    )
    result = await find_similar(call.runtime.retriever, call.principal, request)
    return SimilarsOutput(
        similar=[_similar(hit) for hit in result.hits],
        by="meaning" if result.by_vectors else "words",
        degraded=list(result.degraded),
        corpus_version=result.version,
    )


def _similar(hit: Hit) -> SimilarOutput:
    return SimilarOutput(
        document_id=str(hit.document_id),
        source=hit.source,
        title=hit.title,
        version=hit.version,
        chunk=hit.chunk,
        heading=hit.heading,
        start=hit.start,
        end=hit.end,
        excerpt=excerpt(hit.text, MAX_EXCERPT_CHARS),
        similarity=hit.explain.vector_score,
    )


FIND_SIMILAR = Tool(
    name="find_similar",
    title="Find similar documents",
    description=(
        "Find documents of your organisation that are about the same as a given one, or passages that say much the "
        "same as a given passage: for duplicates, precedents, further reading. It needs a document_id; to search for a "
        "question or for words use hybrid_search. Read a result with retrieve_document."
    ),
    scope=Scope.CORPUS_READ,
    arguments=SimilarArguments,
    output=SimilarsOutput,
    run=run,
    read_only=True,
    cost=2,
)
