"""Many streams on two replicas behind a balancer, whose clients lose connections and come back; one replica is killed.

No event is missing and none comes twice. Times and memory are printed, never asserted.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

from tests.bench.a2a_balancer import balanced
from tests.bench.a2a_sides import Side, drive, our_side
from tests.bench.a2a_wire import ask, encoded, opened, sending, task_of
from tests.bench.a2a_work import Work
from tests.support.world import World

pytestmark = pytest.mark.anyio
CUT = 0.05
WORKERS = 2
SEED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Crowd:
    """How many follow how much."""

    readers: int
    tasks: int
    ticks: int
    interval_s: float

    @property
    def seconds(self) -> float:
        """How long a task takes, at least."""
        return self.ticks * self.interval_s


@pytest.mark.faults
async def test_sixty_streams_miss_nothing_when_they_are_cut_and_a_replica_is_killed(
    world: World, tmp_path: Path
) -> None:
    await _follow(world, tmp_path, Crowd(readers=60, tasks=6, ticks=40, interval_s=0.2))


@pytest.mark.heavy
@pytest.mark.timeout(600)
async def test_a_thousand_streams_miss_nothing_when_they_are_cut_and_a_replica_is_killed(
    world: World, tmp_path: Path
) -> None:
    await _follow(world, tmp_path, Crowd(readers=1000, tasks=100, ticks=60, interval_s=1.0))


async def _follow(world: World, folder: Path, crowd: Crowd) -> None:
    tenant = await world.tenant("bench")
    slots = -(-crowd.tasks // WORKERS)
    async with our_side(world, tenant, folder, workers=WORKERS, slots=slots) as side:
        await _tasks(side, Work(kind="trivial"), 8)  # imports, plans, connections
        empty = _rss(side)
        tasks = await _tasks(side, Work(kind="ticks", count=crowd.ticks, interval_s=crowd.interval_s), crowd.tasks)
        found: dict[str, Any] = {}
        began = time.time()
        killed = 0.0
        each_kb: list[float] = []
        async with balanced([one.port for one in side.replicas]) as port, anyio.create_task_group() as group:

            async def read() -> None:
                job = {"host": "127.0.0.1", "port": port, "token": side.token, "tasks": tasks, "cut": CUT, "seed": SEED}
                found.update(
                    await drive({**job, "readers": crowd.readers, "seconds": 10 * crowd.seconds}, "a2a_readers")
                )

            group.start_soon(read)
            await anyio.sleep(crowd.seconds / 2)
            each_kb.append((_rss(side) - empty) / crowd.readers / 1024)
            killed = time.time()
            side.replicas[0].process.send_signal(signal.SIGKILL)
        # all come at once, which takes a while to take in
        before = sorted(lag for at, lag in found["lags"] if began + crowd.seconds / 4 < at < killed)
        after = sorted(lag for at, lag in found["lags"] if at >= killed)
        print(
            f"\n{crowd.readers} streams of {crowd.tasks} tasks, {found['events']} events: {found['gaps']} gaps, "
            f"{found['duplicates']} duplicates, {found['unfinished']} unfinished; {found['cuts']} cut by readers, "
            f"{found['breaks']} by a killed replica; {each_kb[0]:.0f} kB a stream; "
            f"commit to delivery: {_parts(before)} on two replicas, {_parts(after)} from the kill on; "
            f"load {os.getloadavg()[0]:.1f}"
        )
        assert (found["gaps"], found["duplicates"], found["unfinished"]) == (0, 0, 0), found["first_break"]
        # the task, its ticks and its end, for each reader
        assert found["events"] == crowd.readers * (crowd.ticks + 2)
        assert found["cuts"] > crowd.readers / 10
        assert found["breaks"] > crowd.readers / 10


async def _tasks(side: Side, work: Work, count: int) -> list[str]:
    async with opened("127.0.0.1", side.replicas[0].port) as connection:
        wait = work.kind == "trivial"
        requests = [encoded(side.token, "SendMessage", sending(work, wait=wait)) for _ in range(count)]
        return [task_of(await ask(connection, request)) for request in requests]


def _parts(lags: Sequence[float]) -> str:
    p50, p99 = (lags[len(lags) * part // 100] for part in (50, 99))
    return f"p50 {p50:.1f} ms, p99 {p99:.1f} ms"


def _rss(side: Side) -> int:
    return sum(psutil.Process(one.process.pid).memory_info().rss for one in side.replicas)
