"""The SDK's JSON-RPC binding, hardened: what is malformed stops here, and no exception's text goes out.

Above: `app`. Below: `handler`. Added to the SDK's dispatcher: the media type (-32005), strict JSON (-32700), versions
by Major.Minor (-32009), required extensions (-32008), SSE ids, HTTP statuses of a closed door.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, cast

import orjson
from a2a.extensions.common import HTTP_EXTENSION_HEADER, get_requested_extensions
from a2a.server.context import ServerCallContext
from a2a.server.jsonrpc_models import InternalError as RpcInternalError
from a2a.server.jsonrpc_models import JSONParseError, JSONRPCError
from a2a.server.request_handlers.request_handler import RequestHandler
from a2a.server.request_handlers.response_helpers import build_error_response
from a2a.server.routes.common import ServerCallContextBuilder
from a2a.server.routes.jsonrpc_dispatcher import JsonRpcDispatcher
from a2a.types.a2a_pb2 import AgentCard
from a2a.utils.constants import VERSION_HEADER
from a2a.utils.errors import (
    A2AError,
    ContentTypeNotSupportedError,
    ExtensionSupportRequiredError,
    InternalError,
    InvalidRequestError,
    VersionNotSupportedError,
)
from sse_starlette.sse import EventSourceResponse
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from a2a_server.auth import PRINCIPAL
from a2a_server.errors import http_status
from a2a_server.protocol.outgoing import RESUME_EXTENSION

__all__ = ["Dispatcher", "PrincipalContext"]

_log = logging.getLogger(__name__)
VERSION = "1.0"
PING_S = 15.0
"""Shorter than the idle timeout of common load balancers (60 s)."""
SEND_TIMEOUT_S = 60.0
"""A reader that takes nothing for this long is let go; it may come back with its last event id."""


class PrincipalContext(ServerCallContextBuilder):
    """Hands the verified caller and the request's headers to the handler."""

    def build(self, request: Request) -> ServerCallContext:
        """Return the call's context; `tenant` is left for the SDK to overwrite and never read."""
        headers = dict(request.headers)
        headers.setdefault(VERSION_HEADER.lower(), request.query_params.get(VERSION_HEADER, ""))
        return ServerCallContext(
            state={"headers": headers, "principal": request.scope[PRINCIPAL]},
            requested_extensions=_extensions(request),
        )


class StrictRequest(Request):
    """Reads its JSON by one strict parser, so that what was checked is what the SDK acts on.

    Stricter than the SDK's own: one encoding, no NaN, no lone surrogate, bounded depth, no integer that an answer could
    not repeat (larger ones come as floats, which are no id and no number of a field).
    """

    async def json(self) -> Any:
        """Return the body; raises json.JSONDecodeError."""
        return orjson.loads(await self.body())


class Dispatcher(JsonRpcDispatcher):
    """One endpoint, any number of routes."""

    def __init__(self, handler: RequestHandler, card: AgentCard) -> None:
        """`card` names the extensions, among them those that every caller must support."""
        super().__init__(handler, PrincipalContext())
        self._known = {extension.uri for extension in card.capabilities.extensions}
        self._required = {extension.uri for extension in card.capabilities.extensions if extension.required}

    async def handle_requests(self, request: Request) -> Response:
        """Answer one POST. Every answer is JSON-RPC, whatever came."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return self._generate_error_response(None, ContentTypeNotSupportedError("send application/json"))
        request = StrictRequest(request.scope, request.receive)
        try:
            body = await request.json()
        except orjson.JSONDecodeError:
            return self._generate_error_response(None, JSONParseError())
        except HTTPException as exc:
            return JSONResponse(
                build_error_response(None, InvalidRequestError(str(exc.detail))), status_code=exc.status_code
            )
        refused = self._refusal(request)
        if refused is not None:
            return self._generate_error_response(_id_of(body), refused)
        return await super().handle_requests(request)

    def _refusal(self, request: Request) -> A2AError | None:
        version = request.headers.get(VERSION_HEADER) or request.query_params.get(VERSION_HEADER, "")
        if ".".join(version.strip().split(".")[:2]) != VERSION:
            return VersionNotSupportedError(f"this interface speaks A2A {VERSION}; name it in {VERSION_HEADER}")
        missing = self._required - _extensions(request)
        if missing:
            return ExtensionSupportRequiredError(f"{HTTP_EXTENSION_HEADER} must name {', '.join(sorted(missing))}")
        return None

    def _generate_error_response(
        self, request_id: str | int | None, error: Exception | JSONRPCError | A2AError
    ) -> JSONResponse:
        """Answer an error without what the SDK would add: the texts of exceptions."""
        if isinstance(error, RpcInternalError) or not isinstance(error, A2AError | JSONRPCError):
            error = InternalError()
        elif isinstance(error.data, dict) and "parseError" in error.data:
            error.data = None
        return _error_answer(build_error_response(request_id, error))

    def _create_response(
        self, context: ServerCallContext, handler_result: AsyncGenerator[dict[str, Any]] | dict[str, Any]
    ) -> Response:
        if isinstance(handler_result, dict):
            response: Response = _error_answer(handler_result) if "error" in handler_result else _json(handler_result)
        else:
            response = EventSourceResponse(
                _sse(handler_result, context.state.get("request_id")), ping=PING_S, send_timeout=SEND_TIMEOUT_S
            )
        activated = self._known & context.requested_extensions
        if activated:
            response.headers[HTTP_EXTENSION_HEADER] = ", ".join(sorted(activated))
        return response


async def _sse(stream: AsyncGenerator[dict[str, Any]], request_id: str | int | None) -> AsyncGenerator[dict[str, str]]:
    """Yield one SSE event per answer; its id is the seq of the task's event."""
    try:
        async with aclosing(stream):
            async for answer in stream:
                event = {"data": orjson.dumps(answer).decode()}
                seq = _seq(answer)
                if seq is not None:
                    event["id"] = str(seq)
                if "error" in answer:
                    event["event"] = "error"
                yield event
    except Exception:  # noqa: BLE001  # the stream has begun: an error can only be told inside of it
        _log.warning("a stream broke", exc_info=True)
        yield {"event": "error", "data": orjson.dumps(build_error_response(request_id, InternalError())).decode()}


def _seq(answer: dict[str, Any]) -> int | None:
    for message in (answer.get("result") or {}).values():
        position = message.get("metadata", {}).get(RESUME_EXTENSION)
        if position is not None:
            return int(position["seq"])
    return None


def _json(value: dict[str, Any], status: int = 200) -> Response:
    return Response(orjson.dumps(value), status_code=status, media_type="application/json")


def _error_answer(answer: dict[str, Any]) -> JSONResponse:
    details = answer["error"].get("data")
    code = details[0]["metadata"].get("code") if isinstance(details, list) and details else None
    status = http_status(code)
    headers = {"WWW-Authenticate": 'Bearer error="invalid_token"'} if status == 401 else None
    return JSONResponse(answer, status_code=status, headers=headers)


def _id_of(body: object) -> str | int | None:
    value = cast("dict[str, Any]", body).get("id") if isinstance(body, dict) else None
    return value if isinstance(value, str | int) and not isinstance(value, bool) else None


def _extensions(request: Request) -> set[str]:
    return get_requested_extensions(request.headers.getlist(HTTP_EXTENSION_HEADER))
