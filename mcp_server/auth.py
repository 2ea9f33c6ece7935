"""Who may pass: a bearer token for this audience, and for each operation its scope (RFC 6750, RFC 9728; mcp.md 1).

Above: `app`. Below: `rag.identity`. Our own ASGI layers instead of the SDK's, which put no `scope` into a challenge,
blame a missing token as an invalid one and know no scope per operation. The scope is checked again where the work
is done; this layer makes its refusal an HTTP 403.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from mcp_server.body import message_of, refused
from mcp_server.call import DOOR, Operation
from mcp_server.errors import CODES
from rag.audit.log import AuditLog
from rag.audit.trail import trace_id
from rag.audit.values import Entry
from rag.errors import BulkheadError, Forbidden, Unauthenticated, Unavailable
from rag.identity.principal import Principal
from rag.identity.scopes import Scope as TokenScope
from rag.identity.verified import VerifiedTokens

__all__ = ["PRINCIPAL", "BearerAuth", "Challenge", "Scopes"]

PRINCIPAL = "bulkhead.principal"
"""Key of the ASGI scope under which the layers below find the verified caller."""
DEFAULT_SCOPE = TokenScope.CORPUS_READ
RETRY_AFTER_S = 30
"""The external issuer's keys are asked for again after so long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """What a refused client is told: where the metadata is that names the issuer, and which scopes to ask for."""

    metadata_url: str

    def response(
        self, status: int, error: BulkheadError, *, scopes: frozenset[TokenScope], blame: str | None
    ) -> Response:
        """Return the refusal. `blame` is RFC 6750's error code; None when no token was sent at all."""
        parts = [f'error="{blame}"', f'error_description="{error.message}"'] if blame else []
        parts += [f'scope="{" ".join(sorted(scope.value for scope in scopes))}"']
        parts += [f'resource_metadata="{self.metadata_url}"']
        return refused(status, CODES[error.code], error.message, {"www-authenticate": "Bearer " + ", ".join(parts)})


class BearerAuth:
    """Lets a request through with the caller that its token proves, or answers 401."""

    def __init__(self, app: ASGIApp, *, verifier: VerifiedTokens, challenge: Challenge) -> None:
        """Wrap `app`."""
        self._app = app
        self._verifier = verifier
        self._challenge = challenge

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Verify, then pass on."""
        try:
            principal = await self._verifier.verify(_bearer_token(scope))
        except Unavailable as exc:
            # not 401: the token may well be good, and a client told otherwise would throw it away
            retry = {"retry-after": str(RETRY_AFTER_S)}
            await refused(503, CODES[exc.code], exc.message, retry)(scope, receive, send)
            return
        except Unauthenticated as exc:
            blame = "invalid_token" if "authorization" in Headers(scope=scope) else None
            answer = self._challenge.response(401, exc, scopes=frozenset({DEFAULT_SCOPE}), blame=blame)
            await answer(scope, receive, send)
            return
        await self._app({**scope, PRINCIPAL: principal}, receive, send)


class Scopes:
    """Answers 403 with the scope to ask for when a request is for something that the token does not cover."""

    def __init__(
        self, app: ASGIApp, *, challenge: Challenge, find: Callable[[str, str], Operation | None], audit: AuditLog
    ) -> None:
        """`find` returns what a method on the name or URI in its parameters is; None: nothing that needs a scope."""
        self._app = app
        self._challenge = challenge
        self._find = find
        self._audit = audit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Look at what is asked for, pass it on."""
        principal: Principal = scope[PRINCIPAL]
        method, name = _asked(message_of(scope))
        operation = self._find(method, name)
        needed = None if operation is None else operation.scope
        if operation is None or needed is None or needed in principal.scopes:
            await self._app(scope, receive, send)
            return
        error = Forbidden(f"this needs the scope {needed.value}")
        # no limit is before this refusal: repeats are counted, not written one by one
        self._audit.note_refusal(
            principal,
            Entry(
                door=DOOR,
                method=operation.method,
                target=operation.target,
                outcome=error.code,
                trace_id=trace_id(),
            ),
        )
        # the scopes that the token has are named too: a client that asks for these must not lose what it had
        answer = self._challenge.response(403, error, scopes=principal.scopes | {needed}, blame="insufficient_scope")
        await answer(scope, receive, send)


def _bearer_token(scope: Scope) -> str:
    values = Headers(scope=scope).getlist("authorization")
    if not values:
        raise Unauthenticated
    # two credentials would leave it to each layer which one counts
    kind, _, token = values[0].partition(" ")
    if len(values) > 1 or kind.lower() != "bearer" or not token.strip():
        raise Unauthenticated
    return token.strip()


def _asked(message: dict[str, Any]) -> tuple[str, str]:
    """Return the method, and the name of what it is about; empty where malformed, which the SDK says below."""
    match message:
        # from 2026-07-28 on the SDK refuses a request whose Mcp-Name differs from its body
        case {"method": str() as method, "params": {"name": str() as name}}:
            return method, name
        case {"method": str() as method, "params": {"uri": str() as uri}}:
            return method, uri
        case {"method": str() as method}:
            return method, ""
        case _:
            return "", ""
