"""What a workflow is: a name, what it takes, what it may do, and a graph. The registry lists them.

Above: `registry`, `runner`, the agent card. Below: `journal` and the ports that a graph's nodes use.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, Protocol, TypeVar

from langgraph.graph import StateGraph
from langgraph.runtime import Runtime
from opentelemetry import trace

from rag.identity.scopes import Scope
from rag.llm.ports import Chat
from workflows.journal import Journal, Step

__all__ = ["Tools", "Workflow", "WorkflowContext", "step_of", "traced"]

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
    build: Callable[[], StateGraph[Any, WorkflowContext, Any, Any]]
    """Returns the graph. Its state is plain JSON values: nothing else is restored from a checkpoint."""


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
