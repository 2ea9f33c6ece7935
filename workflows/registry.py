"""Every workflow there is. Adding one is its module, its graph, its test, a line here and one in `graphs`; agent card,
durability and traces follow.

Above: `accept`, the worker and both faces. Below: one module per workflow, without its graph.
"""

from __future__ import annotations

from rag.errors import InvalidInput
from workflows.rag import RAG
from workflows.workflow import Workflow

__all__ = ["WORKFLOWS", "find_workflow"]

WORKFLOWS: tuple[Workflow, ...] = (RAG,)
"""The first is what a message gets that names none."""


def find_workflow(name: str | None) -> Workflow:
    """Return the workflow of that name, or the first one for None.

    Raises:
        InvalidInput: There is no such workflow; the message lists those that there are.
    """
    if name is None:
        return WORKFLOWS[0]
    for workflow in WORKFLOWS:
        if workflow.name == name:
            return workflow
    raise InvalidInput(f"there is no such skill; known: {', '.join(workflow.name for workflow in WORKFLOWS)}")
