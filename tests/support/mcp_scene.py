"""An MCP server over real HTTP, two tenants, and the library's own client as one of their users, in both revisions.

Above: protocol tests. Below: tests.support.servers, the library's client.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal
from uuid import uuid4

import anyio
import httpx2
import pytest
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult, TextContent

from rag.corpus.embedding import embed_due
from rag.corpus.store import NewDocument, put_document
from rag.identity.principal import Principal
from rag.identity.scopes import Audience, Scope
from rag.tasks import store
from rag.tasks.values import EventKind, NewTask
from rag.tenants.operator import Tenant
from tests.support.mcp_wire import raw_request
from tests.support.servers import McpServer, mcp_server
from tests.support.world import ALL_SCOPES, World

__all__ = ["ERAS", "Era", "McpScene", "bad", "good", "mcp_scene", "refused", "with_new_tenants"]

BOUND_S = 30.0
Era = Literal["auto", "legacy"]
ERAS: Sequence[Era] = ("auto", "legacy")
"""What the library's client calls the revisions: 2026-07-28, 2025-11-25."""


@dataclass(frozen=True, slots=True, kw_only=True)
class McpScene:
    """A running server and two tenants."""

    world: World
    server: McpServer
    http: httpx2.AsyncClient
    """For raw requests."""
    acme: Tenant
    rival: Tenant

    def token(
        self,
        tenant: Tenant | None = None,
        *,
        user: str = "ada",
        scopes: frozenset[Scope] = ALL_SCOPES,
        groups: Sequence[str] = (),
    ) -> str:
        """Return a token for the server, of a user of `tenant` (acme)."""
        return self.world.issuer.issue(
            tenant_id=(tenant or self.acme).tenant_id,
            subject=user,
            audience=Audience.MCP,
            scopes=scopes,
            groups=groups,
            lifetime_s=600.0,
        )

    def principal(self, tenant: Tenant | None = None, *, groups: Sequence[str] = ()) -> Principal:
        """Return the caller that such a token proves."""
        return self.world.verifier(Audience.MCP).verify(self.token(tenant, groups=groups))

    @asynccontextmanager
    async def client(
        self, tenant: Tenant | None = None, *, era: Era = "auto", token: str | None = None, **more: Any
    ) -> AsyncGenerator[Client]:
        """Open the library's own client, with `token` or one of `more`; nothing is kept on its side."""
        headers = {"authorization": f"Bearer {token or self.token(tenant, **more)}"}
        with anyio.fail_after(BOUND_S):
            async with (
                httpx2.AsyncClient(headers=headers, timeout=BOUND_S) as http,
                Client(streamable_http_client(self.server.url, http_client=http), mode=era, cache=None) as client,
            ):
                yield client

    async def ask(self, tool: str, arguments: dict[str, Any], tenant: Tenant | None = None, **more: Any) -> Any:
        """Call a tool in a session of its own and return its structured result."""
        async with self.client(tenant, **more) as client:
            return good(await client.call_tool(tool, arguments))

    async def send(
        self, method: str, params: dict[str, Any] | None = None, *, token: str | None = None, **more: Any
    ) -> httpx2.Response:
        """Send one raw request; `more` is what `raw_request` takes."""
        body, headers = raw_request(method, params, **more)
        return await self.post(body, token=token or self.token(), **headers)

    async def post(self, body: bytes, *, token: str | None = None, **headers: str) -> httpx2.Response:
        """Send any bytes, with a token or without."""
        own = {"accept": "application/json, text/event-stream", "content-type": "application/json"}
        own |= {"authorization": f"Bearer {token}"} if token is not None else {}
        return await self.http.post(self.server.url, content=body, headers={**own, **headers})

    async def put(
        self,
        title: str,
        *,
        text: str = "A ship in the harbour.",
        source: str | None = None,
        tenant: Tenant | None = None,
        groups: Sequence[str] = (),
        **more: Any,
    ) -> str:
        """Store a document as a member of its groups and return its id."""
        new = NewDocument(source=source or f"{title}-{uuid4()}", title=title, text=text, groups=tuple(groups), **more)
        stored = await put_document(self.server.runtime.database, self.principal(tenant, groups=groups), new)
        return str(stored.document_id)

    async def embed(self) -> None:
        """Make all vectors that are due."""
        async with self.world.database(claims=True) as database:
            while await embed_due(database, self.server.runtime.embedders):
                pass

    async def artifact(self, name: str, parts: Sequence[dict[str, Any]], *, tenant: Tenant | None = None) -> str:
        """Accept a task, give it an artifact as its worker would, and return the task's id."""
        principal, task_id = self.principal(tenant), uuid4()
        new = NewTask(
            task_id=task_id,
            context_id=f"context-{task_id}",
            workflow="rag",
            input={"question": "why?"},
            message={"message_id": "m1", "parts": [{"text": "why?"}]},
        )
        async with self.server.runtime.database.tenant(principal) as session:
            await store.create_task(session, principal, new)
            for number, part in enumerate(parts):
                payload = {
                    "artifact_id": name,
                    "name": name,
                    "parts": [part],
                    "append": number > 0,
                    "last_chunk": number == len(parts) - 1,
                }
                await store.append(session, task_id, EventKind.ARTIFACT, payload, fence=None)
        return str(task_id)


@asynccontextmanager
async def mcp_scene(world: World, *, request_limit_per_minute: int | None = 60_000) -> AsyncGenerator[McpScene]:
    """Run a server with two tenants until the block ends; without a limit they are held to those of their tiers."""
    async with (
        mcp_server(world, request_limit_per_minute=request_limit_per_minute) as server,
        httpx2.AsyncClient(timeout=BOUND_S) as http,
    ):
        acme, rival = await world.tenant("acme"), await world.tenant("rival")
        yield McpScene(world=world, server=server, http=http, acme=acme, rival=rival)


async def with_new_tenants(stage: McpScene) -> McpScene:
    """Return the same server with two new tenants: what other tests leave behind is as good as not there."""
    acme, rival = [await stage.world.tenant(f"{name}-{uuid4()}") for name in ("acme", "rival")]
    return replace(stage, acme=acme, rival=rival)


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
    return str(result.meta["bulkhead/code"]), result.content[0].text


@contextmanager
def refused(code: int) -> Generator[pytest.ExceptionInfo[MCPError]]:
    """Expect a JSON-RPC error of this code."""
    with pytest.raises(MCPError) as caught:
        yield caught
    assert caught.value.code == code, caught.value
