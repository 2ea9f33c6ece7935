"""The A2A server over real HTTP inside the test's loop, the worker beside it, and small clients that see the wire.

Above: protocol tests. Below: `a2a_server.app`, `workflows.worker`, tests.support.servers.
"""

from __future__ import annotations

import dataclasses
import json
import socket
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import anyio
import httpx
from grpc import aio as grpc_aio

from a2a_server.__main__ import grpc_beside
from a2a_server.app import create_face
from rag.cli.supervisor import free_port
from rag.db.listener import listener
from rag.identity.scopes import Audience
from rag.runtime import open_runtime
from rag.settings import Settings
from rag.tasks.feed import TASK_CHANNEL
from tests.support.servers import serving
from tests.support.world import World
from workflows.__main__ import worker_of

__all__ = ["RPC_HEADERS", "Replica", "Rpc", "SseEvent", "a2a_replica", "a2a_server", "message", "sse_events", "worker"]

BOUND_S = 20.0
RPC_HEADERS = {"A2A-Version": "1.0"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """A running server."""

    base: str
    """Of HTTP."""
    grpc: str
    """host:port."""
    stopping: anyio.Event
    """Set, as SIGTERM would: streams end."""


@asynccontextmanager
async def a2a_server(world: World, *, request_limit_per_minute: int | None = 60_000) -> AsyncGenerator[str]:
    """Serve the world's tenants on a free port; yields the base URL."""
    async with a2a_replica(world, request_limit_per_minute=request_limit_per_minute, grpc=False) as replica:
        yield replica.base


@asynccontextmanager
async def a2a_replica(
    world: World,
    *,
    request_limit_per_minute: int | None = 60_000,
    public: str | None = None,
    grpc: bool = True,
    **more: Any,
) -> AsyncGenerator[Replica]:
    """Serve the world's tenants on free ports. `public` is the base URL that the card has; `more` are settings."""
    port = free_port("127.0.0.1") if grpc else None
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        base = f"http://127.0.0.1:{listening.getsockname()[1]}"
        settings = dataclasses.replace(
            world.settings,
            a2a_public_url=public or base,
            a2a_grpc_port=port,
            request_limit_per_minute=request_limit_per_minute,
            **more,
        )
        stopping = anyio.Event()
        async with (
            open_runtime(settings, audience=Audience.A2A, application="test-a2a") as runtime,
            listener(runtime.database.dsn, [TASK_CHANNEL], application="test-a2a-listen") as wakeups,
        ):
            face = create_face(runtime, wakeups, stopping)
            async with serving(face.app, listening), _grpc_kept(), grpc_beside(settings, face, stopping):
                yield Replica(base=base, grpc=f"127.0.0.1:{port}", stopping=stopping)


@asynccontextmanager
async def _grpc_kept() -> AsyncGenerator[None]:
    """Hold gRPC's thread until the server is gone: whoever lets go last waits for its end, which our code must not."""
    aio: Any = grpc_aio  # its stubs leave these two out
    aio.init_grpc_aio()
    try:
        yield
    finally:
        aio.shutdown_grpc_aio()


@asynccontextmanager
async def worker(settings: Settings) -> AsyncGenerator[None]:
    """Run a worker with all of its parts until the block ends."""
    async with worker_of(settings) as running, anyio.create_task_group() as tasks:
        tasks.start_soon(running.serve)
        try:
            yield
        finally:
            running.drain()


def message(text: str = "why?", **fields: Any) -> dict[str, Any]:
    """Return the params of SendMessage for one text."""
    return {"message": {"messageId": str(uuid4()), "role": "ROLE_USER", "parts": [{"text": text}], **fields}}


@dataclass(frozen=True, slots=True, kw_only=True)
class SseEvent:
    """One server-sent event as it came over the wire."""

    id: int | None
    event: str
    data: dict[str, Any]

    @property
    def result(self) -> dict[str, Any]:
        """The JSON-RPC result: {"task" or "statusUpdate" or "artifactUpdate": ...}."""
        return self.data["result"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rpc:
    """A bare JSON-RPC client for one caller."""

    base: str
    token: str
    http: httpx.AsyncClient
    headers: dict[str, str] = field(default_factory=lambda: dict(RPC_HEADERS))

    @property
    def url(self) -> str:
        """The endpoint."""
        return f"{self.base}/a2a/jsonrpc"

    async def raw(self, method: str, params: Any, **headers: str) -> httpx.Response:
        """Send one request and return the response as it is."""
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        return await self.http.post(self.url, json=body, headers=self._headers(headers))

    async def call(self, method: str, params: Any) -> dict[str, Any]:
        """Return the result; a JSON-RPC error fails the test."""
        answer = (await self.raw(method, params)).json()
        assert "error" not in answer, answer
        return answer["result"]

    async def error(self, method: str, params: Any, **headers: str) -> dict[str, Any]:
        """Return the error; a result fails the test."""
        answer = (await self.raw(method, params, **headers)).json()
        assert "result" not in answer, answer
        return answer["error"]

    @asynccontextmanager
    async def stream(self, method: str, params: Any, **headers: str) -> AsyncGenerator[AsyncGenerator[SseEvent]]:
        """Open a stream and yield its events; the connection is cut when the block ends."""
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        request = self.http.stream("POST", self.url, json=body, headers=self._headers(headers))
        async with request as response:
            assert response.headers["content-type"].startswith("text/event-stream"), await response.aread()
            async with aclosing(sse_events(response)) as events:
                yield events

    def _headers(self, more: dict[str, str]) -> dict[str, str]:
        named = {name.replace("_", "-"): value for name, value in more.items()}
        return {"authorization": f"Bearer {self.token}", **self.headers, **named}


async def sse_events(response: httpx.Response) -> AsyncGenerator[SseEvent]:
    """Yield the events of an answer as they come."""
    fields: dict[str, str] = {}
    async for line in response.aiter_lines():
        if line.startswith(":"):
            continue
        if line:
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
            continue
        if "data" in fields:
            yield SseEvent(
                id=int(fields["id"]) if "id" in fields else None,
                event=fields.get("event", "message"),
                data=json.loads(fields["data"]),
            )
        fields = {}
