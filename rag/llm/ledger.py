"""The port to whatever keeps the budgets. The gateway makes no call that the ledger has not let start.

Above: `gateway`. Behind it: `rag.budgets`.

    held -> started -> settled       the call was made, and costs what it cost
         `-> released  `-> released  nothing was sent, or nothing was billed
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Protocol
from uuid import UUID

from rag.identity.principal import Principal
from rag.llm.catalogue import Price
from rag.llm.request import TokenUsage

__all__ = ["Bill", "Hold", "Ledger", "Payer", "Settlement"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Payer:
    """Whose budgets a call is held against."""

    principal: Principal
    """Tenant, team and user are the verified token's."""
    task_id: UUID | None = None
    """The task that the call belongs to, which may have a reserve of its own."""
    max_cost: Decimal | None = None
    """What this one request may cost at most, if its caller said so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """One physical call before it is made."""

    call_key: str
    """Of the logical call; physical calls of one key are told apart by `attempt`."""
    attempt: int
    model: str
    endpoint: str
    price: Price | None
    upper: Decimal
    """The most it may cost; 0 where there is no price."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """An amount that nobody else can spend until it is settled or released."""

    charge_id: UUID
    payer: Payer
    upper: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """What a call has cost."""

    cost: Decimal
    usage: TokenUsage | None
    estimated: bool = False
    """Nobody knows what was used: `cost` is the upper bound."""


class Ledger(Protocol):
    """Every method is one transaction, and fails closed: an error means that no call may be made."""

    async def hold(self, payer: Payer, bill: Bill) -> Hold:
        """Hold the bill's upper bound in every budget that applies, or in none.

        Raises:
            BudgetExceeded: A budget has not that much left; it says which, what is left and when it starts anew.
            PriceUnknown: A budget applies, and nobody knows what the call costs.
            Unavailable: The ledger cannot be reached.
        """
        ...

    async def start(self, hold: Hold) -> None:
        """Note, durably, that the call is made now.

        Raises:
            Conflict: The hold has run out in the meantime: nothing may be sent.
            Unavailable: The ledger cannot be reached: nothing may be sent.
        """
        ...

    async def settle(self, hold: Hold, settlement: Settlement) -> None:
        """Replace the hold by what the call has cost. A call that cost more than its bound is recorded as it is.

        Raises:
            Unavailable: The ledger cannot be reached; once the hold's time is over it is settled at its upper bound.
        """
        ...

    async def release(self, hold: Hold) -> None:
        """Give the amount back: nothing was billed.

        Raises:
            Unavailable: The ledger cannot be reached; as for `settle`.
        """
        ...
