"""`python -m a2a_server`: one process of the A2A face. Settings come from the environment, logs go to stderr."""

from __future__ import annotations

import signal
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import anyio
import uvicorn

from a2a_server.app import Face, create_face
from a2a_server.grpc_server import GrpcPlace, grpc_served
from rag.db.listener import Wakeups, listener
from rag.identity.scopes import Audience
from rag.runtime import open_runtime, run_process
from rag.serving import http_config
from rag.settings import Settings
from rag.tasks.feed import TASK_CHANNEL

__all__ = ["grpc_beside", "main"]

APPLICATION = "bulkhead-a2a"
SHUTDOWN_S = 3
"""Open streams are ended at once on SIGTERM; their readers come back, with their last event id, to another replica."""


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    run_process("a2a_server", _serve)


async def _serve(settings: Settings) -> None:
    stopping = anyio.Event()
    async with (
        open_runtime(settings, audience=Audience.A2A, application=APPLICATION, embeds=False) as runtime,
        listener(runtime.database.dsn, [TASK_CHANNEL], application=f"{APPLICATION}-listen") as wakeups,
        anyio.create_task_group() as tasks,
    ):
        face = create_face(runtime, wakeups, stopping)
        config = http_config(
            face.app,
            settings,
            host=settings.a2a_host,
            port=settings.a2a_port,
            lifespan="off",
            shutdown_s=SHUTDOWN_S,
        )
        # uvicorn raises the signal again once it has stopped: with a receiver open that is harmless, and what is open
        # here is closed in order
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            tasks.start_soon(_stop_on_signal, signals, stopping, wakeups)
            async with grpc_beside(settings, face, stopping):
                await uvicorn.Server(config).serve()
            tasks.cancel_scope.cancel()


@asynccontextmanager
async def grpc_beside(settings: Settings, face: Face, stopping: anyio.Event) -> AsyncGenerator[None]:
    """Serve gRPC beside HTTP, where a port is set for it."""
    if not settings.a2a_grpc_port:
        yield
        return
    place = GrpcPlace(
        host=settings.a2a_grpc_host,
        port=settings.a2a_grpc_port,
        certificate=settings.tls_certificate,
        key=settings.tls_key,
    )
    async with grpc_served(place, face.handler, face.legacy, desk=face.desk, stopping=stopping):
        yield


async def _stop_on_signal(signals: AsyncIterator[signal.Signals], stopping: anyio.Event, wakeups: Wakeups) -> None:
    async for _ in signals:
        stopping.set()
        wakeups.wake_all()


if __name__ == "__main__":
    main()
