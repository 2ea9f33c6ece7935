"""What the gateway costs a model call beside the model: its time less that of a direct call. Printed only.

The model is a server in another process that always takes the same time, so that many calls are in flight; the ledger
is the real one on a durable PostgreSQL, and five budgets apply to every call. Three sides take turns, round after
round: `direct` (the wire alone), `gateway`, and `counted`, where the server is first asked to count the prompt.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import anyio
import httpx
import numpy as np
import pytest

from rag.budgets.operator import Budget, Period, Scope, set_budget
from rag.cli.supervisor import free_port
from rag.db.maintenance import open_maintenance
from rag.identity.scopes import Audience
from rag.tenants.operator import Tier
from tests.bench import report
from tests.bench.conftest import Plan
from tests.bench.place import Place, open_world
from tests.support.processes import ROOT
from tests.support.world import World

pytestmark = [pytest.mark.anyio, pytest.mark.bench, pytest.mark.timeout(900)]
LEVELS = ((1, 0.1), (16, 1.0), (64, 2.0), (200, 6.0))
"""Calls in flight, and how long the model takes for each, in s: longer where there are more, so that the client, which
takes each piece of each answer, is not what is measured."""
SIDES = ("direct", "gateway", "counted")
USERS = 20
BUDGETS = (
    Budget(scope=Scope.TENANT, period=Period.DAY, amount=Decimal(1_000_000)),
    Budget(scope=Scope.TENANT, period=Period.MONTH, amount=Decimal(10_000_000)),
    Budget(scope=Scope.TEAM, period=Period.MONTH, amount=Decimal(1_000_000)),
    Budget(scope=Scope.USER, period=Period.DAY, amount=Decimal(100_000)),
    Budget(scope=Scope.USER, period=Period.MONTH, amount=Decimal(100_000)),
)
BOUND_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Overhead:
    """A side at a level, of all rounds together; times in ms beyond the median direct call of the same round."""

    side: str
    concurrency: int
    takes_s: float
    calls: int
    rate: float
    total: tuple[float, float, float]
    """p50, p95, p99; so too the others."""
    before: tuple[float, float, float]
    """The part of it until the first piece."""
    after: tuple[float, float, float]
    """The part of it since the last piece."""
    cpu_ms: float
    """A call, of the caller's process with its HTTP client."""
    database_cpu_ms: float
    steps: dict[str, tuple[float, float, float]]
    rounds: tuple[tuple[float, float], ...]
    """The machine's load average when each round began, and the round's p50 of `total`."""


async def test_the_time_that_the_gateway_adds_to_a_call(place: Place, plan: Plan) -> None:
    world, _ = await open_world(place, "gateway", "overhead")
    runs = [
        (side, concurrency, takes_s, max(plan.seconds, 2 * takes_s))
        for _ in range(plan.rounds)
        for concurrency, takes_s in LEVELS
        for side in SIDES
    ]
    job = {
        "tokens": await _tenant(world),
        "postmaster": world.server.pid,
        "connections": 2 * max(concurrency for concurrency, _ in LEVELS),
        "runs": [("counted", 16, 0.1, 1.0), *runs],  # the first one, for connections and plans, is not looked at
    }
    async with _model() as url:
        results = await _call(world, {**job, "url": url}, bound_s=sum(2 * (run[2] + run[3]) + 10 for run in runs))
    found = [_overhead(results[1:], side, *level) for level in LEVELS for side in SIDES]
    _print(found, rounds=plan.rounds)
    machine = await report.machine(world.superuser_url)
    print(machine)
    report.save(plan.results, "gateway", {"machine": machine, "overhead": found})


async def _tenant(world: World) -> list[str]:
    """Make a tenant with budgets, and return the tokens of its users."""
    async with world.operator() as operator:
        tenant = await operator.create_tenant("bench", tier=Tier.ENTERPRISE)
    assert world.settings.maintenance_database_url
    async with open_maintenance(world.settings.maintenance_database_url, application="bench") as session:
        for budget in BUDGETS:
            await set_budget(session, tenant.tenant_id, budget)
    return [
        world.token(tenant, audience=Audience.MCP, user=f"user{number}", lifetime_s=3600) for number in range(USERS)
    ]


@asynccontextmanager
async def _model() -> AsyncGenerator[str]:
    """Run the model server until the block ends; its base URL."""
    port = free_port("127.0.0.1")
    command = [sys.executable, "-m", "tests.bench.fixed_model", str(port)]
    async with await anyio.open_process(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=None, stderr=None
    ) as process:
        try:
            with anyio.fail_after(BOUND_S):
                while not await _answers(f"http://127.0.0.1:{port}/v1/models"):
                    assert process.returncode is None, "the model server ended"
                    await anyio.sleep(0.05)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()


async def _answers(url: str) -> bool:
    try:
        async with httpx.AsyncClient() as http:
            return (await http.get(url)).status_code == 200
    except httpx.TransportError:
        return False


async def _call(world: World, job: dict[str, Any], *, bound_s: float) -> list[dict[str, Any]]:
    with tempfile.TemporaryFile() as out, anyio.fail_after(bound_s + BOUND_S):
        await anyio.to_thread.run_sync(
            lambda: subprocess.run(
                [sys.executable, "-m", "tests.bench.gateway_caller"],
                input=json.dumps(job).encode(),
                env=world.settings.to_env(),
                cwd=ROOT,
                stdout=out,
                check=True,
            ),
            abandon_on_cancel=True,
        )
        out.seek(0)
        return json.load(out)


def _overhead(results: Sequence[dict[str, Any]], side: str, concurrency: int, takes_s: float) -> Overhead:
    at_level = [one for one in results if one["concurrency"] == concurrency]
    mine = [one for one in at_level if one["side"] == side]
    direct = [one for one in at_level if one["side"] == "direct"]

    def beyond(name: str) -> tuple[float, float, float]:
        pairs = zip(mine, direct, strict=True)
        return _percentiles(
            [value - statistics.median(base[name]) for one, base in pairs for value in one[name]],
        )

    def middle(one: dict[str, Any], base: dict[str, Any]) -> float:
        return statistics.median(one["total_ms"]) - statistics.median(base["total_ms"])

    steps: dict[str, list[float]] = {}
    for one in mine:
        for name, values in one["steps_ms"].items():
            steps.setdefault(name, []).extend(values)
    return Overhead(
        side=side,
        concurrency=concurrency,
        takes_s=takes_s,
        calls=sum(len(one["total_ms"]) for one in mine),
        rate=statistics.median(one["rate"] for one in mine),
        total=beyond("total_ms"),
        before=beyond("before_ms"),
        after=beyond("after_ms"),
        cpu_ms=statistics.median(one["cpu_ms"] for one in mine),
        database_cpu_ms=statistics.median(one["database_cpu_ms"] for one in mine),
        steps={
            name: _percentiles([value for one in mine for value in one["steps_ms"].get(name, [])]) for name in steps
        },
        rounds=tuple((one["load"], middle(one, base)) for one, base in zip(mine, direct, strict=True)),
    )


def _percentiles(values: Sequence[float]) -> tuple[float, float, float]:
    p50, p95, p99 = (float(cut) for cut in np.percentile(values, (50, 95, 99)))
    return p50, p95, p99


def _print(found: Sequence[Overhead], *, rounds: int) -> None:
    print(f"\n{rounds} rounds in turn; ms beyond the median direct call of the same round, p50 / p95 / p99")
    print(
        f"{'in flight':>9} {'side':8} {'calls':>6} {'calls/s':>8} {'whole call':>24} {'until 1st piece':>24} "
        f"{'since last piece':>24} {'CPU':>6} {'PG CPU':>7}  load: p50 of each round"
    )
    for one in found:
        print(
            f"{one.concurrency:9} {one.side:8} {one.calls:6} {one.rate:8.1f} {_cuts(one.total):>24} "
            f"{_cuts(one.before):>24} {_cuts(one.after):>24} {one.cpu_ms:6.2f} {one.database_cpu_ms:7.2f}  "
            + " ".join(f"{load:.1f}: {p50:.2f}" for load, p50 in one.rounds)
        )
    print(f"\nthe ledger's steps, ms\n{'in flight':>9} {'side':8} {'hold':>24} {'start':>24} {'settle':>24}")
    for one in found:
        if one.steps:
            steps = " ".join(f"{_cuts(one.steps[name]):>24}" for name in ("hold", "start", "settle"))
            print(f"{one.concurrency:9} {one.side:8} {steps}")


def _cuts(cuts: Sequence[float]) -> str:
    return " / ".join(f"{cut:.2f}" for cut in cuts)
