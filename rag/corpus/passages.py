"""Where a document's chunks lie in its text.

Above: the MCP resources. Below: `rag.db` and sql/queries/corpus.sql.
"""

from __future__ import annotations

from uuid import UUID

from rag.db.pool import Database
from rag.identity.principal import Principal
from sql import load_queries

__all__ = ["passage_at"]

_QUERIES = load_queries("corpus")


async def passage_at(database: Database, principal: Principal, document_id: UUID, position: int) -> int | None:
    """Return the number of the first chunk that reaches beyond `position`; None where there is none.

    Raises:
        SealRefused, Revoked, Unavailable: The database does not answer.
    """
    async with database.tenant(principal) as session:
        number = await session.fetch_value(
            _QUERIES["passage_at"], tenant_id=principal.tenant_id, document_id=document_id, position=position
        )
    return None if number is None else int(number)
