"""How a document, and the beginning of a passage, look to a client; shared by the tools that show them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from mcp_server.tools.tool import Output
from rag.corpus.store import Document

__all__ = ["DocumentOutput", "excerpt", "shown"]


class DocumentOutput(Output):
    """A document without its text."""

    document_id: Annotated[str, Field(description="For retrieve_document and delete_document.")]
    source: Annotated[str, Field(description="The name under which it was put in; putting it again replaces it.")]
    title: str
    media_type: str
    metadata: dict[str, Any]
    groups: Annotated[list[str], Field(description="Who may read it; empty: everyone in your organisation.")]
    version: Annotated[int, Field(description="1, and one more each time its content changed.")]
    chunks: Annotated[int, Field(description="Passages that it was cut into.")]
    characters: Annotated[int, Field(description="Length of its text.")]
    created_at: Annotated[str, Field(description="RFC 3339, UTC.")]
    updated_at: Annotated[str, Field(description="RFC 3339, UTC.")]


def shown(document: Document) -> DocumentOutput:
    """Return `document` in its outer form."""
    return DocumentOutput(
        document_id=str(document.document_id),
        source=document.source,
        title=document.title,
        media_type=document.media_type,
        metadata=dict(document.metadata),
        groups=list(document.groups),
        version=document.version,
        chunks=document.chunks,
        characters=document.characters,
        created_at=document.created_at.isoformat(),
        updated_at=document.updated_at.isoformat(),
    )


def excerpt(text: str, length: int) -> str:
    """Return `text`, or its beginning and an ellipsis, in at most `length` characters."""
    return text if len(text) <= length else text[: length - 1] + "…"
