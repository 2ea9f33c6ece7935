"""The A2A face put together: probes, the card, and the bindings over HTTP behind their door. gRPC's is `grpc_server`.

Above: `__main__` and the tests' servers. Below: `auth`, `dispatcher`, `rest`, `guard`, `handler`, `card`.

    HTTP:  BodyLimit -> Door (token, scope, rate, span) -> routes -> Dispatcher, rest_app -> Guard -> TaskHandler
    gRPC:  _Door (the same) -> the SDK's servicers -----------------------------------^
"""

from __future__ import annotations

from dataclasses import dataclass

import anyio
from a2a.server.request_handlers.request_handler import RequestHandler
from a2a.utils.constants import PROTOCOL_VERSION_0_3, PROTOCOL_VERSION_1_0
from a2a.utils.errors import MethodNotFoundError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp

from a2a_server.auth import BodyLimit, Desk, Door
from a2a_server.card import CARD_PATH, JWKS_PATH, Cards, card_route, jwks_route
from a2a_server.dispatcher import Dispatcher
from a2a_server.fixtures import FixtureHandler
from a2a_server.guard import Guard
from a2a_server.handler import TaskHandler
from a2a_server.interfaces import REST_PATH, RPC_PATH
from a2a_server.push import PushConfigs
from a2a_server.rest import refusal, rest_app
from a2a_server.schedules import schedule_routes
from a2a_server.web import TaskStreams
from rag.db.health import ping
from rag.db.listener import Wakeups
from rag.errors import Unavailable
from rag.identity.outward import load_outward_key
from rag.identity.seal import load_seal_keys
from rag.identity.secretbox import SecretBox
from rag.push.values import PURPOSE
from rag.runtime import Runtime

__all__ = ["MAX_BODY_BYTES", "Face", "create_face"]

MAX_BODY_BYTES = 2**20
PUBLIC = frozenset({CARD_PATH, JWKS_PATH, "/healthz", "/readyz"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Face:
    """What a process of the A2A face serves."""

    app: ASGIApp
    handler: RequestHandler
    """Takes the calls of A2A 1.0 that come by another way than HTTP."""
    legacy: RequestHandler
    """And those of 0.3."""
    desk: Desk


def create_face(runtime: Runtime, wakeups: Wakeups, stopping: anyio.Event) -> Face:
    """Return the face over `runtime` and `wakeups`, which the caller keeps open while it serves.

    Once the caller has set `stopping` and woken everybody, nobody is kept waiting for the end of a task.
    """
    settings = runtime.settings
    key = load_outward_key(settings.certs_dir)
    cards = Cards(settings=settings, key=key)
    card = cards.public()
    handler_of = FixtureHandler if settings.test_fixtures == "on" else TaskHandler
    tasks = handler_of(
        database=runtime.database,
        wakeups=wakeups,
        cursor_key=runtime.cursor_key,
        stopping=stopping,
        cards=cards,
        push=None if key is None else _push(runtime),
    )
    required = {extension.uri for extension in card.capabilities.extensions if extension.required}
    handler = Guard(tasks, version=PROTOCOL_VERSION_1_0, required=required)
    legacy = Guard(tasks, version=PROTOCOL_VERSION_0_3, required=required)
    streams = TaskStreams()
    dispatcher = Dispatcher(handler, legacy, card, streams)

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
        *([] if key is None else [jwks_route(key)]),
        # with and without the slash: clients that join paths post to "<interface url>/", and a redirect loses the body
        Route(RPC_PATH, dispatcher.handle_requests, methods=["POST"]),
        Route(RPC_PATH + "/", dispatcher.handle_requests, methods=["POST"]),
        Mount(REST_PATH, app=rest_app(handler, legacy, card, streams)),
        *schedule_routes(runtime.database, clock=runtime.clock),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _not_here})
    app.router.redirect_slashes = False
    desk = Desk(verifier=runtime.verifier, limiter=runtime.limiter)
    door = Door(app, desk=desk, public=PUBLIC)
    return Face(app=BodyLimit(door, max_bytes=MAX_BODY_BYTES), handler=handler, legacy=legacy, desk=desk)


def _push(runtime: Runtime) -> PushConfigs:
    assert runtime.settings.seal_keys_file is not None  # open_runtime
    return PushConfigs(
        database=runtime.database,
        box=SecretBox.derive(load_seal_keys(runtime.settings.seal_keys_file), purpose=PURPOSE),
        cursor_key=runtime.cursor_key,
        allow_loopback=runtime.settings.allows_loopback,
    )


async def _not_here(request: Request, exc: Exception) -> Response:
    """Answer what is no resource, or no method of one, as the errors of HTTP+JSON are answered."""
    assert isinstance(exc, HTTPException)
    response = refusal(MethodNotFoundError("there is no such resource or method"), request, status=exc.status_code)
    response.headers.update(exc.headers or {})
    return response
