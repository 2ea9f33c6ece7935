"""What documents there are, without their text: for lists, and for completing what somebody types.

Above: the MCP resources, prompts and completions. Below: `text`, `rag.db` and sql/queries/corpus.sql. All of it is what
the caller may read; titles of others leave no trace in it. A prefix is taken as it is: there are no wildcards.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from rag.corpus.text import clean_title
from rag.db.pool import Database, Row, Session
from rag.errors import InvalidInput, NotFound
from rag.identity.principal import Principal
from sql import load_queries

__all__ = [
    "MAX_LOOKED_AT",
    "Entry",
    "EntryPage",
    "Title",
    "find_entry",
    "get_entry",
    "ids_between",
    "list_entries",
    "recent_tags",
    "titles_from",
]

MAX_LOOKED_AT = 1_000
"""So many rows a completion reads at most."""
_MAX_NAMESAKES = 5
_QUERIES = load_queries("corpus")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A document as a list shows it."""

    document_id: UUID
    source: str
    title: str
    media_type: str
    version: int
    chunks: int
    bytes: int
    """Of its text in UTF-8."""
    updated_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryPage:
    """Some documents; `next_after` is the source to go on after, or None on the last page."""

    entries: tuple[Entry, ...]
    next_after: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Title:
    """What a document is called."""

    document_id: UUID
    title: str


async def list_entries(database: Database, principal: Principal, *, after: str = "", limit: int) -> EntryPage:
    """Return documents in the order of their source, from the first one after `after`.

    Raises:
        SealRefused, Revoked, Unavailable: The database does not answer.
    """
    async with database.tenant(principal) as session:
        rows = await session.fetch(
            _QUERIES["list_entries"], tenant_id=principal.tenant_id, after=after, wanted=limit + 1
        )
    entries = tuple(_entry(row) for row in rows[:limit])
    return EntryPage(entries=entries, next_after=entries[-1].source if len(rows) > limit else None)


async def get_entry(session: Session, principal: Principal, document_id: UUID) -> Entry:
    """Return one document.

    Raises:
        NotFound: There is none of that id that the caller may read.
    """
    row = await session.fetch_one(_QUERIES["entry"], tenant_id=principal.tenant_id, document_id=document_id)
    if row is None:
        raise NotFound("there is no document of that id")
    return _entry(row)


async def find_entry(session: Session, principal: Principal, title: str) -> Entry:
    """Return the document of exactly this title.

    Raises:
        NotFound: There is none that the caller may read.
        InvalidInput: There are several; the message has their ids.
    """
    clean = clean_title(title)
    rows = await session.fetch(
        _QUERIES["entries_of_title"], tenant_id=principal.tenant_id, title=clean or "", wanted=_MAX_NAMESAKES + 1
    )
    if not rows:
        raise NotFound("there is no document of that id or title")
    if len(rows) > 1:
        ids = ", ".join(str(row["document_id"]) for row in rows[:_MAX_NAMESAKES])
        more = " and others" if len(rows) > _MAX_NAMESAKES else ""
        raise InvalidInput(f"several documents have that title; name one by its id: {ids}{more}")
    return _entry(rows[0])


async def titles_from(database: Database, principal: Principal, prefix: str) -> list[Title]:
    """Return up to MAX_LOOKED_AT documents whose titles begin with `prefix`, whatever the letter case, by title.

    White space is taken as in stored titles: one blank between words, none around them.

    Raises:
        SealRefused, Revoked, Unavailable: The database does not answer.
    """
    async with database.tenant(principal) as session:
        rows = await session.fetch(
            _QUERIES["titles_from"],
            tenant_id=principal.tenant_id,
            prefix=clean_title(prefix) or "",
            wanted=MAX_LOOKED_AT,
        )
    return [Title(document_id=row["document_id"], title=row["title"]) for row in rows]


async def ids_between(database: Database, principal: Principal, first: UUID, last: UUID, *, limit: int) -> list[Title]:
    """Return up to `limit` documents whose ids lie between two, both included, by id.

    Raises:
        SealRefused, Revoked, Unavailable: The database does not answer.
    """
    async with database.tenant(principal) as session:
        rows = await session.fetch(
            _QUERIES["ids_between"], tenant_id=principal.tenant_id, first=first, last=last, wanted=limit
        )
    return [Title(document_id=row["document_id"], title=row["title"]) for row in rows]


async def recent_tags(database: Database, principal: Principal, prefix: str, *, limit: int) -> list[str]:
    """Return up to `limit` tags that begin with `prefix`, whatever the letter case, in alphabetical order.

    Tags are the texts under `tags` in the metadata of the MAX_LOOKED_AT documents that were written last.

    Raises:
        SealRefused, Revoked, Unavailable: The database does not answer.
    """
    async with database.tenant(principal) as session:
        rows = await session.fetch(
            _QUERIES["recent_tags"],
            tenant_id=principal.tenant_id,
            prefix=clean_title(prefix) or "",
            looked_at=MAX_LOOKED_AT,
            wanted=limit,
        )
    return [str(row["tag"]) for row in rows]


def _entry(row: Row) -> Entry:
    return Entry(
        document_id=row["document_id"],
        source=row["source"],
        title=row["title"],
        media_type=row["media_type"],
        version=row["version"],
        chunks=row["chunks"],
        bytes=row["bytes"],
        updated_at=row["updated_at"],
    )
