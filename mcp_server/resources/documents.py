"""The resources `bulkhead://documents/{id}` and `bulkhead://documents/{id}/chunks/{n}`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import mcp_types as types

from mcp_server.call import Call, Done
from mcp_server.resources.template import Contents, Template, canonical_id, not_found
from mcp_server.suggestions import chunk_numbers, document_ids
from rag.corpus.passages import passage_at
from rag.corpus.store import MAX_PART_CHARS, DocumentPart, get_document, get_passages
from rag.corpus.titles import Entry
from rag.errors import InvalidInput
from rag.identity.scopes import Scope

__all__ = ["CHUNK", "DOCUMENT", "as_link", "as_resource", "notice"]

_NUMBER = re.compile(r"0|[1-9][0-9]{0,6}")
"""Without leading zeros; rag.document has fewer than 2**20 chunks each."""


async def read_document(call: Call, variables: Mapping[str, str]) -> Done[Contents]:
    """Read a document's text; of a long one the beginning, and where to go on."""
    document_id = canonical_id(variables["id"])
    part = await get_document(call.runtime.database, call.principal, document_id)
    uri = DOCUMENT.uri_of(id=str(document_id))
    meta: dict[str, Any] = {
        "bulkhead/title": part.document.title,
        "bulkhead/source": part.document.source,
        "bulkhead/version": part.document.version,
        "bulkhead/updatedAt": part.document.updated_at.isoformat(),
        "bulkhead/characters": part.document.characters,
        "bulkhead/chunks": part.document.chunks,
        "bulkhead/start": part.start,
        "bulkhead/end": part.end,
    }
    contents: Contents = []
    if part.end < part.document.characters:
        number = await passage_at(call.runtime.database, call.principal, document_id, part.end)
        meta["bulkhead/nextStart"] = part.end
        if number is not None:
            meta["bulkhead/nextChunk"] = CHUNK.uri_of(id=str(document_id), n=str(number))
        contents.append(notice(uri, _where_to_go_on(part, number)))
    text = types.TextResourceContents(uri=uri, mime_type=part.document.media_type, text=part.text, _meta=meta)
    return Done(value=[text, *contents], documents=(str(document_id),))


async def read_chunk(call: Call, variables: Mapping[str, str]) -> Done[Contents]:
    """Read one chunk."""
    document_id = canonical_id(variables["id"])
    if not _NUMBER.fullmatch(variables["n"]):
        raise not_found()
    try:
        part = await get_passages(call.runtime.database, call.principal, document_id, chunk=int(variables["n"]))
    except InvalidInput as exc:
        raise not_found() from exc
    passage, document = part.passages[0], part.document
    meta: dict[str, Any] = {
        "bulkhead/title": document.title,
        "bulkhead/document": DOCUMENT.uri_of(id=str(document_id)),
        "bulkhead/version": document.version,
        "bulkhead/updatedAt": document.updated_at.isoformat(),
        "bulkhead/heading": passage.heading,
        "bulkhead/chunk": passage.chunk,
        "bulkhead/chunks": document.chunks,
        "bulkhead/start": part.start,
        "bulkhead/end": part.end,
    }
    uri = CHUNK.uri_of(id=str(document_id), n=str(passage.chunk))
    text = types.TextResourceContents(uri=uri, mime_type=document.media_type, text=part.text, _meta=meta)
    return Done(value=[text], documents=(str(document_id),))


def as_resource(entry: Entry) -> types.Resource:
    """Return a document as `resources/list` shows it."""
    return types.Resource(
        uri=DOCUMENT.uri_of(id=str(entry.document_id)),
        name=entry.source,
        title=entry.title,
        mime_type=entry.media_type,
        size=entry.bytes,
        annotations=types.Annotations(last_modified=entry.updated_at.isoformat()),
    )


def as_link(entry: Entry) -> types.ResourceLink:
    """Return a document as a message points to it."""
    return types.ResourceLink.model_validate(as_resource(entry).model_dump())


def notice(uri: str, text: str) -> types.TextResourceContents:
    """Return a remark of ours beside the contents of a resource; never part of its text, so that spans hold."""
    return types.TextResourceContents(uri=uri, mime_type="text/plain", text=text, _meta={"bulkhead/notice": True})


def _where_to_go_on(part: DocumentPart, number: int | None) -> str:
    document_id = part.document.document_id
    tool = f"the tool retrieve_document with document_id {document_id} and start {part.end}"
    chunks = ""
    if number is not None:
        last = CHUNK.uri_of(id=str(document_id), n=str(part.document.chunks - 1))
        chunks = f", or the resources {CHUNK.uri_of(id=str(document_id), n=str(number))} to {last}"
    return f"These are the first {part.end} of {part.document.characters} characters. To read on, use {tool}{chunks}."


DOCUMENT = Template(
    kind="document",
    title="A document",
    description=(
        "The text of one of your organisation's documents, by its id. At most "
        f"{MAX_PART_CHARS} characters come back; of a longer one a second part says where to go on."
    ),
    uri="bulkhead://documents/{id}",
    scope=Scope.CORPUS_READ,
    read=read_document,
    completers={"id": document_ids},
)
CHUNK = Template(
    kind="chunk",
    title="A passage of a document",
    description="One passage of a document, by the number that search results give, from 0.",
    uri="bulkhead://documents/{id}/chunks/{n}",
    scope=Scope.CORPUS_READ,
    read=read_chunk,
    completers={"id": document_ids, "n": chunk_numbers},
)
