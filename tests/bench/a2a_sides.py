"""The two sides of the A2A benchmarks, as processes: our servers and workers, and servers of a2a-sdk's own handler.

Above: the benchmarks. Below: tests/support/processes.py, `a2a_ours`, `a2a_sdk_server`. Both use one PostgreSQL, each a
database of its own, verify the same RS256 token, and have an agent that does the same.
"""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, cast

import anyio
import anyio.abc
import anyio.to_thread
import asyncpg
import httpx
import psutil

from rag.cli.supervisor import free_port
from rag.db.migrate import ensure_database
from rag.identity.scopes import Audience
from rag.settings import Settings
from rag.tenants.operator import Tenant
from tests.bench.place import Place
from tests.support.processes import ROOT, fleet_settings
from tests.support.world import World

__all__ = ["SDK_PYTHON", "Replica", "Side", "drive", "our_side", "sdk_side"]

SDK_PYTHON = ROOT / ".cache" / "bench-a2a" / "bin" / "python"
"""Made by `make bench-a2a`."""
READY_BOUND_S = 60.0
POLL_S = 0.05
LIFETIME_S = 7200.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """A server that takes requests."""

    port: int
    process: anyio.abc.Process

    @property
    def base(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the two, running."""

    name: str
    token: str
    replicas: tuple[Replica, ...]
    workers: tuple[anyio.abc.Process, ...] = ()
    """Of ours, which run the tasks; the SDK's replicas run those that they were sent."""
    database: str
    """URL of an administrator, who sees which worker holds a task."""

    def cpu_s(self) -> tuple[float, float]:
        """Return what its servers and its workers have used so far. PostgreSQL's is in neither."""
        return sum(_cpu_s(one.process.pid) for one in self.replicas), sum(_cpu_s(one.pid) for one in self.workers)

    async def owner(self, task_id: str) -> anyio.abc.Process:
        """Return the process that runs the task; the SDK's is the first replica, which such a task was sent to."""
        if not self.workers:
            return self.replicas[0].process
        connection = await asyncpg.connect(self.database)
        try:
            with anyio.fail_after(READY_BOUND_S):
                while True:
                    worker = await connection.fetchval("select worker from queue.run where task_id = $1::uuid", task_id)
                    for one in self.workers:
                        if worker is not None and f":{one.pid}:" in worker:
                            return one
                    await anyio.sleep(POLL_S)
        finally:
            await connection.close()


def _cpu_s(pid: int) -> float:
    try:
        spent = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return spent.user + spent.system


@asynccontextmanager
async def our_side(
    world: World, tenant: Tenant, folder: Path, *, replicas: int = 2, workers: int = 2, slots: int = 32, **more: Any
) -> AsyncGenerator[Side]:
    """Run so many servers and workers of ours; `more` are settings."""
    base = fleet_settings(world.settings, request_limit_per_minute=100_000_000, log_level="WARNING")
    base = dataclasses.replace(base, worker_slots=slots, outbound_loopback="on", pool_size=8, **more)
    async with AsyncExitStack() as stack:
        running: list[Replica] = []
        for _ in range(replicas):
            settings = dataclasses.replace(base, a2a_port=free_port("127.0.0.1"), worker_database_url=None)
            process = await stack.enter_async_context(_process("a2a_server", settings, folder))
            running.append(Replica(port=settings.a2a_port, process=process))
        working = [await stack.enter_async_context(_process("workflows", base, folder)) for _ in range(workers)]
        for one in running:
            await _ready(one, folder)
        yield Side(
            name="ours",
            token=world.token(tenant, audience=Audience.A2A, lifetime_s=LIFETIME_S),
            replicas=tuple(running),
            workers=tuple(working),
            database=world.superuser_url,
        )


@asynccontextmanager
async def sdk_side(
    place: Place, world: World, tenant: Tenant, folder: Path, *, replicas: int = 2
) -> AsyncGenerator[Side]:
    """Run so many servers of a2a-sdk's; their database is dropped first, and made anew."""
    name = "bench_sdk"
    admin = await asyncpg.connect(place.server.superuser_url)
    try:
        await admin.execute(f'drop database if exists "{name}" with (force)')
    finally:
        await admin.close()
    dsn = await ensure_database(place.server.superuser_url, name)
    async with AsyncExitStack() as stack:
        running: list[Replica] = []
        for _ in range(replicas):
            port = free_port("127.0.0.1")
            job = {
                "port": port,
                "dsn": dsn,
                "jwks": str((world.settings.certs_dir / "jwks.json").resolve()),
                "issuer": world.settings.issuer,
                "audience": Audience.A2A.value,
            }
            command = [str(SDK_PYTHON), "-m", "tests.bench.a2a_sdk_server", json.dumps(job)]
            process = await stack.enter_async_context(_run(command, {}, folder))
            running.append(Replica(port=port, process=process))
            # one after the other: the first makes the tables
            await _ready(running[-1], folder)
        yield Side(
            name="sdk",
            token=world.token(tenant, audience=Audience.A2A, lifetime_s=LIFETIME_S),
            replicas=tuple(running),
            database=dsn,
        )


@asynccontextmanager
async def _process(name: str, settings: Settings, folder: Path) -> AsyncGenerator[anyio.abc.Process]:
    command = [sys.executable, "-m", "tests.bench.a2a_ours", name]
    async with _run(command, settings.to_env(), folder) as process:
        yield process


@asynccontextmanager
async def _run(command: list[str], env: Mapping[str, str], folder: Path) -> AsyncGenerator[anyio.abc.Process]:
    path = {"PATH": os.environ["PATH"]}  # noqa: TID251  # what a child needs to start at all
    with (folder / f"{secrets.token_hex(4)}.log").open("wb") as log:
        process = await anyio.open_process(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**path, **env}, cwd=ROOT
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
        with anyio.CancelScope(shield=True):
            await process.wait()
            await process.aclose()


async def _ready(replica: Replica, folder: Path) -> None:
    async with httpx.AsyncClient(timeout=2.0) as http:
        with anyio.fail_after(READY_BOUND_S):
            while True:
                said = [path.read_text(encoding="utf-8") for path in folder.glob("*.log")]  # noqa: ASYNC240
                assert replica.process.returncode is None, "\n".join(said)
                try:
                    if (await http.get(f"{replica.base}/readyz")).status_code == 200:
                        return
                except httpx.TransportError:
                    pass
                await anyio.sleep(POLL_S)


async def drive(job: Mapping[str, Any], module: str = "a2a_client") -> dict[str, Any]:
    """Run a load generator on `job` and return its result."""

    def run() -> dict[str, Any]:
        command = [sys.executable, "-m", f"tests.bench.{module}"]
        # into a file: of what came through a pipe, pieces were missing now and then
        with tempfile.TemporaryFile() as out:
            subprocess.run(command, input=json.dumps(job).encode(), cwd=ROOT, check=True, stdout=out)
            out.seek(0)
            return cast("dict[str, Any]", json.load(out))

    return await anyio.to_thread.run_sync(run, abandon_on_cancel=True)
