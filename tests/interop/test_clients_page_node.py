"""docs/clients.md, its blocks for Node: the TypeScript SDKs, the Inspector, the applications' JSON (`make interop`)."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import anyio
import orjson
import pytest

from tests.interop.blocks import PAGE, pointed_at
from tests.interop.conftest import Caller, Stage
from tests.support.node import NODE_ROOT, node, run_node

pytestmark = [pytest.mark.anyio, pytest.mark.node]
BOUND_S = 60.0
MODULES = NODE_ROOT / "node_modules"


@pytest.mark.parametrize("name", ["typescript-v1", "typescript-v2"])
async def test_a_typescript_block_finds_reads_and_prints_the_rate_limit(
    stage: Stage, tmp_path: Path, name: str
) -> None:
    program = tmp_path / "program.mjs"
    program.write_text(pointed_at(name, stage.url), encoding="utf-8")
    (tmp_path / "node_modules").symlink_to(MODULES)

    async def run(caller: Caller) -> str:
        ended = await run_node(program, home=tmp_path, bound_s=BOUND_S, BULKHEAD_TOKEN=caller.token)
        assert ended.status == 0, ended.stderr
        return ended.stdout

    printed = await run(await stage.caller())
    assert printed.startswith("Lease ")
    assert "three months" in printed
    printed = await run(await stage.exhausted())
    assert re.match(r"refused: 42900 \{ code: 'rate_limited', retryAfterMs: \d+ \}", printed), printed


async def test_the_inspector_block_finds_the_document(stage: Stage, tmp_path: Path) -> None:
    caller = await stage.caller()
    command = pointed_at("inspector", stage.url).replace("npx ", f"{node()} {MODULES}/.bin/")
    with anyio.fail_after(BOUND_S):
        done = await anyio.run_process(
            ["bash", "-c", command],
            env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "BULKHEAD_TOKEN": caller.token},
            check=False,
            stdin=subprocess.DEVNULL,
        )
    assert done.returncode == 0, done.stderr.decode()
    (hit,) = orjson.loads(done.stdout)["result"]["structuredContent"]["hits"]
    assert hit["document_id"] == caller.document_id


async def test_the_inspector_reads_the_applications_json(stage: Stage, tmp_path: Path) -> None:
    caller = await stage.caller()
    config = tmp_path / "mcp.json"
    config.write_text(pointed_at("mcp-json", stage.url).replace("${BULKHEAD_TOKEN}", caller.token))
    ended = await run_node(
        MODULES / ".bin" / "mcp-inspector",
        *("--cli", "--config", config, "--server", "bulkhead", "--stored-auth-only"),
        *("--method", "tools/list", "--format", "json"),
        home=tmp_path,
        bound_s=BOUND_S,
    )
    assert ended.status == 0, ended.stderr
    assert "hybrid_search" in {tool["name"] for tool in orjson.loads(ended.stdout)["result"]["tools"]}


@pytest.mark.parametrize(
    "package", ["@modelcontextprotocol/client", "@modelcontextprotocol/sdk", "@modelcontextprotocol/inspector"]
)
def test_the_page_names_the_versions_that_are_run(package: str) -> None:
    locked = json.loads((NODE_ROOT / "package.json").read_text())["dependencies"][package]
    label = "[Inspector]" if package.endswith("inspector") else f"`{package}`"
    (row,) = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|") and label in line]
    assert locked in row


def test_the_lock_names_no_registry_and_has_a_hash_for_every_package() -> None:
    text = (NODE_ROOT / "package-lock.json").read_text()
    assert "://" not in text
    lock = json.loads(text)
    packages = {name: package for name, package in lock["packages"].items() if name}
    assert packages
    for name, package in packages.items():
        assert "resolved" not in package, name
        assert package["integrity"].startswith("sha512-"), name
