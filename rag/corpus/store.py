"""A tenant's documents: put, read, list, delete. What a client sent is made clean, cut into chunks and stored at once.

Above: the MCP tools. Below: `text` and `chunk` (pure), `rag.db` and sql/queries/corpus.sql. A document is searchable by
its words when `put_document` returns; its vectors follow from `rag.corpus.embedding`.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, TypeVar
from uuid import UUID, uuid5

import anyio.to_thread
import orjson

from rag.corpus.chunk import Chunk, chunk
from rag.corpus.metadata import check_metadata
from rag.corpus.text import clean_text, clean_title
from rag.db.pool import Database, Row
from rag.errors import DocumentRefused, InvalidInput, NotFound
from rag.identity.principal import MAX_NAME, Principal
from sql import load_queries

__all__ = [
    "MAX_AROUND",
    "MAX_CHUNKS",
    "MAX_PAGE",
    "MAX_PART_CHARS",
    "MAX_SOURCE_BYTES",
    "MEDIA_TYPES",
    "Document",
    "DocumentPart",
    "NewDocument",
    "Outcome",
    "Page",
    "Passage",
    "Stored",
    "delete_document",
    "document_id_of",
    "get_document",
    "get_passages",
    "list_documents",
    "pending_embeddings",
    "put_document",
]

MAX_SOURCE_BYTES = 1024
"""UTF-8 bytes: the source stands in an index, whose rows PostgreSQL limits to a third of a page (2704 bytes)."""
MAX_PART_CHARS = 40_000
"""Longest text that one read returns: with its JSON copy, at twelve bytes a character where both are escaped, it stays
below the 1 MiB that MCP clients take per event."""
MAX_PAGE = 100
MAX_CHUNKS = 2**20
"""Of one document: a chunk's number is below it (sql/migrations/0008)."""
MAX_AROUND = 15
"""Chunks before and after one, all of which fit into MAX_PART_CHARS."""
MAX_READER_GROUPS = 32
MEDIA_TYPES = frozenset({"text/plain", "text/markdown"})
"""Of the text as it is handed in: what it was before a reader made text of it is the client's business."""
_THREAD_ABOVE_CHARS = 20_000
"""Cutting this much takes about a millisecond; more would hold up the event loop."""
_CHUNKER_VERSION = b"1"
"""Part of the content hash: raise it when the chunker cuts differently, and a second ingest renews every document."""
_QUERIES = load_queries("corpus")
T = TypeVar("T")


class Outcome(StrEnum):
    """What a put did."""

    CREATED = "created"
    UPDATED = "updated"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True, kw_only=True)
class NewDocument:
    """What a client hands in. `source` is the client's own name for it: the same source replaces the document."""

    source: str
    title: str
    text: str
    media_type: str = "text/plain"
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    groups: tuple[str, ...] | None = None
    """Who may read it: members of any of these; empty: everyone in the tenant. None: as it was; everyone, if new."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """The result of a put."""

    document_id: UUID
    outcome: Outcome
    version: int
    chunks: int
    corpus_version: int
    """Counts the writes that the caller can see; a search that names it as `min_version` finds this one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A document without its text."""

    document_id: UUID
    source: str
    title: str
    media_type: str
    metadata: Mapping[str, Any]
    groups: tuple[str, ...]
    """Who may read it; empty: everyone in the tenant."""
    version: int
    chunks: int
    characters: int
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """A chunk by its number, the headings that it stands under, and its place in the document's text."""

    chunk: int
    heading: str
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentPart:
    """A document and `text[start:end]` of it, in characters."""

    document: Document
    start: int
    end: int
    text: str
    passages: tuple[Passage, ...] = ()
    """The chunks that were asked for, in order, where it is chunks that were."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Some documents; `next_after` is the source to go on after, or None on the last page."""

    documents: tuple[Document, ...]
    next_after: str | None


def document_id_of(tenant_id: UUID, source: str) -> UUID:
    """Return the id of the tenant's document that `source` names; known before it is stored, and no one else's."""
    return uuid5(tenant_id, source)


async def put_document(database: Database, principal: Principal, new: NewDocument) -> Stored:
    """Store `new`, replacing the document of the same source; the same again changes nothing.

    Other readers alone keep the vectors. From the next statement on nobody finds it who may no longer read it.

    Raises:
        DocumentRefused: The text is empty, too long, or holds what no stored text may hold.
        InvalidInput: The source, title, type, metadata or groups are malformed.
        Forbidden: The caller belongs to none of the groups.
        Conflict: The source names a document that the caller may not read.
        SealRefused, Revoked, Unavailable: The database does not take it.
    """
    new = await _off_loop(_cleaned, new)
    document_id = document_id_of(principal.tenant_id, new.source)
    content_hash = _content_hash(new)
    async with database.tenant(principal) as session:
        stored = await session.fetch_one(
            _QUERIES["stored_hash"], tenant_id=principal.tenant_id, document_id=document_id
        )
    readers_stay = stored is not None and new.groups in {None, tuple(stored["groups"])}
    if stored is not None and stored["content_hash"] == content_hash and readers_stay:
        return Stored(
            document_id=document_id,
            outcome=Outcome.UNCHANGED,
            version=stored["version"],
            chunks=stored["chunks"],
            corpus_version=stored["corpus_version"],
        )
    chunks = await _off_loop(_cut, new)
    if not chunks:
        raise DocumentRefused("the document has no text")
    async with database.tenant(principal) as session:
        row = await session.fetch_one(
            _QUERIES["put_document"],
            document_id=document_id,
            source=new.source,
            title=new.title,
            media_type=new.media_type,
            metadata=dict(new.metadata),
            groups=None if new.groups is None else list(new.groups),
            content_hash=content_hash,
            text=new.text,
            starts=[piece.start for piece in chunks],
            ends=[piece.end for piece in chunks],
            headings=[piece.heading for piece in chunks],
            texts=[piece.text for piece in chunks],
        )
    assert row is not None
    return Stored(
        document_id=document_id,
        outcome=Outcome(row["outcome"]),
        version=row["version"],
        chunks=len(chunks),
        corpus_version=row["corpus_version"],
    )


async def get_document(
    database: Database, principal: Principal, document_id: UUID, *, start: int = 0, end: int | None = None
) -> DocumentPart:
    """Return `text[start:end]` of a document, at most MAX_PART_CHARS of it; past the end of the text is empty.

    Raises:
        InvalidInput: `start` is negative or `end` is not after it.
        NotFound: There is no such document in this tenant.
        SealRefused, Revoked, Unavailable: The database does not answer.
    """
    if start < 0 or (end is not None and end <= start):
        raise InvalidInput("start must be 0 or more, and end greater than start")
    # beyond every stored text, and within the database's integer
    first = min(start, 2**30)
    wanted = MAX_PART_CHARS if end is None else min(end - start, MAX_PART_CHARS)
    async with database.tenant(principal) as session:
        row = await session.fetch_one(
            _QUERIES["get_document"],
            tenant_id=principal.tenant_id,
            document_id=document_id,
            first=first,
            wanted=wanted,
        )
    if row is None:
        raise NotFound("there is no document of that id")
    text = str(row["part"])
    at = min(first, int(row["characters"]))
    return DocumentPart(document=_document(row), start=at, end=at + len(text), text=text)


async def get_passages(
    database: Database, principal: Principal, document_id: UUID, *, chunk: int, around: int = 0
) -> DocumentPart:
    """Return the text from `around` chunks before the chunk of that number to `around` chunks after it, gaps included.

    Raises:
        InvalidInput: The document has no such chunk, or `around` is not 0 to MAX_AROUND.
        NotFound: There is no such document in this tenant.
        SealRefused, Revoked, Unavailable: The database does not answer.
    """
    if not 0 <= around <= MAX_AROUND:
        raise InvalidInput(f"around must be 0 to {MAX_AROUND}")
    # within the database's numbers: no document has a chunk of that number
    asked = min(max(chunk, -1), MAX_CHUNKS - 1)
    async with database.tenant(principal) as session:
        row = await session.fetch_one(
            _QUERIES["get_passages"],
            tenant_id=principal.tenant_id,
            document_id=document_id,
            first=max(0, asked - around),
            last=min(max(0, asked) + around, MAX_CHUNKS - 1),
            wanted=MAX_PART_CHARS,
        )
    if row is None:
        raise NotFound("there is no document of that id")
    if not 0 <= chunk < row["chunks"]:
        raise InvalidInput(f"chunk must be 0 to {row['chunks'] - 1}: this document has so many passages")
    text = str(row["part"])
    return DocumentPart(
        document=_document(row),
        start=row["start_char"],
        end=row["start_char"] + len(text),
        text=text,
        passages=tuple(Passage(**passage) for passage in row["passages"]),
    )


async def list_documents(
    database: Database,
    principal: Principal,
    *,
    after: str = "",
    limit: int = 50,
    prefix: str | None = None,
    matching: str | None = None,
) -> Page:
    """Return documents in the order of their source, from the first one after `after`.

    `prefix` and `matching`, a jsonpath predicate over a document's record as `rag.retrieval.filters` writes it, leave
    some of them out.

    Raises:
        InvalidInput: `limit` is not 1 to MAX_PAGE, or the prefix holds what no source can.
        SealRefused, Revoked, Unavailable: The database does not answer.
    """
    if not 1 <= limit <= MAX_PAGE:
        raise InvalidInput(f"limit must be 1 to {MAX_PAGE}")
    some: dict[str, object] = {}
    if prefix is not None or matching is not None:
        some = {"prefix": None if prefix is None else _prefix(prefix), "filter": matching}
    query = _QUERIES["list_matching" if some else "list_documents"]
    async with database.tenant(principal) as session:
        rows = await session.fetch(query, tenant_id=principal.tenant_id, after=after, wanted=limit + 1, **some)
    documents = tuple(_document(row) for row in rows[:limit])
    return Page(documents=documents, next_after=documents[-1].source if len(rows) > limit else None)


async def delete_document(database: Database, principal: Principal, document_id: UUID) -> int:
    """Remove a document and return the corpus version without it; no search or read finds it when this returns.

    Raises:
        NotFound: There is no such document in this tenant.
        SealRefused, Revoked, Unavailable: The database does not answer.
    """
    async with database.tenant(principal) as session:
        version = await session.fetch_value(_QUERIES["delete_document"], document_id=document_id)
        if version is None:
            raise NotFound("there is no document of that id")
        return int(version)


async def pending_embeddings(database: Database, principal: Principal) -> int:
    """Return how many of the tenant's documents still wait for vectors.

    Raises:
        SealRefused, Revoked, Unavailable: The database does not answer.
    """
    async with database.tenant(principal) as session:
        return int(await session.fetch_value(_QUERIES["pending_embeddings"]))


def _cleaned(new: NewDocument) -> NewDocument:
    title = clean_title(new.title)
    if title is None:
        raise InvalidInput("the title is empty")
    if new.media_type not in MEDIA_TYPES:
        raise InvalidInput(f"the media type must be one of {', '.join(sorted(MEDIA_TYPES))}")
    check_metadata(new.metadata)
    return NewDocument(
        source=_source(new.source),
        title=title,
        text=clean_text(new.text),
        media_type=new.media_type,
        metadata=new.metadata,
        groups=None if new.groups is None else _groups(new.groups),
    )


def _groups(groups: tuple[str, ...]) -> tuple[str, ...]:
    if len(groups) > MAX_READER_GROUPS:
        raise InvalidInput(f"a document can be given to at most {MAX_READER_GROUPS} groups")
    for group in groups:
        if not 0 < len(group) <= MAX_NAME or not group.isprintable():
            raise InvalidInput(f"a group's name is 1 to {MAX_NAME} printable characters")
    return tuple(sorted(set(groups)))


def _source(source: str) -> str:
    source = unicodedata.normalize("NFC", source)
    try:
        size = len(source.encode())
    except UnicodeEncodeError as exc:
        raise InvalidInput("the source has lone surrogates, which no encoding can store") from exc
    if not 0 < size <= MAX_SOURCE_BYTES:
        raise InvalidInput(f"the source must be 1 to {MAX_SOURCE_BYTES} bytes of UTF-8")
    if not source.isprintable() or not source.strip():
        raise InvalidInput("the source has control characters, or nothing but white space")
    return source


def _prefix(prefix: str) -> str:
    prefix = unicodedata.normalize("NFC", prefix)
    if "\0" in prefix or any("\ud800" <= character <= "\udfff" for character in prefix):
        raise InvalidInput("the prefix has NUL characters or lone surrogates, which no source can have")
    return prefix


def _content_hash(new: NewDocument) -> bytes:
    canonical = orjson.dumps(dict(new.metadata), option=orjson.OPT_SORT_KEYS)
    digest = hashlib.sha256()
    for part in (_CHUNKER_VERSION, new.title.encode(), new.media_type.encode(), canonical, new.text.encode()):
        # the length first, so that no two documents run together into one hash
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()


def _cut(new: NewDocument) -> list[Chunk]:
    return chunk(new.text, markdown=new.media_type == "text/markdown")


async def _off_loop(function: Callable[[NewDocument], T], new: NewDocument) -> T:
    if len(new.text) <= _THREAD_ABOVE_CHARS:
        return function(new)
    return await anyio.to_thread.run_sync(function, new)


def _document(row: Row) -> Document:
    return Document(
        document_id=row["document_id"],
        source=row["source"],
        title=row["title"],
        media_type=row["media_type"],
        metadata=row["metadata"],
        groups=tuple(row["groups"]),
        version=row["version"],
        chunks=row["chunks"],
        characters=row["characters"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )
