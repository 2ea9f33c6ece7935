"""Who may pass: a bearer token for this audience, and for each tool its scope (RFC 6750, RFC 9728; mcp.md 1).

Above: `app`. Below: `rag.identity`. Our own ASGI layers instead of the SDK's, which put no `scope` into a challenge,
blame a missing token as an invalid one and know no scope per tool. The answers' bodies are JSON-RPC errors, so that MCP
clients show their message. The scope is checked again where the tool runs; this layer makes its refusal an HTTP 403.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mcp_server.errors import CODES, TOO_LARGE
from mcp_server.tools import find_tool
from rag.errors import BulkheadError, Forbidden, Unauthenticated
from rag.identity.principal import Principal
from rag.identity.scopes import Scope as TokenScope
from rag.identity.verified import VerifiedTokens

__all__ = ["PRINCIPAL", "BearerAuth", "Challenge", "ToolScopes"]

PRINCIPAL = "bulkhead.principal"
"""Key of the ASGI scope under which the layers below find the verified caller."""
DEFAULT_SCOPE = TokenScope.CORPUS_READ


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
        return _refused(status, CODES[error.code], error.message, {"www-authenticate": "Bearer " + ", ".join(parts)})


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
            principal = self._verifier.verify(_bearer_token(scope))
        except Unauthenticated as exc:
            blame = "invalid_token" if "authorization" in Headers(scope=scope) else None
            answer = self._challenge.response(401, exc, scopes=frozenset({DEFAULT_SCOPE}), blame=blame)
            await answer(scope, receive, send)
            return
        await self._app({**scope, PRINCIPAL: principal}, receive, send)


class ToolScopes:
    """Answers 403 with the scope to ask for when a call names a tool that the token does not cover."""

    def __init__(self, app: ASGIApp, *, challenge: Challenge, max_body_bytes: int) -> None:
        """Wrap `app`, which sees no body longer than `max_body_bytes`."""
        self._app = app
        self._challenge = challenge
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body, look at the tool's name, pass both on."""
        body = await _read(receive, self._max_body_bytes)
        if body is None:
            message = f"the request is larger than {self._max_body_bytes // 2**20} MiB"
            await _refused(413, TOO_LARGE, message, {"connection": "close"})(scope, receive, send)
            return
        principal: Principal = scope[PRINCIPAL]
        tool = find_tool(_tool_name(Headers(scope=scope), body))
        if tool is not None and tool.scope not in principal.scopes:
            error = Forbidden(f"this needs the scope {tool.scope.value}")
            # the scopes that the token has are named too: a client that asks for these must not lose what it had
            answer = self._challenge.response(
                403, error, scopes=principal.scopes | {tool.scope}, blame="insufficient_scope"
            )
            await answer(scope, receive, send)
            return
        await self._app(scope, _replaying(body, receive), send)


def _bearer_token(scope: Scope) -> str:
    values = Headers(scope=scope).getlist("authorization")
    if not values:
        raise Unauthenticated
    # two credentials would leave it to each layer which one counts
    kind, _, token = values[0].partition(" ")
    if len(values) > 1 or kind.lower() != "bearer" or not token.strip():
        raise Unauthenticated
    return token.strip()


async def _read(receive: Receive, limit: int) -> bytes | None:
    body = bytearray()
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return bytes(body)  # the client left: whatever is done with it, nobody will read the answer
        size += len(message.get("body", b""))
        if size <= limit:
            body += message.get("body", b"")
        elif size > 2 * limit:
            return None
        # up to twice the limit is read and dropped: most clients look for an answer only when they have sent everything
        if not message.get("more_body", False):
            return bytes(body) if size <= limit else None


def _replaying(body: bytes, receive: Receive) -> Receive:
    told = False

    async def replay() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _tool_name(headers: Headers, body: bytes) -> str:
    # from 2026-07-28 on the SDK refuses a request whose Mcp-Name differs from its body
    if headers.get("mcp-protocol-version") in MODERN_PROTOCOL_VERSIONS:
        return headers.get("mcp-name", "") if headers.get("mcp-method") == "tools/call" else ""
    if b"tools/call" not in body:
        return ""
    try:
        message: Any = orjson.loads(body)
        if message["method"] == "tools/call" and isinstance(message["params"]["name"], str):
            return message["params"]["name"]
    except (ValueError, KeyError, TypeError):
        pass  # malformed: the SDK says so below
    return ""


def _refused(status: int, code: int | None, message: str, headers: dict[str, str]) -> Response:
    body = orjson.dumps({"jsonrpc": "2.0", "id": None, "error": {"code": code, "message": message}})
    return Response(body, status_code=status, headers=headers, media_type="application/json")
