"""Who may enter: a bearer token for this audience with the scope tasks:run (RFC 6750). Fails closed.

Above: `app` with the doors of HTTP, which are pure ASGI, and `grpc_server` with its own. Below: `rag.identity`. Every
path needs a token except the few that are named public. Also here, because it must happen before anything is read: the
tenant's rate limit, the size of the body, the request's span.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from a2a.utils.errors import InvalidRequestError
from opentelemetry import trace
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from a2a_server.errors import a2a_error, json_status
from rag.errors import BulkheadError, Forbidden, RateLimited, Unauthenticated
from rag.identity.principal import Principal, require
from rag.identity.scopes import Scope as TokenScope
from rag.identity.verified import VerifiedTokens
from rag.limits.limiter import Limiter
from rag.telemetry import carried_from, log_fields

__all__ = ["PRINCIPAL", "BodyLimit", "Desk", "Door", "challenge", "request_span"]

PRINCIPAL = "bulkhead.principal"
"""Key of the ASGI scope under which the layers below find the verified caller."""
_TRACE = ("traceparent", "tracestate")
_tracer = trace.get_tracer("bulkhead.a2a")


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """Where callers show their token, whichever door they came by."""

    verifier: VerifiedTokens
    limiter: Limiter

    async def enter(self, credentials: Sequence[str]) -> Principal:
        """Return the caller, who has paid for the request.

        Args:
            credentials: The values of `Authorization`.

        Raises:
            Unauthenticated, Forbidden, RateLimited, Unavailable: It may not enter.
        """
        principal = await self.verifier.verify(_bearer_token(credentials))
        require(principal, TokenScope.TASKS_RUN)
        await self.limiter.admit(principal)
        return principal


class Door:
    """Lets a request through with the caller that its token proves, inside the span of the caller's trace."""

    def __init__(self, app: ASGIApp, *, desk: Desk, public: frozenset[str]) -> None:
        """`public` are the paths that need no token."""
        self._app = app
        self._desk = desk
        self._public = public

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Verify, then pass on."""
        if scope["type"] != "http" or scope["path"] in self._public:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        with request_span(f"{scope['method']} {scope['path']}", headers):
            try:
                principal = await self._desk.enter(headers.getlist("authorization"))
            except BulkheadError as exc:
                await _refused(exc, sent="authorization" in headers)(scope, receive, send)
                return
            with log_fields(tenant=str(principal.tenant_id)):
                await self._app({**scope, PRINCIPAL: principal}, receive, send)


@contextmanager
def request_span(name: str, headers: Mapping[str, str]) -> Generator[None]:
    """Go on, inside the block, with the trace that the caller's headers carry."""
    with (
        carried_from({name: headers[name] for name in _TRACE if name in headers}),
        _tracer.start_as_current_span(
            name, kind=trace.SpanKind.SERVER, record_exception=False, set_status_on_exception=False
        ),
    ):
        yield


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
        headers = Headers(scope=scope)
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > self._max_bytes:
            # most clients look for an answer only when they have sent all, and lose it where the connection is closed
            # before; who asks first whether to send it is told at once
            if "expect" not in headers:
                await self._drop(receive)
            body = json_status(InvalidRequestError(f"a request is at most {self._max_bytes} bytes"))
            body["error"]["code"] = 413
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

    async def _drop(self, receive: Receive) -> None:
        """Read and forget a body, up to twice the limit."""
        seen = 0
        while seen <= 2 * self._max_bytes:
            message = await receive()
            seen += len(message.get("body", b""))
            if not message.get("more_body", False):
                return


def challenge(exc: BulkheadError, *, sent: bool) -> dict[str, str]:
    """Return the headers that tell a refused caller what to do; `sent` is whether it had sent credentials at all."""
    match exc:
        case Unauthenticated():
            # RFC 6750, section 3.1: a request without a token is told no error code
            return {"WWW-Authenticate": "Bearer" + (' error="invalid_token"' if sent else "")}
        case Forbidden():
            needed = TokenScope.TASKS_RUN.value
            return {"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{needed}"'}
        case RateLimited():
            return {"Retry-After": str(max(1, round(exc.retry_after_s)))}
        case _:
            return {}


def _bearer_token(values: Sequence[str]) -> str:
    # two credentials would leave it to each layer which one counts
    if len(values) != 1:
        raise Unauthenticated
    kind, _, token = values[0].strip().partition(" ")
    if kind.lower() != "bearer" or not token.strip():
        raise Unauthenticated
    return token.strip()


def _refused(exc: BulkheadError, *, sent: bool) -> JSONResponse:
    body = json_status(a2a_error(exc))
    return JSONResponse(body, status_code=body["error"]["code"], headers=challenge(exc, sent=sent))
