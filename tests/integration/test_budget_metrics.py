"""What operators see of the budgets on a dashboard, and that nobody is named there."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Mapping
from decimal import Decimal
from typing import Any, cast

import anyio
import pytest
from opentelemetry.metrics import Meter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from rag.budgets.metrics import MAX_MODELS, BudgetMetrics, Low, MeteredLedger
from rag.budgets.operator import Budget, Period, Scope
from rag.budgets.sweep import sweep_due
from rag.budgets.watch import watch_alerts
from rag.errors import BudgetExceeded, Conflict, PriceUnknown
from rag.llm.ledger import Payer
from tests.support.ledger import LedgerScene, bill, cost, ledger_scene
from tests.support.world import Cluster, world

pytestmark = pytest.mark.anyio
BOUND_S = 20.0
Points = dict[tuple[tuple[str, object], ...], float]


@pytest.fixture(scope="module", name="scene")
async def scene_fixture(cluster: Cluster) -> AsyncGenerator[LedgerScene]:
    """One database for the module; every test makes tenants of its own."""
    async with world(cluster) as own, ledger_scene(own) as scene:
        yield scene


class Told(logging.Handler):
    """A log, and when something is said."""

    def __init__(self) -> None:
        """Begin with nothing."""
        super().__init__()
        self.once = anyio.Event()
        self.records = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Count it."""
        self.records += 1
        self.once.set()


class Counting(BudgetMetrics):
    """The metrics, and when low budgets were counted."""

    def __init__(self, meter: Meter) -> None:
        """Begin with none."""
        super().__init__(meter)
        self.counted = anyio.Event()

    def low(self, found: Mapping[Low, int]) -> None:
        """Say so to whoever waits."""
        super().low(found)
        self.counted.set()
        self.counted = anyio.Event()


class Dashboard:
    """Metrics of a test's own, and what an exporter would see of them."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._reader = InMemoryMetricReader()
        self.metrics = Counting(MeterProvider(metric_readers=[self._reader]).get_meter("bulkhead.budgets"))

    def points(self, name: str) -> Points:
        """Return the values of an instrument by their attributes, in the order of their names."""
        data = self._reader.get_metrics_data()
        if data is None:
            return {}
        found = {metric.name: metric.data for metric in data.resource_metrics[0].scope_metrics[0].metrics}
        if name not in found:
            return {}
        points = cast("Any", found[name]).data_points
        return {tuple(sorted((point.attributes or {}).items())): point.value for point in points}


async def test_refusals_are_counted_by_the_budget_that_they_met_and_name_nobody(scene: LedgerScene) -> None:
    ada, dashboard = await scene.caller(team="red"), Dashboard()
    ledger = MeteredLedger(scene.ledger, metrics=dashboard.metrics)
    await scene.budget(ada, Budget(scope=Scope.USER, period=Period.DAY, amount=Decimal(1)))
    for wanted in ("2", "3"):
        with pytest.raises(BudgetExceeded):
            await ledger.hold(Payer(principal=ada), bill(wanted))
    with pytest.raises(PriceUnknown):
        await ledger.hold(Payer(principal=ada), bill("0", priced=False))
    assert dashboard.points("bulkhead.budgets.refusals") == {
        (("period", "day"), ("reason", "budget"), ("scope", "user")): 2,
        (("reason", "price"),): 1,
    }


async def test_what_the_ledger_has_settled_is_counted_by_model_and_nothing_that_it_has_not(scene: LedgerScene) -> None:
    ada, dashboard = await scene.caller(), Dashboard()
    ledger = MeteredLedger(scene.ledger, metrics=dashboard.metrics)
    for model, amount, estimated in (("tiny", "0.25", False), ("tiny", "0.5", True), ("large", "2", False)):
        hold = await ledger.hold(Payer(principal=ada), bill(amount, model=model))
        await ledger.start(hold)
        await ledger.settle(hold, cost(amount, estimated=estimated))
        assert (await scene.charge(hold))["cost"] == Decimal(amount)
    released = await ledger.hold(Payer(principal=ada), bill("4"))
    await ledger.release(released)
    assert (await scene.charge(released))["state"] == "released"
    await scene.fetch("delete from rag.charge where charge_id = $1", released.charge_id)
    with pytest.raises(Conflict):
        await ledger.settle(released, cost("4"))
    assert dashboard.points("bulkhead.budgets.cost") == {(("model", "tiny"),): 0.75, (("model", "large"),): 2.0}
    assert dashboard.points("bulkhead.budgets.calls") == {
        (("estimated", False), ("model", "tiny")): 1,
        (("estimated", True), ("model", "tiny")): 1,
        (("estimated", False), ("model", "large")): 1,
    }


async def test_what_the_sweep_ends_is_counted(scene: LedgerScene) -> None:
    ada, dashboard = await scene.caller(), Dashboard()
    for _ in range(2):
        await scene.ledger.hold(Payer(principal=ada), bill("1"))
    dashboard.metrics.swept(await scene.sweep(ada))
    dashboard.metrics.swept(await sweep_due(scene.worker))
    assert dashboard.points("bulkhead.budgets.swept") == {(): 2}


async def test_models_are_told_apart_up_to_a_bound() -> None:
    dashboard = Dashboard()
    for number in range(MAX_MODELS + 50):
        dashboard.metrics.settled(f"model {number}", cost("1"))
    points = dashboard.points("bulkhead.budgets.cost")
    assert len(points) == MAX_MODELS + 1
    assert points[("model", "other"),] == 50


async def test_budgets_that_run_low_are_counted_over_all_tenants_while_their_period_lasts(scene: LedgerScene) -> None:
    dashboard = Dashboard()
    callers = [await scene.caller() for _ in range(3)]
    for ada, spent in zip(callers, ("0.5", "0.9", "1"), strict=True):
        await scene.budget(ada, Budget(scope=Scope.TENANT, period=Period.DAY, amount=Decimal(1)))
        await scene.spend(ada, spent)
    dsn = scene.world.settings.maintenance_database_url
    assert dsn is not None

    async def until(wanted: Points) -> None:
        with anyio.fail_after(BOUND_S):
            while dashboard.points("bulkhead.budgets.low") != wanted:
                await dashboard.metrics.counted.wait()

    async with anyio.create_task_group() as tasks:

        async def watch() -> None:
            await watch_alerts(dsn, metrics=dashboard.metrics, every_s=0.01)

        tasks.start_soon(watch)
        low = {mark: (("mark", mark), ("period", "day"), ("scope", "tenant")) for mark in (80, 100)}
        await until({low[80]: 2, low[100]: 1})
        await scene.fetch("update rag.budget_alert set ends_at = clock_timestamp() where mark = 100")
        await until({low[80]: 2, low[100]: 0})
        tasks.cancel_scope.cancel()


async def test_a_watch_that_cannot_count_says_so_once_and_goes_on(scene: LedgerScene) -> None:
    dashboard, told = Dashboard(), Told()
    dsn = scene.world.settings.maintenance_database_url
    assert dsn is not None

    async def watch() -> None:
        await watch_alerts(dsn, metrics=dashboard.metrics, every_s=0.01)

    log = logging.getLogger("rag.budgets.watch")
    log.addHandler(told)
    await scene.fetch("revoke select on rag.budget_alert from bulkhead_maintenance")
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            with anyio.fail_after(BOUND_S):
                await told.once.wait()
                assert dashboard.points("bulkhead.budgets.low") == {}
                await scene.fetch("grant select on rag.budget_alert to bulkhead_maintenance")
                await dashboard.metrics.counted.wait()
            tasks.cancel_scope.cancel()
    finally:
        log.removeHandler(told)
    assert told.records == 1
