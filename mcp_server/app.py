"""The ASGI application of the MCP face: probes, OAuth metadata, and the endpoint behind its layers.

Above: `__main__` and the tests' servers. Below: `auth`, `calls`, the SDK's transport.

    StrippedHeaders -> Cors -> routes -> /mcp: BearerAuth -> ReadBody -> Scopes -> Lane (-> transport)
        -> SDK kernel -> calls
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from mcp_server.auth import PRINCIPAL, BearerAuth, Challenge, Scopes
from mcp_server.body import ReadBody
from mcp_server.calls import build_server
from mcp_server.cors import Cors, Origins
from mcp_server.lane import Lane
from mcp_server.scopes import find_operation
from rag.db.health import ping
from rag.errors import Unavailable
from rag.identity.scopes import Scope as TokenScope
from rag.runtime import Runtime
from rag.settings import Settings

__all__ = ["MAX_BODY_BYTES", "create_app"]

MAX_BODY_BYTES = 16 * 2**20
"""The longest document (rag.corpus.text.MAX_TEXT_CHARS) in any script, with its JSON around it."""
METADATA_PATH = "/.well-known/oauth-protected-resource"
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


def create_app(runtime: Runtime, *, server: Server[dict[str, Any]] | None = None) -> ASGIApp:
    """Return the application over `runtime`, which the caller keeps open while it serves.

    `server` is `build_server(runtime)` with more in it, for the conformance suite; None: just that.
    """
    settings = runtime.settings
    resource = urlsplit(settings.mcp_url)
    path = resource.path or "/"
    server = server or build_server(runtime)
    security = _allowed(settings)
    manager = StreamableHTTPSessionManager(
        server,
        stateless=True,
        # streams where a call asks for progress, plain JSON otherwise; cancelling needs it too (mcp.md 0.2)
        json_response=False,
        security_settings=security,
        max_request_body_size=MAX_BODY_BYTES,
    )
    challenge = Challenge(metadata_url=f"{resource.scheme}://{resource.netloc}{METADATA_PATH}{resource.path}")
    lane = Lane(manager.handle_request, server=server, security=security)
    scopes = Scopes(lane, challenge=challenge, find=find_operation, audit=runtime.audit)
    body = ReadBody(scopes, max_bytes=MAX_BODY_BYTES, tenant_of=lambda scope: scope[PRINCIPAL].tenant_id)
    endpoint = BearerAuth(body, verifier=runtime.verifier, challenge=challenge)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[None]:
        async with manager.run(), lane.run():
            yield

    async def healthz(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def readyz(_: Request) -> Response:
        try:
            await ping(runtime.database)
        except Unavailable as exc:
            return JSONResponse({"status": "unavailable", "reason": exc.message}, status_code=503)
        return JSONResponse({"status": "ready"})

    async def metadata(_: Request) -> Response:
        return JSONResponse(
            {
                "resource": settings.mcp_url,
                "resource_name": "Bulkhead",
                # ours signs tokens for the command line and between the servers; it has no pages to send a user to
                "authorization_servers": [settings.external_issuer or settings.issuer],
                "scopes_supported": [scope.value for scope in TokenScope],
                "bearer_methods_supported": ["header"],
            },
            headers={"access-control-allow-origin": "*", "cache-control": "public, max-age=3600"},
        )

    routes = [
        # POST only: a stateless server has nothing to say on GET and no session to DELETE, so both are 405
        Route(path, endpoint, methods=["POST"]),
        Route("/healthz", healthz),
        Route("/readyz", readyz),
        Route(METADATA_PATH, metadata),
        Route(METADATA_PATH + path, metadata),
    ]
    served = Starlette(routes=routes, lifespan=lifespan)
    # a redirect says http:// behind a proxy that ends TLS, and would carry a token over it
    served.router.redirect_slashes = False
    cors = Cors(
        _Direct(served, path=path, endpoint=endpoint),
        endpoint=path,
        public={METADATA_PATH, METADATA_PATH + path},
        origins=Origins(allowed=frozenset(security.allowed_origins)),
    )
    return StrippedHeaders(cors)


class _Direct:
    """Takes what is for the endpoint past the router: one request in a thousand is for another route."""

    def __init__(self, app: ASGIApp, *, path: str, endpoint: ASGIApp) -> None:
        """`app` has a route for `path` too, for what is no POST."""
        self._app = app
        self._path = path
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Choose."""
        direct = scope["type"] == "http" and scope["method"] == "POST" and scope["path"] == self._path
        await (self._endpoint if direct else self._app)(scope, receive, send)


class StrippedHeaders:
    """Takes the optional white space off header values, which httptools leaves on (RFC 9110, section 5.5)."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap `app`."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Strip, then pass on."""
        # in place: the server made this scope for this one request
        if scope["type"] == "http":
            scope["headers"] = [(name, value.strip(b" \t")) for name, value in scope["headers"]]
        await self._app(scope, receive, send)


def _allowed(settings: Settings) -> TransportSecuritySettings:
    """Return the Host and Origin values to serve, against DNS rebinding: public name, settings, loopback."""
    public = urlsplit(settings.mcp_url)
    hosts = [public.netloc, f"{settings.mcp_host}:{settings.mcp_port}", *LOOPBACK]
    origins = [f"{public.scheme}://{public.netloc}"]
    origins += [f"{scheme}://{host}" for scheme in ("http", "https") for host in LOOPBACK]
    return TransportSecuritySettings(
        allowed_hosts=[*hosts, *(f"{host}:*" for host in LOOPBACK)],
        allowed_origins=[
            *settings.allowed_origins.split(),
            *origins,
            *(f"{origin}:*" for origin in origins[1:]),
        ],
    )
