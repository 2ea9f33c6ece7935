"""Reads a request's body once, within its limit, and decodes it for the layers below.

Above: `auth.BearerAuth`: no byte is read for a caller that is not known. Below: `auth.Scopes` and `lane`, which look at
the decoded message, and the SDK's transport, which gets the same bytes again. What is no JSON object ends here, alike
for both revisions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import orjson
from mcp_types import INVALID_REQUEST, PARSE_ERROR
from pydantic_core import from_json
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mcp_server.errors import TOO_LARGE

__all__ = ["ReadBody", "message_of", "refused"]

_MESSAGE = "bulkhead.message"


class ReadBody:
    """Passes on a body of up to `max_bytes`, or answers 413."""

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        """Wrap `app`."""
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read, decode, pass on."""
        body = await _read(receive, self._max_bytes)
        if body is None:
            message = f"the request is larger than {self._max_bytes // 2**20} MiB"
            await refused(413, TOO_LARGE, message, {"connection": "close"})(scope, receive, send)
            return
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


def message_of(scope: Scope) -> dict[str, Any]:
    """Return the JSON object that the body is; whether it is a JSON-RPC message has not been looked at."""
    return cast("dict[str, Any]", scope[_MESSAGE])


def refused(status: int, code: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return a refusal below the protocol: a JSON-RPC error without an id, so that MCP clients show its message."""
    body = orjson.dumps({"jsonrpc": "2.0", "id": None, "error": {"code": code, "message": message}})
    return Response(body, status_code=status, headers=headers, media_type="application/json")


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
