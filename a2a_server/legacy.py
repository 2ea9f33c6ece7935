"""Clients of A2A 0.3, through the SDK's compatibility layer: their methods and paths, on the same handler and tasks.

Above: `dispatcher`, `rest`. Below: the SDK's adapters, `guard`. Changed in them: errors carry no exception's text, and
streams have ids, pings and bounds as those of 1.0.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Mapping
from typing import Any

import orjson
from a2a.compat.v0_3 import types as v03
from a2a.compat.v0_3.jsonrpc_adapter import (
    JSONRPC03Adapter,
    _to_v03_jsonrpc_error,  # pyright: ignore[reportPrivateUsage]  # which codes 0.3 knows
)
from a2a.compat.v0_3.rest_adapter import REST03Adapter
from a2a.server.context import ServerCallContext
from a2a.server.jsonrpc_models import InvalidRequestError, JSONRPCError
from a2a.utils.errors import A2AError, InternalError, InvalidParamsError
from a2a.utils.errors import InvalidRequestError as BadRequest
from google.protobuf.json_format import ParseError
from google.protobuf.message import DecodeError
from sse_starlette.sse import EventSourceResponse
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from a2a_server.errors import code_of, http_status
from a2a_server.web import event_stream, without_text

__all__ = ["LegacyRest", "LegacyRpc", "unread"]


class LegacyRpc(JSONRPC03Adapter):
    """JSON-RPC's methods of 0.3, such as `message/send`."""

    def _generate_error_response(self, request_id: str | int | None, error: Exception | JSONRPCError) -> JSONResponse:
        if isinstance(error, InvalidRequestError):
            told: Mapping[str, Any] = {"code": error.code, "message": error.message}
            return JSONResponse({"jsonrpc": "2.0", "id": request_id, "error": told})
        known = unread(error) if isinstance(error, Exception) else InternalError()
        return JSONResponse(_error(request_id, known), status_code=http_status(code_of(known)))

    async def _process_non_streaming_request(
        self, request_id: str | int | None, request_obj: Any, context: ServerCallContext
    ) -> JSONResponse:
        try:
            return await super()._process_non_streaming_request(request_id, request_obj, context)
        except Exception as exc:  # noqa: BLE001  # whatever broke becomes an error without a text
            raise unread(exc) from None

    async def _process_streaming_request(
        self, request_id: str | int | None, request_obj: Any, context: ServerCallContext
    ) -> EventSourceResponse:
        # 0.3 has its clients read errors of a stream from the stream
        call = (
            self.handler.on_message_send_stream
            if request_obj.method == "message/stream"
            else self.handler.on_subscribe_to_task
        )
        return event_stream(_dumped(call(request_obj, context)), refused=functools.partial(_error, request_id))


class LegacyRest(REST03Adapter):
    """HTTP+JSON's paths of 0.3, which begin with `/v1/`."""

    def __init__(self, *arguments: Any, refusal: Callable[..., Response], **keywords: Any) -> None:
        """`refusal` makes the response that tells an error, with the HTTP status `status` if one is named."""
        super().__init__(*arguments, **keywords)
        self._refusal = refusal

    async def _handle_request(
        self, method: Callable[[Request, ServerCallContext], Awaitable[Any]], request: Request
    ) -> Response:
        try:
            return JSONResponse(await method(request, self._context_builder.build(request)))
        except Exception as exc:  # noqa: BLE001  # whatever broke becomes an error without a text
            return self._refused(exc)

    async def _handle_streaming_request(
        self, method: Callable[[Request, ServerCallContext], AsyncIterable[Any]], request: Request
    ) -> Response:
        try:
            await request.body()
            messages = _each(method(request, self._context_builder.build(request)))
            first = await anext(messages, None)
        except Exception as exc:  # noqa: BLE001  # as above
            return self._refused(exc)
        return event_stream(_with(first, messages), refused=lambda error: orjson.loads(self._refusal(error).body))

    def _refused(self, exc: Exception) -> Response:
        if isinstance(exc, HTTPException):
            return self._refusal(BadRequest(str(exc.detail)), status=exc.status_code)
        return self._refusal(unread(exc))


def unread(exc: Exception) -> A2AError:
    """Return what is told of an exception out of the SDK's own reading of requests.

    The guard answers for what is below it. What is left is a request that the SDK could not make anything of.
    """
    if isinstance(exc, ParseError | DecodeError | ValueError) and not isinstance(exc, A2AError):
        return InvalidParamsError()
    return without_text(exc)


def _error(request_id: str | int | None, error: A2AError) -> dict[str, Any]:
    told = _to_v03_jsonrpc_error(error).model_dump(by_alias=True, exclude_none=True)
    return {"jsonrpc": "2.0", "id": request_id, "error": told}


async def _dumped(
    answers: AsyncIterable[v03.SendStreamingMessageSuccessResponse],
) -> AsyncGenerator[Mapping[str, Any]]:
    try:
        async for answer in answers:
            yield answer.model_dump(mode="json", by_alias=True, exclude_none=True)
    except Exception as exc:  # noqa: BLE001  # as above
        raise unread(exc) from None


async def _each(messages: AsyncIterable[Any]) -> AsyncGenerator[Mapping[str, Any]]:
    async for message in messages:
        yield message


async def _with(
    first: Mapping[str, Any] | None, rest: AsyncGenerator[Mapping[str, Any]]
) -> AsyncGenerator[Mapping[str, Any]]:
    if first is not None:
        yield first
    async for message in rest:
        yield message
