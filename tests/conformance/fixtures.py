"""Puts the suite's fixtures beside what the product offers: the same server, the same endpoint, more names.

Above: `test_mcp_conformance`. Below: `tools`, `input_required`, `reading`, the SDK's Server. Lists are the product's
own with the fixtures at their end; whatever is not a fixture's name goes to the product's handler.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import mcp_types as types
from mcp.server.lowlevel import Server
from mcp.server.request_state import RequestStateBoundary, RequestStateSecurity
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler
from mcp.shared.exceptions import MCPError

from tests.conformance.input_required import input_required_fixtures
from tests.conformance.reading import PROMPTS, RESOURCES, TEMPLATES, prompt, resource
from tests.conformance.tools import Context, tool_fixtures

__all__ = ["with_fixtures"]

Product = Server[dict[str, Any]]
Handler = Callable[[Context, Any], Awaitable[Any]]
Listed = TypeVar(
    "Listed",
    types.ListToolsResult,
    types.ListPromptsResult,
    types.ListResourcesResult,
    types.ListResourceTemplatesResult,
)


def with_fixtures(server: Product) -> Product:
    """Add the fixtures to `server` and return it."""
    _add_tools(server)
    _add_prompts(server)
    _add_resources(server)
    _add_completion(server)
    _add_legacy(server)
    # between two rounds the state travels through the client: sealed, so that an altered one is refused
    security = RequestStateSecurity(keys=[secrets.token_bytes(32)], bind_principal=None)
    server.middleware.append(RequestStateBoundary(security, default_audience=server.name))
    return server


def _add_tools(server: Product) -> None:
    bus = InMemorySubscriptionBus()
    tools = {tool.name: tool for tool in [*tool_fixtures(bus), *input_required_fixtures()]}
    product = _handler(server, "tools/call")
    schema_of = server.get_tool_input_schema
    declared = [tool.declaration for tool in tools.values()]

    async def call(ctx: Context, params: types.CallToolRequestParams) -> Any:
        tool = tools.get(params.name)
        return await (product(ctx, params) if tool is None else tool.run(ctx, params))

    def input_schema(name: str) -> Mapping[str, Any] | None:
        if name in tools:
            return tools[name].input_schema
        return schema_of(name) if schema_of else None

    server.get_tool_input_schema = input_schema
    server.add_request_handler("tools/call", types.CallToolRequestParams, call)
    _extend(server, "tools/list", lambda: types.ListToolsResult(tools=[]), lambda listed: listed.tools.extend(declared))
    server.add_request_handler("subscriptions/listen", types.SubscriptionsListenRequestParams, ListenHandler(bus))


def _add_prompts(server: Product) -> None:
    product = _handler(server, "prompts/get")
    names = {one.name for one in PROMPTS}

    async def get(ctx: Context, params: types.GetPromptRequestParams) -> Any:
        return prompt(params) if params.name in names else await product(ctx, params)

    server.add_request_handler("prompts/get", types.GetPromptRequestParams, get)
    _extend(
        server,
        "prompts/list",
        lambda: types.ListPromptsResult(prompts=[]),
        lambda listed: listed.prompts.extend(PROMPTS),
    )


def _add_resources(server: Product) -> None:
    product = _handler(server, "resources/read")

    async def read(ctx: Context, params: types.ReadResourceRequestParams) -> Any:
        return resource(str(params.uri)) or await product(ctx, params)

    server.add_request_handler("resources/read", types.ReadResourceRequestParams, read)
    _extend(
        server,
        "resources/list",
        lambda: types.ListResourcesResult(resources=[]),
        lambda listed: listed.resources.extend(RESOURCES),
    )
    _extend(
        server,
        "resources/templates/list",
        lambda: types.ListResourceTemplatesResult(resource_templates=[]),
        lambda listed: listed.resource_templates.extend(TEMPLATES),
    )


def _add_completion(server: Product) -> None:
    product = _handler(server, "completion/complete")
    names = {one.name for one in PROMPTS}

    async def complete(ctx: Context, params: types.CompleteRequestParams) -> Any:
        if isinstance(params.ref, types.PromptReference) and params.ref.name in names:
            values = [word for word in ("test", "tester", "paris") if word.startswith(params.argument.value)]
            return types.CompleteResult(completion=types.Completion(values=values, total=len(values), has_more=False))
        return await product(ctx, params)

    server.add_request_handler("completion/complete", types.CompleteRequestParams, complete)


def _add_legacy(server: Product) -> None:
    """Add what only 2025-11-25 has and the product does not offer."""

    async def nothing(_: Context, __: Any) -> types.EmptyResult:
        return types.EmptyResult()

    server.add_request_handler("logging/setLevel", types.SetLevelRequestParams, nothing)
    server.add_request_handler("resources/subscribe", types.SubscribeRequestParams, nothing)
    server.add_request_handler("resources/unsubscribe", types.UnsubscribeRequestParams, nothing)


def _handler(server: Product, method: str) -> Handler:
    """Return the product's handler of `method`; where it offers none, one that knows no name."""
    entry = server.get_request_handler(method)
    if entry is not None:
        return entry.handler

    async def unknown(_: Context, params: Any) -> Any:
        raise MCPError(types.INVALID_PARAMS, "there is none of this name", {"uri": str(getattr(params, "uri", ""))})

    return unknown


def _extend(server: Product, method: str, empty: Callable[[], Listed], add: Callable[[Listed], None]) -> None:
    entry = server.get_request_handler(method)

    async def listed(ctx: Context, params: types.PaginatedRequestParams) -> Listed:
        page: Any = empty() if entry is None else await entry.handler(ctx, params)
        page = page.model_copy(deep=True)
        if page.next_cursor is None:
            add(page)
        return page

    server.add_request_handler(method, types.PaginatedRequestParams, listed)
