"""Who may enter: a bearer token for this audience with the scope tasks:run (RFC 6750). Pure ASGI, fails closed.

Above: `app`. Below: `rag.identity`. Every path needs a token except the few that are named public. Also here, because
it must happen before anything is read: the tenant's rate limit, the size of the body, the request's span.
"""

from __future__ import annotations

from opentelemetry import trace
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from a2a_server.errors import http_status
from rag.errors import BulkheadError, Forbidden, RateLimited, Unauthenticated
from rag.identity.principal import require
from rag.identity.scopes import Scope as TokenScope
from rag.identity.verified import VerifiedTokens
from rag.limits.limiter import Limiter
from rag.telemetry import carried_from, log_fields

__all__ = ["PRINCIPAL", "BodyLimit", "Door"]

PRINCIPAL = "bulkhead.principal"
"""Key of the ASGI scope under which the layers below find the verified caller."""
_tracer = trace.get_tracer("bulkhead.a2a")


class Door:
    """Lets a request through with the caller that its token proves, inside the span of the caller's trace."""

    def __init__(self, app: ASGIApp, *, verifier: VerifiedTokens, limiter: Limiter, public: frozenset[str]) -> None:
        """`public` are the paths that need no token."""
        self._app = app
        self._verifier = verifier
        self._limiter = limiter
        self._public = public

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Verify, then pass on."""
        if scope["type"] != "http" or scope["path"] in self._public:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        trace_headers = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
        with (
            carried_from(trace_headers),
            _tracer.start_as_current_span(
                f"{scope['method']} {scope['path']}",
                kind=trace.SpanKind.SERVER,
                record_exception=False,
                set_status_on_exception=False,
            ),
        ):
            try:
                principal = await self._verifier.verify(_bearer_token(headers))
                require(principal, TokenScope.TASKS_RUN)
                await self._limiter.admit(principal)
            except BulkheadError as exc:
                await _refused(exc, sent="authorization" in headers)(scope, receive, send)
                return
            with log_fields(tenant=str(principal.tenant_id)):
                await self._app({**scope, PRINCIPAL: principal}, receive, send)


class BodyLimit:
    """Answers 413 instead of reading more than `max_bytes`."""

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        """Wrap `app`, whose reading fails with HTTPException 413 when a body without a length turns out too long."""
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count, then pass on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length", "0")
        if not length.isdigit() or int(length) > self._max_bytes:
            body = {"error": "invalid_input", "message": f"a request is at most {self._max_bytes} bytes"}
            await JSONResponse(body, status_code=413, headers={"connection": "close"})(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._max_bytes:
                raise HTTPException(413, f"a request is at most {self._max_bytes} bytes")
            return message

        await self._app(scope, counted, send)


def _bearer_token(headers: Headers) -> str:
    values = headers.getlist("authorization")
    # two credentials would leave it to each layer which one counts
    if len(values) != 1:
        raise Unauthenticated
    kind, _, token = values[0].strip().partition(" ")
    if kind.lower() != "bearer" or not token.strip():
        raise Unauthenticated
    return token.strip()


def _refused(exc: BulkheadError, *, sent: bool) -> JSONResponse:
    headers: dict[str, str] = {}
    match exc:
        case Unauthenticated():
            # RFC 6750, section 3.1: a request without a token is told no error code
            headers["WWW-Authenticate"] = "Bearer" + (' error="invalid_token"' if sent else "")
        case Forbidden():
            headers["WWW-Authenticate"] = f'Bearer error="insufficient_scope", scope="{TokenScope.TASKS_RUN.value}"'
        case RateLimited():
            headers["Retry-After"] = str(max(1, round(exc.retry_after_s)))
        case _:
            pass
    body = {"error": exc.code, "message": exc.message}
    return JSONResponse(body, status_code=http_status(exc.code), headers=headers)
