"""What a workflow is to whoever asks for one: a name, what it takes, what it may do. The registry lists them.

Above: `registry`, `accept`, the runner, both faces. Below: the scopes. Its graph stands in `graphs`: a process that
only accepts tasks is spared LangGraph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from rag.errors import InvalidInput
from rag.identity.scopes import Scope

__all__ = ["CostBound", "Workflow", "options_schema", "parsed"]

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True, kw_only=True)
class CostBound:
    """How much one task may cost. A run that reaches it asks whether it may go on."""

    calls: int
    """Logical calls: of tools, of models, of external servers."""
    tokens: int
    """Of prompts and completions together, as the model server counts them; checked before each call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workflow:
    """One thing that agents can ask for."""

    name: str
    title: str
    description: str
    tags: tuple[str, ...]
    examples: tuple[str, ...]
    scopes: frozenset[Scope]
    """What its runs do at the MCP server, and what its callers must have."""
    time_limit_s: float
    """Of one attempt. Below the ten minutes for which a claim's seal holds."""
    bound: CostBound
    options: Mapping[str, Any]
    """JSON Schema of what a caller may say besides the text."""
    artifacts: tuple[str, ...]
    """Ids of what it makes."""
    parse: Callable[[str, Mapping[str, Any]], dict[str, Any]]
    """Makes the graph's input from a message's text and options; raises InvalidInput with what is wrong."""
    optional_scopes: frozenset[Scope] = frozenset()
    """What its runs may do besides, where the caller may. Exchanged tokens carry these, the others, and none else."""
    takes_messages: bool = False
    """Whether its graph reads messages that come while it works (`WorkflowContext.inbox`); else they are refused."""


def parsed(model: type[M], text_field: str, text: str, options: Mapping[str, Any]) -> M:
    """Return `model` made of a message: the text under `text_field`, the options beside it.

    Raises:
        InvalidInput: Something is missing, unknown or of the wrong form; the message names it.
    """
    if text_field in options:
        raise InvalidInput(f"{text_field} is the text of the message and no option")
    try:
        return model.model_validate({**options, text_field: text.strip()})
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the input"
        raise InvalidInput(f"{where}: {first['msg']}") from None


def options_schema(model: type[BaseModel], text_field: str) -> dict[str, Any]:
    """Return the JSON Schema of what `parsed` takes besides the text."""
    schema = model.model_json_schema()
    properties = {name: value for name, value in schema["properties"].items() if name != text_field}
    named = {"$defs": schema["$defs"]} if "$defs" in schema else {}
    return {"type": "object", "properties": properties, "additionalProperties": False, **named}
