"""The tool `retrieve_document`: the text of one document, whole or a span of it."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from pydantic import Field

from mcp_server.tools.documents import DocumentOutput, shown
from mcp_server.tools.tool import Arguments, Output, Tool
from rag.corpus.store import MAX_PART_CHARS, get_document
from rag.identity.principal import Principal
from rag.identity.scopes import Scope
from rag.runtime import Runtime

__all__ = ["RETRIEVE_DOCUMENT"]

MAX_POSITION = 2**53
"""JSON numbers are exact up to here."""


class RetrieveArguments(Arguments):
    """Arguments of `retrieve_document`."""

    document_id: Annotated[UUID, Field(strict=False, description="As hybrid_search or list_documents returned it.")]
    start: Annotated[int, Field(ge=0, le=MAX_POSITION, description="First character of the text to return.")] = 0
    end: Annotated[
        int | None,
        Field(gt=0, le=MAX_POSITION, description=f"One past the last; without it, up to {MAX_PART_CHARS} characters."),
    ] = None


class RetrieveOutput(Output):
    """Result of `retrieve_document`."""

    document: DocumentOutput
    start: int
    end: int
    text: Annotated[str, Field(description="The document's text from start to end.")]
    next_start: Annotated[int | None, Field(description="Where to go on reading; null at the end of the text.")]


async def run(runtime: Runtime, principal: Principal, arguments: RetrieveArguments) -> RetrieveOutput:
    """Read from the caller's tenant."""
    part = await get_document(
        runtime.database, principal, arguments.document_id, start=arguments.start, end=arguments.end
    )
    more = part.end < part.document.characters
    return RetrieveOutput(
        document=shown(part.document),
        start=part.start,
        end=part.end,
        text=part.text,
        next_start=part.end if more else None,
    )


RETRIEVE_DOCUMENT = Tool(
    name="retrieve_document",
    title="Read a document",
    description=(
        "Read a document by its id: all of it, or the characters from start to end. At most "
        f"{MAX_PART_CHARS} characters come back at a time; next_start says where to go on. Spans count Unicode "
        "characters from 0, as in search results."
    ),
    scope=Scope.CORPUS_READ,
    arguments=RetrieveArguments,
    output=RetrieveOutput,
    run=run,
    read_only=True,
)
