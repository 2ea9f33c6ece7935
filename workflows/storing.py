"""Hands documents to the MCP server's put_documents and returns what became of each, whatever happens on the way.

Above: `ingest_graph`. Below: `importing`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeAlias

import anyio

from rag.errors import Conflict, InvalidInput
from workflows.importing import Offer, Refused

__all__ = ["Call", "refusal_row", "store_batch"]

Call: TypeAlias = Callable[[str, Mapping[str, Any]], Awaitable[dict[str, Any]]]
"""Takes a tool's name and arguments."""

ROUNDS = 5
"""What the server had no time for is sent again, so often."""
ROUND_PAUSE_S = 1.0
"""Before the second round; before each further one, as much more."""


async def store_batch(call: Call, batch: Sequence[Offer]) -> tuple[list[dict[str, Any]], int | None]:
    """Return a row for each document of the batch, in any order, and the corpus version if any was stored."""
    rows: list[dict[str, Any]] = []
    version: int | None = None
    left = list(batch)
    for count in range(ROUNDS):
        if count:
            await anyio.sleep(ROUND_PAUSE_S * count)
        results, written = await _put(call, left)
        version = version if written is None else written
        again: list[Offer] = []
        for document, result in zip(left, results, strict=True):
            if result["outcome"] == "not_tried" and count < ROUNDS - 1:
                again.append(document)
            else:
                rows.append(_row(result))
        left = again
        if not left:
            break
    return rows, version


async def _put(call: Call, batch: Sequence[Offer]) -> tuple[list[Mapping[str, Any]], int | None]:
    """Return what put_documents says of each, and the corpus version if any was stored."""
    try:
        found = await call("put_documents", {"documents": [one.arguments for one in batch]})
        return found["results"], found["corpus_version"]
    except (InvalidInput, Conflict) as exc:
        if len(batch) == 1:
            refused = {"source": batch[0].source, "outcome": "refused", "code": exc.code, "reason": exc.message}
            return [refused], None
    # something in it has the call refused as a whole: each by itself then
    results: list[Mapping[str, Any]] = []
    version: int | None = None
    for one in batch:
        alone, written = await _put(call, [one])
        results += alone
        version = version if written is None else written
    return results, version


def _row(result: Mapping[str, Any]) -> dict[str, Any]:
    row = {name: result.get(name) for name in ("source", "outcome", "document_id", "version", "chunks")}
    if result.get("document_id") is None:
        row |= {"code": result.get("code") or "unavailable", "reason": result.get("reason") or "it was not tried"}
    return row


def refusal_row(refused: Refused, number: int) -> dict[str, Any]:
    result = {"source": refused.source, "outcome": "refused", "code": refused.code, "reason": refused.reason}
    return {**_row(result), "message": number}
