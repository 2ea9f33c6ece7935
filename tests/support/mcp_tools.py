"""A call of every tool: arguments that it takes, for tests that go through all of them.

Above: protocol tests. Below: the tools' own declarations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mcp_server.tools.tool import Tool

__all__ = ["EXAMPLES", "arguments_of"]

EXAMPLES: Mapping[str, dict[str, Any]] = {
    "hybrid_search": {"query": "manipulative device"},
    "search_documents": {"query": "fraud"},
    "find_similar": {"limit": 3},
    "retrieve_document": {"start": 2, "end": 7},
    "list_documents": {"limit": 1},
    "document_stats": {},
    "put_document": {"source": "b.md", "title": "B", "text": "# B", "media_type": "text/markdown"},
    "put_documents": {"documents": [{"source": "c.md", "title": "C", "text": "# C", "media_type": "text/markdown"}]},
    "delete_document": {},
    "delegate_task": {"message": "What is unlawful?"},
    "task_status": {},
    "task_result": {},
    "cancel_task": {},
    "usage": {},
}
"""In the order in which the tools are listed; without ids."""


def arguments_of(tool: Tool[Any], ids: Mapping[str, str], **others: Any) -> dict[str, Any]:
    """Return valid arguments: the example, and of `ids` and `others` those that the tool has."""
    properties = tool.declaration.input_schema["properties"]
    named = {name: value for name, value in {**ids, **others}.items() if name in properties}
    return {**EXAMPLES[tool.name], **named}
