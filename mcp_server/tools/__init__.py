"""The tools of the MCP face, one file each. Adding one: its file, a line in TOOLS, its test."""

from __future__ import annotations

from typing import Any

from mcp_server.tools.cancel_task import CANCEL_TASK
from mcp_server.tools.delegate_task import DELEGATE_TASK
from mcp_server.tools.delete_document import DELETE_DOCUMENT
from mcp_server.tools.document_stats import DOCUMENT_STATS
from mcp_server.tools.find_similar import FIND_SIMILAR
from mcp_server.tools.hybrid_search import HYBRID_SEARCH
from mcp_server.tools.list_documents import LIST_DOCUMENTS
from mcp_server.tools.put_document import PUT_DOCUMENT
from mcp_server.tools.put_documents import PUT_DOCUMENTS
from mcp_server.tools.retrieve_document import RETRIEVE_DOCUMENT
from mcp_server.tools.search_documents import SEARCH_DOCUMENTS
from mcp_server.tools.task_result import TASK_RESULT
from mcp_server.tools.task_status import TASK_STATUS
from mcp_server.tools.tool import Tool
from mcp_server.tools.usage import USAGE

__all__ = ["TOOLS", "find_tool"]

TOOLS: tuple[Tool[Any], ...] = (
    HYBRID_SEARCH,
    SEARCH_DOCUMENTS,
    FIND_SIMILAR,
    RETRIEVE_DOCUMENT,
    LIST_DOCUMENTS,
    DOCUMENT_STATS,
    PUT_DOCUMENT,
    PUT_DOCUMENTS,
    DELETE_DOCUMENT,
    DELEGATE_TASK,
    TASK_STATUS,
    TASK_RESULT,
    CANCEL_TASK,
    USAGE,
)
"""In the order in which a client sees them: searching, reading, writing, tasks, the caller's own account."""

_BY_NAME: dict[str, Tool[Any]] = {tool.name: tool for tool in TOOLS}


def find_tool(name: str) -> Tool[Any] | None:
    """Return the tool of that name."""
    return _BY_NAME.get(name)
