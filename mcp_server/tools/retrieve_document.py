"""The tool `retrieve_document`: the text of one document: whole, a span of it, or the passages around one."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from pydantic import Field

from mcp_server.call import Call
from mcp_server.tools.documents import DocumentOutput, shown
from mcp_server.tools.tool import Arguments, Output, Tool
from rag.corpus.store import MAX_AROUND, MAX_CHUNKS, MAX_PART_CHARS, DocumentPart, get_document, get_passages
from rag.errors import InvalidInput
from rag.identity.scopes import Scope

__all__ = ["RETRIEVE_DOCUMENT"]

MAX_POSITION = 2**53
"""JSON numbers are exact up to here."""


class RetrieveArguments(Arguments):
    """Arguments of `retrieve_document`."""

    document_id: Annotated[UUID, Field(strict=False, description="As hybrid_search or list_documents returned it.")]
    start: Annotated[
        Annotated[int, Field(ge=0, le=MAX_POSITION)] | None,
        Field(description="First character of the text to return. Default: 0."),
    ] = None
    end: Annotated[
        Annotated[int, Field(gt=0, le=MAX_POSITION)] | None,
        Field(description=f"One past the last; without it, up to {MAX_PART_CHARS} characters."),
    ] = None
    chunk: Annotated[
        Annotated[int, Field(ge=0, lt=MAX_CHUNKS)] | None,
        Field(description="Instead of start and end: number of a passage, as a search hit tells."),
    ] = None
    around: Annotated[
        Annotated[int, Field(ge=0, le=MAX_AROUND)] | None,
        Field(description="With chunk: so many passages before it and after it as well. Default: 0."),
    ] = None


class PassageOutput(Output):
    """A passage by its place."""

    chunk: Annotated[int, Field(description="Its number in the document, from 0.")]
    heading: Annotated[str, Field(description="The headings that it stands under, outermost first.")]
    start: int
    end: int


class RetrieveOutput(Output):
    """Result of `retrieve_document`."""

    document: DocumentOutput
    start: int
    end: int
    text: Annotated[str, Field(description="The document's text from start to end.")]
    passages: Annotated[list[PassageOutput], Field(description="With chunk: the passages that the text is made of.")]
    next_start: Annotated[int | None, Field(description="Where to go on reading; null at the end of the text.")]

    def documents_used(self) -> tuple[str, ...]:
        """See `Output.documents_used`."""
        return (self.document.document_id,)


async def run(call: Call, arguments: RetrieveArguments) -> RetrieveOutput:
    """Read from the caller's tenant."""
    part = await _part(call, arguments)
    more = part.end < part.document.characters
    return RetrieveOutput(
        document=shown(part.document),
        start=part.start,
        end=part.end,
        text=part.text,
        passages=[
            PassageOutput(chunk=one.chunk, heading=one.heading, start=one.start, end=one.end) for one in part.passages
        ],
        next_start=part.end if more else None,
    )


async def _part(call: Call, arguments: RetrieveArguments) -> DocumentPart:
    database, principal, document_id = call.runtime.database, call.principal, arguments.document_id
    if arguments.chunk is None:
        if arguments.around is not None:
            raise InvalidInput("around goes with chunk: name the passage, or leave around out")
        return await get_document(database, principal, document_id, start=arguments.start or 0, end=arguments.end)
    if arguments.start is not None or arguments.end is not None:
        raise InvalidInput("give chunk, with around, or start and end: both name a part of the text; leave one out")
    return await get_passages(database, principal, document_id, chunk=arguments.chunk, around=arguments.around or 0)


RETRIEVE_DOCUMENT = Tool(
    name="retrieve_document",
    title="Read a document",
    description=(
        "Read a document by its id: all of it, the characters from start to end, or a passage of a search hit with the "
        "passages around it (chunk, around). Use the last to see a hit in its context. At most "
        f"{MAX_PART_CHARS} characters come back at a time; next_start says where to go on. Spans count Unicode "
        "characters from 0, as in search results."
    ),
    scope=Scope.CORPUS_READ,
    arguments=RetrieveArguments,
    output=RetrieveOutput,
    run=run,
    read_only=True,
)
