"""How long a search takes the whole way: HTTP, token, limits, embedding, SQL and back. Printed, never asserted."""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from pathlib import Path

import anyio
import pytest

from rag.cli.ingest import run_ingest
from rag.cli.supervisor import free_port, running
from rag.clients.mcp import mcp_client
from rag.identity.scopes import Audience
from tests.support.world import World

pytestmark = [pytest.mark.anyio, pytest.mark.bench]

SAMPLES = Path(__file__).parents[2] / "samples"
TENANTS = ("securities", "privacy", "patents")
QUESTIONS = (
    "manipulative or deceptive device in connection with the purchase or sale of any security",
    "can traders sue an executive who used inside information",
    "who may see records that an agency keeps about me",
    "when is an invention not novel",
    "penalties for disclosing personal information",
    "how long does a patent last",
    "consent of parents for collecting data of children",
    "registration of brokers and dealers",
    "damages for infringement",
    "annual report to Congress",
)
ROUNDS = 20


async def test_search_latency_on_the_three_sample_tenants(world: World, tmp_path: Path) -> None:
    """The three processes run as `bulkhead up` runs them; the client is this process, on the same cores."""
    tenants = [await world.tenant(name) for name in TENANTS]
    settings = dataclasses.replace(
        world.settings,
        data_dir=tmp_path,
        mcp_port=free_port("127.0.0.1"),
        a2a_port=free_port("127.0.0.1"),
        request_limit_per_minute=100_000,
    )
    async with running(settings, os.environ):  # noqa: TID251  # PATH and the like
        for tenant in tenants:
            token = world.token(tenant, audience=Audience.MCP)
            async with mcp_client(settings.mcp_url, token) as client:
                await run_ingest([SAMPLES / tenant.name], client)
        with anyio.fail_after(300):
            for tenant in tenants:
                async with mcp_client(settings.mcp_url, world.token(tenant, audience=Audience.MCP)) as client:
                    while (await client.call("list_documents", {"limit": 1}))["embeddings_pending"]:  # noqa: ASYNC110
                        await anyio.sleep(1)
        print(f"\n337 sections in three tenants; load before: {os.getloadavg()[0]:.1f}; {os.cpu_count()} cores")
        print(f"{len(QUESTIONS) * ROUNDS} searches a mode, one client, in ms")
        print(f"{'mode':10} {'p50':>8} {'p95':>8} {'max':>8}")
        for mode in ("keyword", "semantic", "hybrid"):
            took: list[float] = []
            for number in range(ROUNDS):
                token = world.token(tenants[number % 3], audience=Audience.MCP)
                async with mcp_client(settings.mcp_url, token) as client:
                    for question in QUESTIONS:
                        began = time.perf_counter()
                        with anyio.fail_after(10):
                            await client.call("hybrid_search", {"query": question, "mode": mode})
                        took.append((time.perf_counter() - began) * 1000)
            cuts = statistics.quantiles(took, n=20)
            print(f"{mode:10} {statistics.median(took):8.1f} {cuts[18]:8.1f} {max(took):8.1f}")
