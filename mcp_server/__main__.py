"""`python -m mcp_server`: one process of the MCP face, its settings from the environment, its logs JSON on stderr."""

from __future__ import annotations

import signal

import anyio
import uvicorn

from mcp_server.app import create_app
from rag.identity.scopes import Audience
from rag.runtime import open_runtime, run_process
from rag.settings import Settings

__all__ = ["main"]

SHUTDOWN_S = 5
"""Requests in flight may take this long to end after SIGTERM."""
KEEP_ALIVE_S = 75
"""Longer than a load balancer's usual minute, so that it is the one to close an idle connection."""


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    run_process("mcp_server", _serve)


async def _serve(settings: Settings) -> None:
    async with open_runtime(settings, audience=Audience.MCP, application="bulkhead-mcp") as runtime:
        config = uvicorn.Config(
            create_app(runtime),
            host=settings.mcp_host,
            port=settings.mcp_port,
            loop="none",
            http="httptools",
            ws="none",
            lifespan="on",
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
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT):
            await uvicorn.Server(config).serve()


if __name__ == "__main__":
    main()
