"""The tool `list_documents`: the tenant's documents, all or some, page by page, in the order of their source."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any

from pydantic import Field

from mcp_server.call import Call
from mcp_server.tools.documents import DocumentOutput, shown
from mcp_server.tools.hybrid_search import FILTER_HELP
from mcp_server.tools.tool import Arguments, Output, Tool
from rag.corpus.store import MAX_PAGE, MAX_SOURCE_BYTES, list_documents, pending_embeddings
from rag.identity import cursors
from rag.identity.scopes import Scope
from rag.retrieval.filters import parse_filter, to_jsonpath

__all__ = ["LIST_DOCUMENTS"]

_KIND = "list_documents"


class ListArguments(Arguments):
    """Arguments of `list_documents`."""

    source_prefix: Annotated[
        Annotated[str, Field(min_length=1, max_length=MAX_SOURCE_BYTES)] | None,
        Field(description="Only documents whose source begins so, letter case included: a folder, a site."),
    ] = None
    filter: Annotated[dict[str, Any] | None, Field(description=FILTER_HELP)] = None
    limit: Annotated[int, Field(ge=1, le=MAX_PAGE, description="How many documents to return at most.")] = 50
    cursor: Annotated[
        str | None,
        Field(
            max_length=cursors.MAX_CURSOR_CHARS,
            description="next_cursor of the page before, with the same filter and source_prefix; without it, the "
            "first page.",
        ),
    ] = None


class ListOutput(Output):
    """Result of `list_documents`."""

    documents: Annotated[list[DocumentOutput], Field(description="In the order of their source.")]
    next_cursor: Annotated[str | None, Field(description="For the next page; null on the last one.")]
    embeddings_pending: Annotated[
        int, Field(description="Documents that are found by their words but not yet, or not wholly, by their meaning.")
    ]

    def documents_used(self) -> tuple[str, ...]:
        """See `Output.documents_used`."""
        return tuple(document.document_id for document in self.documents)


async def run(call: Call, arguments: ListArguments) -> ListOutput:
    """Read from the caller's tenant."""
    tenant_id, key = call.principal.tenant_id, call.runtime.cursor_key
    prefix = arguments.source_prefix
    matching = None if arguments.filter is None else to_jsonpath(parse_filter(arguments.filter))
    kind = _kind(prefix, matching)
    after = ""
    if arguments.cursor is not None:
        after = str(cursors.read(key, kind, tenant_id, arguments.cursor)[0])
    page = await list_documents(
        call.runtime.database, call.principal, after=after, limit=arguments.limit, prefix=prefix, matching=matching
    )
    next_cursor = None
    if page.next_after is not None:
        next_cursor = cursors.mint(key, kind, tenant_id, [page.next_after])
    return ListOutput(
        documents=[shown(document) for document in page.documents],
        next_cursor=next_cursor,
        embeddings_pending=await pending_embeddings(call.runtime.database, call.principal),
    )


def _kind(prefix: str | None, matching: str | None) -> str:
    """Return the name of the list that a cursor is good for: with another filter it is another list."""
    if prefix is None and matching is None:
        return _KIND
    # the predicate is ASCII and canonical, and holds no NUL
    named = f"{matching or ''}\0{prefix or ''}".encode(errors="surrogatepass")
    return f"{_KIND} {hashlib.sha256(named).hexdigest()}"


LIST_DOCUMENTS = Tool(
    name="list_documents",
    title="List documents",
    description=(
        "List the documents of your organisation, without their text, in the order of their source names; all of them, "
        "or those that a filter or a source_prefix leaves. Use it to see what there is; use search_documents to find a "
        "document by its words, document_stats to count. Pass next_cursor back as cursor, with the same filter, for "
        "the next page."
    ),
    scope=Scope.CORPUS_READ,
    arguments=ListArguments,
    output=ListOutput,
    run=run,
    read_only=True,
)
