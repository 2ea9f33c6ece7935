"""What may stand beside a document as metadata: JSON that every store and every client on the way can hold.

Above: `store`, for what a client sends, `parse`, for what a file says, and other doors that take JSON. Below: only the
errors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

import orjson

from rag.errors import DocumentRefused

__all__ = ["MAX_METADATA_BYTES", "MAX_METADATA_DEPTH", "check_metadata", "fault_of"]

MAX_METADATA_BYTES = 16 * 1024
"""Of one document, as JSON."""
MAX_METADATA_DEPTH = 32
"""JSON readers stop at a depth, some at 200: one document beyond it would make every list that shows it unreadable."""


def check_metadata(metadata: Mapping[str, Any]) -> None:
    """Return only if `metadata` can be stored and shown.

    Raises:
        DocumentRefused: It is too large, too deep, or holds what JSON or PostgreSQL cannot.
    """
    fault = fault_of(metadata)
    if fault is not None:
        raise DocumentRefused(f"the metadata {fault}")


def fault_of(value: Mapping[str, Any]) -> str | None:
    """Return why a JSON object of a client's cannot be stored and shown, as a predicate; None if it can."""
    if _is_deeper(value, MAX_METADATA_DEPTH):
        return f"is nested deeper than {MAX_METADATA_DEPTH} levels"
    try:
        # orjson writes NaN as null, the standard library's encoder can refuse it
        json.dumps(value, allow_nan=False)
        encoded = orjson.dumps(dict(value))
    except (ValueError, TypeError):
        return "holds a value that JSON cannot: NaN, a huge number or a broken string"
    if len(encoded) > MAX_METADATA_BYTES:
        return f"is larger than {MAX_METADATA_BYTES:,} bytes of JSON"
    if rb"\u0000" in encoded.replace(rb"\\", b""):
        return "has NUL characters"
    return None


def _is_deeper(value: object, levels: int) -> bool:
    if isinstance(value, Mapping):
        value = list(cast("Mapping[str, object]", value).values())
    if not isinstance(value, list):
        return False
    return levels == 0 or any(_is_deeper(inner, levels - 1) for inner in cast("list[object]", value))
