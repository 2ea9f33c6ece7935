"""Lets web pages of allowed origins call the endpoint, and pages of any origin read the OAuth metadata (Fetch, CORS).

Above: `app`, outside authentication: a preflight carries no token, and a page must be able to read a challenge. What
has no Origin header, which is every client that is no browser, passes untouched.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Cors", "Origins"]

MAX_AGE_S = 600
"""A preflight is remembered this long; browsers cap it anyway."""
EXPOSED = "WWW-Authenticate, Retry-After"
"""What a page may read of an answer: where to get a token, when to come back."""
_SENT = frozenset(
    {
        "accept",
        "authorization",
        "content-type",
        "last-event-id",
        "mcp-method",
        "mcp-name",
        "mcp-protocol-version",
        "traceparent",
        "tracestate",
    }
)
"""The request headers of MCP clients; those that a tool's schema names begin with _PARAMETER."""
_PARAMETER = "mcp-param-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Origins:
    """The web origins that are let in; one that ends in `:*` stands for every port."""

    allowed: Collection[str]

    def allow(self, origin: str) -> bool:
        """Tell whether a page of `origin` may call."""
        if origin in self.allowed:
            return True
        return any(one.endswith(":*") and origin.startswith(one[:-1]) for one in self.allowed)


class Cors:
    """Answers preflights and marks answers as readable."""

    def __init__(self, app: ASGIApp, *, endpoint: str, public: Collection[str], origins: Origins) -> None:
        """Wrap `app`, whose path `endpoint` is for `origins`, and whose `public` paths are for everybody to read."""
        self._app = app
        self._endpoint = endpoint
        self._public = public
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a preflight, or pass on."""
        origin = _origin(scope)
        if origin is None:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        asks = scope["method"] == "OPTIONS" and "access-control-request-method" in headers
        if scope["path"] in self._public:
            # no credentials are involved, and the document is the same for all: it says so itself
            app = _preflight(headers, method="GET", allowed="*") if asks else self._app
            await app(scope, receive, send)
            return
        allowed = origin if scope["path"] == self._endpoint and self._origins.allow(origin) else ""
        if asks:
            await _preflight(headers, method="POST", allowed=allowed)(scope, receive, send)
            return

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                answered = MutableHeaders(scope=message)
                answered.add_vary_header("Origin")
                if allowed:
                    answered["access-control-allow-origin"] = allowed
                    answered["access-control-expose-headers"] = EXPOSED
            await send(message)

        await self._app(scope, receive, marked)


def _origin(scope: Scope) -> str | None:
    if scope["type"] == "http":
        for name, value in scope["headers"]:
            if name == b"origin":
                return value.decode("latin-1")
    return None


def _preflight(headers: Headers, *, method: str, allowed: str) -> Response:
    vary = "Origin, Access-Control-Request-Headers"
    if not allowed or headers["access-control-request-method"] != method:
        return Response(status_code=403, headers={"vary": vary})
    wanted = {name.strip().lower() for name in headers.get("access-control-request-headers", "").split(",")}
    sent = sorted(name for name in wanted if name in _SENT or name.startswith(_PARAMETER))
    return Response(
        status_code=204,
        headers={
            "vary": vary,
            "access-control-allow-origin": allowed,
            "access-control-allow-methods": method,
            "access-control-allow-headers": ", ".join(sent),
            "access-control-max-age": str(MAX_AGE_S),
        },
    )
