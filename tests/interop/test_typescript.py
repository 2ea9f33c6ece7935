"""The TypeScript SDKs, version 1 and version 2 in both eras, as a Node program uses them (`make interop`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from mcp_server.errors import RATE_LIMITED
from mcp_server.tools import TOOLS
from tests.interop.conftest import NARROW_BURST, Stage
from tests.support.node import run_node

pytestmark = [pytest.mark.anyio, pytest.mark.node]
BOUND_S = 60.0
INVALID_PARAMS = -32602


@pytest.mark.parametrize(
    ("client", "revision"),
    [("sdk-v1", "2025-11-25"), ("client-v2-legacy", "2025-11-25"), ("client-v2", "2026-07-28")],
)
async def test_a_typescript_client_searches_reads_and_sees_each_kind_of_refusal(
    stage: Stage, tmp_path: Path, client: str, revision: str
) -> None:
    caller, narrow = await stage.caller(), await stage.caller(narrow=True)
    ended = await run_node(
        "clients.mjs",
        client,
        home=tmp_path,
        bound_s=BOUND_S,
        BULKHEAD_URL=stage.url,
        BULKHEAD_TOKEN=caller.token,
        BULKHEAD_NARROW_TOKEN=narrow.token,
    )
    assert ended.status == 0, ended.stderr
    seen: dict[str, Any] = orjson.loads(ended.stdout)
    assert (seen["version"], seen["server"]["name"]) == (revision, "bulkhead")
    assert {"hybrid_search", "retrieve_document"} <= set(seen["tools"]) <= {tool.name for tool in TOOLS}
    assert seen["hit"]["document_id"] == caller.document_id
    assert "notice period" in seen["read"]["structuredContent"]["text"]
    refused = seen["refused"]["result"]
    assert refused["isError"]
    assert "query" in refused["content"][0]["text"]
    assert seen["unknown"]["code"] == INVALID_PARAMS
    assert "no_such_tool" in seen["unknown"]["message"]
    limited = seen["limited"]
    assert 0 < limited["calls"] <= NARROW_BURST
    assert (limited["code"], limited["data"]["code"]) == (RATE_LIMITED, "rate_limited")
    assert limited["data"]["retryAfterMs"] > 0
    if "resource" in seen:
        assert seen["resource"]["contents"][0]["text"]
    for prompt in seen.get("prompts", []):
        assert prompt["description"]
    if "prompt" in seen:
        assert seen["prompt"]["result"]["messages"]
