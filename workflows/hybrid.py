"""The workflow `hybrid`, as callers see it: an answer from the caller's documents and from servers outside of here.

Above: `registry`. Below: `workflow`. Its graph: `hybrid_graph`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from rag.identity.scopes import Scope
from workflows.workflow import CostBound, Workflow, options_schema, parsed

__all__ = ["HYBRID"]

_NAME = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]


class HybridInput(BaseModel):
    """What it is asked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    question: Annotated[str, Field(min_length=1, max_length=4_000)]
    servers: Annotated[
        Annotated[list[_NAME], Field(max_length=8)] | None,
        Field(description="Names of external servers to ask. Default: all that the organisation allows."),
    ] = None
    unverified: Annotated[
        Literal["drop", "mark"],
        Field(description="A statement that no source bears out is left out (drop), or says so (mark)."),
    ] = "drop"


def parse(text: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the graph's input.

    Raises:
        InvalidInput: The question is empty or too long, or an option is unknown or of the wrong form.
    """
    return parsed(HybridInput, "question", text, options).model_dump()


HYBRID = Workflow(
    name="hybrid",
    title="Answer from documents and external servers",
    description=(
        "Answers a question from the caller's own documents and from the external MCP servers that the caller's "
        "organisation allows, searched side by side. Citations of own documents are checked against the stored text; "
        "what an external server said is quoted from its recorded result, and marked as external. A server that is "
        "down or refuses is named, and the answer is given without it."
    ),
    tags=("question-answering", "retrieval", "citations", "federation"),
    examples=("What do our own rules and the gazette say about night landings?",),
    scopes=frozenset({Scope.CORPUS_READ}),
    time_limit_s=300.0,
    bound=CostBound(calls=96, tokens=40_000),
    options=options_schema(HybridInput, "question"),
    artifacts=("answer", "external-results"),
    parse=parse,
)
