"""Schedules whose time comes when a test says so, and a firing loop as a process of its own that can be killed.

Above: tests of schedules. Below: `workflows.schedules`. `python -m tests.support.schedules` is that process.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import anyio
import asyncpg

from rag.clock import system_clock
from rag.db.pool import Database, open_database
from rag.identity.principal import Principal
from rag.identity.seal import Sealer, load_seal_keys
from rag.schedules.timing import timing
from rag.schedules.values import Missed, Schedule
from tests.support.world import World
from workflows.schedules import Ordered, order, run_scheduler

__all__ = ["hourly", "make_due", "scheduler_process", "started_for"]

KILL_BOUND_S = 10


async def hourly(
    database: Database, principal: Principal, name: str = "digest", *, missed: Missed = Missed.ONCE, text: str = "why?"
) -> Schedule:
    """Make a schedule of every hour."""
    when = timing(cron=None, time_zone=None, every_s=3600.0)
    ordered = Ordered(name=name, text=text, timing=when, missed=missed)
    made, _ = await order(database, principal, ordered, clock=system_clock)
    return made


async def make_due(world: World, *, since_s: float = 0.0, name: str | None = None) -> datetime:
    """Have every active schedule (or the one of that name) be due since so many seconds; return the time."""
    connection = await asyncpg.connect(world.superuser_url)
    try:
        rows = await connection.fetch(
            "update rag.schedule set next_at = now() - make_interval(secs => $1) "
            "where state = 'active' and ($2::text is null or name = $2) returning next_at",
            since_s,
            name,
        )
    finally:
        await connection.close()
    return rows[0]["next_at"]


async def started_for(world: World) -> dict[tuple[str, datetime], int]:
    """Return how many tasks there are for each schedule (by its context) and time."""
    connection = await asyncpg.connect(world.superuser_url)
    try:
        rows = await connection.fetch(
            "select context_id, (e.payload #>> '{message,metadata,scheduledAt}')::timestamptz as at, count(*) as tasks "
            "from rag.task t join rag.task_event e using (tenant_id, task_id) where e.seq = 1 group by 1, 2"
        )
    finally:
        await connection.close()
    return {(row["context_id"], row["at"]): row["tasks"] for row in rows}


@contextmanager
def scheduler_process(world: World) -> Generator[subprocess.Popen[bytes]]:
    """Run the firing loop in a process of its own until the block ends, or until it is killed."""
    assert world.settings.worker_database_url is not None
    command = [sys.executable, "-m", __name__, world.settings.worker_database_url, str(world.settings.seal_keys_file)]
    process = subprocess.Popen(command, cwd=Path(__file__).parent.parent.parent)
    try:
        yield process
    finally:
        process.kill()
        process.wait(KILL_BOUND_S)


async def _run(url: str, keys: str) -> None:
    sealer = Sealer(keys=load_seal_keys(Path(keys)))
    async with open_database(url, sealer=sealer, pool_size=2, application="test-scheduler") as database:
        await run_scheduler(database, clock=system_clock)


if __name__ == "__main__":
    anyio.run(_run, sys.argv[1], sys.argv[2])
