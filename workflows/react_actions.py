"""What the agent of `react` may do next: an action out of a model's words, checked; or out of a fixed sequence. Pure.

Above: `react_graph`. Below: jsonschema. What a model writes is a proposal. Whether a tool exists for this caller is
told by the list that the server gave for the run's narrowed token, and the server asks again when it is called.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, cast

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

__all__ = [
    "ACTION_SCHEMA",
    "Action",
    "Turn",
    "digest_of",
    "fault_of",
    "next_of_sequence",
    "parsed_action",
]

MAX_ARGUMENT_CHARS = 40_000
MAX_THOUGHT_CHARS = 500
MAX_FINAL_CHARS = 20_000
MAX_FAULT_CHARS = 400
SEARCH_LIMIT = 8
ACTION_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "thought": {"type": "string"},
        "tool": {"type": "string"},
        "arguments": {"type": "string"},
        "final": {"type": "string"},
    },
    "required": ["thought", "tool", "arguments", "final"],
    "additionalProperties": False,
}
"""Flat, and the arguments as a JSON text: what every server with structured outputs can hold a model to."""


class Action(TypedDict):
    """One decision. Either `tool` or `final` says something, or `fault` says why neither does."""

    thought: str
    tool: str
    arguments: dict[str, Any]
    final: str
    fault: str


class Turn(TypedDict):
    """What became of a decision."""

    number: int
    tool: str
    arguments: dict[str, Any]
    outcome: str
    """`called`, `refused` (by the server), `rejected` (by the caller), `invalid`, `repeated` or `answered`."""
    told: str
    """What the agent is told of it."""
    sources: list[int]
    """Numbers of the passages that came of it."""


def parsed_action(text: str) -> Action:
    """Return the action that a model wrote, or one with a fault that tells the model what is wrong."""
    start, end = text.find("{"), text.rfind("}")
    try:
        written: Any = json.loads(text[start : end + 1]) if start >= 0 else None
    except (ValueError, RecursionError):
        written = None
    if not isinstance(written, dict):
        return _fault("reply with one JSON object and nothing else")
    told = cast("dict[str, Any]", written)
    thought, tool, final = (told.get(name) or "" for name in ("thought", "tool", "final"))
    arguments = told.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return _fault("arguments must be the text of a JSON object")
    if not all(isinstance(one, str) for one in (thought, tool, final)) or not isinstance(arguments, dict):
        return _fault("thought, tool and final are texts, arguments is a JSON object")
    if bool(tool) == bool(final.strip()):
        return _fault("name a tool, or give the final answer; one of the two")
    return Action(
        thought=" ".join(thought.split())[:MAX_THOUGHT_CHARS],
        tool=tool,
        arguments=cast("dict[str, Any]", arguments),
        final=final.strip()[:MAX_FINAL_CHARS],
        fault="",
    )


def fault_of(action: Action, tools: Sequence[Mapping[str, Any]]) -> str:
    """Return why the action cannot be carried out as it stands; "" if it can."""
    tool = next((one for one in tools if one["name"] == action["tool"]), None)
    if tool is None:
        return f"there is no such tool for this caller; there are: {', '.join(one['name'] for one in tools)}"
    if len(json.dumps(action["arguments"])) > MAX_ARGUMENT_CHARS:
        return f"the arguments are longer than {MAX_ARGUMENT_CHARS} characters"
    found = best_match(Draft202012Validator(tool["input_schema"]).iter_errors(action["arguments"]))
    if found is None:
        return ""
    where = ".".join(str(step) for step in found.absolute_path)
    return f"{where or 'arguments'}: {found.message}"[:MAX_FAULT_CHARS]


def digest_of(tool: str, arguments: Mapping[str, Any]) -> str:
    """Return what makes two calls the same."""
    return hashlib.sha256(f"{tool}:{json.dumps(arguments, sort_keys=True)}".encode()).hexdigest()[:16]


def next_of_sequence(
    task: str,
    messages: Sequence[str],
    turns: Sequence[Turn],
    sources: Sequence[Mapping[str, Any]],
) -> Action:
    """Return what is next where no model chooses: search for the task and for each message, read on, answer.

    No judgement is in this. After each search the best passage that it found is read with its neighbours.
    """
    tried = {digest_of(turn["tool"], turn["arguments"]) for turn in turns}
    last: Turn | None = None
    for query in (task, *messages):
        search = {"query": query[:2_000], "limit": SEARCH_LIMIT, "phrases": False}
        if digest_of("hybrid_search", search) not in tried:
            return _call("hybrid_search", search)
        last = next(turn for turn in reversed(turns) if turn["arguments"] == search)
        if last["sources"]:
            best = sources[last["sources"][0] - 1]
            around = {"document_id": best["document_id"], "chunk": best["chunk"], "around": 1}
            if digest_of("retrieve_document", around) not in tried:
                return _call("retrieve_document", around)
    return Action(thought="", tool="", arguments={}, final="", fault="")


def _call(tool: str, arguments: dict[str, Any]) -> Action:
    return Action(thought="", tool=tool, arguments=arguments, final="", fault="")


def _fault(reason: str) -> Action:
    return Action(thought="", tool="", arguments={}, final="", fault=reason)
