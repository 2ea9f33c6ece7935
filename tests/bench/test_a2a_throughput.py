"""What accepting, running and following A2A tasks costs, ours and a2a-sdk's own handler in turn. Printed only.

One server of each on one durable PostgreSQL (ours: and one worker, whose time counts), the same work, the same token
verified, the same client. Run by `make bench-a2a`.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

from rag.tenants.operator import Tenant
from tests.bench import report
from tests.bench.a2a_sides import SDK_PYTHON, Side, drive, our_side, sdk_side
from tests.bench.a2a_wire import Stream, ask, encoded, opened, sending, task_of
from tests.bench.a2a_work import Work
from tests.bench.conftest import Plan
from tests.bench.place import Place, open_world

pytestmark = [pytest.mark.anyio, pytest.mark.bench, pytest.mark.timeout(3600)]
CLIENTS = 16
STREAMS = 200
TICKS, INTERVAL_S = 16, 0.25
FANOUT_TICKS, FANOUT_INTERVAL_S = 100, 0.05
IDLE = (200, 400, 800)
LEAD_S = 1.0


@dataclass(slots=True, kw_only=True)
class _Figures:
    """Of one side, a value for each round."""

    values: dict[str, list[float]] = field(default_factory=dict[str, list[float]])

    def add(self, name: str, value: float) -> None:
        self.values.setdefault(name, []).append(value)

    def __getitem__(self, name: str) -> str:
        found = self.values.get(name)
        if not found:
            return "-"
        return f"{statistics.median(found):.2f} ({min(found):.2f}-{max(found):.2f})"


@asynccontextmanager
async def _sides(place: Place, folder: Path) -> AsyncGenerator[list[Side]]:
    world, _ = await open_world(place, "a2a", "throughput")
    tenant: Tenant = await world.tenant("bench")
    async with AsyncExitStack() as stack:
        ours = our_side(world, tenant, folder, replicas=1, workers=1, slots=STREAMS)
        sides = [await stack.enter_async_context(ours)]
        if SDK_PYTHON.exists():
            sides.append(await stack.enter_async_context(sdk_side(place, world, tenant, folder, replicas=1)))
        yield sides


async def test_what_tasks_cost_ours_and_the_sdks_handler(place: Place, plan: Plan, tmp_path: Path) -> None:
    async with _sides(place, tmp_path) as sides:
        figures = {side.name: _Figures() for side in sides}
        loads = [f"{os.getloadavg()[0]:.1f}"]
        for side in sides:
            await _run(side, {"kind": "send", "concurrency": 4, "seconds": 1.0})  # connections, plans, imports
        for _ in range(plan.rounds):
            for side in sides:
                await _send(side, figures[side.name], plan.seconds)
                await _follow(side, figures[side.name])
                loads.append(f"{os.getloadavg()[0]:.1f}")
    async with _sides(place, tmp_path) as sides:  # anew: what a process has used and freed hides what it needs
        for side in sides:
            await _run(side, {"kind": "send", "concurrency": 4, "seconds": 1.0})
            await _hold(side, figures[side.name])
    names = [name for one in figures.values() for name in one.values]
    print(f"\n{plan.rounds} rounds in turn, median (lowest-highest); load over time: {' '.join(loads)}")
    print(f"{'':56}" + "".join(f"{name:>26}" for name in figures))
    for name in dict.fromkeys(names):
        print(f"{name:56}" + "".join(f"{one[name]:>26}" for one in figures.values()))
    world, _ = await open_world(place, "a2a", "throughput")
    machine = await report.machine(world.superuser_url)
    print(machine)
    report.save(
        plan.results, "a2a", {"machine": machine, "figures": {name: one.values for name, one in figures.items()}}
    )


async def _run(side: Side, job: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[float, float]]:
    """Run the client; return its result and what the side's servers and workers used meanwhile, in s."""
    whole = {"host": "127.0.0.1", "port": side.replicas[0].port, "token": side.token, "lead_s": LEAD_S, **job}
    before = side.cpu_s()
    result = await drive(whole)
    if result["failed"]:
        print(f"{side.name} {job['kind']}: {result['failed']} failed: {result['first_failure']}")
    after = side.cpu_s()
    return result, (after[0] - before[0], after[1] - before[1])


def _note_cpu(figures: _Figures, name: str, used: tuple[float, float], count: int) -> None:
    server, worker = (1000 * one / max(1, count) for one in used)
    figures.add(f"  CPU {name}, ms", server + worker)
    if worker:
        figures.add(f"  CPU {name}, ms: the server's part", server)


def _part(values: Sequence[float], part: int) -> float:
    return sorted(values)[len(values) * part // 100] if values else float("nan")


async def _send(side: Side, figures: _Figures, seconds: float) -> None:
    alone, _ = await _run(side, {"kind": "send", "concurrency": 1, "seconds": seconds})
    figures.add("SendMessage, 1 client, p50 ms", _part(alone["latencies_ms"], 50))
    # all of what was used is divided by all that was asked for: nothing is left out
    many, used = await _run(side, {"kind": "send", "concurrency": CLIENTS, "seconds": seconds, "lead_s": 0.0})
    sent = len(many["latencies_ms"])
    figures.add(f"SendMessage, {CLIENTS} clients, requests/s", sent / many["seconds"])
    _note_cpu(figures, "per SendMessage with its task", used, sent)
    made, _ = await _run(side, {"kind": "create", "concurrency": CLIENTS // 2, "seconds": seconds, "lead_s": 0.0})
    figures.add("creations/s", len(made["latencies_ms"]) / made["seconds"])
    figures.add("  beside GetTask/s", len(made["read_latencies_ms"]) / made["seconds"])
    await _quiet(side)


async def _follow(side: Side, figures: _Figures) -> None:
    own = {"kind": "streams", "streams": STREAMS, "ticks": TICKS, "interval_s": INTERVAL_S}
    got, used = await _run(side, own)
    figures.add(f"{STREAMS} tasks and streams: wall s", got["seconds"])
    figures.add("  events/s", got["events"] / got["seconds"])
    _note_cpu(figures, "per event of its own task", used, got["events"])
    figures.add("  from said to seen, p50 ms", _part(got["lags_ms"], 50))
    shared = {"kind": "fanout", "streams": STREAMS, "ticks": FANOUT_TICKS, "interval_s": FANOUT_INTERVAL_S}
    got, used = await _run(side, shared)
    figures.add(f"1 task to {STREAMS} subscribers: delivered/s", got["events"] / got["seconds"])
    _note_cpu(figures, "per delivered event", used, got["events"])
    figures.add("  from said to seen, p50 ms (fan-out)", _part(got["lags_ms"], 50))
    figures.add("  from said to seen, p99 ms (fan-out)", _part(got["lags_ms"], 99))


async def _quiet(side: Side) -> None:
    """Return once what was created has been worked off."""
    with anyio.fail_after(300):
        while True:
            before = sum(side.cpu_s())
            await anyio.sleep(1.0)
            if sum(side.cpu_s()) - before < 0.1:
                return


async def _hold(side: Side, figures: _Figures) -> None:
    """Weigh streams on which nothing happens."""
    replica = side.replicas[0]
    server = psutil.Process(replica.process.pid)
    async with AsyncExitStack() as stack:
        connection = await stack.enter_async_context(opened("127.0.0.1", replica.port))
        work = Work(kind="silent", interval_s=120.0)
        task_id = task_of(await ask(connection, encoded(side.token, "SendMessage", sending(work, wait=False))))
        request = encoded(side.token, "SubscribeToTask", {"id": task_id})
        empty = server.memory_info().rss
        held = 0
        for wanted in IDLE:
            for _ in range(wanted - held):
                own = await stack.enter_async_context(opened("127.0.0.1", replica.port))
                await Stream(connection=own).begin(request)
            held = wanted
            await anyio.sleep(0.5)
            figures.add(f"idle stream, RSS in kB ({wanted} open)", (server.memory_info().rss - empty) / held / 1024)
