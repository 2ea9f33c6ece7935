"""The workflow `compare`, as callers see it: documents in, what they share and where they differ out. Its graph:
`compare_graph`.

Above: `registry`. Below: `workflow`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from rag.errors import InvalidInput
from rag.identity.scopes import Scope
from rag.retrieval.filters import parse_filter
from rag.retrieval.values import MAX_QUERY_CHARS
from workflows.workflow import CostBound, Workflow, options_schema, parsed

__all__ = ["COMPARE", "MAX_ASPECTS", "MAX_COMPARED", "CompareInput", "parse"]

MAX_COMPARED = 5
MAX_ASPECTS = 8
Named = Annotated[str, Field(min_length=1, max_length=1_024)]


class VersionNamed(BaseModel):
    """A document at a version."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    document: Named
    version: Annotated[int, Field(ge=1)]


class CompareInput(BaseModel):
    """What is compared, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    question: Annotated[str, Field(max_length=MAX_QUERY_CHARS)]
    documents: list[Named | VersionNamed] | None = Field(
        default=None,
        min_length=2,
        max_length=MAX_COMPARED,
        description="Ids or sources; the others are compared to the first. With {document, version} the task fails "
        "unless that version is the stored one: of each document the latest version is kept, and no earlier one.",
    )
    aspects: list[Annotated[str, Field(min_length=1, max_length=MAX_QUERY_CHARS)]] = Field(
        default_factory=list[str],
        max_length=MAX_ASPECTS,
        description="What each document says of each of these is put side by side. Default: the question.",
    )
    filter: dict[str, Any] | None = Field(
        default=None, description="Without documents: among which they are chosen, as hybrid_search takes it."
    )
    count: Annotated[
        int, Field(ge=2, le=MAX_COMPARED, description="Without documents: how many are chosen by the question.")
    ] = 2
    unverified: Literal["drop", "mark"] = Field(
        default="drop", description="What becomes of a sentence of a model that no stored words bear out."
    )


def parse(text: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the graph's input.

    Raises:
        InvalidInput: Nothing says which documents, or an option is unknown or of the wrong form; the message names it.
    """
    asked = parsed(CompareInput, "question", text, options)
    if asked.documents is None and not asked.question:
        raise InvalidInput("documents: name two to five by id or source, or send a question to choose them by")
    if asked.documents is not None and asked.filter is not None:
        raise InvalidInput("filter: it chooses documents, and they are named already; leave one of the two out")
    if asked.filter is not None:
        parse_filter(asked.filter)
    names = [one if isinstance(one, str) else one.document for one in asked.documents or ()]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InvalidInput(
            f"documents: {twice[:100]!r} is named twice; of a document only the latest version is kept, so that two "
            "versions of it can be compared only where they were stored under two sources"
        )
    return asked.model_dump()


COMPARE = Workflow(
    name="compare",
    title="Compare documents",
    description=(
        f"Puts two to {MAX_COMPARED} documents side by side, named by id or source, or chosen by a question: which "
        "sections and sentences are the same, changed, moved, or in one only, and what each says of given aspects. "
        "Every quote has its place in the stored text. With a language model there is a summary, verified like any "
        "answer."
    ),
    tags=("comparison", "diff", "citations"),
    examples=("How do the two leave policies treat unpaid leave?",),
    scopes=frozenset({Scope.CORPUS_READ}),
    time_limit_s=300.0,
    bound=CostBound(calls=400, tokens=200_000),
    options=options_schema(CompareInput, "question"),
    artifacts=("comparison",),
    parse=parse,
)
