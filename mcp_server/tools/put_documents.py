"""The tool `put_documents`: several documents in one call, each stored or refused by itself."""

from __future__ import annotations

import time
import unicodedata
from typing import Annotated, Any, Literal

from pydantic import Field

from mcp_server.call import Call
from mcp_server.tools.tool import Arguments, Output, Tool
from rag.corpus.metadata import MAX_METADATA_BYTES
from rag.corpus.store import MAX_SOURCE_BYTES, NewDocument, Stored, put_document
from rag.corpus.text import MAX_TEXT_CHARS
from rag.errors import BulkheadError, Conflict, Forbidden, InvalidInput, SealRefused, Unavailable
from rag.identity.scopes import Scope

__all__ = ["PUT_DOCUMENTS"]

MAX_DOCUMENTS = 50
MAX_CHARS = MAX_TEXT_CHARS
"""Of all texts together: as much as one document may have."""
TIMEOUT_S = 120.0
ENOUGH_S = 60.0
"""No document is begun later than this, so that what was done is told rather than lost to the time limit."""


class NewArguments(Arguments):
    """One document. Its limits are not in the schema: one that breaks them is refused alone, not all of them."""

    source: Annotated[
        str,
        Field(
            description="Your own stable name for the document, such as a path or a URL; the same source replaces it. "
            f"At most {MAX_SOURCE_BYTES} bytes."
        ),
    ]
    title: Annotated[str, Field(description="Searched like the text.")]
    text: Annotated[str, Field(description="The whole text.")]
    media_type: Annotated[
        str, Field(description="text/plain or text/markdown, in which lines that begin with # are headings.")
    ] = "text/plain"
    metadata: Annotated[
        dict[str, Any], Field(description=f"Kept beside the document; at most {MAX_METADATA_BYTES} bytes of JSON.")
    ] = Field(default_factory=dict[str, Any])
    groups: Annotated[
        list[str] | None,
        Field(description="Who may read it, as for put_document. Default: whoever may now; everyone, if it is new."),
    ] = None


class PutManyArguments(Arguments):
    """Arguments of `put_documents`."""

    documents: Annotated[
        list[NewArguments],
        Field(
            min_length=1,
            max_length=MAX_DOCUMENTS,
            description=f"Each of another source; their texts have at most {MAX_CHARS} characters together.",
        ),
    ]


class PutOneOutput(Output):
    """What became of one document."""

    source: str
    outcome: Annotated[
        Literal["created", "updated", "unchanged", "refused", "not_tried"],
        Field(description="refused: see code and reason, mend it, send it again. not_tried: send it again as it is."),
    ]
    document_id: Annotated[str | None, Field(description="null where nothing was stored.")] = None
    version: int | None = None
    chunks: Annotated[int | None, Field(description="Passages that the text was cut into.")] = None
    code: Annotated[str | None, Field(description="Why it was refused, for programs: document_refused, conflict …")] = (
        None
    )
    reason: Annotated[str | None, Field(description="Why it was refused or not tried.")] = None


class PutManyOutput(Output):
    """Result of `put_documents`."""

    results: Annotated[list[PutOneOutput], Field(description="In the order of the documents.")]
    stored: Annotated[int, Field(description="How many were created, updated, or there already.")]
    failed: Annotated[int, Field(description="How many were refused or not tried.")]
    corpus_version: Annotated[
        int | None,
        Field(description="For hybrid_search's min_version: such a search finds all of these. null: none was stored."),
    ]

    def documents_used(self) -> tuple[str, ...]:
        """See `Output.documents_used`."""
        return tuple(result.document_id for result in self.results if result.document_id is not None)


async def run(call: Call, arguments: PutManyArguments) -> PutManyOutput:
    """Write to the caller's tenant, one document after the other, each in a transaction of its own."""
    _check(arguments.documents)
    results: list[PutOneOutput] = []
    version: int | None = None
    stop: str | None = None
    until = time.monotonic() + ENOUGH_S
    for number, document in enumerate(arguments.documents, start=1):
        if stop is None and time.monotonic() > until:
            stop = "there was no time left for it; send it again"
        if stop is not None:
            results.append(PutOneOutput(source=document.source, outcome="not_tried", reason=stop))
            continue
        try:
            stored = await put_document(call.runtime.database, call.principal, _new(document))
        except SealRefused:
            raise
        except Unavailable as exc:
            stop = exc.message
            results.append(PutOneOutput(source=document.source, outcome="not_tried", code=exc.code, reason=stop))
        except (InvalidInput, Conflict, Forbidden) as exc:
            results.append(_refused(document, exc))
        else:
            version = stored.corpus_version
            results.append(_stored(document, stored))
        await call.progress(number, len(arguments.documents), f"{number} of {len(arguments.documents)} documents")
    failed = sum(result.document_id is None for result in results)
    return PutManyOutput(results=results, stored=len(results) - failed, failed=failed, corpus_version=version)


def _check(documents: list[NewArguments]) -> None:
    characters = sum(len(document.text) for document in documents)
    if characters > MAX_CHARS:
        raise InvalidInput(
            f"the texts have {characters:,} characters together; the limit is {MAX_CHARS:,}: send them in several calls"
        )
    seen: dict[str, int] = {}
    for number, document in enumerate(documents):
        first = seen.setdefault(unicodedata.normalize("NFC", document.source), number)
        if first != number:
            raise InvalidInput(f"documents.{first} and documents.{number} have the same source: leave one of them out")


def _new(document: NewArguments) -> NewDocument:
    return NewDocument(
        source=document.source,
        title=document.title,
        text=document.text,
        media_type=document.media_type,
        metadata=document.metadata,
        groups=None if document.groups is None else tuple(document.groups),
    )


def _stored(document: NewArguments, stored: Stored) -> PutOneOutput:
    return PutOneOutput(
        source=document.source,
        outcome=stored.outcome.value,
        document_id=str(stored.document_id),
        version=stored.version,
        chunks=stored.chunks,
    )


def _refused(document: NewArguments, exc: BulkheadError) -> PutOneOutput:
    return PutOneOutput(source=document.source, outcome="refused", code=exc.code, reason=exc.message)


PUT_DOCUMENTS = Tool(
    name="put_documents",
    title="Add or replace several documents",
    description=(
        f"Add up to {MAX_DOCUMENTS} documents to your organisation's collection, or replace those of the same sources, "
        "in one call. Each is stored whole or refused alone: look at every outcome, and send again what was refused, "
        "mended, and what was not tried. Repeating a call changes nothing. For one document use put_document."
    ),
    scope=Scope.CORPUS_WRITE,
    arguments=PutManyArguments,
    output=PutManyOutput,
    run=run,
    read_only=False,
    destructive=True,
    cost=5,
    timeout_s=TIMEOUT_S,
)
