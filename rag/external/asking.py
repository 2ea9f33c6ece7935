"""How a stranger's tool can be asked with a question and nothing else, read from its schema. Pure.

Above: the workflow `hybrid`, the CLI's `test`. Below: nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

__all__ = ["query_argument"]

_NAMES = ("query", "q", "question", "search", "text", "input")
"""Where nothing is required, the argument by one of these names; the first that there is."""


def query_argument(schema: Mapping[str, Any]) -> str | None:
    """Return the argument that takes the question: the only one required, or else one that is named for it.

    None: the tool needs more than a question, or nothing in its schema is for one.
    """
    properties: Any = schema.get("properties")
    required: Any = schema.get("required", [])
    if not isinstance(properties, Mapping) or not isinstance(required, Sequence):
        return None
    texts = [name for name, one in cast("Mapping[str, Any]", properties).items() if _takes_text(one)]
    if len(cast("Sequence[Any]", required)) > 1:
        return None
    candidates = cast("Sequence[Any]", required) or _NAMES
    return next((name for name in candidates if name in texts), None)


def _takes_text(schema: Any) -> bool:
    if not isinstance(schema, Mapping):
        return False
    kind = cast("Mapping[str, Any]", schema).get("type")
    enumerated = "enum" in schema or "const" in schema
    return not enumerated and (kind == "string" or (isinstance(kind, list) and "string" in kind))
