"""`python -m a2a_server`: one process of the A2A face. Settings come from the environment, logs go to stderr."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator

import anyio
import uvicorn

from a2a_server.app import create_app
from rag.db.listener import Wakeups, listener
from rag.identity.scopes import Audience
from rag.runtime import open_runtime, run_process
from rag.serving import BoundedHttp
from rag.settings import Settings
from rag.tasks.feed import TASK_CHANNEL

__all__ = ["main"]

APPLICATION = "bulkhead-a2a"
SHUTDOWN_S = 3
"""Open streams are ended at once on SIGTERM; their readers come back, with their last event id, to another replica."""
KEEP_ALIVE_S = 75
"""Longer than a load balancer's usual minute, so that it is the one to close an idle connection."""


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
        config = uvicorn.Config(
            create_app(runtime, wakeups, stopping),
            host=settings.a2a_host,
            port=settings.a2a_port,
            loop="none",
            http=BoundedHttp,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            timeout_graceful_shutdown=SHUTDOWN_S,
            timeout_keep_alive=KEEP_ALIVE_S,
            ssl_certfile=settings.tls_certificate,
            ssl_keyfile=settings.tls_key,
        )
        # uvicorn raises the signal again once it has stopped: with a receiver open that is harmless, and what is open
        # here is closed in order
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            tasks.start_soon(_stop_on_signal, signals, stopping, wakeups)
            await uvicorn.Server(config).serve()
            tasks.cancel_scope.cancel()


async def _stop_on_signal(signals: AsyncIterator[signal.Signals], stopping: anyio.Event, wakeups: Wakeups) -> None:
    async for _ in signals:
        stopping.set()
        wakeups.wake_all()


if __name__ == "__main__":
    main()
