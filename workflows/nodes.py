"""What the nodes of a graph work with: the run's context, which step they are, and a span around each.

Above: the graphs, `graphs`, `runner`. Below: LangGraph, `journal` and the ports that nodes use.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, Protocol, TypeVar

from langgraph.runtime import Runtime
from opentelemetry import trace

from rag.llm.ports import Chat
from workflows.journal import Journal, Step

__all__ = ["Tools", "WorkflowContext", "step_of", "traced"]

P = ParamSpec("P")
R = TypeVar("R")
_tracer = trace.get_tracer("bulkhead.workflows")


class Tools(Protocol):
    """The MCP server's tools, as the task's caller may use them."""

    async def call(self, tool: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return the tool's structured result.

        Raises:
            BulkheadError: What the tool refused or could not do.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowContext:
    """What the nodes of one run work with; nothing of it is stored."""

    journal: Journal
    tools: Callable[[], AbstractAsyncContextManager[Tools]]
    """Opens a connection to the MCP server under a fresh token of its own (tenancy.md 5)."""
    chat: Chat
    cache_salt: str
    """Keeps this tenant's prompt prefixes apart in a model server's cache (tenancy.md 4)."""


def step_of(runtime: Runtime[WorkflowContext]) -> Step:
    """Return which step of the run this node is executing."""
    info = runtime.execution_info
    assert info is not None
    return Step(id=info.task_id, try_number=info.node_attempt)


def traced(node: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
    """Put each execution of a graph's node into a span of its own, without the text of what it raises."""

    @wraps(node)
    async def within_span(*args: P.args, **kwargs: P.kwargs) -> R:
        name = f"node {node.__name__}"
        with _tracer.start_as_current_span(name, record_exception=False, set_status_on_exception=False):
            return await node(*args, **kwargs)

    return within_span
