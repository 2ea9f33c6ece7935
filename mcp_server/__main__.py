"""`python -m mcp_server`: one process of the MCP face, its settings from the environment, its logs JSON on stderr."""

from __future__ import annotations

import signal
import sys

import anyio
import uvicorn

from mcp_server.app import create_app
from rag.errors import Misconfigured, Unavailable
from rag.identity.scopes import Audience
from rag.runtime import open_runtime
from rag.settings import Settings
from rag.telemetry import telemetry

__all__ = ["main"]

SHUTDOWN_S = 5
"""Requests in flight may take this long to end after SIGTERM."""
KEEP_ALIVE_S = 75
"""Longer than a load balancer's usual minute, so that it is the one to close an idle connection."""


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    try:
        settings = Settings.from_process()
        with telemetry(settings, service="mcp_server"):
            anyio.run(_serve, settings, backend_options={"use_uvloop": True})
    except (Misconfigured, Unavailable) as exc:
        sys.exit(f"{exc.code}: {exc.message}")


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
