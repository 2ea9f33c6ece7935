"""The MCP server proper: hands requests to what answers them, and says what it can and for how long answers hold.

Above: `app`, which puts it behind HTTP and authentication. Below: the SDK's Server, the handlers of `tools`,
`resources` and `prompts`, and `completions`. Serves the revisions 2025-11-25 and 2026-07-28 alike; nothing is kept
between two requests. What it declares follows from its handlers: no list changes are announced, nothing can be
subscribed to.
"""

from __future__ import annotations

from functools import partial
from importlib.metadata import version
from typing import Any

from mcp.server.caching import CacheHint
from mcp.server.lowlevel import Server

from mcp_server.completions import complete
from mcp_server.prompts.handlers import get_prompt, list_prompts
from mcp_server.resources.handlers import list_resources, list_templates, read_resource
from mcp_server.tools import find_tool
from mcp_server.tools.handlers import call_tool, list_tools
from rag.runtime import Runtime

__all__ = ["build_server"]

INSTRUCTIONS = (
    "Bulkhead holds your organisation's documents. To answer a question, call hybrid_search, read around a passage "
    "with retrieve_document where needed, and cite passages by title, document_id and character span."
)
LIST_TTL_MS = 300_000
READ_TTL_MS = 10_000
"""Documents change and permissions end; what a client keeps for so long it was allowed to read just before."""
DISCOVER_TTL_MS = 3_600_000


def build_server(runtime: Runtime) -> Server[dict[str, Any]]:
    """Return the server over `runtime`."""
    return Server(
        "bulkhead",
        title="Bulkhead",
        version=version("bulkhead"),
        instructions=INSTRUCTIONS,
        # without it the SDK runs tools/list before each call (mcp.md 6)
        get_tool_input_schema=lambda name: tool.declaration.input_schema if (tool := find_tool(name)) else None,
        on_list_tools=partial(list_tools, runtime),
        on_call_tool=partial(call_tool, runtime),
        on_list_resources=partial(list_resources, runtime),
        on_list_resource_templates=partial(list_templates, runtime),
        on_read_resource=partial(read_resource, runtime),
        on_list_prompts=partial(list_prompts, runtime),
        on_get_prompt=partial(get_prompt, runtime),
        on_completion=partial(complete, runtime),
        cache_hints={
            # what is listed depends on the caller's scopes, what is read on its tenant and groups
            "tools/list": CacheHint(LIST_TTL_MS, "private"),
            "prompts/list": CacheHint(LIST_TTL_MS, "private"),
            "resources/templates/list": CacheHint(LIST_TTL_MS, "private"),
            "resources/list": CacheHint(READ_TTL_MS, "private"),
            "resources/read": CacheHint(READ_TTL_MS, "private"),
            "server/discover": CacheHint(DISCOVER_TTL_MS, "public"),
        },
    )
