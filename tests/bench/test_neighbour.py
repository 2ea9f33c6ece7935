"""What a tenant that hammers at its limit costs its neighbour, alone and beside it in one run. Printed only."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import anyio
import pytest

from rag.identity.scopes import Audience
from rag.tenants.operator import Tier
from tests.bench.conftest import Plan
from tests.bench.systems import drive
from tests.support.processes import fleet_settings, started
from tests.support.world import World

pytestmark = [pytest.mark.anyio, pytest.mark.bench, pytest.mark.timeout(900)]
ROUNDS = 3
QUIET, NOISY = 2, 64
"""Connections. The noisy tenant's do not wait when they are told to."""
HEAD_START_S = 3.0
"""By then the noisy tenant has spent its burst."""


async def test_a_quiet_tenant_alone_and_beside_one_that_hammers_at_its_limit(
    world: World, plan: Plan, tmp_path: Path
) -> None:
    settings = fleet_settings(world.settings, log_level="WARNING")
    tenants = [await world.tenant(name) for name in ("quiet", "noisy")]
    async with world.operator() as operator:
        await operator.set_tier(tenants[0].tenant_id, Tier.ENTERPRISE)
    quiet, noisy = (world.token(tenant, audience=Audience.MCP) for tenant in tenants)
    figures: dict[str, list[dict[str, Any]]] = {"alone": [], "beside": []}
    refused = served = 0
    async with started("mcp_server", settings, tmp_path):
        job: dict[str, Any] = {
            "host": "127.0.0.1",
            "port": settings.mcp_port,
            "path": "/mcp",
            "tool": "hybrid_search",
            "lead_s": 0.5,
            "seed": 1,
        }
        asking = {**job, "token": quiet, "concurrency": QUIET, "seconds": plan.seconds}
        asking["calls"] = [{"query": f"harbour {number}", "mode": "keyword"} for number in range(500)]
        hammering = {**job, "token": noisy, "concurrency": NOISY, "patient": False}
        hammering["seconds"] = plan.seconds + 2 * HEAD_START_S
        hammering["calls"] = asking["calls"]
        for _ in range(ROUNDS):
            figures["alone"].append(await drive(asking))
            beside: list[dict[str, Any]] = []
            async with anyio.create_task_group() as tasks:

                async def hammer(done: list[dict[str, Any]] = beside) -> None:
                    done.append(await drive(hammering))

                tasks.start_soon(hammer)
                await anyio.sleep(HEAD_START_S)
                figures["beside"].append(await drive(asking))
            refused += beside[0]["limited"]
            served += len(beside[0]["latencies_ms"])
    print(f"\n{ROUNDS} rounds of {plan.seconds:g} s; noisy: {NOISY} connections, {served} served, {refused} refused")
    print(f"{'quiet tenant':14} {'searches':>9} {'failed':>7} {'p50 ms':>8} {'p99 ms':>8}")
    for name, runs in figures.items():
        p50, p99 = (
            statistics.median(sorted(run["latencies_ms"])[len(run["latencies_ms"]) * part // 100] for run in runs)
            for part in (50, 99)
        )
        searches, failed = (
            sum(len(run["latencies_ms"]) for run in runs),
            sum(run["failed"] + run["limited"] for run in runs),
        )
        print(f"{name:14} {searches:9} {failed:7} {p50:8.2f} {p99:8.2f}")
