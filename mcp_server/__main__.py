"""`python -m mcp_server`: the MCP face, its settings from the environment, its logs JSON on stderr.

One process, or with BULKHEAD_MCP_WORKERS several behind one socket (`workers`).
"""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import AsyncIterator

import anyio
import uvicorn

from mcp_server.app import create_app
from mcp_server.workers import run_workers, until_orphaned
from rag.identity.scopes import Audience
from rag.runtime import Runtime, open_runtime, run_process
from rag.serving import http_config, settle_memory
from rag.settings import Settings
from rag.tasks.feed import TASK_CHANNEL

__all__ = ["main"]

SHUTDOWN_S = 5
"""Requests in flight may take this long to end after SIGTERM; who waits for a task is answered at once."""


def main(arguments: list[str]) -> None:
    """Serve until SIGTERM or SIGINT. `--fd NUMBER` names the listening socket that a worker inherits."""
    match arguments:
        case []:
            run_process("mcp_server", _run)
        case ["--fd", number] if number.isdecimal():
            run_process("mcp_server", lambda settings: _work(settings, int(number)))
        case _:
            sys.exit("usage: python -m mcp_server (settings come from the environment: docs/configuration.md)")


async def _run(settings: Settings) -> None:
    if settings.mcp_workers > 1:
        await run_workers(settings)
    else:
        await _serve(settings, None)


async def _work(settings: Settings, descriptor: int) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_serve_then_cancel, settings, descriptor, tasks.cancel_scope)
        await until_orphaned()
        tasks.cancel_scope.cancel()


async def _serve_then_cancel(settings: Settings, descriptor: int, scope: anyio.CancelScope) -> None:
    with socket.socket(fileno=descriptor) as listening:
        await _serve(settings, listening)
    scope.cancel()


async def _serve(settings: Settings, listening: socket.socket | None) -> None:
    async with open_runtime(
        settings, audience=Audience.MCP, application="bulkhead-mcp", listens=[TASK_CHANNEL]
    ) as runtime:
        config = http_config(
            create_app(runtime),
            settings,
            host=settings.mcp_host,
            port=settings.mcp_port,
            lifespan="on",
            shutdown_s=SHUTDOWN_S,
        )
        settle_memory()
        # uvicorn raises the signal again once it has stopped: with a receiver open that is harmless, and what is open
        # here is closed in order
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_stop_on_signal, signals, runtime)
                await uvicorn.Server(config).serve(sockets=None if listening is None else [listening])
                tasks.cancel_scope.cancel()


async def _stop_on_signal(signals: AsyncIterator[signal.Signals], runtime: Runtime) -> None:
    async for _ in signals:
        runtime.stopping.set()
        runtime.wakeups.wake_all()


if __name__ == "__main__":
    main(sys.argv[1:])
