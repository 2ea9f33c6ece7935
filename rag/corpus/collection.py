"""A tenant's collection as a whole: how much there is of it, in what language, and what it is made of.

Above: the MCP tools. Below: `rag.db` and sql/queries/corpus.sql. Everything is counted over what the caller may read:
documents that are other groups' do not even change a number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from rag.db.pool import Database
from rag.errors import NotFound
from rag.identity.principal import Principal
from sql import load_queries

__all__ = ["Brief", "Collection", "collection"]

MAX_TAGS = 20
MAX_TAG_CHARS = 100
"""Longer texts under metadata.tags are no tags."""
NAMED = 5
"""Documents in each of the two short lists."""
_QUERIES = load_queries("corpus")


@dataclass(frozen=True, slots=True, kw_only=True)
class Brief:
    """A document in one line."""

    document_id: UUID
    source: str
    title: str
    chunks: int
    text_bytes: int
    updated_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """What the caller may read."""

    documents: int
    chunks: int
    text_bytes: int
    """Of the texts, in UTF-8."""
    pending: int
    """Documents that wait for vectors."""
    corpus_version: int
    language: str
    """The text search configuration of PostgreSQL by which words are stemmed."""
    model: str
    """The embedding model that the tenant's vectors are made with."""
    dimension: int
    media_types: Mapping[str, int]
    tags: Mapping[str, int]
    """Documents by the texts in `metadata.tags`, the MAX_TAGS most frequent."""
    largest: tuple[Brief, ...]
    newest: tuple[Brief, ...]


async def collection(database: Database, principal: Principal, *, default_model: int) -> Collection:
    """Return the caller's collection. `default_model` is the model of tenants that have none of their own yet.

    Raises:
        NotFound: The tenant is gone.
        SealRefused, Revoked, Unavailable: The database does not answer.
    """
    async with database.tenant(principal) as session:
        row = await session.fetch_one(
            _QUERIES["collection"],
            tenant_id=principal.tenant_id,
            default_model=default_model,
            most=MAX_TAGS,
            longest_tag=MAX_TAG_CHARS,
            named=NAMED,
        )
    if row is None:
        raise NotFound("there is no such tenant")
    return Collection(
        documents=row["documents"],
        chunks=row["chunks"],
        text_bytes=row["text_bytes"],
        pending=row["pending"],
        corpus_version=row["corpus_version"],
        language=row["language"],
        model=row["model"],
        dimension=row["dimension"],
        media_types=row["media_types"],
        tags=dict(row["tags"]),
        largest=tuple(_brief(one) for one in row["largest"]),
        newest=tuple(_brief(one) for one in row["newest"]),
    )


def _brief(value: Mapping[str, Any]) -> Brief:
    return Brief(
        document_id=UUID(value["document_id"]),
        source=value["source"],
        title=value["title"],
        chunks=value["chunks"],
        text_bytes=value["text_bytes"],
        updated_at=datetime.fromisoformat(value["updated_at"]),
    )
