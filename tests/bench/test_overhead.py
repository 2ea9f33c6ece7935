"""What the MCP server costs beside its SQL: CPU a request, as a multiple of the least that answers JSON. Printed only.

Two processes take turns under the same load generator, round after round; the CPU seconds come from /proc. The multiple
is the figure to quote: rates and microseconds are the machine's (mcp.md 3).
"""

from __future__ import annotations

import dataclasses
import statistics
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio
import httpx
import psutil
import pytest

from rag.identity.scopes import Audience
from rag.settings import Settings
from tests.bench.conftest import Plan
from tests.bench.systems import drive
from tests.support.processes import ROOT, fleet_settings
from tests.support.world import World

pytestmark = [pytest.mark.anyio, pytest.mark.bench, pytest.mark.timeout(900)]
WIRES = ("2026-07-28", "2025-11-25")
CONCURRENCY = 8
ROUNDS = 5
BOUND_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """One run against one server."""

    requests: int
    cpu_ms: float
    """Of the server, per request."""
    p50: float
    p99: float


async def test_cpu_a_request_of_the_whole_server_without_sql_beside_raw_asgi(world: World, plan: Plan) -> None:
    tenant = await world.tenant("acme")
    token = world.token(tenant, audience=Audience.MCP)
    async with serving(world, "raw") as raw, serving(world, "echo") as echo:
        figures: dict[tuple[str, str], list[Spent]] = {}
        for _ in range(ROUNDS):
            for wire in WIRES:
                for name, (settings, process) in (("raw", raw), ("echo", echo)):
                    run = await _run(settings, process, token, wire, plan.seconds)
                    figures.setdefault((wire, name), []).append(run)
    print(f"\n{ROUNDS} rounds of {plan.seconds:g} s, {CONCURRENCY} connections; medians")
    print(f"{'wire':12} {'server':8} {'requests':>9} {'CPU ms/request':>15} {'x raw':>7} {'p50 ms':>8} {'p99 ms':>8}")
    for (wire, name), runs in figures.items():
        cpu = statistics.median(run.cpu_ms for run in runs)
        times = statistics.median(
            run.cpu_ms / least.cpu_ms for run, least in zip(runs, figures[wire, "raw"], strict=True)
        )
        p50, p99 = (statistics.median(getattr(run, field) for run in runs) for field in ("p50", "p99"))
        requests = sum(run.requests for run in runs)
        print(f"{wire:12} {name:8} {requests:9} {cpu:15.3f} {times:7.2f} {p50:8.2f} {p99:8.2f}")


@asynccontextmanager
async def serving(world: World, kind: str) -> AsyncGenerator[tuple[Settings, psutil.Process]]:
    """Run one of the two servers until the block ends."""
    settings = dataclasses.replace(
        fleet_settings(world.settings, log_level="WARNING"), request_limit_per_minute=100_000_000
    )
    command = [sys.executable, "-m", "tests.bench.overhead_server", kind]
    async with await anyio.open_process(
        command, env=settings.to_env(), cwd=ROOT, stdin=subprocess.DEVNULL, stdout=None, stderr=None
    ) as process:
        try:
            with anyio.fail_after(BOUND_S):
                while not await _answers(settings):
                    assert process.returncode is None, f"{kind} ended"
                    await anyio.sleep(0.05)
            yield settings, psutil.Process(process.pid)
        finally:
            process.terminate()


async def _answers(settings: Settings) -> bool:
    try:
        async with httpx.AsyncClient() as http:
            return (await http.get(f"http://127.0.0.1:{settings.mcp_port}/healthz")).status_code == 200
    except httpx.TransportError:
        return False


async def _run(settings: Settings, process: psutil.Process, token: str, wire: str, seconds: float) -> Spent:
    job = {
        "host": "127.0.0.1",
        "port": settings.mcp_port,
        "path": "/mcp",
        "token": token,
        "tool": "echo",
        "calls": [{"text": "all hands to the pumps", "times": 3}],
        "wire": wire,
        "concurrency": CONCURRENCY,
        "seconds": seconds,
        "lead_s": 0.0,
        "seed": 1,
    }
    before = sum(process.cpu_times()[:2])
    with anyio.fail_after(seconds + BOUND_S):
        result = await drive(job)
    spent = sum(process.cpu_times()[:2]) - before
    assert result["failed"] == 0, result["first_failure"]
    latencies = sorted(result["latencies_ms"])
    return Spent(
        requests=len(latencies),
        cpu_ms=1000 * spent / len(latencies),
        p50=latencies[len(latencies) // 2],
        p99=latencies[len(latencies) * 99 // 100],
    )
