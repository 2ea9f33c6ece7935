"""Answers to resources/list, resources/templates/list and resources/read.

Above: `mcp_server.calls`. Below: the kinds of resources, `call`. Nothing that a caller may not read is listed to it,
and what is absent, another tenant's, hidden from the caller's groups or no URI of ours gets one and the same answer.
"""

from __future__ import annotations

import mcp_types as types
from mcp.shared.exceptions import MCPError

from mcp_server.call import Done, Operation, answer
from mcp_server.errors import refusal
from mcp_server.requests import Context, answer_or_refuse, call_of, refuse_cursor
from mcp_server.resources import TEMPLATES, find_resource
from mcp_server.resources.documents import as_resource
from mcp_server.resources.template import MAX_URI_CHARS, not_found
from rag.corpus.titles import list_entries
from rag.errors import BulkheadError, NotFound
from rag.identity import cursors
from rag.identity.scopes import Scope
from rag.runtime import Runtime

__all__ = ["list_resources", "list_templates", "read_resource"]

PAGE = 100
_KIND = "resources"
_LIST = Operation(method="resources/list", scope=None)
_TEMPLATES = Operation(method="resources/templates/list", scope=None)
_UNKNOWN = Operation(method="resources/read", target="unknown", scope=None)


async def list_resources(
    runtime: Runtime, ctx: Context, params: types.PaginatedRequestParams | None
) -> types.ListResourcesResult:
    """List the documents that the caller may read, in the order of their source, a page at a time."""
    call = call_of(runtime, ctx)
    tenant_id, key = call.principal.tenant_id, runtime.cursor_key

    async def listed() -> Done[types.ListResourcesResult]:
        after = ""
        if params is not None and params.cursor is not None:
            after = str(cursors.read(key, _KIND, tenant_id, params.cursor)[0])
        if Scope.CORPUS_READ not in call.principal.scopes:
            return Done(value=types.ListResourcesResult(resources=[]))
        page = await list_entries(runtime.database, call.principal, after=after, limit=PAGE)
        next_cursor = None
        if page.next_after is not None:
            next_cursor = cursors.mint(key, _KIND, tenant_id, [page.next_after])
        resources = [as_resource(entry) for entry in page.entries]
        return Done(
            value=types.ListResourcesResult(resources=resources, next_cursor=next_cursor),
            documents=tuple(str(entry.document_id) for entry in page.entries),
        )

    return await answer_or_refuse(call, _LIST, listed)


async def list_templates(
    runtime: Runtime, ctx: Context, params: types.PaginatedRequestParams | None
) -> types.ListResourceTemplatesResult:
    """List the kinds of resources that the caller's scopes cover."""
    refuse_cursor(params, "resource templates")
    call = call_of(runtime, ctx)

    async def listed() -> Done[types.ListResourceTemplatesResult]:
        shown = [template.declaration for template in TEMPLATES if template.scope in call.principal.scopes]
        return Done(value=types.ListResourceTemplatesResult(resource_templates=shown))

    return await answer_or_refuse(call, _TEMPLATES, listed)


async def read_resource(
    runtime: Runtime, ctx: Context, params: types.ReadResourceRequestParams
) -> types.ReadResourceResult:
    """Read one resource."""
    call = call_of(runtime, ctx)
    found = find_resource(params.uri)

    async def read() -> Done[types.ReadResourceResult]:
        if found is None:
            raise not_found()
        template, variables = found
        try:
            done = await template.read(call, variables)
        except NotFound as exc:
            # in the same words, whatever it is that was not found
            raise not_found() from exc
        return Done(value=types.ReadResourceResult(contents=done.value), documents=done.documents)

    try:
        return await answer(call, _UNKNOWN if found is None else found[0].operation, read)
    except NotFound as exc:
        refused = refusal(exc, version=ctx.protocol_version)
        data = {**refused.data, "uri": params.uri} if _may_be_shown(params.uri) else refused.data
        raise MCPError(refused.code, refused.message, data) from exc
    except BulkheadError as exc:
        raise refusal(exc) from exc


def _may_be_shown(uri: str) -> bool:
    return len(uri) <= MAX_URI_CHARS and uri.isprintable()
