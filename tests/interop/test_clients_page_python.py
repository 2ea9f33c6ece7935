"""docs/clients.md, its Python blocks: each in an environment that has the client at the version that the page names."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from tests.interop.blocks import PAGE, blocks, pointed_at
from tests.interop.conftest import Caller, Stage

# one worker, and so one server for the module
pytestmark = [pytest.mark.anyio, pytest.mark.xdist_group("clients_page_python")]
ENVIRONMENTS = PAGE.parent.parent / ".cache" / "interop"
BOUND_S = 60.0
# what else these libraries do on their own: report to their makers
QUIET = {"OPENAI_AGENTS_DISABLE_TRACING": "1", "LANGSMITH_TRACING": "false", "FASTMCP_CHECK_FOR_UPDATES": "off"}
PYTHON_CLIENTS = [
    pytest.param("mcp", "mcp"),
    *(
        pytest.param(name, name, marks=pytest.mark.clients)
        for name in ("fastmcp", "openai-agents", "langchain-mcp-adapters")
    ),
]


def interpreter(name: str) -> Path:
    """Return the Python that has the client."""
    if name == "mcp":
        return Path(sys.executable)
    python = ENVIRONMENTS / name / "bin" / "python"
    if not python.exists():
        pytest.fail(f"{name} is not installed; run: make interop-python", pytrace=False)
    return python


async def run(name: str, url: str, caller: Caller, folder: Path) -> str:
    """Run the block as a program and return what it printed."""
    program = folder / "program.py"
    program.write_text(pointed_at(name, url), encoding="utf-8")
    with anyio.fail_after(BOUND_S):
        done = await anyio.run_process(
            [str(interpreter(name)), str(program)],
            cwd=folder,
            env={"PATH": os.environ["PATH"], "HOME": str(folder), "BULKHEAD_TOKEN": caller.token, **QUIET},  # noqa: TID251
            check=False,
            stdin=subprocess.DEVNULL,
        )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


@pytest.mark.parametrize(("name", "package"), PYTHON_CLIENTS)
async def test_a_python_block_finds_reads_and_prints_the_rate_limit(
    stage: Stage, tmp_path: Path, name: str, package: str
) -> None:
    printed = await run(name, stage.url, await stage.caller(), tmp_path)
    assert printed.startswith("Lease ")
    assert "three months" in printed
    printed = await run(name, stage.url, await stage.exhausted(), tmp_path)
    assert re.fullmatch(r"refused: 42900 \{.*'code': 'rate_limited'.*\}\n", printed), printed
    versions = await anyio.run_process(
        [
            str(interpreter(name)),
            "-c",
            f"import importlib.metadata as m; print(m.version({package!r}), m.version('mcp'))",
        ]
    )
    own, library = versions.stdout.decode().split()
    row = next(line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith(f"| [{package}]"))
    assert own in row
    assert package == "mcp" or "with mcp" not in row or f"with mcp {library}" in row


def test_the_page_has_a_block_for_each_client() -> None:
    assert set(blocks()) == {
        *("mcp", "fastmcp", "openai-agents", "langchain-mcp-adapters"),
        *("typescript-v1", "typescript-v2", "inspector", "mcp-json"),
    }
