"""The ledger in PostgreSQL: each step of a call's money is one function call, in a transaction of its own.

Above: the gateway, which knows it as `rag.llm.ledger.Ledger`, and whoever accepts tasks. Below: `rag.db` and the
functions of sql/migrations/0026_create_ledger.sql, where the rules are: which budgets apply, in which order rows are
locked, what waits for the disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from decimal import ROUND_UP, Context, Decimal
from uuid import UUID, uuid4

import anyio
import anyio.lowlevel

from rag.db.faults import over_budget
from rag.db.pool import Database, Row, Session
from rag.errors import BulkheadError, Conflict, PriceUnknown, Unavailable
from rag.llm.ledger import Bill, Hold, Payer, Settlement
from sql import Query, load_queries

__all__ = ["PostgresLedger", "reserve_task"]

_QUERIES = load_queries("budgets")
HOLD_S = 120.0
"""How long a call may be held without being started: what it waits for its turn at the model server."""
CALL_S = 900.0
"""How long a started call may take before it is settled as an estimate. Longer than any call is let run: an estimate is
corrected when its settlement comes after all, but until then it stands in others' way."""
TIMEOUT_S = 5.0
"""Of one step. The database's own limits end sooner whatever waits for a row that is locked."""
RELEASE_S = 2.0
_UNIT = Decimal("1E-12")
"""The ledger's smallest amount."""
_LARGEST = Decimal(10) ** 12
"""Of one call. What a server says beyond that is not believed: the ledger goes on, and the call stands out anyway."""
_EXACT = Context(prec=60)
MOST_TOKENS = 10**12


class PostgresLedger:
    """Satisfies `rag.llm.ledger.Ledger`."""

    def __init__(
        self, database: Database, *, hold_s: float = HOLD_S, call_s: float = CALL_S, timeout_s: float = TIMEOUT_S
    ) -> None:
        """Hold against the budgets in `database`, whose login is the worker's: for `hold_s` seconds until a call
        starts, and for `call_s` from then on.
        """
        self._database = database
        self._hold_s = hold_s
        self._call_s = call_s
        self._timeout_s = timeout_s

    async def hold(self, payer: Payer, bill: Bill) -> Hold:
        """Hold the bill's upper bound in every budget that applies, or in none.

        Raises:
            BudgetExceeded, PriceUnknown, Unavailable: As the port says.
            SealRefused, Revoked: As `Database.tenant`.
        """
        hold = Hold(charge_id=uuid4(), payer=payer, upper=_amount(bill.upper))
        rows: list[Row] = []
        try:
            # not cancelled half way, when nobody would know whether it was held; it has its bound
            with anyio.CancelScope(shield=True):
                rows = await self._hold(hold, bill)
            await anyio.lowlevel.checkpoint_if_cancelled()
        except (Unavailable, anyio.get_cancelled_exc_class()):
            # it may be held all the same; what this does not reach, the sweep gives back
            with anyio.move_on_after(RELEASE_S, shield=True), suppress(BulkheadError):
                await self.release(hold)
            await anyio.lowlevel.checkpoint_if_cancelled()
            raise
        _refuse(rows)
        return hold

    async def _hold(self, hold: Hold, bill: Bill) -> list[Row]:
        payer = hold.payer
        return await self._call(
            _QUERIES["hold_charge"],
            payer,
            charge_id=hold.charge_id,
            call_key=bill.call_key,
            attempt=bill.attempt,
            model=bill.model,
            endpoint=bill.endpoint,
            price_id=bill.price.price_id if bill.price else None,
            upper=hold.upper,
            team=payer.principal.team,
            task_id=payer.task_id,
            max_cost=payer.max_cost,
            lease_s=self._hold_s,
        )

    async def start(self, hold: Hold) -> None:
        """Note, durably, that the call is made now.

        Raises:
            Conflict, Unavailable: As the port says.
            SealRefused, Revoked: As `Database.tenant`.
        """
        (row,) = await self._call(_QUERIES["start_charge"], hold.payer, charge_id=hold.charge_id, lease_s=self._call_s)
        if not row["started"]:
            raise Conflict("what was held for this call has run out; try again")

    async def settle(self, hold: Hold, settlement: Settlement) -> None:
        """Replace the hold by what the call has cost. The first settlement stands, unless it was an estimate.

        Raises:
            Unavailable: As the port says.
            Conflict: There is no such call.
            SealRefused, Revoked: As `Database.tenant`.
        """
        usage = settlement.usage
        rows = await self._call(
            _QUERIES["settle_charge"],
            hold.payer,
            charge_id=hold.charge_id,
            cost=_amount(settlement.cost),
            estimated=settlement.estimated,
            prompt_tokens=min(usage.prompt, MOST_TOKENS) if usage else None,
            cached_tokens=min(usage.cached, MOST_TOKENS) if usage else None,
            completion_tokens=min(usage.completion, MOST_TOKENS) if usage else None,
        )
        _known(rows)

    async def release(self, hold: Hold) -> None:
        """Give the amount back: nothing was billed. What was settled stays so, unless it was an estimate.

        Raises:
            Unavailable: As the port says.
            SealRefused, Revoked: As `Database.tenant`.
        """
        await self._call(_QUERIES["release_charge"], hold.payer, charge_id=hold.charge_id)

    async def _call(self, query: Query, payer: Payer, **parameters: object) -> list[Row]:
        with anyio.move_on_after(self._timeout_s):
            return await self._database.fetch_sealed(query, payer.principal, **parameters)
        raise Unavailable("the budgets' ledger took too long; try again")


async def reserve_task(session: Session, task_id: UUID, amount: Decimal, *, team: str | None) -> None:
    """Reserve `amount` for a task that the session's transaction accepts: its calls are paid out of that, and what is
    left when it ends goes back. Where no budget applies nothing is reserved, and a second reserve changes nothing.

    Raises:
        BudgetExceeded: A budget has not that much left: let the transaction be rolled back.
    """
    _refuse(await session.fetch(_QUERIES["reserve_task"], task_id=task_id, amount=_amount(amount), team=team))


def _refuse(rows: Sequence[Row]) -> None:
    if not rows:
        return
    (row,) = rows
    if row["refused"] == "price":
        raise PriceUnknown("a budget applies, and the model has no price; the operator sets one")
    raise over_budget(row)


def _known(rows: Sequence[Row]) -> None:
    if not rows[0]["known"]:
        raise Conflict("there is no such call in the ledger")


def _amount(value: Decimal) -> Decimal:
    """Return the amount as the ledger keeps it, never less."""
    if not value.is_finite() or value < 0:
        raise ValueError("an amount is finite and not below 0")
    return min(value, _LARGEST).quantize(_UNIT, rounding=ROUND_UP, context=_EXACT)
