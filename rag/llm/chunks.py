"""What one event of a streamed chat completion says: text, an end, a count. Values of a stranger, checked. No I/O.

Above: `wire`. Below: `request`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from rag.llm.request import TokenUsage
from rag.llm.sse import Malformed

__all__ = ["MAX_TOKENS_TOLD", "Chunk", "Finish", "read_chunk"]

Finish = Literal["stop", "length", "other"]
MAX_TOKENS_TOLD = (1 << 31) - 1
"""No model has read or written more in one call; a larger number is no count."""
MAX_NAME_CHARS = 200
_BROKEN_OFF = frozenset({"abort", "error"})
"""Ends that vLLM and others tell of where the text is not whole."""
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
"""PostgreSQL takes no NUL in a text, and half a surrogate pair has no UTF-8."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """One event."""

    text: str = ""
    thinking: bool = False
    """It brought text that is not part of the answer: the model is at work."""
    finish: Finish | None = None
    usage: TokenUsage | None = None
    """Of the whole call. Counts that come before the end (vLLM can send them with every piece) are not taken."""
    usage_told: bool = False
    """There was a count, be it one that cannot be."""
    raw: Mapping[str, str] = field(default_factory=dict[str, str])


def read_chunk(event: Mapping[str, Any], *, finished: bool, text_before: bool) -> Chunk:
    """Return what `event` says; `finished` and `text_before` tell of the events before it.

    Raises:
        Malformed: It tells of an error, that the text was broken off, or is no part of a chat completion.
    """
    if event.get("error") is not None:
        raise Malformed("an error in the stream")
    choices = _list(event.get("choices"))
    choice = _mapping(choices[0]) if choices else {}
    delta = _mapping(choice.get("delta"))
    text = _text(delta.get("content"))
    finish = _finish(choice.get("finish_reason"))
    told = event.get("usage")
    # An event without a choice is about the call as a whole. With one, a count is the last where the end is said.
    final = told is not None and (finished or finish is not None or not choices)
    return Chunk(
        text=text,
        thinking=any(isinstance(delta.get(name), str) and delta[name] for name in ("reasoning_content", "reasoning")),
        finish=finish,
        usage=read_usage(told, wrote=text_before or bool(text)) if final else None,
        usage_told=final,
        raw={name: event[name][:MAX_NAME_CHARS] for name in ("id", "model") if isinstance(event.get(name), str)},
    )


def read_usage(told: object, *, wrote: bool) -> TokenUsage | None:
    """Return the counts, or None where they cannot be: whoever pays then pays the upper bound.

    A count that is larger than what was asked for is kept: the server may bill it.
    """
    if not isinstance(told, dict):
        return None
    counts = cast("dict[str, object]", told)
    details = counts.get("prompt_tokens_details")
    cached = cast("dict[str, object]", details).get("cached_tokens") if isinstance(details, dict) else 0
    prompt, completion = _count(counts.get("prompt_tokens")), _count(counts.get("completion_tokens"))
    cached = 0 if cached is None else _count(cached)
    total = _count(counts.get("total_tokens"))
    if prompt is not None and completion is not None and total is not None:
        # what a model thought may stand in the total alone, and is billed
        completion = max(completion, total - prompt)
    if prompt is None or completion is None or cached is None:
        return None
    # Every template writes something, and text is made of tokens.
    if prompt == 0 or cached > prompt or (wrote and completion == 0):
        return None
    return TokenUsage(prompt=prompt, cached=cached, completion=completion)


def _count(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_TOKENS_TOLD:
        return None
    return value


def _finish(reason: object) -> Finish | None:
    if reason is None or reason == "":
        return None
    if not isinstance(reason, str):
        return "other"
    if reason in _BROKEN_OFF:
        raise Malformed("the server gave up")
    return "stop" if reason == "stop" else "length" if reason == "length" else "other"


def _text(content: object) -> str:
    if content is None:
        return ""
    if not isinstance(content, str):
        raise Malformed("not a chat completion")
    return _UNSTORABLE.sub("\ufffd", content)


def _list(value: object) -> list[object]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise Malformed("not a chat completion")
    return cast("list[object]", value)


def _mapping(value: object) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Malformed("not a chat completion")
    return cast("dict[str, Any]", value)
