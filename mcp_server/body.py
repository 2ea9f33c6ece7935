"""Reads a request's body once, within its limit, and decodes it for the layers below.

Above: `auth.BearerAuth`: no byte is read for a caller that is not known. Below: `auth.Scopes` and `lane`, which look at
the decoded message, and the SDK's transport, which gets the same bytes again. What is no JSON object ends here, alike
for both revisions. All bodies that are being read or answered have a bound together: a decoded one takes some six times
its size. How long one may take to arrive, `rag.serving` says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from typing import Any, cast

import orjson
from mcp_types import INVALID_REQUEST, PARSE_ERROR
from pydantic_core import from_json
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mcp_server.errors import TOO_LARGE, UNAVAILABLE

__all__ = ["ReadBody", "message_of", "refused"]

MAX_HELD_BYTES = 128 * 2**20
MAX_HELD_BYTES_OF_TENANT = 48 * 2**20
"""Of all bodies at a time in this process; a tenant that sends slowly must not use up the room of all."""
_MESSAGE = "bulkhead.message"


class ReadBody:
    """Passes on a body of up to `max_bytes`, or answers 413; 503 where there is no room for it now."""

    def __init__(self, app: ASGIApp, *, max_bytes: int, tenant_of: Callable[[Scope], Hashable]) -> None:
        """Wrap `app`."""
        self._app = app
        self._max_bytes = max_bytes
        self._tenant_of = tenant_of
        self._held_bytes = 0
        self._held_bytes_of = Counter[Hashable]()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read, decode, pass on; what is held is free again when the answer is given."""
        tenant, body = self._tenant_of(scope), bytearray()
        try:
            refusal = await self._read(receive, tenant, body)
            if refusal is None:
                await self._pass_on(bytes(body), scope, receive, send)
            else:
                await refusal(scope, receive, send)
        finally:
            self._drop(tenant, body)

    async def _pass_on(self, body: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            # not orjson, which makes floats of integers beyond 64 bits: metadata must come back as it was
            decoded: Any = from_json(body, allow_inf_nan=False)
        except ValueError:
            await refused(400, PARSE_ERROR, "the body is not JSON in UTF-8")(scope, receive, send)
            return
        if not isinstance(decoded, dict):
            message = "the body is not a JSON object: there are no batches"
            await refused(400, INVALID_REQUEST, message)(scope, receive, send)
            return
        await self._app({**scope, _MESSAGE: decoded}, _replaying(body, receive), send)

    async def _read(self, receive: Receive, tenant: Hashable, body: bytearray) -> Response | None:
        """Fill `body`, whose bytes count as held; return the refusal, if that is the answer."""
        size, refusal = 0, None
        while True:
            message = await receive()
            if message["type"] != "http.request":
                # the client left: nothing is done, and nobody will read this
                return refused(400, PARSE_ERROR, "the request was cut off")
            piece: bytes = message.get("body", b"")
            size += len(piece)
            if size > self._max_bytes:
                text = f"the request is larger than {self._max_bytes // 2**20} MiB"
                refusal = refused(413, TOO_LARGE, text, {"connection": "close"})
            elif refusal is None and not self._has_room(tenant, len(piece)):
                text = "too much is being sent to this server at a time; try again"
                refusal = refused(503, UNAVAILABLE, text, {"connection": "close", "retry-after": "1"})
            if refusal is None:
                self._held_bytes += len(piece)
                self._held_bytes_of[tenant] += len(piece)
                body += piece
            else:
                self._drop(tenant, body)
            # up to twice the limit is read and dropped: most clients look for an answer only when they have sent all
            if not message.get("more_body", False) or size > 2 * self._max_bytes:
                return refusal

    def _has_room(self, tenant: Hashable, size: int) -> bool:
        of_tenant = self._held_bytes_of[tenant] + size
        return self._held_bytes + size <= MAX_HELD_BYTES and of_tenant <= MAX_HELD_BYTES_OF_TENANT

    def _drop(self, tenant: Hashable, body: bytearray) -> None:
        self._held_bytes -= len(body)
        self._held_bytes_of[tenant] -= len(body)
        if not self._held_bytes_of[tenant]:
            del self._held_bytes_of[tenant]
        body.clear()


def message_of(scope: Scope) -> dict[str, Any]:
    """Return the JSON object that the body is; whether it is a JSON-RPC message has not been looked at."""
    return cast("dict[str, Any]", scope[_MESSAGE])


def refused(status: int, code: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return a refusal below the protocol: a JSON-RPC error without an id, so that MCP clients show its message."""
    body = orjson.dumps({"jsonrpc": "2.0", "id": None, "error": {"code": code, "message": message}})
    return Response(body, status_code=status, headers=headers, media_type="application/json")


def _replaying(body: bytes, receive: Receive) -> Receive:
    told = False

    async def replay() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
