"""The graph of each workflow. Only a process that runs tasks imports this, and LangGraph with it.

Above: `runner`. Below: one module per graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from langgraph.graph import StateGraph

from workflows import rag_graph
from workflows.nodes import WorkflowContext

__all__ = ["GRAPHS"]

GRAPHS: Mapping[str, Callable[[], StateGraph[Any, WorkflowContext, Any, Any]]] = {"rag": rag_graph.build}
"""By the workflow's name. A graph's state is plain JSON values: nothing else is restored from a checkpoint."""
