"""What the MCP server says of itself, in both revisions: capabilities, how long answers hold, what each tool does."""

from __future__ import annotations

from typing import Any

import pytest

from rag.tenants.operator import Tenant
from tests.support.mcp_scene import McpScene
from tests.support.mcp_wire import LEGACY, MODERN, answered

pytestmark = pytest.mark.anyio
CAPABILITIES = {
    "completions": {},
    "prompts": {"listChanged": False},
    "resources": {"listChanged": False, "subscribe": False},
    "tools": {"listChanged": False},
}
LISTS = {
    "tools/list": "tools",
    "resources/list": "resources",
    "resources/templates/list": "resourceTemplates",
    "prompts/list": "prompts",
}
READ, WRITE, ADD, REMOVE = "reads", "overwrites", "adds", "removes"
EFFECTS = {
    "hybrid_search": READ,
    "search_documents": READ,
    "find_similar": READ,
    "retrieve_document": READ,
    "list_documents": READ,
    "document_stats": READ,
    "put_document": WRITE,
    "put_documents": WRITE,
    "delete_document": REMOVE,
    "delegate_task": ADD,
    "task_status": READ,
    "task_result": READ,
    "cancel_task": REMOVE,
    "usage": READ,
}
"""By this a host decides for what it asks its user: a change here is a change of what happens without being asked."""


async def asked(
    scene: McpScene, method: str, params: dict[str, Any] | None = None, *, tenant: Tenant | None = None, **more: Any
) -> dict[str, Any]:
    """Return the result of one request."""
    return answered(await scene.send(method, params, token=scene.token(tenant), **more))["result"]


@pytest.mark.requirement("base.discover")
@pytest.mark.requirement("tools.capability")
@pytest.mark.requirement("resources.capability")
@pytest.mark.requirement("prompts.capability")
@pytest.mark.requirement("completion.capability")
async def test_both_revisions_declare_what_is_served_and_nothing_else(scene: McpScene) -> None:
    greeting = {"protocolVersion": LEGACY, "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
    initialized = await asked(scene, "initialize", greeting)
    assert (initialized["protocolVersion"], initialized["capabilities"]) == (LEGACY, CAPABILITIES)
    discovered = await asked(scene, "server/discover", revision=MODERN)
    assert (discovered["supportedVersions"], discovered["capabilities"]) == ([MODERN], CAPABILITIES)
    assert discovered["instructions"] == initialized["instructions"]
    ref = {"type": "ref/prompt", "name": "grounded_answer"}
    for revision in (LEGACY, MODERN):
        for method, member in LISTS.items():
            assert isinstance((await asked(scene, method, revision=revision))[member], list), method
        argument = {"name": "style", "value": "c"}
        found = await asked(scene, "completion/complete", {"ref": ref, "argument": argument}, revision=revision)
        assert found["completion"]["values"] == ["concise"]
        for undeclared in ("logging/setLevel", "resources/subscribe", "tasks/list"):
            response = await scene.send(undeclared, {"level": "info", "uri": "bulkhead://x"}, revision=revision)
            assert answered(response)["error"]["code"] == -32601, undeclared


@pytest.mark.requirement("caching.hints")
@pytest.mark.requirement("caching.scope")
async def test_only_what_is_the_same_for_everybody_may_be_kept_for_others(scene: McpScene) -> None:
    uri = f"bulkhead://documents/{await scene.put('Harbour')}"
    for method, params in [(method, None) for method in LISTS] + [("resources/read", {"uri": uri})]:
        result = await asked(scene, method, params, revision=MODERN)
        assert result["cacheScope"] == "private", method
        assert 0 < result["ttlMs"] <= 300_000, method
        # before 2026 there is no such thing, and in HTTP nothing may be kept at all
        response = await scene.send(method, params)
        assert "cacheScope" not in answered(response)["result"]
        assert response.headers["cache-control"] == "no-store"
    called = await asked(scene, "tools/call", {"name": "list_documents", "arguments": {}}, revision=MODERN)
    assert called.get("cacheScope", "private") == "private"
    own, theirs = [
        await asked(scene, "server/discover", revision=MODERN, tenant=tenant) for tenant in (scene.acme, scene.rival)
    ]
    assert own["cacheScope"] == "public"
    assert own == theirs


@pytest.mark.requirement("tools.list.order")
@pytest.mark.requirement("tools.description")
@pytest.mark.parametrize("revision", [LEGACY, MODERN])
async def test_every_tool_says_what_it_does_in_an_order_that_never_changes(scene: McpScene, revision: str) -> None:
    listed = (await asked(scene, "tools/list", revision=revision))["tools"]
    assert [tool["name"] for tool in listed] == list(EFFECTS)
    assert (await asked(scene, "tools/list", revision=revision, tenant=scene.rival))["tools"] == listed
    for tool in listed:
        effect, hints = EFFECTS[tool["name"]], dict(tool["annotations"])
        assert hints.pop("title") == tool["title"]
        assert hints == {
            "readOnlyHint": effect == READ,
            "destructiveHint": effect in {WRITE, REMOVE},
            "idempotentHint": effect != ADD,
            "openWorldHint": False,
        }, tool["name"]
