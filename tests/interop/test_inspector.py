"""The MCP Inspector's command line, both eras (`make interop`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.interop.conftest import NARROW_BURST, Caller, Stage
from tests.support.node import NODE_ROOT, Ended, run_node

pytestmark = [pytest.mark.anyio, pytest.mark.node]
BOUND_S = 60.0
INSPECTOR = NODE_ROOT / "node_modules" / ".bin" / "mcp-inspector"
BOTH_ERAS = pytest.mark.parametrize("era", ["legacy", "modern"])
TOOL_FAILED = 5


async def inspect(url: str, token: str | None, era: str, home: Path, method: str, *more: str) -> Ended:
    """Run the Inspector once."""
    header = ["--header", f"Authorization: Bearer {token}"] if token else []
    return await run_node(
        INSPECTOR,
        *("--cli", url, "--transport", "http", "--protocol-era", era, *header),
        *("--method", method, *more, "--format", "json", "--stored-auth-only"),
        home=home,
        bound_s=BOUND_S,
    )


def said(ended: Ended) -> dict[str, Any]:
    """Return the result of a run that must have gone well."""
    assert ended.status == 0, ended.stderr
    return orjson.loads(ended.stdout)["result"]


@BOTH_ERAS
async def test_the_inspector_finds_no_fault_in_the_tools_and_calls_them(stage: Stage, tmp_path: Path, era: str) -> None:
    caller: Caller = await stage.caller()
    listed = await inspect(stage.url, caller.token, era, tmp_path, "tools/list", "--strict")
    names = {tool["name"] for tool in said(listed)["tools"]}
    assert {"hybrid_search", "retrieve_document"} <= names
    assert listed.stderr == ""
    arguments = ["--tool-name", "hybrid_search", "--tool-arg", "query=notice period", "limit=1"]
    found = said(await inspect(stage.url, caller.token, era, tmp_path, "tools/call", *arguments))
    (hit,) = found["structuredContent"]["hits"]
    assert hit["document_id"] == caller.document_id
    failed = await inspect(
        stage.url, caller.token, era, tmp_path, "tools/call", "--tool-name", "hybrid_search", "--tool-arg", "limit=1"
    )
    assert failed.status == TOOL_FAILED, (failed.status, failed.stdout, failed.stderr)
    assert "query" in failed.stdout


async def test_the_inspector_is_told_where_to_get_a_token(stage: Stage, tmp_path: Path) -> None:
    ended = await inspect(stage.url, None, "legacy", tmp_path, "tools/list")
    assert ended.status != 0
    assert "auth_required" in ended.stdout + ended.stderr


async def test_the_inspector_measures_a_tool_and_reports_the_limit(stage: Stage, tmp_path: Path) -> None:
    caller = await stage.caller(narrow=True)
    ended = await inspect(
        stage.url,
        caller.token,
        "modern",
        tmp_path,
        "tools/call",
        *("--tool-name", "list_documents", "--load", "--load-concurrency", "2"),
        *("--load-requests", str(3 * NARROW_BURST)),
    )
    measured = said(ended)
    assert measured["ok"] + measured["errors"] == measured["requests"] == 3 * NARROW_BURST
    assert 0 < measured["ok"] <= NARROW_BURST
    (error,) = measured["errorMessages"]
    assert error["message"].startswith("too many requests")
