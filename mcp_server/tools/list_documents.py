"""The tool `list_documents`: every document of the tenant, page by page, in the order of its source."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mcp_server.tools.documents import DocumentOutput, shown
from mcp_server.tools.tool import Arguments, Output, Tool
from rag.corpus.store import MAX_PAGE, list_documents, pending_embeddings
from rag.identity import cursors
from rag.identity.principal import Principal
from rag.identity.scopes import Scope
from rag.runtime import Runtime

__all__ = ["LIST_DOCUMENTS"]

_KIND = "list_documents"


class ListArguments(Arguments):
    """Arguments of `list_documents`."""

    limit: Annotated[int, Field(ge=1, le=MAX_PAGE, description="How many documents to return at most.")] = 50
    cursor: Annotated[
        str | None,
        Field(
            max_length=cursors.MAX_CURSOR_CHARS,
            description="next_cursor of the page before; without it, the first page.",
        ),
    ] = None


class ListOutput(Output):
    """Result of `list_documents`."""

    documents: Annotated[list[DocumentOutput], Field(description="In the order of their source.")]
    next_cursor: Annotated[str | None, Field(description="For the next page; null on the last one.")]
    embeddings_pending: Annotated[
        int, Field(description="Documents that are found by their words but not yet, or not wholly, by their meaning.")
    ]


async def run(runtime: Runtime, principal: Principal, arguments: ListArguments) -> ListOutput:
    """Read from the caller's tenant."""
    tenant_id, key = principal.tenant_id, runtime.cursor_key
    after = ""
    if arguments.cursor is not None:
        after = str(cursors.read(key, _KIND, tenant_id, arguments.cursor)[0])
    page = await list_documents(runtime.database, principal, after=after, limit=arguments.limit)
    next_cursor = None
    if page.next_after is not None:
        next_cursor = cursors.mint(key, _KIND, tenant_id, [page.next_after])
    return ListOutput(
        documents=[shown(document) for document in page.documents],
        next_cursor=next_cursor,
        embeddings_pending=await pending_embeddings(runtime.database, principal),
    )


LIST_DOCUMENTS = Tool(
    name="list_documents",
    title="List documents",
    description=(
        "List the documents of your organisation, without their text, in the order of their source names. Pass "
        "next_cursor back as cursor for the next page."
    ),
    scope=Scope.CORPUS_READ,
    arguments=ListArguments,
    output=ListOutput,
    run=run,
    read_only=True,
)
