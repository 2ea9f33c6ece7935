"""Python environments beside ours, each with one client at the version that the Makefile pins, and programs run there.

Above: the interop tests. `make interop-python` installs them all, `make interop-a2a` those for the A2A server.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

__all__ = ["OWN", "run_python", "version"]

ROOT = Path(__file__).parent.parent.parent
BOUND_S = 90.0
OWN = ""
"""The environment that the tests run in."""
# what these libraries do on their own: report to their makers, and warn of what is experimental
_QUIET = {
    "OPENAI_AGENTS_DISABLE_TRACING": "1",
    "LANGSMITH_TRACING": "false",
    "FASTMCP_CHECK_FOR_UPDATES": "off",
    "ADK_SUPPRESS_A2A_EXPERIMENTAL_FEATURE_WARNINGS": "true",
}


def _interpreter(name: str) -> Path:
    if name == OWN:
        return Path(sys.executable)
    python = ROOT / ".cache" / "interop" / name / "bin" / "python"
    if not python.exists():
        pytest.fail(f"{name} is not installed; run: make interop-python", pytrace=False)
    return python


async def run_python(name: str, *arguments: str | Path, home: Path, **environment: str) -> str:
    """Run the environment's Python in `home` and return what it printed; a failure fails the test."""
    with anyio.fail_after(BOUND_S):
        done = await anyio.run_process(
            [str(_interpreter(name)), *map(str, arguments)],
            cwd=home,
            env={"PATH": os.environ["PATH"], "HOME": str(home), **_QUIET, **environment},  # noqa: TID251  # what a child needs
            check=False,
            stdin=subprocess.DEVNULL,
        )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


async def version(name: str, package: str, *, home: Path) -> str:
    """Return the version of a package in an environment."""
    if name == OWN:
        return importlib.metadata.version(package)
    asked = f"import importlib.metadata as m; print(m.version({package!r}))"
    return (await run_python(name, "-c", asked, home=home)).strip()
