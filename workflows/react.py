"""The workflow `react`, as callers see it: a task in words, tools chosen step by step. Its graph: `react_graph`.

Above: `registry`. Below: `workflow`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from rag.identity.scopes import Scope
from workflows.workflow import CostBound, Workflow, options_schema, parsed

__all__ = ["MAX_CALLS", "MAX_STEPS", "REACT"]

MAX_STEPS = 20
MAX_CALLS = 20


class ReactInput(BaseModel):
    """What it is asked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: Annotated[str, Field(min_length=1, max_length=4_000)]
    max_steps: Annotated[
        int, Field(ge=1, le=MAX_STEPS, description="Decisions at most, before it answers with what it has.")
    ] = 12
    max_calls: Annotated[int, Field(ge=0, le=MAX_CALLS, description="Calls of tools at most.")] = 8
    unverified: Annotated[
        Literal["drop", "mark"],
        Field(description="A statement that no source bears out is left out (drop), or says so (mark)."),
    ] = "drop"


def parse(text: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the graph's input.

    Raises:
        InvalidInput: The task is empty or too long, or an option is unknown or of the wrong form.
    """
    return parsed(ReactInput, "task", text, options).model_dump()


REACT = Workflow(
    name="react",
    title="Work with tools",
    description=(
        "Works on a task step by step with those tools of the document server that the caller's rights cover: "
        "searches, reads, and, where the caller may write, writes. Nothing destructive is done before the caller "
        "approves of it. Messages sent meanwhile are read between steps. Without a language model a fixed sequence "
        "(search, read, answer in the documents' own sentences) takes the agent's place, and the result says so."
    ),
    tags=("agent", "tools", "citations"),
    examples=("Find the two rules on night landings and say how they differ.",),
    scopes=frozenset({Scope.CORPUS_READ}),
    # no tasks:run: an agent that could start agents would have no bound
    optional_scopes=frozenset({Scope.CORPUS_WRITE, Scope.USAGE_READ}),
    time_limit_s=480.0,
    bound=CostBound(calls=96, tokens=150_000),
    options=options_schema(ReactInput, "task"),
    artifacts=("answer",),
    parse=parse,
    takes_messages=True,
)
