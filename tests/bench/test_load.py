"""A thousand clients at a time for a minute: no error but limits, and memory that does not grow.

Real processes (two workers behind one port), real tokens of several tenants and tiers, real searches. The latencies are
printed, never asserted: on two cores most of them is waiting.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

from rag.clients.mcp import mcp_client
from rag.identity.scopes import Audience
from rag.tenants.operator import Tier
from tests.bench.systems import drive
from tests.support.processes import fleet_settings, started
from tests.support.world import World

pytestmark = [pytest.mark.anyio, pytest.mark.heavy, pytest.mark.timeout(600)]
CLIENTS = 1000
SECONDS = 60.0
SETTLED_S = 20.0
"""Caches, pools and allocators have reached their size by then."""
GROWTH = 1.10
TENANTS = ("acme", "globex", "initech", "umbrella")
USERS = 25
DOCUMENTS = 60
WORDS = "fraud merger liability tariff harbour sturgeon ledger vessel contract negligence"


async def test_a_thousand_clients_for_a_minute_meet_no_error_but_limits(world: World, tmp_path: Path) -> None:
    settings = dataclasses.replace(fleet_settings(world.settings, mcp_workers=2, log_level="WARNING"), pool_size=8)
    tenants = [await world.tenant(name) for name in TENANTS]
    async with world.operator() as operator:
        for tenant in tenants[1:]:
            await operator.set_tier(tenant.tenant_id, Tier.ENTERPRISE)
    tokens = [
        world.token(tenant, audience=Audience.MCP, user=f"user{number}", lifetime_s=3600)
        for number in range(USERS)
        for tenant in tenants
    ]
    async with started("mcp_server", settings, tmp_path) as server:
        for tenant in tenants:
            await _fill(settings.mcp_url, world.token(tenant, audience=Audience.MCP))
        job = {
            "host": "127.0.0.1",
            "port": settings.mcp_port,
            "path": "/mcp",
            "tokens": tokens,
            "tool": "hybrid_search",
            "calls": [
                {"query": f"{word} {number}", "mode": "keyword"} for word in WORDS.split() for number in range(50)
            ],
            "concurrency": CLIENTS,
            "seconds": SECONDS,
            "lead_s": 0.0,
            "seed": 4,
        }
        workers = psutil.Process(server.process.pid).children()
        settled: list[int] = []

        async def weigh() -> None:
            await anyio.sleep(SETTLED_S)
            settled.extend(worker.memory_info().rss for worker in workers)

        result: dict[str, Any] = {}
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(weigh)
            result = await drive(job)
        last = [worker.memory_info().rss for worker in workers]
    latencies = sorted(result["latencies_ms"])
    p50, p95, p99 = (latencies[len(latencies) * part // 100] for part in (50, 95, 99))
    memory = ", ".join(f"{then / 2**20:.0f} -> {now / 2**20:.0f}" for then, now in zip(settled, last, strict=True))
    print(
        f"\n{CLIENTS} clients, {SECONDS:.0f} s: {len(latencies)} searches, {result['limited']} at a limit, "
        f"{result['failed']} failed; p50 {p50:.0f}, p95 {p95:.0f}, p99 {p99:.0f} ms; workers' memory in MiB: {memory}"
    )
    assert result["failed"] == 0, result["first_failure"]
    assert len(latencies) > CLIENTS
    assert all(now <= GROWTH * then for then, now in zip(settled, last, strict=True))


async def _fill(url: str, token: str) -> None:
    words = WORDS.split()
    async with mcp_client(url, token) as client:
        for number in range(DOCUMENTS):
            text = " ".join(words[(number * 7 + step * (number + 3)) % len(words)] for step in range(120))
            await client.call(
                "put_document", {"source": f"{number}.txt", "title": f"{words[number % 10]} {number}", "text": text}
            )
