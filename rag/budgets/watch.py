"""Counts, over all tenants, the budgets that run low: a background loop that feeds `metrics`.

Above: the maintenance process, whose login may read every tenant's alerts; one in an installation, so that no budget is
counted twice. Below: `rag.db`.
"""

from __future__ import annotations

import logging

import anyio

from rag.budgets.metrics import METRICS, BudgetMetrics, Low
from rag.db.maintenance import MaintenanceSession, open_maintenance
from rag.errors import BulkheadError
from sql import load_queries

__all__ = ["count_low", "watch_alerts"]

_log = logging.getLogger(__name__)
_QUERIES = load_queries("spending")
EVERY_S = 30.0
TIMEOUT_S = 20.0


async def watch_alerts(dsn: str, *, metrics: BudgetMetrics = METRICS, every_s: float = EVERY_S) -> None:
    """Count as the maintenance login of `dsn`, until cancelled. While it cannot, the last count stands."""
    told = False
    while True:
        try:
            with anyio.fail_after(TIMEOUT_S):
                async with open_maintenance(dsn, application="bulkhead-budgets") as session:
                    metrics.low(await count_low(session))
            told = False
        except (BulkheadError, TimeoutError) as exc:
            if not told:
                _log.warning("budgets that run low are not counted now: %s", getattr(exc, "code", "it takes too long"))
            told = True
        await anyio.sleep(every_s)


async def count_low(session: MaintenanceSession) -> dict[Low, int]:
    """Return how many budgets were used to each mark in a period that is not over. A task's has no end: it is none."""
    return {
        Low(mark=row["mark"], scope=row["scope"], period=row["period"]): row["budgets"]
        for row in await session.fetch(_QUERIES["alerts_in_force"])
    }
