"""An MCP server, two tenants, and clients of it: what most tests of tools begin with.

Above: protocol tests. Below: tests.support.servers, the library's own client.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

import anyio
import httpx2
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult, TextContent

from rag.corpus.embedding import embed_due
from rag.identity.scopes import Audience, Scope
from rag.tenants.operator import Tenant
from tests.support.servers import McpServer, mcp_server
from tests.support.world import ALL_SCOPES, World

__all__ = ["ERROR_CODE", "Era", "McpScene", "bad", "good", "mcp_scene"]

Era = Literal["auto", "legacy"]
BOUND_S = 30.0
ERROR_CODE = "bulkhead/code"


@dataclass(frozen=True, slots=True, kw_only=True)
class McpScene:
    """A running server and two tenants."""

    world: World
    server: McpServer
    acme: Tenant
    rival: Tenant

    def token(
        self,
        tenant: Tenant | None = None,
        *,
        user: str = "ada",
        scopes: frozenset[Scope] = ALL_SCOPES,
        groups: tuple[str, ...] = (),
    ) -> str:
        """Return a token for a user of `tenant` (acme)."""
        return self.world.issuer.issue(
            tenant_id=(tenant or self.acme).tenant_id,
            subject=user,
            audience=Audience.MCP,
            scopes=scopes,
            lifetime_s=600.0,
            groups=groups,
        )

    @asynccontextmanager
    async def client(
        self, tenant: Tenant | None = None, *, era: Era = "auto", token: str | None = None, **more: Any
    ) -> AsyncGenerator[Client]:
        """Open the library's own client as a user of `tenant` (acme)."""
        headers = {"authorization": f"Bearer {token or self.token(tenant, **more)}"}
        with anyio.fail_after(BOUND_S):
            async with (
                httpx2.AsyncClient(headers=headers, timeout=BOUND_S) as http,
                Client(streamable_http_client(self.server.url, http_client=http), mode=era) as client,
            ):
                yield client

    async def ask(self, tool: str, arguments: dict[str, Any], tenant: Tenant | None = None, **more: Any) -> Any:
        """Call a tool in a session of its own and return its structured result."""
        async with self.client(tenant, **more) as client:
            return good(await client.call_tool(tool, arguments))

    async def put(self, source: str, text: str, tenant: Tenant | None = None, **more: Any) -> str:
        """Store a document as a member of its `groups` and return its id."""
        arguments = {"source": source, "title": "Law", "text": text, **more}
        groups = tuple(more.get("groups", ()))
        return (await self.ask("put_document", arguments, tenant, groups=groups))["document_id"]

    async def embed(self) -> None:
        """Make all vectors that are due."""
        async with self.world.database(claims=True) as database:
            while await embed_due(database, self.server.runtime.embedders):
                pass


@asynccontextmanager
async def mcp_scene(world: World, *, tiers: bool = False) -> AsyncGenerator[McpScene]:
    """Open a server on `world` with two new tenants, held to the limits of their tiers or to none that matters."""
    acme, rival = await world.tenant("acme"), await world.tenant("rival")
    async with mcp_server(world, request_limit_per_minute=None if tiers else 60_000) as server:
        yield McpScene(world=world, server=server, acme=acme, rival=rival)


def good(result: CallToolResult) -> dict[str, Any]:
    """Return the structured content of a result that must not be an error."""
    assert not result.is_error, result.content
    return result.structured_content


def bad(result: CallToolResult) -> tuple[str, str]:
    """Return the code and the text of a result that must be an error."""
    assert result.is_error, result.structured_content
    assert result.structured_content is None
    assert isinstance(result.content[0], TextContent)
    assert result.meta is not None
    return str(result.meta[ERROR_CODE]), result.content[0].text
