"""Budgets that were used to 80 and to 100 per cent: each told once for each period, in the order in which it happened.

Above: whatever tells them on. Below: `rag.db`. An alert is written in the transaction that charged the account; 100
also stands for a call that was refused, with 80 per cent and more spent, because what was left would not have paid it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from uuid import UUID

from rag.budgets.usage import Reader
from sql import load_queries

__all__ = ["Alert", "AlertPosition", "read_alerts"]

_QUERIES = load_queries("budgets")
PAGE = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """A budget, and how far it was used; the words are those of `usage.Account`."""

    account_id: UUID
    mark: int
    """Per cent: 80 or 100."""
    scope: str
    scope_id: str
    model: str
    period: str
    starts_at: datetime
    ends_at: datetime | None
    amount: Decimal
    used: Decimal
    at: datetime

    @property
    def position(self) -> AlertPosition:
        """Where it stands in the order of reading."""
        return (self.at, self.account_id, self.mark)


AlertPosition = tuple[datetime, UUID, int]


async def read_alerts(
    reader: Reader, tenant_id: UUID, *, after: AlertPosition | None = None, page_size: int = PAGE
) -> list[Alert]:
    """Return up to `page_size` alerts of the tenant, oldest first, that come after a position.

    NOTE: times are those of the writing, and transactions end in another order: who follows alerts reads the last
    minute again and knows them by account and mark.
    """
    rows = await reader.fetch(
        _QUERIES["alerts"],
        tenant_id=tenant_id,
        after_time=after[0] if after else None,
        after_id=after[1] if after else None,
        after_mark=after[2] if after else None,
        wanted=page_size,
    )
    return [Alert(**dict(row)) for row in rows]
