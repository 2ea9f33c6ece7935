"""Several MCP processes behind one socket: all serve, a dead one is replaced, and none outlives the first."""

from __future__ import annotations

import dataclasses
import socket
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import psutil
import pytest

from rag.clients.mcp import mcp_client
from rag.errors import Unavailable
from rag.identity.scopes import Audience
from rag.settings import Settings
from tests.support.processes import Started, fleet_settings, started
from tests.support.world import World

pytestmark = pytest.mark.anyio
BOUND_S = 30.0
WORKERS = 2


@asynccontextmanager
async def serving(world: World, logs: Path) -> AsyncGenerator[tuple[Settings, Started]]:
    """Run the server with two workers until the block ends."""
    settings = fleet_settings(world.settings, mcp_workers=WORKERS, worker_database_url=None)
    with anyio.fail_after(4 * BOUND_S):
        async with started("mcp_server", settings, logs) as process:
            yield settings, process


def workers_of(process: Started) -> list[psutil.Process]:
    """Return the living children."""
    return [child for child in psutil.Process(process.process.pid).children() if child.is_running()]


async def gone(processes: list[psutil.Process]) -> bool:
    """Tell whether all of them end within the bound."""
    alive = await anyio.to_thread.run_sync(lambda: psutil.wait_procs(processes, timeout=BOUND_S)[1])
    return not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


async def ask(settings: Settings, token: str) -> list[str]:
    """List the tools over a connection of its own, waiting out a worker's fall."""
    async with mcp_client(settings.mcp_url, token) as client:
        while True:
            try:
                return await client.tools()
            except Unavailable:
                await anyio.sleep(0.05)


async def test_a_worker_that_dies_is_replaced_and_the_port_answers_throughout(world: World, tmp_path: Path) -> None:
    token = world.token(await world.tenant("acme"), audience=Audience.MCP)
    async with serving(world, tmp_path) as (settings, process):
        assert "hybrid_search" in await ask(settings, token)
        first = workers_of(process)
        assert len(first) == WORKERS
        first[0].kill()
        assert "hybrid_search" in await ask(settings, token)
        await process.logged("worker")
        # another process's children: there is no event to wait for
        while len({child.pid for child in workers_of(process)} - {first[0].pid}) < WORKERS:  # noqa: ASYNC110
            await anyio.sleep(0.05)
        for _ in range(4):
            assert "hybrid_search" in await ask(settings, token)
        last = workers_of(process)
        process.process.terminate()
        assert await process.wait() == 0
        assert await gone(last)


async def test_workers_end_when_the_process_that_started_them_is_killed(world: World, tmp_path: Path) -> None:
    async with serving(world, tmp_path) as (_, process):
        workers = workers_of(process)
        assert len(workers) == WORKERS
        process.process.kill()
        assert await gone(workers)


async def test_a_taken_port_is_told_in_one_line(world: World) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        settings = dataclasses.replace(
            fleet_settings(world.settings, mcp_workers=WORKERS), mcp_port=int(taken.getsockname()[1])
        )
        assert "BULKHEAD_MCP_PORT" in await refusal(settings)


async def test_settings_that_no_worker_can_serve_with_are_told_in_one_line(world: World, tmp_path: Path) -> None:
    settings = dataclasses.replace(
        fleet_settings(world.settings, mcp_workers=WORKERS), seal_keys_file=tmp_path / "absent.json"
    )
    assert "absent.json" in await refusal(settings)


async def refusal(settings: Settings) -> str:
    """Return the one line, besides its log, that the server leaves when it refuses to start."""
    with anyio.fail_after(BOUND_S):
        done = await anyio.run_process(
            [sys.executable, "-m", "mcp_server"],
            env=settings.to_env(),
            cwd=Path(__file__).parents[2],
            check=False,
        )
    lines = [line for line in done.stderr.decode().splitlines() if not line.startswith("{")]
    assert (done.returncode, len(lines)) == (1, 1), lines
    return lines[0]
