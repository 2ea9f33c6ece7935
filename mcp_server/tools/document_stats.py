"""The tool `document_stats`: how much there is in the collection, and of what kind."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mcp_server.call import Call
from mcp_server.tools.tool import Arguments, Output, Tool
from rag.corpus.collection import MAX_TAGS, NAMED, Brief, collection
from rag.identity.scopes import Scope

__all__ = ["DOCUMENT_STATS"]


class StatsArguments(Arguments):
    """Arguments of `document_stats`: none."""


class BriefOutput(Output):
    """A document in one line."""

    document_id: Annotated[str, Field(description="For retrieve_document and find_similar.")]
    source: str
    title: str
    chunks: int
    text_bytes: int
    updated_at: Annotated[str, Field(description="RFC 3339, UTC.")]


class StatsOutput(Output):
    """Result of `document_stats`."""

    documents: int
    chunks: Annotated[int, Field(description="Passages that the documents were cut into.")]
    text_bytes: Annotated[int, Field(description="Length of all texts together, as UTF-8.")]
    embeddings_pending: Annotated[
        int, Field(description="Documents that are found by their words but not yet, or not wholly, by their meaning.")
    ]
    corpus_version: Annotated[int, Field(description="Counts the writes; when it has not changed, nothing has.")]
    language: Annotated[str, Field(description="In which words are reduced to their stems.")]
    embedding_model: Annotated[str, Field(description="What makes the vectors of passages.")]
    embedding_dimension: int
    media_types: Annotated[dict[str, int], Field(description="Documents by media type.")]
    tags: Annotated[
        dict[str, int],
        Field(description=f"Documents by what stands in metadata.tags, the {MAX_TAGS} most frequent; filter by them."),
    ]
    largest: Annotated[list[BriefOutput], Field(description=f"The {NAMED} longest, longest first.")]
    newest: Annotated[list[BriefOutput], Field(description=f"The {NAMED} changed last, latest first.")]

    def documents_used(self) -> tuple[str, ...]:
        """See `Output.documents_used`."""
        return tuple({one.document_id: None for one in (*self.largest, *self.newest)})


async def run(call: Call, arguments: StatsArguments) -> StatsOutput:
    """Count in the caller's tenant."""
    del arguments
    runtime = call.runtime
    found = await collection(runtime.database, call.principal, default_model=runtime.retriever.embedders.default_id)
    return StatsOutput(
        documents=found.documents,
        chunks=found.chunks,
        text_bytes=found.text_bytes,
        embeddings_pending=found.pending,
        corpus_version=found.corpus_version,
        language=found.language,
        embedding_model=found.model,
        embedding_dimension=found.dimension,
        media_types=dict(found.media_types),
        tags=dict(found.tags),
        largest=[_shown(one) for one in found.largest],
        newest=[_shown(one) for one in found.newest],
    )


def _shown(one: Brief) -> BriefOutput:
    return BriefOutput(
        document_id=str(one.document_id),
        source=one.source,
        title=one.title,
        chunks=one.chunks,
        text_bytes=one.text_bytes,
        updated_at=one.updated_at.isoformat(),
    )


DOCUMENT_STATS = Tool(
    name="document_stats",
    title="Count the documents",
    description=(
        "How many documents of your organisation you may read, how large they are, of which types and tags, which are "
        "the largest and the newest, and how many still wait to be searchable by meaning. Use it to get an overview or "
        "to see whether anything changed; use list_documents for the documents themselves."
    ),
    scope=Scope.CORPUS_READ,
    arguments=StatsArguments,
    output=StatsOutput,
    run=run,
    read_only=True,
    cost=2,
)
