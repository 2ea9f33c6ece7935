"""Brings a bulk load into the state that the product's own maintenance would leave it in.

Above: the benchmarks. Below: the worker's compaction and the maintenance process's graphs, run to their end. Statistics
are collected by hand because autovacuum would do it at a moment of its own choosing, in the middle of a measurement.
"""

from __future__ import annotations

import time

from rag.corpus.compaction import compact_due
from rag.corpus.vector_indexes import GraphPolicy, maintain
from rag.db.maintenance import open_maintenance
from tests.bench.connect import connected
from tests.support.world import World

__all__ = ["POLICY", "settle"]

POLICY = GraphPolicy(memory_mb=2048)
"""The product's, but for room: a million vectors need 1.8 GB for their graph not to be finished on disk."""


async def settle(world: World) -> dict[str, float]:
    """Compact, build the graphs of large tenants, vacuum and analyse; return the seconds that each took."""
    took: dict[str, float] = {}
    began = time.perf_counter()
    async with world.database(claims=True, pool_size=1) as database:
        while await compact_due(database, settle_s=0, backlog=1):
            pass
    took["compact"] = time.perf_counter() - began
    began = time.perf_counter()
    assert world.settings.maintenance_database_url is not None
    async with open_maintenance(world.settings.maintenance_database_url, application="bench") as session:
        await maintain(session, POLICY)
    took["graphs"] = time.perf_counter() - began
    began = time.perf_counter()
    async with connected(world.superuser_url) as admin:
        await admin.execute("vacuum analyze", timeout=3600)
        await admin.execute("checkpoint", timeout=600)
    took["vacuum_analyze"] = time.perf_counter() - began
    return {name: round(seconds, 1) for name, seconds in took.items()}
