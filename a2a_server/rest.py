"""The HTTP+JSON binding (A2A 1.0, section 11): a table of operations, how a request becomes one, how an answer leaves.

Above: `app`, which mounts `rest_app` at REST_PATH. Below: `guard`, `legacy` for the paths of 0.3. The SDK's own
dispatcher for this binding has no place for SSE ids, tells exceptions' texts, and reads neither media types nor the
version in the query.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from a2a.server.context import ServerCallContext
from a2a.server.request_handlers.request_handler import RequestHandler
from a2a.server.routes.common import serialize_list_tasks_response
from a2a.types import a2a_pb2 as pb
from a2a.utils.constants import A2A_JSON_MEDIA_TYPE
from a2a.utils.errors import (
    A2AError,
    ContentTypeNotSupportedError,
    InvalidParamsError,
    InvalidRequestError,
    MethodNotFoundError,
    TaskNotFoundError,
)
from a2a.utils.proto_utils import parse_params
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message import Message
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from a2a_server.errors import a2a_error, json_status
from a2a_server.legacy import LegacyRest
from a2a_server.protocol import incoming
from a2a_server.web import PrincipalContext, StrictRequest, TaskStreams, activate, begun, media_type_of, without_text
from rag.errors import InvalidInput

__all__ = ["refusal", "rest_app"]

JSON_TYPES = frozenset({A2A_JSON_MEDIA_TYPE, "application/json"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation of section 11.3: where it is, what it takes and how its answer is written."""

    verb: str
    path: str
    """Names in braces are fields of the request."""
    request: type[Message]
    call: Callable[[RequestHandler], Callable[[Any, ServerCallContext], Any]]
    answer: Callable[[Any, Any], dict[str, Any]] = lambda _, found: MessageToDict(found)
    """Takes the request and what the handler returned."""
    streams: bool = False


def _sent(_: Any, found: pb.Task | pb.Message) -> dict[str, Any]:
    return MessageToDict(
        pb.SendMessageResponse(task=found) if isinstance(found, pb.Task) else pb.SendMessageResponse(message=found)
    )


def _task(_: Any, found: pb.Task | None) -> dict[str, Any]:
    if found is None:
        raise TaskNotFoundError
    return MessageToDict(found)


_PUSH = "/tasks/{task_id}/pushNotificationConfigs"
OPERATIONS = (
    Operation(
        verb="POST",
        path="/message:send",
        request=pb.SendMessageRequest,
        call=lambda handler: handler.on_message_send,
        answer=_sent,
    ),
    Operation(
        verb="POST",
        path="/message:stream",
        request=pb.SendMessageRequest,
        call=lambda handler: handler.on_message_send_stream,
        streams=True,
    ),
    Operation(
        verb="POST",
        path="/tasks/{id}:cancel",
        request=pb.CancelTaskRequest,
        call=lambda handler: handler.on_cancel_task,
        answer=_task,
    ),
    *(
        Operation(
            verb=verb,
            path="/tasks/{id}:subscribe",
            request=pb.SubscribeToTaskRequest,
            call=lambda handler: handler.on_subscribe_to_task,
            streams=True,
        )
        for verb in ("GET", "POST")
    ),
    Operation(
        verb="GET",
        path="/tasks/{id}",
        request=pb.GetTaskRequest,
        call=lambda handler: handler.on_get_task,
        answer=_task,
    ),
    Operation(
        verb="GET",
        path="/tasks",
        request=pb.ListTasksRequest,
        call=lambda handler: handler.on_list_tasks,
        answer=lambda request, found: serialize_list_tasks_response(found, request.include_artifacts),
    ),
    Operation(
        verb="POST",
        path=_PUSH,
        request=pb.TaskPushNotificationConfig,
        call=lambda handler: handler.on_create_task_push_notification_config,
    ),
    Operation(
        verb="GET",
        path=_PUSH,
        request=pb.ListTaskPushNotificationConfigsRequest,
        call=lambda handler: handler.on_list_task_push_notification_configs,
    ),
    Operation(
        verb="GET",
        path=_PUSH + "/{id}",
        request=pb.GetTaskPushNotificationConfigRequest,
        call=lambda handler: handler.on_get_task_push_notification_config,
    ),
    Operation(
        verb="DELETE",
        path=_PUSH + "/{id}",
        request=pb.DeleteTaskPushNotificationConfigRequest,
        call=lambda handler: handler.on_delete_task_push_notification_config,
        answer=lambda _, __: {},
    ),
    Operation(
        verb="GET",
        path="/extendedAgentCard",
        request=pb.GetExtendedAgentCardRequest,
        call=lambda handler: handler.on_get_extended_agent_card,
    ),
)


def rest_app(handler: RequestHandler, legacy: RequestHandler, card: pb.AgentCard, streams: TaskStreams) -> ASGIApp:
    """Return what answers below REST_PATH, each operation also below `/{tenant}`; parameters as `Dispatcher`'s."""
    routes = [
        Route(operation.path, _endpoint(operation, handler, card, streams), methods=[operation.verb])
        for operation in OPERATIONS
    ]
    old = LegacyRest(legacy, PrincipalContext(), refusal=refusal)
    router = Router(
        [
            *(Route(path, endpoint, methods=[verb]) for (path, verb), endpoint in old.routes().items()),
            *routes,
            Mount("/{tenant}", app=Router(routes, redirect_slashes=False, default=_unknown)),
        ],
        redirect_slashes=False,
        default=_unknown,
    )
    return _checked(router)


def refusal(error: A2AError, request: Request | None = None, *, status: int | None = None) -> Response:
    """Return the response that tells `error`, as google.rpc.Status in JSON (section 11.6)."""
    payload = json_status(error)
    if status is not None:
        payload["error"]["code"] = status
    code = int(payload["error"]["code"])
    # clients that ask for nothing in particular get what every client of HTTP can name
    asked = request is not None and A2A_JSON_MEDIA_TYPE in request.headers.get("accept", "")
    return Response(
        orjson.dumps(payload),
        status_code=code,
        headers={"WWW-Authenticate": 'Bearer error="invalid_token"'} if code == 401 else None,
        media_type=A2A_JSON_MEDIA_TYPE if asked else "application/json",
    )


def _endpoint(
    operation: Operation, handler: RequestHandler, card: pb.AgentCard, streams: TaskStreams
) -> Callable[[Request], Any]:
    builder = PrincipalContext()
    call = operation.call(handler)

    async def serve(request: Request) -> Response:
        try:
            params = await _params(operation, StrictRequest(request.scope, request.receive))
            context = builder.build(request)
            context.tenant = request.path_params.get("tenant") or request.query_params.get("tenant", "")
            if operation.streams:
                messages = await begun(call(params, context))
                response: Response = streams.response(messages, refused=lambda error: orjson.loads(refusal(error).body))
            else:
                found = await call(params, context)
                response = _json(operation.answer(params, found), request)
            return activate(response, card, context)
        except HTTPException as exc:
            return refusal(InvalidRequestError(str(exc.detail)), request, status=exc.status_code)
        except Exception as exc:  # noqa: BLE001  # whatever broke becomes an error without a text
            return refusal(without_text(exc), request)

    return serve


async def _params(operation: Operation, request: Request) -> Any:
    """Return the operation's request: the body's fields or the query's, and over them the path's.

    Raises:
        InvalidRequestError: The body is not a JSON object.
        InvalidParamsError: A field has not the form it should have.
    """
    params = operation.request()
    body = await _body(request) if operation.verb == "POST" else None
    try:
        if body is None:
            parse_params(request.query_params, params)
        else:
            ParseDict(body, params, ignore_unknown_fields=True)
        for name, value in request.path_params.items():
            if name != "tenant":
                setattr(params, name, value)
        if isinstance(params, pb.ListTasksRequest):
            incoming.check_status_name(request.query_params)
    except InvalidInput as exc:
        raise a2a_error(exc) from None
    except Exception:  # noqa: BLE001  # protobuf raises many; its texts quote the request
        raise InvalidParamsError from None
    return params


async def _body(request: Request) -> dict[str, Any]:
    try:
        body = await request.json() if await request.body() else {}
    except orjson.JSONDecodeError:
        raise InvalidRequestError("the body is not JSON") from None
    if not isinstance(body, dict):
        raise InvalidRequestError("the body is not a JSON object")
    return body


def _json(value: Mapping[str, Any], request: Request) -> Response:
    accepted = request.headers.get("accept", "")
    plain = "application/json" in accepted and A2A_JSON_MEDIA_TYPE not in accepted
    return Response(
        orjson.dumps(value),
        media_type="application/json" if plain else A2A_JSON_MEDIA_TYPE,
        headers={"Vary": "Accept", "Cache-Control": "no-store"},
    )


def _checked(app: ASGIApp) -> ASGIApp:
    """Refuse bodies that are not called JSON before anything reads them."""

    async def checked(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        headers = request.headers
        named = media_type_of(request)
        empty = headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers
        if named not in JSON_TYPES and (named or not empty) and scope["method"] == "POST":
            error = ContentTypeNotSupportedError(f"send {' or '.join(sorted(JSON_TYPES))}")
            await refusal(error, request)(scope, receive, send)
            return
        await app(scope, receive, send)

    return checked


async def _unknown(scope: Scope, receive: Receive, send: Send) -> None:
    await refusal(MethodNotFoundError("there is no such resource"), Request(scope))(scope, receive, send)
