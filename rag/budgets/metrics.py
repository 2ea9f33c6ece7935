"""What operators see of the budgets: calls refused, what was settled for each model, estimates, budgets that run low.

Above: the composition, which meters the ledger with it, `sweep`'s and `watch`'s callers. Below: the OpenTelemetry API;
whoever sets up an exporter decides where it goes. No attribute names a tenant, a team, a user or a task: what they
spend is not for all who may look at a dashboard. Sums here are floats, for charts; amounts to bill are the ledger's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from opentelemetry.metrics import CallbackOptions, Meter, Observation, get_meter

from rag.errors import BudgetExceeded, PriceUnknown
from rag.llm.ledger import Bill, Hold, Ledger, Payer, Settlement

__all__ = ["METRICS", "BudgetMetrics", "Low", "MeteredLedger"]

MAX_MODELS = 100
"""Of one process, told apart by name. They are the operator's, but a catalogue may change for years."""
OTHERS = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class Low:
    """A kind of budgets that were used to a mark."""

    mark: int
    """Per cent: 80 or 100."""
    scope: str
    period: str


class BudgetMetrics:
    """The instruments; one set in a process."""

    def __init__(self, meter: Meter) -> None:
        """Make the instruments of `meter`."""
        self._models: set[str] = set()
        self._low: Mapping[Low, int] = {}
        self._refusals = meter.create_counter(
            "bulkhead.budgets.refusals",
            unit="{call}",
            description="Calls and tasks refused, by the scope and period of the budget that had not that much left",
        )
        self._cost = meter.create_counter(
            "bulkhead.budgets.cost", unit="1", description="Settled for calls, in the installation's currency, by model"
        )
        self._calls = meter.create_counter(
            "bulkhead.budgets.calls",
            unit="{call}",
            description="Calls settled, by model and whether their cost is an estimate",
        )
        self._swept = meter.create_counter(
            "bulkhead.budgets.swept", unit="{call}", description="Calls that nobody had ended, and the sweep did"
        )
        meter.create_observable_gauge(
            "bulkhead.budgets.low",
            callbacks=[self._observe],
            unit="{budget}",
            description="Budgets of all tenants used to 80 or 100 per cent (mark) in their period, by scope and period",
        )

    def refused(self, error: BudgetExceeded | PriceUnknown) -> None:
        """Count what was refused for a budget, or because a budget applies and the price is not known."""
        if isinstance(error, PriceUnknown):
            self._refusals.add(1, {"reason": "price"})
        else:
            self._refusals.add(1, {"reason": "budget", "scope": error.scope, "period": error.window})

    def settled(self, model: str, settlement: Settlement) -> None:
        """Count a call of the model and what it cost."""
        name = self._name(model)
        self._cost.add(float(settlement.cost), {"model": name})
        self._calls.add(1, {"model": name, "estimated": settlement.estimated})

    def swept(self, calls: int) -> None:
        """Count calls that the sweep has ended."""
        if calls:
            self._swept.add(calls)

    def low(self, found: Mapping[Low, int]) -> None:
        """Say how many budgets are used to each mark now; the others are at none."""
        # a kind that there was stays, at 0: a gauge that ends looks like a process that died
        self._low = {**dict.fromkeys(self._low, 0), **found}

    def _name(self, model: str) -> str:
        if model not in self._models and len(self._models) >= MAX_MODELS:
            return OTHERS
        self._models.add(model)
        return model

    def _observe(self, _: CallbackOptions) -> Iterable[Observation]:
        for kind, budgets in self._low.items():
            yield Observation(budgets, {"mark": kind.mark, "scope": kind.scope, "period": kind.period})


METRICS = BudgetMetrics(get_meter("bulkhead.budgets"))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Metered(Hold):
    """A hold, and for which model."""

    model: str


class MeteredLedger:
    """Satisfies `rag.llm.ledger.Ledger`: does what another ledger does, and counts it."""

    def __init__(self, ledger: Ledger, *, metrics: BudgetMetrics = METRICS) -> None:
        """Count what `ledger` does."""
        self._ledger = ledger
        self._metrics = metrics

    async def hold(self, payer: Payer, bill: Bill) -> Hold:
        """As the port says; a refusal is counted."""
        try:
            hold = await self._ledger.hold(payer, bill)
        except (BudgetExceeded, PriceUnknown) as exc:
            self._metrics.refused(exc)
            raise
        return _Metered(charge_id=hold.charge_id, payer=hold.payer, upper=hold.upper, model=bill.model)

    async def start(self, hold: Hold) -> None:
        """As the port says."""
        await self._ledger.start(hold)

    async def settle(self, hold: Hold, settlement: Settlement) -> None:
        """As the port says; what the ledger has written is counted, once, and never what it could not."""
        await self._ledger.settle(hold, settlement)
        self._metrics.settled(hold.model if isinstance(hold, _Metered) else OTHERS, settlement)

    async def release(self, hold: Hold) -> None:
        """As the port says."""
        await self._ledger.release(hold)
