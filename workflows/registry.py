"""Every workflow there is. Adding one is its module, its graph, its test, a line here and one in `graphs`; agent card,
durability and traces follow.

Above: `accept`, the worker and both faces. Below: one module per workflow, without its graph.
"""

from __future__ import annotations

from collections.abc import Sequence

from rag.errors import InvalidInput
from workflows.compare import COMPARE
from workflows.fixture import FIXTURE
from workflows.hybrid import HYBRID
from workflows.ingest import INGEST
from workflows.rag import RAG
from workflows.react import REACT
from workflows.research import RESEARCH
from workflows.workflow import Workflow

__all__ = ["EVERY", "WORKFLOWS", "find_workflow"]

WORKFLOWS: tuple[Workflow, ...] = (RAG, RESEARCH, INGEST, COMPARE, HYBRID, REACT)
"""The first is what a message gets that names none."""
EVERY: tuple[Workflow, ...] = (*WORKFLOWS, FIXTURE)
"""With the compatibility kit's, which nobody can ask for unless BULKHEAD_TEST_FIXTURES is on."""


def find_workflow(name: str | None, among: Sequence[Workflow] = WORKFLOWS) -> Workflow:
    """Return the workflow of that name, or the first one for None.

    Raises:
        InvalidInput: There is no such workflow; the message lists those that there are.
    """
    if name is None:
        return among[0]
    for workflow in among:
        if workflow.name == name:
            return workflow
    raise InvalidInput(f"there is no such skill; known: {', '.join(workflow.name for workflow in among)}")
