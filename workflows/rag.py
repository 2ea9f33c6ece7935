"""The workflow `rag`, as callers see it: a question in, an answer with checked citations out. Its graph: `rag_graph`.

Above: `registry`. Below: `workflow`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from rag.identity.scopes import Scope
from rag.retrieval.filters import parse_filter
from workflows.workflow import CostBound, Workflow, options_schema, parsed

__all__ = ["RAG"]


class RagInput(BaseModel):
    """What it is asked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    question: Annotated[str, Field(min_length=1, max_length=4_000)]
    unverified: Annotated[
        Literal["drop", "mark"],
        Field(description="A statement that no source bears out is left out (drop), or says so (mark)."),
    ] = "drop"
    limit: Annotated[int, Field(ge=1, le=50, description="How many passages the search returns at most.")] = 16
    filter: Annotated[dict[str, Any] | None, Field(description="Only these documents; as hybrid_search takes it.")] = (
        None
    )


def parse(text: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the graph's input.

    Raises:
        InvalidInput: The question is empty or too long, or an option is none of RagInput's or of the wrong form.
    """
    asked = parsed(RagInput, "question", text, options)
    if asked.filter is not None:
        parse_filter(asked.filter)
    return asked.model_dump()


RAG = Workflow(
    name="rag",
    title="Answer from documents",
    description=(
        "Answers a question from the caller's own documents, with citations whose words were checked against the "
        "stored text. Without a language model the answer is made of the documents' own sentences "
        "and labelled extractive."
    ),
    tags=("question-answering", "retrieval", "citations"),
    examples=("What counts as a manipulative device in the sale of securities?",),
    scopes=frozenset({Scope.CORPUS_READ}),
    time_limit_s=300.0,
    bound=CostBound(calls=64, tokens=40_000),
    options=options_schema(RagInput, "question"),
    artifacts=("answer",),
    parse=parse,
)
