"""What a benchmark ran on: the machine, its GPUs, the version of this code. Above: `bench`. Below: psutil, nvidia-smi.

It is the machine of the client. Whether the measured server runs on it as well, the result says beside it.
"""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import psutil

__all__ = ["machine", "provenance"]

TOOL_BOUND_S = 10.0
_QUERY = "--query-gpu=name,memory.total,driver_version"
_CPUINFO = Path("/proc/cpuinfo")


def machine() -> dict[str, object]:
    """Return what this machine is: processor, memory and GPUs, as far as nvidia-smi finds any."""
    return {
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cpus": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": _gpus(),
    }


def provenance() -> dict[str, object]:
    """Return which code measured: `commit` is None where it is no checkout, or git fails."""
    return {"version": version("bulkhead"), "python": platform.python_version(), **_commit(Path(__file__).parents[2])}


def _cpu() -> str:
    try:
        lines = _CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def _gpus() -> list[dict[str, object]]:
    try:
        listed = _tool("nvidia-smi", _QUERY, "--format=csv,noheader,nounits")
    except (OSError, subprocess.SubprocessError):
        return []
    rows = ([value.strip() for value in line.split(",")] for line in listed.splitlines())
    return [
        {"name": row[0], "memory_mib": int(row[1]) if row[1].isdecimal() else None, "driver": row[2]}
        for row in rows
        if len(row) == 3
    ]


def _commit(root: Path) -> dict[str, object]:
    if not (root / ".git").exists():
        return {"commit": None, "changed_since_commit": None}
    try:
        commit = _tool("git", "-C", str(root), "rev-parse", "HEAD")
        changed = bool(_tool("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "changed_since_commit": None}
    return {"commit": commit, "changed_since_commit": changed}


def _tool(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=TOOL_BOUND_S, check=True)
    return done.stdout.strip()
