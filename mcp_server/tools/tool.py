"""What a tool is: a name and texts for the model, a scope, two schemas and one async function.

Above: one file per tool, and the tuple TOOLS of the package. Below: pydantic at the wire, `call`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

import mcp_types as types
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.json_schema import GenerateJsonSchema

from mcp_server.call import Call, Operation
from rag.errors import InvalidInput
from rag.identity.scopes import Scope

__all__ = ["Arguments", "Output", "Tool"]

MAX_REASONS = 3
"""So many faults of an argument list are told at once; a model mends them one by one anyway."""
_MAX_NAME_CHARS = 40


class Arguments(BaseModel):
    """Base of a tool's arguments: nothing is coerced, nothing unknown is taken, NaN and infinity are no numbers."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Output(BaseModel):
    """Base of a tool's structured result."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def documents_used(self) -> tuple[str, ...]:
        """Return the ids of the documents whose contents or existence this result tells of, for the audit trail."""
        return ()


A = TypeVar("A", bound=Arguments)


@dataclass(frozen=True, kw_only=True)
class Tool(Generic[A]):
    """One tool. `run` gets validated arguments and a caller whose scope was checked."""

    name: str
    title: str
    description: str
    scope: Scope
    arguments: type[A]
    output: type[Output]
    run: Callable[[Call, A], Awaitable[Output]]
    read_only: bool
    destructive: bool = False
    idempotent: bool = True
    cost: int = 1
    """In units of the rate limits: about what it costs the database, a keyword search being 1."""
    timeout_s: float = 15.0
    waits: bool = False

    @cached_property
    def operation(self) -> Operation:
        """A call of the tool, as the door sees it."""
        return Operation(
            method="tools/call",
            target=self.name,
            scope=self.scope,
            cost=self.cost,
            timeout_s=self.timeout_s,
            writes=not self.read_only,
            waits=self.waits,
        )

    @cached_property
    def declaration(self) -> types.Tool:
        """The tool as `tools/list` shows it."""
        return types.Tool(
            name=self.name,
            title=self.title,
            description=self.description,
            input_schema=_schema(self.arguments, mode="validation"),
            output_schema=_schema(self.output, mode="serialization"),
            annotations=types.ToolAnnotations(
                title=self.title,
                read_only_hint=self.read_only,
                destructive_hint=self.destructive,
                idempotent_hint=self.idempotent,
                open_world_hint=False,
            ),
        )

    async def call(self, call: Call, arguments: dict[str, Any]) -> Output:
        """Validate and run.

        Raises:
            InvalidInput: The arguments do not fit the schema; the message names them and never quotes a value.
            BulkheadError: As the tool says.
        """
        try:
            valid = self.arguments.model_validate(arguments)
        except ValidationError as exc:
            raise InvalidInput(_reasons(exc)) from exc
        return await self.run(call, valid)


class _PlainSchema(GenerateJsonSchema):
    """Without the titles that pydantic derives from Python names: they cost a model tokens and tell it nothing."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        del schema
        return False


def _schema(model: type[BaseModel], *, mode: Any) -> dict[str, Any]:
    schema = model.model_json_schema(mode=mode, schema_generator=_PlainSchema)
    for part in (schema, *schema.get("$defs", {}).values()):
        part.pop("title", None)
        # the docstring of a Python class is not written for the model that reads the schema
        part.pop("description", None)
    return schema


def _reasons(error: ValidationError) -> str:
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    reasons = [f"{_name(fault['loc'])}: {_reason(fault['type'], fault['msg'])}" for fault in faults[:MAX_REASONS]]
    more = len(faults) - MAX_REASONS
    return "; ".join(reasons) + (f"; and {more} more" if more > 0 else "")


def _name(location: tuple[int | str, ...]) -> str:
    path = ".".join(str(step) for step in location)
    return "".join(c if c.isprintable() else "?" for c in path[:_MAX_NAME_CHARS]) or "arguments"


def _reason(kind: str, message: str) -> str:
    match kind:
        case "extra_forbidden":
            return "there is no such argument"
        case "missing":
            return "is required"
        case "dict_type":
            return "must be an object"
        case "uuid_parsing" | "uuid_type":
            return "must be a UUID"
        case _:
            return message.removeprefix("Input ").replace("should", "must", 1)
