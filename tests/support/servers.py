"""The MCP server over real HTTP, inside the test's own event loop: a socket, uvicorn, the real application.

Above: protocol tests. Below: `rag.runtime`, `mcp_server.app`. `mcp_process` is the same as a process of its own.
"""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio
import uvicorn
from starlette.types import ASGIApp

from mcp_server.app import create_app
from rag.identity.scopes import Audience
from rag.identity.tls import TlsFiles
from rag.runtime import Runtime, open_runtime
from rag.serving import BoundedHttp
from rag.tasks.feed import TASK_CHANNEL
from tests.support.world import World

__all__ = ["McpServer", "mcp_server"]

START_BOUND_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class McpServer:
    """A running server; `runtime` is the one that it works with."""

    url: str
    base: str
    runtime: Runtime


@asynccontextmanager
async def mcp_server(
    world: World,
    *,
    request_limit_per_minute: int | None = 60_000,
    behind: Callable[[ASGIApp], ASGIApp] = lambda app: app,
) -> AsyncGenerator[McpServer]:
    """Serve the world's tenants on a free port until the block ends; `behind` puts a layer before the application."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = int(listening.getsockname()[1])
        settings = dataclasses.replace(
            world.settings,
            mcp_port=port,
            mcp_public_url=f"http://127.0.0.1:{port}/mcp",
            request_limit_per_minute=request_limit_per_minute,
        )
        async with (
            open_runtime(settings, audience=Audience.MCP, application="test-mcp", listens=[TASK_CHANNEL]) as runtime,
            serving(behind(create_app(runtime)), listening),
        ):
            yield McpServer(url=settings.mcp_url, base=f"http://127.0.0.1:{port}", runtime=runtime)


@asynccontextmanager
async def serving(
    app: object, listening: socket.socket, *, http: type[BoundedHttp] = BoundedHttp, tls: TlsFiles | None = None
) -> AsyncGenerator[None]:
    """Run an ASGI application on a bound socket until the block ends; over TLS if it is given a certificate."""
    config = uvicorn.Config(
        app,  # pyright: ignore[reportArgumentType]
        loop="none",
        http=http,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=2,
        ssl_certfile=tls.certificate if tls else None,
        ssl_keyfile=tls.key if tls else None,
    )
    server = _Server(config)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.serve, [listening])
        with anyio.fail_after(START_BOUND_S):
            await server.ready.wait()
        try:
            yield
        finally:
            server.end()


class _Server(uvicorn.Server):
    """Says when it serves, ends when it is told and not at its next tick, and leaves the process's signals alone."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = anyio.Event()
        self._ticking = anyio.CancelScope()

    def end(self) -> None:
        """Begin the shutdown."""
        self.should_exit = True
        self._ticking.cancel()

    async def main_loop(self) -> None:
        with self._ticking:
            await super().main_loop()

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        await self._serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self.ready.set()
