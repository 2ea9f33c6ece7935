"""The ASGI application of the A2A face: probes, the card, and the JSON-RPC endpoint behind its door.

Above: `__main__` and the tests' servers. Below: `auth`, `dispatcher`, `handler`, `card`.

    BodyLimit -> Door (token, scope, rate, span) -> Starlette routes -> Dispatcher -> TaskHandler
"""

from __future__ import annotations

import anyio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from a2a_server.auth import BodyLimit, Door
from a2a_server.card import CARD_PATH, RPC_PATH, agent_card, card_route
from a2a_server.dispatcher import Dispatcher
from a2a_server.handler import TaskHandler
from rag.db.health import ping
from rag.db.listener import Wakeups
from rag.errors import Unavailable
from rag.runtime import Runtime

__all__ = ["MAX_BODY_BYTES", "create_app"]

MAX_BODY_BYTES = 2**20
PUBLIC = frozenset({CARD_PATH, "/healthz", "/readyz"})


def create_app(runtime: Runtime, wakeups: Wakeups, stopping: anyio.Event) -> ASGIApp:
    """Return the application over `runtime` and `wakeups`, which the caller keeps open while it serves.

    Once the caller has set `stopping` and woken everybody, nobody is kept waiting for the end of a task.
    """
    card = agent_card(runtime.settings)
    handler = TaskHandler(database=runtime.database, wakeups=wakeups, cursor_key=runtime.cursor_key, stopping=stopping)
    dispatcher = Dispatcher(handler, card)

    async def healthz(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def readyz(_: Request) -> Response:
        try:
            await ping(runtime.database)
        except Unavailable as exc:
            return JSONResponse({"status": "unavailable", "reason": exc.message}, status_code=503)
        return JSONResponse({"status": "ready"})

    routes = [
        Route("/healthz", healthz),
        Route("/readyz", readyz),
        card_route(card),
        # with and without the slash: clients that join paths post to "<interface url>/", and a redirect loses the body
        Route(RPC_PATH, dispatcher.handle_requests, methods=["POST"]),
        Route(RPC_PATH + "/", dispatcher.handle_requests, methods=["POST"]),
    ]
    door = Door(Starlette(routes=routes), verifier=runtime.verifier, limiter=runtime.limiter, public=PUBLIC)
    return BodyLimit(door, max_bytes=MAX_BODY_BYTES)
