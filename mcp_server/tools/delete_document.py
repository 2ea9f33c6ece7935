"""The tool `delete_document`: remove a document from every search and read."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from pydantic import Field

from mcp_server.call import Call
from mcp_server.tools.tool import Arguments, Output, Tool
from rag.corpus.store import delete_document
from rag.identity.scopes import Scope

__all__ = ["DELETE_DOCUMENT"]


class DeleteArguments(Arguments):
    """Arguments of `delete_document`."""

    document_id: Annotated[UUID, Field(strict=False, description="As hybrid_search or list_documents returned it.")]


class DeleteOutput(Output):
    """Result of `delete_document`."""

    document_id: str
    deleted: bool
    corpus_version: Annotated[int, Field(description="The version of the collection without it.")]

    def documents_used(self) -> tuple[str, ...]:
        """See `Output.documents_used`."""
        return (self.document_id,)


async def run(call: Call, arguments: DeleteArguments) -> DeleteOutput:
    """Delete from the caller's tenant."""
    version = await delete_document(call.runtime.database, call.principal, arguments.document_id)
    return DeleteOutput(document_id=str(arguments.document_id), deleted=True, corpus_version=version)


DELETE_DOCUMENT = Tool(
    name="delete_document",
    title="Delete a document",
    description=(
        "Remove a document from your organisation's collection for good. When this returns, no search and no read "
        "finds it any more."
    ),
    scope=Scope.CORPUS_WRITE,
    arguments=DeleteArguments,
    output=DeleteOutput,
    run=run,
    read_only=False,
    destructive=True,
)
