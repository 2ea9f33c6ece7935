"""What a stranger's tool answered, as bounded text that can be stored, shown and quoted. Pure.

Above: `client`. Below: the library's types of content.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, cast

from mcp_types import CallToolResult, EmbeddedResource, TextContent, TextResourceContents

from rag.external.values import ExternalResult

__all__ = ["MAX_DEPTH", "MAX_RESULT_CHARS", "clean", "depth_of", "result_of"]

MAX_RESULT_CHARS = 20_000
"""About 5 000 tokens of one tool's answer; more would crowd everything else out of a prompt."""
MAX_DEPTH = 32
"""Of structured content and schemas: arrays and objects within each other."""


def result_of(result: CallToolResult) -> ExternalResult:
    """Return the text of the result: its text blocks, or without any its structure as JSON.

    Raises:
        ValueError: The structure is deeper than MAX_DEPTH.
    """
    texts: list[str] = []
    for block in result.content:
        if isinstance(block, TextContent):
            texts.append(block.text)
        elif isinstance(block, EmbeddedResource) and isinstance(block.resource, TextResourceContents):
            texts.append(block.resource.text)
    if not texts and result.structured_content is not None:
        if depth_of(result.structured_content) > MAX_DEPTH:
            raise ValueError("too deep")
        texts.append(json.dumps(result.structured_content, ensure_ascii=False, indent=1))
    whole = clean("\n\n".join(texts))
    kept = whole[:MAX_RESULT_CHARS]
    return ExternalResult(text=kept, sha256=hashlib.sha256(kept.encode()).hexdigest(), truncated=len(kept) < len(whole))


def clean(text: str) -> str:
    """Return `text` with a space for each character that no row, terminal or prompt should get from a stranger."""
    return "".join(c if c.isprintable() or c in "\n\t" else " " for c in text)


def depth_of(value: Any) -> int:
    """Return how deep arrays and objects stand within each other in a JSON value; 0 for a plain one."""
    depth, level = 0, [value]
    while True:
        inner: list[Any] = []
        nested = False
        for one in level:
            if isinstance(one, dict):
                nested = True
                inner.extend(cast("dict[str, Any]", one).values())
            elif isinstance(one, list):
                nested = True
                inner.extend(cast("Sequence[Any]", one))
        if not nested or depth > MAX_DEPTH:
            return depth
        depth, level = depth + 1, inner
