"""The workflow `ingest`, as callers see it: documents in, an account of each out. Its graph: `ingest_graph`.

Above: `registry`. Below: `importing`, which says what a message of an import may hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rag.errors import InvalidInput
from rag.identity.scopes import Scope
from workflows.importing import MAX_DOCUMENTS, MAX_TASK_DOCUMENTS, ImportOptions, parsed_options
from workflows.workflow import CostBound, Workflow

__all__ = ["INGEST", "parse"]


def parse(text: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the graph's input. The text is a word to whoever reads the log: documents are data, or files.

    Raises:
        InvalidInput: The message has no documents, too many, or an option that is unknown or of the wrong form.
    """
    del text
    found = parsed_options(options)
    if not found.documents and not found.files and not found.more:
        raise InvalidInput(
            'documents: there are none; send a data part {"documents": [{"source", "title", "text"}]} or file parts'
        )
    return found.model_dump(exclude_defaults=True)


INGEST = Workflow(
    name="ingest",
    title="Import documents",
    description=(
        f"Stores many documents as one task, with progress and an account of every one: up to {MAX_DOCUMENTS:,} in a "
        f"message, {MAX_TASK_DOCUMENTS:,} in all where further messages follow. Takes a data part with documents, and "
        "file parts: text, Markdown, HTML, PDF, DOCX, JSON Lines. Documents are known by their source: sending one "
        "again replaces it, or changes nothing."
    ),
    tags=("ingest", "documents", "import"),
    examples=('{"documents": [{"source": "policies/leave.md", "title": "Leave", "text": "…"}]}',),
    scopes=frozenset({Scope.CORPUS_READ, Scope.CORPUS_WRITE}),
    time_limit_s=530.0,
    bound=CostBound(calls=1_000, tokens=1),
    options=ImportOptions.model_json_schema(),
    artifacts=("import",),
    parse=parse,
    takes_messages=True,
)
