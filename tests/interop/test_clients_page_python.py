"""docs/clients.md, its Python blocks: each in an environment that has the client at the version that the page names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.interop.blocks import PAGE, blocks, pointed_at
from tests.interop.conftest import Caller, Stage
from tests.interop.environments import OWN, run_python, version

# one worker, and so one server for the module
pytestmark = pytest.mark.anyio
PYTHON_CLIENTS = [
    pytest.param("mcp", "mcp"),
    *(
        pytest.param(name, name, marks=pytest.mark.clients)
        for name in ("fastmcp", "openai-agents", "langchain-mcp-adapters")
    ),
]


async def run(name: str, url: str, caller: Caller, folder: Path) -> str:
    """Run the block as a program and return what it printed."""
    program = folder / "program.py"
    program.write_text(pointed_at(name, url), encoding="utf-8")
    return await run_python(environment(name), program, home=folder, BULKHEAD_TOKEN=caller.token)


def environment(name: str) -> str:
    """Return the environment that a block runs in."""
    return OWN if name == "mcp" else name


@pytest.mark.parametrize(("name", "package"), PYTHON_CLIENTS)
async def test_a_python_block_finds_reads_and_prints_the_rate_limit(
    stage: Stage, tmp_path: Path, name: str, package: str
) -> None:
    printed = await run(name, stage.url, await stage.caller(), tmp_path)
    assert printed.startswith("Lease ")
    assert "three months" in printed
    printed = await run(name, stage.url, await stage.exhausted(), tmp_path)
    assert re.fullmatch(r"refused: 42900 \{.*'code': 'rate_limited'.*\}\n", printed), printed
    own, library = [await version(environment(name), one, home=tmp_path) for one in (package, "mcp")]
    row = next(line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith(f"| [{package}]"))
    assert own in row
    assert package == "mcp" or "with mcp" not in row or f"with mcp {library}" in row


def test_the_page_has_a_block_for_each_client() -> None:
    assert set(blocks()) == {
        *("mcp", "fastmcp", "openai-agents", "langchain-mcp-adapters"),
        *("typescript-v1", "typescript-v2", "inspector", "mcp-json"),
        *("a2a-sdk", "a2a-sdk-grpc", "a2a-js", "google-adk", "a2a-sdk-0.3"),
    }
