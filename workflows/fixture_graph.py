"""The graph of the workflow `fixture`: one node that does what its case says.

Above: `graphs`. Below: `fixture`, the run's context.
"""

from __future__ import annotations

from typing import Any, TypedDict

import anyio
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime

from rag.tasks.values import TaskState
from workflows.fixture import ARTIFACT, CASES
from workflows.forms import AskUser, Question
from workflows.journal import Step
from workflows.nodes import WorkflowContext, step_of, traced

__all__ = ["build"]

_ASKING = "tck-input-required"


class FixtureState(TypedDict):
    """The graph's state."""

    case: str


@traced
async def act(state: FixtureState, runtime: Runtime[WorkflowContext]) -> dict[str, Any]:
    """Do what the case says."""
    case, step, journal = CASES[state["case"]], step_of(runtime), runtime.context.journal
    if case.works:
        await journal.progress(step, "begin", "working…", step="act")
    await anyio.sleep(case.wait_s)
    for number, part in enumerate(case.pieces):
        await journal.piece(step, ARTIFACT, [part], number=number, last=number == len(case.pieces) - 1)
    if case.asks:
        _ask(runtime.context, step)
    if case.rejects is not None:
        await journal.end(TaskState.REJECTED, case.rejects)
    elif case.says is not None:
        await journal.end(TaskState.COMPLETED, case.says)
    return {}


def _ask(context: WorkflowContext, step: Step) -> None:
    """Ask until the answer is not a message that has the task ask again."""
    number = 1
    while True:
        form = AskUser(id=f"input-{number}", questions=(Question(question="What else?"),))
        context.ask(step, form)
        answer = context.exchanges[f"{step.id}:{form.id}"].answer
        if answer is None or not str(answer.message["message_id"]).startswith(_ASKING):
            return
        number += 1


def build() -> StateGraph[FixtureState, WorkflowContext, FixtureState, FixtureState]:
    """Return the graph, not yet compiled."""
    graph = StateGraph(FixtureState, context_schema=WorkflowContext)
    graph.add_node("act", act)
    graph.add_edge(START, "act")
    graph.add_edge("act", END)
    return graph
