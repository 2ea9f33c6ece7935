"""The graph of each workflow. Only a process that runs tasks imports this, and LangGraph with it.

Above: `runner`. Below: one module per graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from langgraph.graph import StateGraph
from langgraph.graph.state import CompiledStateGraph

from workflows import compare_graph, fixture_graph, hybrid_graph, ingest_graph, rag_graph, react_graph, research_graph
from workflows.nodes import WorkflowContext

__all__ = ["GRAPHS", "graph_of"]

GRAPHS: Mapping[str, Callable[[], StateGraph[Any, WorkflowContext, Any, Any]]] = {
    "rag": rag_graph.build,
    "research": research_graph.build,
    "ingest": ingest_graph.build,
    "compare": compare_graph.build,
    "fixture": fixture_graph.build,
    "hybrid": hybrid_graph.build,
    "react": react_graph.build,
}
"""By the workflow's name. A graph's state is plain JSON values: nothing else is restored from a checkpoint."""


@cache
def graph_of(workflow: str) -> CompiledStateGraph[Any, WorkflowContext, Any, Any]:
    """Return the compiled graph, without a checkpointer: a run copies it with its own, for a twentieth of the time."""
    return GRAPHS[workflow]().compile()
