"""Drives one SQL script by pgbench, as the servers' own login, and says how many a second and how long each took.

Above: the benchmarks. Below: the pgbench of the embedded PostgreSQL. Every transaction is logged, so that percentiles
are of all of them; the login's password goes through the environment of the child, never through its arguments.
"""

from __future__ import annotations

import resource
import subprocess
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import anyio.to_thread
import numpy as np

from rag.db.embedded import pg_binary
from tests.bench.report import LEAD_S, Measured, measured

__all__ = ["run_pgbench"]

OVERTIME_S = 600
"""A transaction that is under way when the time is up is finished first."""


async def run_pgbench(
    url: str, text: str, *, clients: int, seconds: float, variables: Mapping[str, int], seed: int
) -> Measured:
    """Run the script `text` for `seconds` on `clients` connections, each statement prepared once per connection."""
    call = partial(_run, url, text, clients=clients, seconds=seconds, variables=variables, seed=seed)
    return await anyio.to_thread.run_sync(call)


def _run(url: str, text: str, *, clients: int, seconds: float, variables: Mapping[str, int], seed: int) -> Measured:
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        file = Path(folder) / "script"
        file.write_text(text, encoding="utf-8")
        command: list[str | Path] = [
            pg_binary("pgbench"),
            "--no-vacuum",
            "--protocol=prepared",
            f"--client={clients}",
            "--jobs=1",
            f"--time={max(1, round(LEAD_S + seconds))}",
            f"--random-seed={seed}",
            "--log",
            f"--log-prefix={folder}/log",
            f"--file={file}",
            *(f"--define={name}={value}" for name, value in variables.items()),
        ]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            command,
            env=_environment(url),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds + OVERTIME_S,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode != 0:
            raise RuntimeError(f"pgbench failed: {done.stderr.strip()[-2000:]}")
        logs = [np.loadtxt(log, usecols=(2, 4, 5), ndmin=2) for log in Path(folder).glob("log.*")]
    rows = np.concatenate([log for log in logs if len(log)] or [np.empty((0, 3))])
    latencies_s = rows[:, 0] / 1e6
    ended = rows[:, 1] + rows[:, 2] / 1e6
    began = ended - latencies_s
    if len(rows):
        counted = began >= began.min() + LEAD_S
        if 2 * counted.sum() < len(rows):  # so slow that hardly anything begins later
            counted[:] = True
        latencies_s, began, ended = latencies_s[counted], began[counted], ended[counted]
    # to the last end, so that a transaction that outlasts the time does not raise the rate
    took_s = float(ended.max() - began.min()) if len(ended) else seconds
    return measured(
        (latencies_s * 1000).tolist(),
        seconds=took_s,
        client_cpu_s=after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
    )


def _environment(url: str) -> dict[str, str]:
    parts = urlsplit(url)
    where = parse_qs(parts.query)
    return {
        "PATH": "/usr/bin:/bin",
        "PGHOST": parts.hostname or where["host"][0],
        "PGPORT": str(parts.port or where.get("port", ["5432"])[0]),
        "PGUSER": unquote(parts.username or ""),
        "PGPASSWORD": unquote(parts.password or ""),
        "PGDATABASE": unquote(parts.path.removeprefix("/")),
        "PGCONNECT_TIMEOUT": "10",
    }
