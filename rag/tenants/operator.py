"""What an operator does to tenants: create, list, find, set, revoke. Runs as the maintenance login, never in a server.

Below: `rag.db`. Above: the CLI. A server knows its tenant from the sealed context and has no use for this module.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from rag.clock import Clock, system_clock
from rag.db.pool import Database, Row
from rag.errors import InvalidInput, NotFound
from sql import Query, load_queries

__all__ = ["Operator", "Tenant", "Tier"]

_QUERIES = load_queries("tenants")
_REASON = "the maintenance login administers all tenants"


class Tier(StrEnum):
    """What a tenant has booked."""

    FREE = "free"
    PRO = "pro"
    ENTERPRISE = "enterprise"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """One tenant as the operator sees it."""

    tenant_id: UUID
    name: str
    tier: Tier
    language: str
    weights: tuple[float, float] | None
    """BM25 and vectors in the tenant's searches; None: the product's default."""
    cache_results: bool
    audit_query_text: bool
    """Whether its audit trail keeps the texts of queries, and not only their digests."""
    task_retention_s: float | None
    """How long its tasks are kept after their end, in seconds; None: for ever."""
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """The maintenance login's verbs."""

    database: Database
    clock: Clock = system_clock

    async def create_tenant(self, name: str, *, tier: Tier = Tier.FREE, language: str = "english") -> Tenant:
        """Add a tenant. `language` is a PostgreSQL text search configuration.

        Raises:
            Conflict: A tenant of that name exists.
            InvalidInput: The name is not of the form a-z, 0-9 and -, at most 63 characters.
        """
        async with self.database.unsafe_unscoped(reason=_REASON) as session:
            row = await session.fetch_one(
                _QUERIES["create_tenant"], name=name, tier=tier.value, language=f"pg_catalog.{language}"
            )
        assert row is not None
        return _tenant(row)

    async def list_tenants(self) -> list[Tenant]:
        """Return every tenant, by name."""
        async with self.database.unsafe_unscoped(reason=_REASON) as session:
            return [_tenant(row) for row in await session.fetch(_QUERIES["list_tenants"])]

    async def find_tenant(self, reference: str) -> Tenant:
        """Return the tenant of that name or id.

        Raises:
            NotFound: There is none.
        """
        async with self.database.unsafe_unscoped(reason=_REASON) as session:
            row = await session.fetch_one(_QUERIES["find_tenant"], reference=reference)
        if row is None:
            raise NotFound(f"there is no tenant {reference!r}; `bulkhead tenant list` shows all")
        return _tenant(row)

    async def set_weights(self, tenant_id: UUID, weights: tuple[float, float] | None) -> None:
        """Weigh BM25 and vectors so in the tenant's searches from now on; None: as the product does.

        Raises:
            InvalidInput: A weight is negative or no number, or both are 0.
            NotFound: There is no such tenant.
        """
        # PostgreSQL sorts NaN above every number, so its check would let it pass
        if weights is not None and not all(math.isfinite(weight) for weight in weights):
            raise InvalidInput("a weight is a number")
        bm25, vector = weights or (None, None)
        await self._set(_QUERIES["set_weights"], tenant_id, bm25_weight=bm25, vector_weight=vector)

    async def set_caching(self, tenant_id: UUID, *, allowed: bool) -> None:
        """Allow or forbid to keep results of the tenant's searches.

        Raises:
            NotFound: There is no such tenant.
        """
        await self._set(_QUERIES["set_caching"], tenant_id, allowed=allowed)

    async def set_audit_query_text(self, tenant_id: UUID, *, kept: bool) -> None:
        """Keep the texts of the tenant's queries in its audit trail from now on, or only their digests.

        Raises:
            NotFound: There is no such tenant.
        """
        await self._set(_QUERIES["set_audit_query_text"], tenant_id, kept=kept)

    async def set_task_retention(self, tenant_id: UUID, seconds: float | None) -> None:
        """Keep the tenant's tasks for so long after their end, those that have ended already too; None: for ever.

        Raises:
            InvalidInput: It is not an hour to ten years.
            NotFound: There is no such tenant.
        """
        await self._set(_QUERIES["set_task_retention"], tenant_id, seconds=seconds)

    async def set_tier(self, tenant_id: UUID, tier: Tier) -> None:
        """Book another tier for the tenant; servers follow within half a minute.

        Raises:
            NotFound: There is no such tenant.
        """
        await self._set(_QUERIES["set_tenant_tier"], tenant_id, tier=tier.value)

    async def _set(self, query: Query, tenant_id: UUID, **values: object) -> None:
        async with self.database.unsafe_unscoped(reason=_REASON) as session:
            if await session.fetch_one(query, tenant_id=tenant_id, **values) is None:
                raise NotFound("there is no such tenant")

    async def revoke_token(self, tenant_id: UUID, token_id: str) -> None:
        """End one token (its `jti`), and every token that was exchanged from it, from the next statement on.

        Raises:
            NotFound: There is no such tenant.
        """
        await self._revoke(tenant_id, kind="token", subject=token_id)

    async def revoke_user(self, tenant_id: UUID, subject: str) -> None:
        """End every token that was issued to `subject` until now.

        Raises:
            NotFound: There is no such tenant.
        """
        await self._revoke(tenant_id, kind="user", subject=subject)

    async def revoke_tenant(self, tenant_id: UUID) -> None:
        """End every token of the tenant that was issued until now.

        Raises:
            NotFound: There is no such tenant.
        """
        await self._revoke(tenant_id, kind="tenant", subject="")

    async def _revoke(self, tenant_id: UUID, *, kind: str, subject: str) -> None:
        async with self.database.unsafe_unscoped(reason=_REASON) as session:
            await session.fetch(
                _QUERIES["revoke"], tenant_id=tenant_id, kind=kind, subject=subject, before=self.clock()
            )


def _tenant(row: Row) -> Tenant:
    return Tenant(
        tenant_id=row["tenant_id"],
        name=row["name"],
        tier=Tier(row["tier"]),
        language=str(row["language"]).removeprefix("pg_catalog."),
        weights=None if row["bm25_weight"] is None else (row["bm25_weight"], row["vector_weight"]),
        cache_results=row["cache_results"],
        audit_query_text=row["audit_query_text"],
        task_retention_s=row["task_retention_s"],
        created_at=row["created_at"],
    )
