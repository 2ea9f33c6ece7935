"""The tool `search_documents`: which documents, rather than which passages, contain given words."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from mcp_server.call import Call
from mcp_server.tools.documents import excerpt
from mcp_server.tools.hybrid_search import FILTER_HELP
from mcp_server.tools.tool import Arguments, Output, Tool
from rag.identity.scopes import Scope
from rag.retrieval.filters import parse_filter
from rag.retrieval.search import search
from rag.retrieval.values import MAX_LIMIT, MAX_QUERY_CHARS, Hit, Mode, SearchRequest

__all__ = ["SEARCH_DOCUMENTS"]

MAX_EXCERPT_CHARS = 300


class FindArguments(Arguments):
    """Arguments of `search_documents`."""

    query: Annotated[
        str,
        Field(
            min_length=1,
            max_length=MAX_QUERY_CHARS,
            description="Words of the title, the headings or the text, in any order and form.",
        ),
    ]
    limit: Annotated[int, Field(ge=1, le=MAX_LIMIT, description="How many documents to return at most.")] = 10
    filter: Annotated[dict[str, Any] | None, Field(description=FILTER_HELP)] = None


class FoundOutput(Output):
    """One document with its best passage."""

    document_id: Annotated[str, Field(description="For retrieve_document.")]
    source: str
    title: str
    version: int
    score: Annotated[float, Field(description="Of the best passage: 0 to 1, comparable within one answer only.")]
    excerpt: Annotated[str, Field(description="The beginning of the best passage.")]
    start: Annotated[int, Field(description="Where the best passage begins in the document's text, from 0.")]
    end: Annotated[int, Field(description="One past the best passage's last character.")]


class FindOutput(Output):
    """Result of `search_documents`."""

    documents: Annotated[list[FoundOutput], Field(description="Best first.")]

    def documents_used(self) -> tuple[str, ...]:
        """See `Output.documents_used`."""
        return tuple(found.document_id for found in self.documents)


async def run(call: Call, arguments: FindArguments) -> FindOutput:
    """Search by words for the best passage of each document."""
    request = SearchRequest(
        query=arguments.query,
        limit=arguments.limit,
        mode=Mode.KEYWORD,
        max_per_document=1,
        filter=None if arguments.filter is None else parse_filter(arguments.filter),
        rerank=False,
    )
    result = await search(call.runtime.retriever, call.principal, request)
    return FindOutput(documents=[_found(hit) for hit in result.hits])


def _found(best: Hit) -> FoundOutput:
    return FoundOutput(
        document_id=str(best.document_id),
        source=best.source,
        title=best.title,
        version=best.version,
        score=best.score,
        excerpt=excerpt(best.text, MAX_EXCERPT_CHARS),
        start=best.start,
        end=best.end,
    )


SEARCH_DOCUMENTS = Tool(
    name="search_documents",
    title="Find documents",
    description=(
        "Find which documents of your organisation contain given words in their title, headings or text. Ranks "
        "passages by words (BM25) and returns each document once, at the place and with the beginning of its best "
        "passage. Use it to find a document by name or subject; use hybrid_search to answer a question."
    ),
    scope=Scope.CORPUS_READ,
    arguments=FindArguments,
    output=FindOutput,
    run=run,
    read_only=True,
)
