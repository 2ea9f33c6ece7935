"""Answers to completion/complete: what an argument of a prompt, or a variable of a resource's URI, may be.

Above: `calls`. Below: `prompts` and `resources`, which say how each value is completed, `call`. The scope is that of
the prompt or resource: nobody is told by completion what it could not read.
"""

from __future__ import annotations

from dataclasses import dataclass

import mcp_types as types
from mcp.shared.exceptions import MCPError

from mcp_server.call import Done, Operation
from mcp_server.prompts import find_prompt
from mcp_server.requests import Context, answer_or_refuse, call_of, count_unknown
from mcp_server.resources import find_template
from mcp_server.suggestions import Completer
from rag.errors import InvalidInput
from rag.identity.scopes import Scope
from rag.runtime import Runtime

__all__ = ["complete"]

METHOD = "completion/complete"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Completable:
    name: str
    scope: Scope
    completers: dict[str, Completer]


async def complete(runtime: Runtime, ctx: Context, params: types.CompleteRequestParams) -> types.CompleteResult:
    """Suggest at most 100 values that begin with what was typed."""
    call = call_of(runtime, ctx)
    wanted = _completable(params.ref)
    if wanted is None:
        await count_unknown(call, METHOD)
        raise MCPError(
            types.INVALID_PARAMS,
            "Unknown ref: name a prompt of prompts/list, or a URI template just as resources/templates/list has it",
        )

    async def completed() -> Done[types.CompleteResult]:
        completer = wanted.completers.get(params.argument.name)
        if completer is None:
            raise InvalidInput(f"{wanted.name} has these arguments and no others: {', '.join(wanted.completers)}")
        others = (params.context.arguments if params.context else None) or {}
        found = await completer(call, params.argument.value, others)
        more = found.total is None or found.total > len(found.values)
        completion = types.Completion(values=list(found.values), total=found.total, has_more=more)
        return Done(value=types.CompleteResult(completion=completion), documents=found.documents)

    operation = Operation(method=METHOD, target=wanted.name, scope=wanted.scope, query=params.argument.value or None)
    return await answer_or_refuse(call, operation, completed)


def _completable(ref: types.PromptReference | types.ResourceTemplateReference) -> _Completable | None:
    if isinstance(ref, types.PromptReference):
        prompt = find_prompt(ref.name)
        if prompt is None:
            return None
        completers = {argument.name: argument.completer for argument in prompt.arguments}
        return _Completable(name=prompt.name, scope=prompt.scope, completers=completers)
    template = find_template(ref.uri)
    if template is None:
        return None
    return _Completable(name=template.kind, scope=template.scope, completers=dict(template.completers))
