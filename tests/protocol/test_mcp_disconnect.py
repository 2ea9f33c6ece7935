"""A client that goes away, or whose call takes too long, leaves nothing running in the database."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import asyncpg
import httpx2
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rag.identity.scopes import Audience
from tests.support.mcp_wire import LEGACY, MODERN, answered, raw_request
from tests.support.servers import McpServer, mcp_server
from tests.support.world import World

pytestmark = pytest.mark.anyio
BOUND_S = 10.0
"""Below the statement's own limit of 15 s: what ends within this was cancelled."""
PUT = {
    "name": "put_document",
    "arguments": {"source": "log.txt", "title": "Log", "text": "All hands to the pumps."},
}
RUNNING = """
select count(*) from pg_stat_activity
where datname = current_database() and application_name = 'test-mcp'
    and (state = 'active' or wait_event_type = 'Lock')
"""
"""A statement that waits while it is planned is not `active` yet."""


@asynccontextmanager
async def locked(world: World) -> AsyncGenerator[asyncpg.Connection]:
    """Keep every reader of documents waiting until the block ends; yield a connection that may look on.

    Another one than the lock's: within one transaction pg_stat_activity never changes.
    """
    locker, observer = await asyncpg.connect(world.superuser_url), await asyncpg.connect(world.superuser_url)
    try:
        async with locker.transaction():
            await locker.execute("lock table rag.document in access exclusive mode")
            yield observer
    finally:
        await locker.close()
        await observer.close()


async def statements(connection: asyncpg.Connection, wanted: int) -> None:
    """Return once so many statements of the server run."""
    with anyio.fail_after(BOUND_S):
        while await connection.fetchval(RUNNING) != wanted:  # noqa: ASYNC110  # the database tells nobody
            await anyio.sleep(0.02)


def search(wire: str, meta: dict[str, Any], *, query: str = "fraud") -> tuple[bytes, dict[str, str]]:
    """Return a search as a raw request of one revision."""
    params: dict[str, Any] = {"name": "hybrid_search", "arguments": {"query": query, "mode": "keyword"}}
    return raw_request("tools/call", {**params, "_meta": meta} if meta else params, revision=wire)


async def ask(server: McpServer, token: str, body: bytes, headers: dict[str, str]) -> httpx2.Response:
    """Send a request over a connection of its own."""
    authorized = {"authorization": f"Bearer {token}", **headers}
    async with httpx2.AsyncClient(timeout=4 * BOUND_S) as http:
        return await http.post(server.url, content=body, headers=authorized)


async def abandoned(
    server: McpServer, token: str, observer: asyncpg.Connection, body: bytes, headers: dict[str, str]
) -> None:
    """Send a request, and close its connection once its statement runs."""
    async with anyio.create_task_group() as clients:
        clients.start_soon(ask, server, token, body, headers)
        await statements(observer, 1)
        clients.cancel_scope.cancel()


@pytest.mark.requirement("patterns.cancellation.disconnect")
@pytest.mark.parametrize("wire", [LEGACY, MODERN])
@pytest.mark.parametrize("meta", [{}, {"progressToken": 1}], ids=["plain", "with progress"])
async def test_a_search_whose_client_left_is_cancelled_down_to_its_statement(
    world: World, wire: str, meta: dict[str, Any]
) -> None:
    token = world.token(await world.tenant("acme"), audience=Audience.MCP)
    body, headers = search(wire, meta)
    async with mcp_server(world) as server:
        async with locked(world) as observer:
            await abandoned(server, token, observer, body, headers)
            await statements(observer, 0)
        # the connection went back whole
        response = await ask(server, token, *search(wire, {}))
        assert answered(response)["result"]["structuredContent"]["hits"] == []


async def test_a_crowd_that_left_leaves_the_pool_as_it_was(world: World) -> None:
    token = world.token(await world.tenant("acme"), audience=Audience.MCP)
    async with mcp_server(world) as server:
        async with locked(world) as observer:
            async with anyio.create_task_group() as clients:
                for number in range(30):
                    clients.start_soon(ask, server, token, *search(MODERN, {}, query=f"fraud {number}"))
                await statements(observer, world.settings.pool_size)
                clients.cancel_scope.cancel()
            await statements(observer, 0)
        for _ in range(world.settings.pool_size + 1):
            assert (await ask(server, token, *search(MODERN, {}))).status_code == 200


@pytest.mark.requirement("patterns.cancellation.disconnect")
class BreaksWhenWatched:
    """A connection that fails in its own way while somebody listens to it; only for requests that say `x-break`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        breaks = scope["type"] == "http" and any(name == b"x-break" for name, _ in scope["headers"])
        whole = False

        async def broken() -> Message:
            nonlocal whole
            if whole:
                raise RuntimeError("the transport is gone")
            message = await receive()
            whole = not message.get("more_body", False)
            return message

        await self._app(scope, broken if breaks else receive, send)


async def test_a_connection_that_breaks_while_it_is_watched_leaves_the_others_watched(world: World) -> None:
    token = world.token(await world.tenant("acme"), audience=Audience.MCP)
    body, headers = search(MODERN, {})
    async with mcp_server(world, behind=BreaksWhenWatched) as server, locked(world) as observer:
        response = await ask(server, token, body, {**headers, "x-break": "1"})
        assert response.status_code == 500, "nobody was there to answer"
        await statements(observer, 0)
        async with anyio.create_task_group() as clients:
            clients.start_soon(ask, server, token, body, headers)
            await statements(observer, 1)
            clients.cancel_scope.cancel()
        await statements(observer, 0)


async def test_a_write_of_a_client_that_left_is_not_done(world: World) -> None:
    token = world.token(await world.tenant("acme"), audience=Audience.MCP)
    async with mcp_server(world) as server:
        async with locked(world) as observer:
            await abandoned(server, token, observer, *raw_request("tools/call", PUT, revision=MODERN))
            await statements(observer, 0)
        response = await ask(server, token, *search(MODERN, {}, query="pumps"))
        assert answered(response)["result"]["structuredContent"]["hits"] == []


async def test_a_write_of_an_older_client_goes_on_without_it(world: World) -> None:
    token = world.token(await world.tenant("acme"), audience=Audience.MCP)
    async with mcp_server(world) as server:
        async with locked(world) as observer:
            await abandoned(server, token, observer, *raw_request("tools/call", PUT))
            await statements(observer, 1)
        with anyio.fail_after(BOUND_S):
            while True:
                response = await ask(server, token, *search(LEGACY, {}, query="pumps"))
                if answered(response)["result"]["structuredContent"]["hits"]:
                    return


@pytest.mark.heavy
@pytest.mark.requirement("tools.timeout")
@pytest.mark.parametrize("wire", [LEGACY, MODERN])
async def test_a_call_that_hangs_ends_within_its_bound_and_says_so(world: World, wire: str) -> None:
    token = world.token(await world.tenant("acme"), audience=Audience.MCP)
    async with mcp_server(world) as server:
        async with locked(world):
            began = time.monotonic()
            result = answered(await ask(server, token, *search(wire, {})))["result"]
            assert time.monotonic() - began < 20.0
        assert result["isError"]
        assert result["_meta"]["bulkhead/code"] == "unavailable"
        assert not answered(await ask(server, token, *search(wire, {})))["result"]["isError"]
