"""The SDK's JSON-RPC binding, hardened: what is malformed stops here, and no exception's text goes out.

Above: `app`. Below: `guard`, `legacy` for the methods of 0.3. Added to the SDK's dispatcher: the media type (-32005),
strict JSON (-32700), SSE ids, HTTP statuses of a closed door.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any, cast

import orjson
from a2a.server.context import ServerCallContext
from a2a.server.jsonrpc_models import InternalError as RpcInternalError
from a2a.server.jsonrpc_models import JSONParseError, JSONRPCError
from a2a.server.request_handlers.request_handler import RequestHandler
from a2a.server.request_handlers.response_helpers import build_error_response
from a2a.server.routes.jsonrpc_dispatcher import JsonRpcDispatcher
from a2a.types.a2a_pb2 import AgentCard
from a2a.utils.errors import A2AError, ContentTypeNotSupportedError, InternalError, InvalidRequestError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from a2a_server.errors import a2a_error, http_status
from a2a_server.legacy import LegacyRpc
from a2a_server.protocol import incoming
from a2a_server.web import PrincipalContext, StrictRequest, TaskStreams, activate, begun, media_type_of
from rag.errors import InvalidInput

__all__ = ["Dispatcher"]


class Dispatcher(JsonRpcDispatcher):
    """One endpoint, any number of routes."""

    def __init__(self, handler: RequestHandler, legacy: RequestHandler, card: AgentCard, streams: TaskStreams) -> None:
        """`handler` takes the calls of A2A 1.0, `legacy` those of 0.3; `card` names the extensions that there are."""
        super().__init__(handler, PrincipalContext(), enable_v0_3_compat=True)
        self._v03_adapter = LegacyRpc(legacy, PrincipalContext())
        self._card = card
        self._streams = streams

    async def handle_requests(self, request: Request) -> Response:
        """Answer one POST. Every answer is JSON-RPC, whatever came."""
        if media_type_of(request) != "application/json":
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
        if isinstance(body, dict) and (unknown := _unknown_status(cast("dict[str, Any]", body))):
            return unknown
        return await super().handle_requests(request)

    def _generate_error_response(
        self, request_id: str | int | None, error: Exception | JSONRPCError | A2AError
    ) -> JSONResponse:
        """Answer an error without what the SDK would add: the texts of exceptions."""
        if isinstance(error, RpcInternalError) or not isinstance(error, A2AError | JSONRPCError):
            error = InternalError()
        elif isinstance(error.data, dict) and "parseError" in error.data:
            error.data = None
        return _error_answer(build_error_response(request_id, error))

    async def _process_streaming_request(
        self, request_id: str | int | None, request_obj: Any, context: ServerCallContext
    ) -> AsyncGenerator[Any]:
        """Return the handler's messages as they are: the SDK would make JSON of each, for each who is sent it."""
        del request_id
        call = (
            self.request_handler.on_message_send_stream
            if context.state["method"] == "SendStreamingMessage"
            else self.request_handler.on_subscribe_to_task
        )
        return await begun(call(request_obj, context))

    def _create_response(
        self, context: ServerCallContext, handler_result: AsyncGenerator[Any] | dict[str, Any]
    ) -> Response:
        if isinstance(handler_result, dict):
            response: Response = _error_answer(handler_result) if "error" in handler_result else _json(handler_result)
        else:
            request_id = context.state.get("request_id")
            response = self._streams.response(
                handler_result,
                around=(b'{"jsonrpc":"2.0","id":%b,"result":' % orjson.dumps(request_id), b"}"),
                refused=lambda error: build_error_response(request_id, error),
            )
        return activate(response, self._card, context)


def _unknown_status(body: Mapping[str, Any]) -> JSONResponse | None:
    """Return the refusal of a ListTasks by a state that there is not."""
    asked = body.get("params")
    if body.get("method") != "ListTasks" or not isinstance(asked, dict):
        return None
    try:
        incoming.check_status_name(cast("dict[str, Any]", asked))
    except InvalidInput as exc:
        called = body.get("id")
        request_id = called if isinstance(called, str | int) and not isinstance(called, bool) else None
        return _error_answer(build_error_response(request_id, a2a_error(exc)))
    return None


def _json(value: Mapping[str, Any]) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")


def _error_answer(answer: dict[str, Any]) -> JSONResponse:
    details = answer["error"].get("data")
    code = details[0]["metadata"].get("code") if isinstance(details, list) and details else None
    status = http_status(code)
    headers = {"WWW-Authenticate": 'Bearer error="invalid_token"'} if status == 401 else None
    return JSONResponse(answer, status_code=status, headers=headers)
