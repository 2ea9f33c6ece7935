"""What a workflow is to whoever asks for one: a name, what it takes, what it may do. The registry lists them.

Above: `registry`, `accept`, the runner, both faces. Below: the scopes. Its graph stands in `graphs`: a process that
only accepts tasks is spared LangGraph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rag.identity.scopes import Scope

__all__ = ["Workflow"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Workflow:
    """One thing that agents can ask for."""

    name: str
    title: str
    description: str
    tags: tuple[str, ...]
    examples: tuple[str, ...]
    scopes: frozenset[Scope]
    """What its runs may do at the MCP server: exchanged tokens carry these and no others."""
    time_limit_s: float
    """Of one attempt. Below the ten minutes for which a claim's seal holds."""
    parse: Callable[[str], dict[str, Any]]
    """Makes the graph's input from a message's text; raises InvalidInput with what is wrong."""
