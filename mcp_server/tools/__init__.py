"""The tools of the MCP face, one file each. Adding one: its file, a line in TOOLS, its test."""

from __future__ import annotations

from typing import Any

from mcp_server.tools.delete_document import DELETE_DOCUMENT
from mcp_server.tools.hybrid_search import HYBRID_SEARCH
from mcp_server.tools.list_documents import LIST_DOCUMENTS
from mcp_server.tools.put_document import PUT_DOCUMENT
from mcp_server.tools.retrieve_document import RETRIEVE_DOCUMENT
from mcp_server.tools.search_documents import SEARCH_DOCUMENTS
from mcp_server.tools.tool import Tool

__all__ = ["TOOLS", "find_tool"]

TOOLS: tuple[Tool[Any], ...] = (
    HYBRID_SEARCH,
    SEARCH_DOCUMENTS,
    RETRIEVE_DOCUMENT,
    LIST_DOCUMENTS,
    PUT_DOCUMENT,
    DELETE_DOCUMENT,
)

_BY_NAME = {tool.name: tool for tool in TOOLS}


def find_tool(name: str) -> Tool[Any] | None:
    """Return the tool of that name."""
    return _BY_NAME.get(name)
