"""The workflow `research`, as callers see it: a question in, a report with checked citations out.

Above: `registry`. Below: `workflow`. Its graph: `research_graph`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from rag.identity.scopes import Scope
from rag.retrieval.filters import parse_filter
from workflows.workflow import CostBound, Workflow, options_schema, parsed

__all__ = ["RESEARCH"]


class ResearchInput(BaseModel):
    """What it is asked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    question: Annotated[str, Field(min_length=1, max_length=4_000)]
    profile: Annotated[
        Literal["company", "legal"] | None,
        Field(
            description="Fixed sections. company: overview, competitors, financials, regulation, trends. legal: scope, "
            "definitions, duties, exceptions, penalties. Without it they are planned from the question and from what "
            "the documents hold."
        ),
    ] = None
    sections: Annotated[
        int, Field(ge=2, le=8, description="How many sections at most, where no profile says which.")
    ] = 6
    unverified: Annotated[
        Literal["drop", "mark"],
        Field(description="A statement that no source bears out is left out (drop), or says so (mark)."),
    ] = "drop"
    limit: Annotated[int, Field(ge=4, le=40, description="How many passages a search returns at most.")] = 20
    filter: Annotated[dict[str, Any] | None, Field(description="Only these documents; as hybrid_search takes it.")] = (
        None
    )
    confirm: Annotated[bool, Field(description="Ask which of the planned sections to write, before they are.")] = False


def parse(text: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the graph's input.

    Raises:
        InvalidInput: The question is empty or too long, or an option is none of ResearchInput's or of the wrong form.
    """
    asked = parsed(ResearchInput, "question", text, options)
    if asked.filter is not None:
        parse_filter(asked.filter)
    return asked.model_dump()


RESEARCH = Workflow(
    name="research",
    title="Research report",
    description=(
        "Plans the sections of a report from the question and from what the caller's documents hold (or takes those "
        "of a profile: company, legal), searches for each side by side, and writes a report in Markdown and JSON in "
        "which every claim was checked word for word against the stored text. A section without evidence says so."
    ),
    tags=("research", "report", "retrieval", "citations"),
    examples=("What does the law say about insider trading, and what follows a violation?",),
    scopes=frozenset({Scope.CORPUS_READ}),
    time_limit_s=530.0,
    bound=CostBound(calls=160, tokens=150_000),
    options=options_schema(ResearchInput, "question"),
    artifacts=("report",),
    parse=parse,
)
