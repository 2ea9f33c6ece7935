"""docs/clients.md, its blocks for the A2A server: each where its client is, at the version that the page names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.interop.blocks import PAGE, pointed_at
from tests.interop.conftest import AgentStage
from tests.interop.environments import OWN, run_python, version
from tests.support.node import NODE_ROOT, run_node

# one worker, and so one set of processes for the module
pytestmark = pytest.mark.anyio
BOUND_S = 60.0
ANSWER = "The notice period of the lease is three months. [1]"


def row(start: str) -> str:
    """Return the row of the page's table that begins so."""
    (found,) = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith(f"| [{start}]")]
    return found


def assert_streamed(printed: Sequence[str], prefix: str = "") -> None:
    """Check that a block printed what the task did, and the answer after it."""
    assert f"{prefix}searching…" in printed
    assert printed.index(f"{prefix}searching…") < printed.index(f"answer: {ANSWER}")


@pytest.mark.parametrize(
    "name",
    [
        *("a2a-sdk", "a2a-sdk-grpc"),
        *(pytest.param(name, marks=pytest.mark.clients) for name in ("a2a-sdk-0.3", "google-adk")),
    ],
)
async def test_a_python_block_streams_the_answer(agent: AgentStage, tmp_path: Path, name: str) -> None:
    environment = OWN if name in {"a2a-sdk", "a2a-sdk-grpc"} else name
    program = tmp_path / "program.py"
    program.write_text(pointed_at(name, agent.base), encoding="utf-8")
    printed = await run_python(environment, program, home=tmp_path, BULKHEAD_AGENT_TOKEN=await agent.token())
    assert_streamed(printed.splitlines(), "status: " if name == "google-adk" else "")
    named = row({"a2a-sdk-grpc": "a2a-sdk", "a2a-sdk-0.3": "a2a-sdk of A2A 0.3"}.get(name, name))
    for package in {"a2a-sdk"} | ({"google-adk"} & {name}):
        assert await version(environment, package, home=tmp_path) in named


@pytest.mark.node
async def test_the_typescript_block_streams_the_answer(agent: AgentStage, tmp_path: Path) -> None:
    program = tmp_path / "program.mjs"
    program.write_text(pointed_at("a2a-js", agent.base), encoding="utf-8")
    (tmp_path / "node_modules").symlink_to(NODE_ROOT / "node_modules")
    ended = await run_node(program, home=tmp_path, bound_s=BOUND_S, BULKHEAD_AGENT_TOKEN=await agent.token())
    assert ended.status == 0, ended.stderr
    assert_streamed(ended.stdout.splitlines())
    assert json.loads((NODE_ROOT / "package.json").read_text())["dependencies"]["@a2a-js/sdk"] in row("@a2a-js/sdk")
