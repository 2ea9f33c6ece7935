"""The tool `put_document`: add a document or replace the one of the same source."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from mcp_server.call import Call
from mcp_server.tools.tool import Arguments, Output, Tool
from rag.corpus.metadata import MAX_METADATA_BYTES
from rag.corpus.store import MAX_READER_GROUPS, MAX_SOURCE_BYTES, NewDocument, put_document
from rag.corpus.text import MAX_TEXT_CHARS, MAX_TITLE_CHARS
from rag.identity.scopes import Scope

__all__ = ["PUT_DOCUMENT"]


class PutArguments(Arguments):
    """Arguments of `put_document`."""

    source: Annotated[
        str,
        Field(
            min_length=1,
            max_length=MAX_SOURCE_BYTES,
            description="Your own stable name for the document, such as a path or a URL. The same source replaces it.",
        ),
    ]
    title: Annotated[str, Field(min_length=1, max_length=4 * MAX_TITLE_CHARS, description="Searched like the text.")]
    text: Annotated[str, Field(min_length=1, max_length=2 * MAX_TEXT_CHARS, description="The whole text.")]
    media_type: Annotated[
        Literal["text/plain", "text/markdown"],
        Field(description="text/markdown: lines that begin with # are headings, and passages know theirs."),
    ] = "text/plain"
    metadata: Annotated[
        dict[str, Any], Field(description=f"Kept beside the document; at most {MAX_METADATA_BYTES} bytes of JSON.")
    ] = Field(default_factory=dict[str, Any])
    groups: Annotated[
        Annotated[list[str], Field(max_length=MAX_READER_GROUPS)] | None,
        Field(
            description="Who may read it: members of any of these groups, of which you must be in one; empty: everyone "
            "in your organisation. Default: whoever may read it now; everyone, if it is new.",
        ),
    ] = None


class PutOutput(Output):
    """Result of `put_document`."""

    document_id: str
    outcome: Annotated[
        Literal["created", "updated", "unchanged"],
        Field(description="unchanged: the same content was there already, and nothing was done."),
    ]
    version: int
    chunks: Annotated[int, Field(description="Passages that the text was cut into.")]
    corpus_version: Annotated[
        int,
        Field(description="For hybrid_search's min_version: such a search finds this write by words and by meaning."),
    ]

    def documents_used(self) -> tuple[str, ...]:
        """See `Output.documents_used`."""
        return (self.document_id,)


async def run(call: Call, arguments: PutArguments) -> PutOutput:
    """Write to the caller's tenant."""
    new = NewDocument(
        source=arguments.source,
        title=arguments.title,
        text=arguments.text,
        media_type=arguments.media_type,
        metadata=arguments.metadata,
        groups=None if arguments.groups is None else tuple(arguments.groups),
    )
    stored = await put_document(call.runtime.database, call.principal, new)
    return PutOutput(
        document_id=str(stored.document_id),
        outcome=stored.outcome.value,
        version=stored.version,
        chunks=stored.chunks,
        corpus_version=stored.corpus_version,
    )


PUT_DOCUMENT = Tool(
    name="put_document",
    title="Add or replace a document",
    description=(
        "Add a document to your organisation's collection, or replace the one of the same source. It is found by its "
        "words as soon as this returns; search by meaning follows within moments. Repeating a call changes nothing. "
        "For several documents at once use put_documents."
    ),
    scope=Scope.CORPUS_WRITE,
    arguments=PutArguments,
    output=PutOutput,
    run=run,
    read_only=False,
    destructive=True,
    cost=2,
    timeout_s=60.0,
)
