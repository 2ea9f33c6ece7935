"""What was measured, on what, and in which state the machine was: values, a table for people, JSON for machines.

Above: the benchmarks. Below: psutil. The machine's state belongs to every figure: a time without the load beside it
says nothing, and even a ratio only holds between runs that alternate under the same load.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import numpy as np
import psutil

__all__ = [
    "LEAD_S",
    "Measured",
    "Ratio",
    "Run",
    "machine",
    "measured",
    "memory",
    "print_ratios",
    "print_runs",
    "ratios",
    "save",
]

ROOT = Path(__file__).parents[2]
LEAD_S = 1.0
"""What begins in the first second of a run is not counted: pgbench's connections are new, and plan everything first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One run of one driver. Latencies in ms as the client saw them."""

    requests: int
    rate: float
    """Requests a second."""
    p50: float
    p95: float
    p99: float
    client_cpu_s: float
    """CPU time of the driver itself, which runs on the same cores."""
    failed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One measurement with its place in the plan."""

    system: str
    mode: str
    documents: int
    chunks: int
    concurrency: int
    round: int
    load: float
    """Load average over the last minute when it began."""
    measured: Measured
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """How many times the rate of `other` the rate of `one` is: median over the rounds, and the extremes."""

    one: str
    other: str
    documents: int
    concurrency: int
    median: float
    low: float
    high: float


def measured(latencies_ms: Sequence[float], *, seconds: float, client_cpu_s: float, failed: int = 0) -> Measured:
    """Sum up the latencies of one run that took `seconds`."""
    if not latencies_ms:
        nan = float("nan")
        return Measured(requests=0, rate=0.0, p50=nan, p95=nan, p99=nan, client_cpu_s=client_cpu_s, failed=failed)
    p50, p95, p99 = (float(cut) for cut in np.percentile(latencies_ms, (50, 95, 99)))
    return Measured(
        requests=len(latencies_ms),
        rate=len(latencies_ms) / seconds,
        p50=p50,
        p95=p95,
        p99=p99,
        client_cpu_s=client_cpu_s,
        failed=failed,
    )


def ratios(runs: Iterable[Run], pairs: Iterable[tuple[str, str]]) -> list[Ratio]:
    """Return, for each pair of `system/mode` names, its ratio at every size and concurrency that both were run at."""
    rates = {(f"{run.system}/{run.mode}", run.documents, run.concurrency, run.round): run.measured.rate for run in runs}
    found: list[Ratio] = []
    for one, other in pairs:
        for documents, concurrency in sorted({key[1:3] for key in rates if key[0] == one}):
            each = [
                rate / against
                for (name, size, clients, number), rate in rates.items()
                if (name, size, clients) == (one, documents, concurrency)
                and (against := rates.get((other, documents, concurrency, number), 0.0)) > 0
            ]
            if each:
                found.append(
                    Ratio(
                        one=one,
                        other=other,
                        documents=documents,
                        concurrency=concurrency,
                        median=statistics.median(each),
                        low=min(each),
                        high=max(each),
                    )
                )
    return found


def print_runs(runs: Iterable[Run]) -> None:
    """Print one line a run."""
    heads = f"{'system/mode':24} {'docs':>6} {'chunks':>7} {'conc':>4} {'round':>5} {'req':>6} {'req/s':>9}"
    print(f"\n{heads} {'p50 ms':>8} {'p95':>8} {'p99':>8} {'failed':>6} {'client CPU':>10} {'load':>5}")
    for run in runs:
        got = run.measured
        print(
            f"{run.system + '/' + run.mode:24} {run.documents:6} {run.chunks:7} {run.concurrency:4} {run.round:5} "
            f"{got.requests:6} {got.rate:9.2f} {got.p50:8.2f} {got.p95:8.2f} {got.p99:8.2f} {got.failed:6} "
            f"{got.client_cpu_s:8.2f} s {run.load:5.1f}  {run.note}".rstrip()
        )


def print_ratios(found: Iterable[Ratio]) -> None:
    """Print one line a ratio."""
    print(f"\n{'ratio of requests/s':44} {'docs':>6} {'conc':>4} {'median':>8}   lowest - highest")
    for ratio in found:
        pair = f"{ratio.one} : {ratio.other}"
        print(
            f"{pair:44} {ratio.documents:6} {ratio.concurrency:4} {ratio.median:8.2f}   "
            f"{ratio.low:.2f} - {ratio.high:.2f}"
        )


async def machine(superuser_url: str) -> dict[str, object]:
    """Return what the figures were taken on, and the server settings that matter to them."""
    connection = await asyncpg.connect(superuser_url)
    try:
        settings = await connection.fetch(
            "select name, current_setting(name) as value from pg_settings where name = any ($1::text[]) order by name",
            [
                "shared_buffers",
                "maintenance_work_mem",
                "work_mem",
                "fsync",
                "synchronous_commit",
                "jit",
                "server_version",
            ],
        )
        vector = await connection.fetchval("select extversion from pg_extension where extname = 'vector'")
    finally:
        await connection.close()
    return {
        "taken_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cores": os.cpu_count(),
        "cpu": _cpu_name(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load": [round(part, 2) for part in os.getloadavg()],
        "python": platform.python_version(),
        "postgresql": {row["name"]: row["value"] for row in settings},
        "pgvector": vector,
        "packages": {name: importlib.metadata.version(name) for name in ("asyncpg", "mcp", "uvicorn", "starlette")},
    }


def memory(postmaster: int) -> dict[str, float]:
    """Return the MiB that PostgreSQL holds: sum of PSS (shared pages counted once) and the largest RSS of a process.

    PSS is only to be had on Linux, and for the processes of another user only by root; it is left out elsewhere.
    """
    server = psutil.Process(postmaster)
    pss = 0
    rss = 0
    for process in [server, *server.children(recursive=True)]:
        try:
            rss = max(rss, process.memory_info().rss)
            pss += getattr(process.memory_full_info(), "pss", 0)
        except (psutil.AccessDenied, psutil.NoSuchProcess):
            continue
    return {"pss_mib": round(pss / 2**20, 1), "largest_rss_mib": round(rss / 2**20, 1)}


def save(path: Path | None, name: str, body: dict[str, object]) -> None:
    """Put `body` under `name` into the JSON file `path`, beside what other benchmarks put there; None: nowhere."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    stored[name] = body
    path.write_text(json.dumps(stored, indent=2, default=_plain) + "\n", encoding="utf-8")


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _commit() -> str | None:
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
