"""The mcp Python client in both eras, against the server process: whatever the server says it offers is used."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Literal

import anyio
import httpx2
import pytest
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS, TextContent, TextResourceContents

from mcp_server.errors import ERROR_META, RATE_LIMITED
from tests.interop.conftest import NARROW_BURST, Stage

# one worker, and so one server for the module
pytestmark = pytest.mark.anyio
Era = Literal["auto", "legacy"]
BOUND_S = 30.0
BOTH_ERAS = pytest.mark.parametrize(("era", "revision"), [("auto", "2026-07-28"), ("legacy", "2025-11-25")])


@asynccontextmanager
async def connected(url: str, token: str, era: Era) -> AsyncGenerator[Client]:
    """Open the client."""
    with anyio.fail_after(BOUND_S):
        async with (
            httpx2.AsyncClient(headers={"authorization": f"Bearer {token}"}, timeout=BOUND_S) as http,
            Client(streamable_http_client(url, http_client=http), mode=era) as client,
        ):
            yield client


@BOTH_ERAS
async def test_the_client_searches_reads_and_sees_each_kind_of_refusal(stage: Stage, era: Era, revision: str) -> None:
    caller = await stage.caller()
    async with connected(stage.url, caller.token, era) as client:
        assert client.session.protocol_version == revision
        assert {"hybrid_search", "retrieve_document"} <= {tool.name for tool in (await client.list_tools()).tools}
        found = await client.call_tool("hybrid_search", {"query": "notice period", "limit": 1})
        assert found.structured_content["hits"][0]["document_id"] == caller.document_id
        failed = await client.call_tool("retrieve_document", {"document_id": "00000000-0000-4000-8000-000000000000"})
        assert failed.is_error
        assert failed.meta is not None
        assert failed.meta[ERROR_META] == "not_found"
        assert isinstance(failed.content[0], TextContent)
        with pytest.raises(MCPError) as unknown:
            await client.call_tool("no_such_tool", {})
        assert unknown.value.error.code == INVALID_PARAMS


@BOTH_ERAS
async def test_the_client_sees_the_code_of_the_rate_limit_and_when_to_come_back(
    stage: Stage, era: Era, revision: str
) -> None:
    caller = await stage.caller(narrow=True)
    async with connected(stage.url, caller.token, era) as client:
        for _ in range(NARROW_BURST - 1):
            assert not (await client.call_tool("list_documents", {})).is_error
        with pytest.raises(MCPError) as limited:
            await client.call_tool("hybrid_search", {"query": "notice period"})
    assert limited.value.error.code == RATE_LIMITED
    assert limited.value.error.data["code"] == "rate_limited"
    assert limited.value.error.data["retryAfterMs"] > 0


@BOTH_ERAS
async def test_the_client_follows_the_progress_of_a_long_call(stage: Stage, era: Era, revision: str) -> None:
    caller = await stage.caller()
    steps: list[float] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        steps.append(progress)

    documents = [{"source": f"{number}.md", "title": str(number), "text": f"Clause {number}."} for number in range(3)]
    async with connected(stage.url, caller.token, era) as client:
        put = await client.call_tool("put_documents", {"documents": documents}, progress_callback=on_progress)
    assert not put.is_error, put.content
    assert steps == sorted(set(steps))
    assert len(steps) == len(documents)


@BOTH_ERAS
async def test_the_client_reads_the_resources_and_prompts_that_are_offered(
    stage: Stage, era: Era, revision: str
) -> None:
    caller = await stage.caller()
    async with connected(stage.url, caller.token, era) as client:
        listed = (await client.list_resources()).resources
        own = next(resource for resource in listed if caller.document_id in resource.uri)
        (content,) = (await client.read_resource(own.uri)).contents
        assert isinstance(content, TextResourceContents)
        assert "three months" in content.text
        for prompt in (await client.list_prompts()).prompts:
            needed = [argument.name for argument in prompt.arguments or [] if argument.required]
            if not any(name.startswith("document") for name in needed):
                assert (await client.get_prompt(prompt.name, dict.fromkeys(needed, "notice period"))).messages
        with pytest.raises(MCPError) as absent:
            await client.read_resource("bulkhead://documents/00000000-0000-4000-8000-000000000000")
        assert absent.value.error.code in {INVALID_PARAMS, -32002}
