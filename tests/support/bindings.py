"""One A2A client for each binding, made of what is on the wire: what all three must do, a test says once.

Above: protocol tests. Below: httpx, grpc, tests.support.agents. An operation goes by its name in JSON-RPC and its
request is a JSON object in all three; what is refused is a `Refused`, whichever way the binding says so.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, cast
from urllib.parse import quote

import grpc
import grpc.aio
import httpx
from a2a.types import a2a_pb2 as pb
from a2a.types import a2a_pb2_grpc
from google.protobuf.json_format import MessageToDict, ParseDict
from google.rpc import error_details_pb2, status_pb2

from tests.support.agents import sse_events

__all__ = ["BINDINGS", "Binding", "GrpcBinding", "Item", "Refused", "RestBinding", "RpcBinding"]

BINDINGS = ("jsonrpc", "rest", "grpc")
RESUME = "urn:bulkhead:a2a:resume:v1"
BOUND_S = 20.0


class Refused(Exception):  # what a server did, not what went wrong here
    """The server's refusal."""

    def __init__(self, *, status: int | str, reason: str, message: str, code: str | None, text: str) -> None:
        """`status` is HTTP's number or gRPC's name, `reason` ErrorInfo's, `code` our own, `text` all that was sent."""
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.code = code
        self.text = text


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One event of a stream."""

    id: int | None
    """The SSE id; over gRPC, which has none, the seq of the metadata."""
    kind: str
    """`task`, `message`, `statusUpdate` or `artifactUpdate`."""
    body: dict[str, Any]


class Binding(Protocol):
    """A client for one caller."""

    async def call(self, operation: str, params: Mapping[str, Any], **headers: str) -> dict[str, Any]:
        """Return the result; raises Refused."""
        ...

    def stream(
        self, operation: str, params: Mapping[str, Any], **headers: str
    ) -> AbstractAsyncContextManager[AsyncGenerator[Item]]:
        """Open a stream and yield its events, of which reading one may raise Refused."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RpcBinding:
    """JSON-RPC."""

    base: str
    token: str
    http: httpx.AsyncClient
    version: str = "1.0"

    async def call(self, operation: str, params: Mapping[str, Any], **headers: str) -> dict[str, Any]:
        """See `Binding`."""
        response = await self.http.post(self._url, json=_envelope(operation, params), headers=self._headers(headers))
        return _rpc_result(response.json(), response)

    @asynccontextmanager
    async def stream(
        self, operation: str, params: Mapping[str, Any], **headers: str
    ) -> AsyncGenerator[AsyncGenerator[Item]]:
        """See `Binding`."""
        body = _envelope(operation, params)
        async with self.http.stream("POST", self._url, json=body, headers=self._headers(headers)) as response:

            async def items() -> AsyncGenerator[Item]:
                if not response.headers["content-type"].startswith("text/event-stream"):
                    await response.aread()
                    _rpc_result(response.json(), response)
                async with aclosing(sse_events(response)) as events:
                    async for event in events:
                        yield _item(_rpc_result(event.data, response), event.id)

            yield items()

    @property
    def _url(self) -> str:
        return f"{self.base}/a2a/jsonrpc"

    def _headers(self, more: Mapping[str, str]) -> dict[str, str]:
        return _headers(self.token, self.version, more)


_REST: Mapping[str, tuple[str, str]] = {
    "SendMessage": ("POST", "/message:send"),
    "SendStreamingMessage": ("POST", "/message:stream"),
    "GetTask": ("GET", "/tasks/{id}"),
    "ListTasks": ("GET", "/tasks"),
    "CancelTask": ("POST", "/tasks/{id}:cancel"),
    "SubscribeToTask": ("GET", "/tasks/{id}:subscribe"),
    "CreateTaskPushNotificationConfig": ("POST", "/tasks/{taskId}/pushNotificationConfigs"),
    "GetTaskPushNotificationConfig": ("GET", "/tasks/{taskId}/pushNotificationConfigs/{id}"),
    "ListTaskPushNotificationConfigs": ("GET", "/tasks/{taskId}/pushNotificationConfigs"),
    "DeleteTaskPushNotificationConfig": ("DELETE", "/tasks/{taskId}/pushNotificationConfigs/{id}"),
    "GetExtendedAgentCard": ("GET", "/extendedAgentCard"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RestBinding:
    """HTTP+JSON."""

    base: str
    token: str
    http: httpx.AsyncClient
    version: str = "1.0"
    below: str = ""
    """A tenant's path, such as `/the-tenant`."""

    async def call(self, operation: str, params: Mapping[str, Any], **headers: str) -> dict[str, Any]:
        """See `Binding`."""
        response = await self.http.send(self.request(operation, params, **headers))
        return _rest_result(response.json(), response)

    @asynccontextmanager
    async def stream(
        self, operation: str, params: Mapping[str, Any], **headers: str
    ) -> AsyncGenerator[AsyncGenerator[Item]]:
        """See `Binding`."""
        response = await self.http.send(self.request(operation, params, **headers), stream=True)
        try:

            async def items() -> AsyncGenerator[Item]:
                if not response.headers["content-type"].startswith("text/event-stream"):
                    await response.aread()
                    _rest_result(response.json(), response)
                async with aclosing(sse_events(response)) as events:
                    async for event in events:
                        yield _item(_rest_result(event.data, response), event.id)

            yield items()
        finally:
            await response.aclose()

    def request(self, operation: str, params: Mapping[str, Any], **headers: str) -> httpx.Request:
        """Return the HTTP request that the operation is."""
        verb, template = _REST[operation]
        left = dict(params)
        path = template
        for name in ("id", "taskId"):
            if "{" + name + "}" in path:
                path = path.replace("{" + name + "}", quote(str(left.pop(name)), safe=""))
        query = {} if verb == "POST" else {name: _query(value) for name, value in left.items()}
        return self.http.build_request(
            verb,
            f"{self.base}/a2a/rest{self.below}{path}",
            json=left if verb == "POST" else None,
            params=query,
            headers=_headers(self.token, self.version, headers),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpcBinding:
    """gRPC."""

    channel: grpc.aio.Channel
    token: str
    version: str = "1.0"
    _requests: Mapping[str, Any] = field(
        default_factory=lambda: {
            method.name: pb.DESCRIPTOR.services_by_name["A2AService"].methods_by_name[method.name].input_type
            for method in pb.DESCRIPTOR.services_by_name["A2AService"].methods
        }
    )

    async def call(self, operation: str, params: Mapping[str, Any], **headers: str) -> dict[str, Any]:
        """See `Binding`."""
        try:
            answer = await self._method(operation)(
                self._request(operation, params), metadata=self._metadata(headers), timeout=BOUND_S
            )
        except grpc.aio.AioRpcError as exc:
            raise _refused_by_grpc(exc) from None
        if isinstance(answer, pb.ListTasksResponse):
            return MessageToDict(answer, always_print_fields_with_no_presence=True)
        return MessageToDict(answer)

    @asynccontextmanager
    async def stream(
        self, operation: str, params: Mapping[str, Any], **headers: str
    ) -> AsyncGenerator[AsyncGenerator[Item]]:
        """See `Binding`."""
        call = self._method(operation)(
            self._request(operation, params), metadata=self._metadata(headers), timeout=BOUND_S
        )

        async def items() -> AsyncGenerator[Item]:
            try:
                async for answer in call:
                    body = MessageToDict(answer)
                    (one,) = body.values()
                    seq = one.get("metadata", {}).get(RESUME, {}).get("seq")
                    yield _item(body, None if seq is None else int(seq))
            except grpc.aio.AioRpcError as exc:
                raise _refused_by_grpc(exc) from None

        try:
            yield items()
        finally:
            call.cancel()

    def _method(self, operation: str) -> Any:
        return getattr(a2a_pb2_grpc.A2AServiceStub(self.channel), operation)

    def _request(self, operation: str, params: Mapping[str, Any]) -> Any:
        return ParseDict(dict(params), getattr(pb, self._requests[operation].name)(), ignore_unknown_fields=True)

    def _metadata(self, more: Mapping[str, str]) -> list[tuple[str, str]]:
        return [(name.lower(), value) for name, value in _headers(self.token, self.version, more).items()]


def _headers(token: str, version: str, more: Mapping[str, str]) -> dict[str, str]:
    named = {name.replace("_", "-"): value for name, value in more.items()}
    own = {"authorization": f"Bearer {token}"} if token else {}
    return {**own, **({"A2A-Version": version} if version else {}), **named}


def _envelope(operation: str, params: Mapping[str, Any]) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 1, "method": operation, "params": dict(params)}


def _query(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _item(body: Mapping[str, Any], id_: int | None) -> Item:
    ((kind, inner),) = body.items()
    return Item(id=id_, kind=kind, body=inner)


def _rpc_result(answer: Mapping[str, Any], response: httpx.Response) -> dict[str, Any]:
    error = answer.get("error")
    if error is None:
        return answer["result"]
    # a door's refusal is google.rpc.Status, JSON-RPC's own has the same details as its data
    raise _refused(error, error.get("data") or error.get("details"), response, json.dumps(answer))


def _rest_result(answer: Mapping[str, Any], response: httpx.Response) -> dict[str, Any]:
    if "error" not in answer:
        assert response.status_code == 200, answer
        return dict(answer)
    error = answer["error"]
    raise _refused(error, error.get("details"), response, json.dumps(answer))


def _refused(error: Mapping[str, Any], details: Any, response: httpx.Response, text: str) -> Refused:
    info: Mapping[str, Any] = cast("list[Mapping[str, Any]]", details)[0] if details else {}
    return Refused(
        status=response.status_code,
        reason=str(info.get("reason", error["code"])),
        message=error["message"],
        code=info.get("metadata", {}).get("code"),
        text=text,
    )


def _refused_by_grpc(exc: grpc.aio.AioRpcError) -> Refused:
    status, info = status_pb2.Status(), error_details_pb2.ErrorInfo()
    for name, value in exc.trailing_metadata() or ():
        if name == "grpc-status-details-bin":
            status.ParseFromString(cast("bytes", value))
            status.details[0].Unpack(info)
    return Refused(
        status=exc.code().name,
        reason=info.reason,
        message=exc.details() or "",
        code=info.metadata.get("code"),
        text=f"{exc.details()} {status} {exc.trailing_metadata()}",
    )
