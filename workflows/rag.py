"""The workflow `rag`, as callers see it: a question in, an answer with checked citations out. Its graph: `rag_graph`.

Above: `registry`. Below: `workflow`.
"""

from __future__ import annotations

from typing import Any

from rag.errors import InvalidInput
from rag.identity.scopes import Scope
from workflows.workflow import Workflow

__all__ = ["RAG"]

MAX_QUESTION_CHARS = 4_000


def parse(text: str) -> dict[str, Any]:
    """Return the graph's input.

    Raises:
        InvalidInput: The question is empty or too long.
    """
    question = text.strip()
    if not 0 < len(question) <= MAX_QUESTION_CHARS:
        raise InvalidInput(f"a question is 1 to {MAX_QUESTION_CHARS} characters of text")
    return {"question": question}


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
    parse=parse,
)
