"""What an operator does to budgets: set, list and take away, of a tier and of a tenant.

Above: the CLI. Below: `rag.db`, as the maintenance login. The ledger reads budgets in each hold: a change is in force
at once, and takes nothing from calls that are held already.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from uuid import UUID

from rag.db.maintenance import MaintenanceSession
from rag.errors import InvalidInput, NotFound
from sql import load_queries

__all__ = [
    "Budget",
    "Period",
    "Scope",
    "TierBudget",
    "drop_budget",
    "list_budgets",
    "list_tier_budgets",
    "set_budget",
    "set_tier_budget",
]

_QUERIES = load_queries("budgets")
PLACES = 6
"""Of a budget's decimals."""


class Scope(StrEnum):
    """Whose spending is limited."""

    TENANT = "tenant"
    TEAM = "team"
    USER = "user"
    TASK = "task"
    REQUEST = "request"


class Period(StrEnum):
    """For how long. Days and months are UTC's."""

    DAY = "day"
    MONTH = "month"
    TASK = "task"
    REQUEST = "request"


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """One of a tenant's budgets."""

    scope: Scope
    period: Period
    """A day or a month; of the scopes task and request, as the scope."""
    scope_id: str = ""
    """The team or the user. Empty: each one that has no budget of its own for the same model and period."""
    model: str = ""
    """Empty: all models together."""
    amount: Decimal | None
    """None: no limit, but it is counted, and of the whole tenant what its tier says does not hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TierBudget:
    """What a tenant of the tier may spend, unless it has budgets of its own; None: as much as it likes."""

    tier: str
    day: Decimal | None
    month: Decimal | None


async def list_budgets(session: MaintenanceSession, tenant_id: UUID) -> list[Budget]:
    """Return what is set for the tenant."""
    return [
        Budget(
            scope=Scope(row["scope"]),
            period=Period(row["period"]),
            scope_id=row["scope_id"],
            model=row["model"],
            amount=row["amount"],
        )
        for row in await session.fetch(_QUERIES["list_budgets"], tenant_id=tenant_id)
    ]


async def set_budget(session: MaintenanceSession, tenant_id: UUID, budget: Budget) -> None:
    """Set the budget, or set it anew. What was spent in its period already counts.

    Raises:
        InvalidInput: There is no such combination of scope and period, or the amount is below 0 or too large.
        NotFound: There is no such tenant.
    """
    _check(budget.amount)
    await session.fetch_value(_QUERIES["set_budget"], tenant_id=tenant_id, **_key(budget), amount=budget.amount)


async def drop_budget(session: MaintenanceSession, tenant_id: UUID, budget: Budget) -> None:
    """Take the budget away, whatever its amount.

    Raises:
        NotFound: The tenant has none like that.
    """
    if await session.fetch_value(_QUERIES["drop_budget"], tenant_id=tenant_id, **_key(budget)) is None:
        raise NotFound("the tenant has no such budget")


async def list_tier_budgets(session: MaintenanceSession) -> list[TierBudget]:
    """Return what tenants of each tier may spend, the smallest tier first."""
    rows = await session.fetch(_QUERIES["list_tier_budgets"])
    return [TierBudget(tier=row["tier"], day=row["day"], month=row["month"]) for row in rows]


async def set_tier_budget(session: MaintenanceSession, tier: str, period: Period, amount: Decimal | None) -> None:
    """Let tenants of the tier spend `amount` in a period; None: as much as they like.

    Raises:
        InvalidInput: The period is neither a day nor a month, or the amount is below 0 or too large.
        NotFound: There is no such tier.
    """
    _check(amount)
    known = await session.owner_value(_QUERIES["set_tier_budget"], tier=tier, period=period.value, amount=amount)
    if known is None:
        raise NotFound("there is no such tier; `bulkhead tenant tiers` shows all")


def _key(budget: Budget) -> dict[str, str]:
    return {
        "scope": budget.scope.value,
        "scope_id": budget.scope_id,
        "model": budget.model,
        "period": budget.period.value,
    }


def _check(amount: Decimal | None) -> None:
    """Refuse what the database would round, or take for more than any number."""
    if amount is None:
        return
    exponent = amount.normalize().as_tuple().exponent
    if not isinstance(exponent, int) or exponent < -PLACES:
        raise InvalidInput(f"a budget has at most {PLACES} decimal places")
