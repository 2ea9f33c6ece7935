"""The three systems that are compared, each as one function that runs it for a while.

    server   (a) the MCP server as a process, over HTTP with a signed token; vectors from an endpoint or the built-in
    model sql      (b) the same statement by pgbench, with the seal and the vector that the server would send
    plain    (c) what most servers on Postgres run: ts_rank_cd and a shared HNSW under row-level security, by pgbench

Above: the throughput benchmark. Below: `pgbench`, `client`, `vector_server`.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import anyio
import anyio.to_thread
import numpy as np
import psutil

from rag.cli.supervisor import free_port
from rag.identity.scopes import Scope
from tests.bench.connect import connected, script
from tests.bench.pgbench import run_pgbench
from tests.bench.report import LEAD_S, Measured, measured
from tests.bench.statement import search_statement
from tests.support.processes import ROOT, fleet_settings, started
from tests.support.world import World

__all__ = [
    "PLAIN_MODES",
    "READ",
    "Server",
    "Tenant",
    "drive",
    "plain_answers",
    "run_plain",
    "run_server",
    "run_sql",
    "serving",
]

_AND = "plainto_tsquery('pg_catalog.english', q.query)"
_OR = f"replace({_AND}::text, '&', '|')::tsquery"
_STORED = "p.tsv"
_COMPUTED = "to_tsvector('pg_catalog.english', p.content)"
PLAIN_MODES: Mapping[str, tuple[str, str]] = {
    "computed": (_AND, _COMPUTED),
    "stored": (_AND, _STORED),
    "stored-or": (_OR, _STORED),
}
"""`computed`: the GIN index is on an expression, as PostgreSQL's manual shows first, and under row-level security the
expression is evaluated for every row. `stored`: on a generated column. `stored-or`: any of the words instead of all."""
READ = frozenset({Scope.CORPUS_READ})
OVERTIME_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """A loaded tenant and what is asked of it."""

    name: str
    tenant_id: UUID
    documents: int
    chunks: int
    questions: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A running MCP server."""

    host: str
    port: int
    pid: int


async def run_sql(world: World, tenant: Tenant, mode: str, *, clients: int, seconds: float, seed: int) -> Measured:
    """Run (b)."""
    statement = search_statement(mode, wanted=10, documents=":documents", number=":number")
    assert world.settings.database_url is not None
    return await run_pgbench(
        world.settings.database_url,
        f"\\set number random(1, :questions)\n{statement};\n",
        clients=clients,
        seconds=seconds,
        variables=_variables(tenant),
        seed=seed,
    )


async def run_plain(world: World, tenant: Tenant, mode: str, *, clients: int, seconds: float, seed: int) -> Measured:
    """Run (c)."""
    assert world.settings.database_url is not None
    return await run_pgbench(
        world.settings.database_url,
        _plain(mode),
        clients=clients,
        seconds=seconds,
        variables=_variables(tenant),
        seed=seed,
    )


async def plain_answers(world: World, tenant: Tenant, mode: str, *, questions: int) -> tuple[float, float]:
    """Return how many hits (c) has on average, of the ten asked for, and how many of them its words found."""
    assert world.settings.database_url is not None
    text = _plain(mode).partition("true);\n")[2].partition(";\ncommit")[0]
    hits = by_words = 0
    async with connected(world.settings.database_url) as connection, connection.transaction():
        await connection.execute(
            "select set_config('app.current_tenant', "
            "(select c.tenant_id::text from bench.caller c where c.documents = $1), true)",
            tenant.documents,
        )
        for number in range(1, questions + 1):
            query = text.replace(":documents", str(tenant.documents)).replace(":number", str(number))
            rows = await connection.fetch(query, timeout=OVERTIME_S)
            hits += len(rows)
            by_words += sum(row["lexical_place"] is not None for row in rows)
    return hits / questions, by_words / questions


async def run_server(
    server: Server, tenant: Tenant, mode: str, *, token: str, clients: int, seconds: float, seed: int
) -> tuple[Measured, str]:
    """Run (a); return with it what the processes spent, and the first thing that went wrong."""
    job = {
        "host": server.host,
        "port": server.port,
        "path": "/mcp",
        "token": token,
        "tool": "hybrid_search",
        "calls": [{"query": question, "mode": mode} for question in tenant.questions],
        "concurrency": clients,
        "seconds": seconds,
        "lead_s": LEAD_S,
        "seed": seed,
    }
    process = psutil.Process(server.pid)
    before = _cpu_s(process)
    with anyio.fail_after(seconds + OVERTIME_S):
        result = await drive(job)
    spent = _cpu_s(process) - before
    got = measured(
        result["latencies_ms"], seconds=result["seconds"], client_cpu_s=result["cpu_s"], failed=result["failed"]
    )
    note = f"server {1000 * spent / max(1, got.requests):.2f} ms CPU a request, {result['hits']:.1f} hits"
    return got, f"{note}; {result['first_failure']}" if result["failed"] else note


async def drive(job: Mapping[str, Any]) -> dict[str, Any]:
    """Run the load generator on `job` and return its result."""
    # into a file: of what came through a pipe, pieces were missing now and then
    with tempfile.TemporaryFile() as out:
        await anyio.to_thread.run_sync(
            lambda: subprocess.run(
                [sys.executable, "-m", "tests.bench.client"],
                input=json.dumps(job).encode(),
                cwd=ROOT,
                stdout=out,
                check=True,
            ),
            abandon_on_cancel=True,
        )
        out.seek(0)
        return json.load(out)


@asynccontextmanager
async def serving(
    world: World, folder: Path, *, vectors: Mapping[str, Sequence[float]] | None
) -> AsyncGenerator[Server]:
    """Run the MCP server until the block ends: with `vectors` from an endpoint, else with the built-in model."""
    settings = fleet_settings(world.settings, request_limit_per_minute=10_000_000, log_level="WARNING")
    async with _vector_endpoint(folder, vectors) as url:
        settings = dataclasses.replace(settings, embeddings_url=url)
        async with started("mcp_server", settings, folder) as process:
            where = urlsplit(settings.mcp_url)
            assert where.hostname is not None
            assert where.port is not None
            yield Server(host=where.hostname, port=where.port, pid=process.process.pid)


@asynccontextmanager
async def _vector_endpoint(folder: Path, vectors: Mapping[str, Sequence[float]] | None) -> AsyncGenerator[str | None]:
    if vectors is None:
        yield None
        return
    file = folder / "vectors.npz"
    np.savez(file, texts=np.array(list(vectors)), vectors=np.array(list(vectors.values()), dtype=np.float32))
    port = free_port("127.0.0.1")
    command = [sys.executable, "-m", "tests.bench.vector_server", str(file), str(port)]
    process = await anyio.open_process(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=None, stderr=None)
    try:
        with anyio.fail_after(20):
            while True:
                try:
                    stream = await anyio.connect_tcp("127.0.0.1", port)
                except OSError:
                    await anyio.sleep(0.05)
                    continue
                await stream.aclose()
                break
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        with anyio.CancelScope(shield=True):
            process.terminate()
            await process.wait()
            await process.aclose()


def _plain(mode: str) -> str:
    words, vector = PLAIN_MODES[mode]
    return script("plain.pgbench").replace("/*words*/", words).replace("/*tsv*/", vector)


def _variables(tenant: Tenant) -> dict[str, int]:
    return {"documents": tenant.documents, "questions": len(tenant.questions)}


def _cpu_s(process: psutil.Process) -> float:
    spent = process.cpu_times()
    return spent.user + spent.system
