"""An MCP server over real HTTP, two tenants, and the library's own client as one of their users, in both revisions.

Above: protocol tests of resources, prompts and completions. Below: tests.support.servers, the library's client.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import uuid4

import anyio
import httpx2
import orjson
import pytest
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError

from rag.corpus.store import NewDocument, put_document
from rag.identity.principal import Principal
from rag.identity.scopes import Audience, Scope
from rag.tasks import store
from rag.tasks.values import EventKind, NewTask
from rag.tenants.operator import Tenant
from tests.support.servers import McpServer, mcp_server
from tests.support.world import ALL_SCOPES, World

__all__ = ["ERAS", "Era", "McpScene", "ReadResource", "mcp_scene", "new_scene", "refused"]

BOUND_S = 15.0
Era = Literal["auto", "legacy"]
ERAS: Sequence[Era] = ("auto", "legacy")


@dataclass(frozen=True, slots=True, kw_only=True)
class McpScene:
    """A server and two tenants."""

    world: World
    server: McpServer
    acme: Tenant
    rival: Tenant

    @asynccontextmanager
    async def client(
        self,
        *,
        tenant: Tenant | None = None,
        era: Era = "auto",
        scopes: frozenset[Scope] = ALL_SCOPES,
        groups: Sequence[str] = (),
    ) -> AsyncGenerator[Client]:
        """Open the library's own client as a user of `tenant` (acme); nothing is kept on its side."""
        token = self.token(tenant, scopes=scopes, groups=groups)
        with anyio.fail_after(BOUND_S):
            async with (
                httpx2.AsyncClient(headers={"authorization": f"Bearer {token}"}, timeout=BOUND_S) as http,
                Client(streamable_http_client(self.server.url, http_client=http), mode=era, cache=None) as client,
            ):
                yield client

    def token(
        self, tenant: Tenant | None = None, *, scopes: frozenset[Scope] = ALL_SCOPES, groups: Sequence[str] = ()
    ) -> str:
        """Return a token for the server."""
        return self.world.issuer.issue(
            tenant_id=(tenant or self.acme).tenant_id,
            subject="ada",
            audience=Audience.MCP,
            scopes=scopes,
            groups=groups,
            lifetime_s=600.0,
        )

    def principal(self, tenant: Tenant | None = None, *, groups: Sequence[str] = ()) -> Principal:
        """Return the caller that such a token proves."""
        return self.world.verifier(Audience.MCP).verify(self.token(tenant, groups=groups))

    async def put(
        self,
        title: str,
        *,
        text: str = "A ship in the harbour.",
        tenant: Tenant | None = None,
        groups: Sequence[str] = (),
        **more: Any,
    ) -> str:
        """Store a document and return its id."""
        new = NewDocument(
            source=more.pop("source", f"{title}-{uuid4()}"), title=title, text=text, groups=tuple(groups), **more
        )
        stored = await put_document(self.server.runtime.database, self.principal(tenant, groups=groups), new)
        return str(stored.document_id)

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


@dataclass(slots=True, kw_only=True)
class ReadResource:
    """Reads resources by raw requests of one revision, whatever the URI: the client would not send some."""

    scene: McpScene
    http: httpx2.AsyncClient
    modern: bool
    headers: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        """Say who asks."""
        self.headers = {
            "authorization": f"Bearer {self.scene.token()}",
            "accept": "application/json, text/event-stream",
            "content-type": "application/json",
        }

    async def __call__(self, uri: str) -> dict[str, Any]:
        """Return the JSON-RPC response, from JSON or from the one event of a stream."""
        params: dict[str, Any] = {"uri": uri}
        headers = dict(self.headers)
        if self.modern:
            params["_meta"] = {
                "io.modelcontextprotocol/protocolVersion": "2026-07-28",
                "io.modelcontextprotocol/clientCapabilities": {},
            }
            headers |= {"mcp-protocol-version": "2026-07-28", "mcp-method": "resources/read", "mcp-name": uri}
        request = {"jsonrpc": "2.0", "id": 1, "method": "resources/read", "params": params}
        response = await self.http.post(self.scene.server.url, content=orjson.dumps(request), headers=headers)
        assert response.status_code < 500, (uri, response.text)
        body = response.text
        if response.headers["content-type"].startswith("text/event-stream"):
            body = next(line.removeprefix("data: ") for line in body.splitlines() if line.startswith("data: "))
        return orjson.loads(body)


@asynccontextmanager
async def mcp_scene(world: World, *, request_limit_per_minute: int = 60_000) -> AsyncGenerator[McpScene]:
    """Run a server with two tenants until the block ends."""
    async with mcp_server(world, request_limit_per_minute=request_limit_per_minute) as server:
        yield await new_scene(world, server)


async def new_scene(world: World, server: McpServer) -> McpScene:
    """Return two new tenants of a running server: what other tests leave behind is as good as not there."""
    acme, rival = await world.tenant(f"acme-{uuid4()}"), await world.tenant(f"rival-{uuid4()}")
    return McpScene(world=world, server=server, acme=acme, rival=rival)


@asynccontextmanager
async def refused(code: int) -> AsyncGenerator[pytest.ExceptionInfo[MCPError]]:
    """Expect a JSON-RPC error of this code."""
    with pytest.raises(MCPError) as caught:
        yield caught
    assert caught.value.code == code, caught.value
