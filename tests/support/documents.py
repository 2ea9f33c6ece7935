"""Documents for tests that are not about ingestion: written by the same SQL function, without a parser or chunker."""

from __future__ import annotations

import hashlib
from uuid import UUID, uuid4

from rag.db.pool import Session
from sql import Query

__all__ = ["put_raw_document"]

_PUT = Query(
    name="put_raw",
    description="One document of one chunk.",
    text=(
        "select * from rag.put_document_v2($1, $2, $3, 'text/plain', '{}', '{}', $4, $5::text, "
        "array[0], array[length($5::text)], array[''], array[$5::text])"
    ),
    parameters=("document", "source", "title", "hash", "text"),
)


async def put_raw_document(session: Session, *, title: str, text: str, source: str | None = None) -> UUID:
    """Write one document of one chunk and return its id."""
    document = uuid4()
    await session.fetch(
        _PUT,
        document=document,
        source=source or str(document),
        title=title,
        hash=hashlib.sha256(text.encode()).digest(),
        text=text,
    )
    return document
