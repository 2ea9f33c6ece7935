"""Whatever a verified caller sends, the A2A server answers in order by each binding: no 500, no hang, no insides.

What is sent begins as a request that is fine and has values of any kind put in any place, so that it gets past the
first check; and as bytes, which need not be a request at all. Tasks are neither run nor waited for here.
"""

from __future__ import annotations

import copy
import math
import struct
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import anyio
import grpc
import grpc.aio
import httpx
import orjson
import pytest
from a2a.compat.v0_3 import a2a_v0_3_pb2
from a2a.types import a2a_pb2 as pb
from google.protobuf import message_factory
from google.protobuf.json_format import ParseDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from a2a_server import handler
from rag.identity.scopes import Audience
from tests.support.agents import Replica, a2a_replica, message
from tests.support.world import Cluster, world

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]
BOUND_S = 20.0
FINE = frozenset({200, 400, 401, 404, 405, 413})
"""What HTTP may answer; 500 and its like are not among them."""
INSIDES = (b"Traceback", b'File "', b"asyncpg", b"pydantic", b"site-packages", b"select ", b"SQLSTATE", b"a2a_server/")
BROKEN = frozenset({grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.DEADLINE_EXCEEDED})
FUZZ = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
)
NO_TASK = "00000000-0000-4000-8000-000000000000"


def _nested(depth: int) -> Any:
    found: Any = 1
    for _ in range(depth):
        found = [found]
    return found


texts = st.text(max_size=20) | st.sampled_from(
    [
        "\0",
        "\ud800",
        "../../etc",
        "' or 1=1 --",
        "ﷺ" * 50,
        "%s%n",
        "{}",
        "x" * 300,
        "1970-01-01T00:00:00Z",
        "-1",
        "9" * 40,
    ]
)
leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | texts
    | st.sampled_from([NO_TASK, "TASK_STATE_WORKING", "ROLE_AGENT", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59.9Z"])
)
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4))
versions = st.sampled_from([None, "1.0", "0.3", "1.7", "", "x", "1.0.3"])
deep = st.integers(1, 400).map(_nested)

MESSAGE: dict[str, Any] = {
    **message("why?")["message"],
    "contextId": "c",
    "metadata": {"a": {"b": [1]}},
    "extensions": ["urn:x"],
    "referenceTaskIds": ["t"],
}
SENDS: dict[str, Any] = {
    "message": {**MESSAGE, "parts": [{"text": "why?"}, {"data": {"question": "x"}}, {"raw": "YQ==", "filename": "f"}]},
    "configuration": {"returnImmediately": True, "historyLength": 1, "acceptedOutputModes": ["text/plain"]},
    "metadata": {"skillId": "rag"},
    "tenant": "",
}
PUSH: dict[str, Any] = {
    "taskId": NO_TASK,
    "id": "p",
    "url": "https://example.com/hook",
    "token": "t",
    "authentication": {"scheme": "Bearer", "credentials": "c"},
}
CALLS: Mapping[str, dict[str, Any]] = {
    "SendMessage": SENDS,
    "SendStreamingMessage": {"message": MESSAGE},
    "GetTask": {"id": NO_TASK, "historyLength": 2},
    "ListTasks": {
        "contextId": "c",
        "status": "TASK_STATE_WORKING",
        "pageSize": 3,
        "pageToken": "",
        "historyLength": 0,
        "statusTimestampAfter": "2026-01-01T00:00:00Z",
        "includeArtifacts": True,
    },
    "CancelTask": {"id": NO_TASK, "metadata": {"a": 1}},
    "SubscribeToTask": {"id": NO_TASK},
    "CreateTaskPushNotificationConfig": PUSH,
    "GetTaskPushNotificationConfig": {"taskId": NO_TASK, "id": "p"},
    "ListTaskPushNotificationConfigs": {"taskId": NO_TASK, "pageSize": 1, "pageToken": ""},
    "DeleteTaskPushNotificationConfig": {"taskId": NO_TASK, "id": "p"},
    "GetExtendedAgentCard": {},
}
OLD_MESSAGE: dict[str, Any] = {
    "kind": "message",
    "messageId": "m",
    "role": "user",
    "parts": [{"kind": "text", "text": "why?"}, {"kind": "data", "data": {"a": 1}}],
    "contextId": "c",
    "metadata": {"a": 1},
}
OLD_CALLS: Mapping[str, dict[str, Any]] = {
    "message/send": {"message": OLD_MESSAGE, "configuration": {"blocking": False, "historyLength": 1}},
    "message/stream": {"message": OLD_MESSAGE},
    "tasks/get": {"id": NO_TASK, "historyLength": 1},
    "tasks/cancel": {"id": NO_TASK},
    "tasks/resubscribe": {"id": NO_TASK},
    "tasks/pushNotificationConfig/set": {
        "taskId": NO_TASK,
        "pushNotificationConfig": {"url": "https://example.com/x", "authentication": {"schemes": ["Bearer"]}},
    },
    "tasks/pushNotificationConfig/get": {"id": NO_TASK, "pushNotificationConfigId": "p"},
    "tasks/pushNotificationConfig/list": {"id": NO_TASK},
    "tasks/pushNotificationConfig/delete": {"id": NO_TASK, "pushNotificationConfigId": "p"},
    "agent/getAuthenticatedExtendedCard": {},
}
PATHS = (
    ("POST", "/message:send", SENDS),
    ("POST", "/message:stream", SENDS),
    ("GET", "/tasks/{}", None),
    ("GET", "/tasks", None),
    ("POST", "/tasks/{}:cancel", {}),
    ("POST", "/tasks/{}:subscribe", {}),
    ("GET", "/tasks/{}:subscribe", None),
    ("POST", "/tasks/{}/pushNotificationConfigs", PUSH),
    ("GET", "/tasks/{}/pushNotificationConfigs/{}", None),
    ("DELETE", "/tasks/{}/pushNotificationConfigs/{}", None),
    ("GET", "/extendedAgentCard", None),
    ("POST", "/{}/message:send", SENDS),
    ("POST", "/v1/message:send", {"message": {"messageId": "m", "role": "ROLE_USER", "content": [{"text": "a"}]}}),
    ("POST", "/v1/message:stream", {"message": {"messageId": "m", "role": "ROLE_USER", "content": [{"text": "a"}]}}),
    ("GET", "/v1/tasks/{}", None),
    ("POST", "/v1/tasks/{}:cancel", {}),
    ("GET", "/v1/tasks/{}:subscribe", None),
    ("POST", "/v1/tasks/{}/pushNotificationConfigs", {"config": {"name": "x"}}),
    ("GET", "/v1/card", None),
)


@st.composite
def changed(draw: st.DrawFn, good: Any) -> Any:
    """Return `good` with up to three of its values replaced, taken away or added to."""
    made = copy.deepcopy(good)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(made))
        if not places:
            return draw(values)
        holder, key = draw(st.sampled_from(places))
        kind = draw(st.sampled_from(["replace", "remove", "add"]))
        if isinstance(holder, list):
            holder[key:] = [draw(values | deep)] if kind == "replace" else []
        elif kind == "remove":
            holder.pop(key, None)
        else:
            holder[key if kind == "replace" else draw(texts)] = draw(values | deep)
    return made


def _places(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        return [(fields, name) for name in fields] + [place for one in fields.values() for place in _places(one)]
    if isinstance(value, list):
        items = cast("list[Any]", value)
        return [(items, at) for at in range(len(items))] + [place for one in items for place in _places(one)]
    return []


def calls(known: Mapping[str, dict[str, Any]]) -> st.SearchStrategy[tuple[str, Any]]:
    """Return a method and what is sent with it."""
    return st.sampled_from(sorted(known)).flatmap(
        lambda method: st.tuples(st.just(method), changed(known[method]) | values)
    )


def encoded(value: object) -> bytes:
    """Return JSON, also of what orjson refuses."""
    try:
        return orjson.dumps(value)
    except TypeError:
        import json  # noqa: PLC0415  # escapes lone surrogates and writes any integer

        return json.dumps(value).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A replica without a worker, and a caller with every right."""

    replica: Replica
    token: str
    http: httpx.AsyncClient
    channel: grpc.aio.Channel

    async def send(self, verb: str, path: str, body: bytes | None, **headers: str | None) -> dict[str, Any]:
        """Send a request, check what must hold for any answer and return its JSON; of a stream, the first message."""
        named = {name.replace("_", "-"): value for name, value in headers.items() if value is not None}
        url = self.replica.base + path
        named.setdefault("content-type", "application/json")
        with anyio.fail_after(BOUND_S):
            async with self.http.stream(verb, url, content=body, headers=named) as response:
                streamed = response.headers.get("content-type", "").startswith("text/event-stream")
                content = b""
                async for piece in response.aiter_bytes():
                    content += piece
                    if streamed and b"\r\n\r\n" in content:
                        break
        assert response.status_code in FINE, (response.status_code, path, body, content)
        for inside in INSIDES:
            assert inside not in content or (body and inside in body), (inside, content, body)
        if streamed:
            content = content.partition(b"data: ")[2].partition(b"\r\n")[0]
        return cast("dict[str, Any]", orjson.loads(content)) if content else {}

    async def grpc(self, service: str, method: str, request: bytes, *, version: str) -> grpc.StatusCode:
        """Call a method with `request` as it is, for its first answer, and return the call's status so far."""
        known: Any = self.channel.unary_stream(f"/{service}/{method}")
        call = known(
            request,
            timeout=BOUND_S,
            metadata=(("authorization", f"Bearer {self.token}"), ("a2a-version", version)),
        )
        try:
            async for _ in call:
                break
        except grpc.aio.AioRpcError as exc:
            status, details = exc.code(), str(exc.details())
        else:
            status, details = grpc.StatusCode.OK, ""
        finally:
            call.cancel()
        assert not [inside for inside in INSIDES if inside.decode() in details], (details, request)
        return status


@pytest.fixture(scope="module", name="scene")
async def scene_fixture(cluster: Cluster) -> AsyncGenerator[Scene]:
    """One for all tests of the file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(handler, "LONGEST_BLOCK_S", 0.05)
        async with world(cluster) as own:
            token = own.token(await own.tenant("acme"), audience=Audience.A2A)
            headers = {"authorization": f"Bearer {token}"}
            async with (
                a2a_replica(own) as replica,
                httpx.AsyncClient(headers=headers, timeout=BOUND_S) as http,
                grpc.aio.insecure_channel(replica.grpc) as channel,
            ):
                yield Scene(replica=replica, token=token, http=http, channel=channel)


def _answered(answer: dict[str, Any], sent: object) -> None:
    assert ("result" in answer) != ("error" in answer), (answer, sent)
    assert answer.get("error", {}).get("code") != -32603, (answer, sent)


@FUZZ
@given(call=calls(CALLS), version=st.sampled_from(["1.0", "1.0", "1.0", "0.3"]))
async def test_any_parameters_have_an_answer_by_json_rpc(scene: Scene, call: tuple[str, Any], version: str) -> None:
    body = encoded({"jsonrpc": "2.0", "id": 1, "method": call[0], "params": call[1]})
    _answered(await scene.send("POST", "/a2a/jsonrpc", body, a2a_version=version), call)


@FUZZ
@given(call=calls(OLD_CALLS), version=st.sampled_from([None, "0.3"]))
async def test_any_parameters_of_0_3_have_an_answer(scene: Scene, call: tuple[str, Any], version: str | None) -> None:
    body = encoded({"jsonrpc": "2.0", "id": 1, "method": call[0], "params": call[1]})
    _answered(await scene.send("POST", "/a2a/jsonrpc", body, a2a_version=version), call)


@FUZZ
@given(
    body=changed({"jsonrpc": "2.0", "id": 1, "method": "GetTask", "params": {"id": NO_TASK}}).map(encoded)
    | values.map(encoded)
    | st.binary(max_size=200)
    | st.integers(1, 100_000).map(lambda depth: b"[" * depth + b"]" * depth),
    version=versions,
    event=st.sampled_from([None, "1", "-1", "x", "9" * 30]),
)
async def test_any_body_has_an_answer_by_json_rpc(
    scene: Scene, body: bytes, version: str | None, event: str | None
) -> None:
    _answered(await scene.send("POST", "/a2a/jsonrpc", body, a2a_version=version, last_event_id=event), body)


segments = st.sampled_from([NO_TASK, "%00", "%2e%2e", "a:b", "%F0%9F", ":cancel", "x" * 300]) | st.text(
    st.characters(min_codepoint=48, max_codepoint=122), min_size=1, max_size=20
).filter(str.isalnum)


queries = st.dictionaries(
    st.sampled_from(
        sorted({"A2A-Version", "id", "message", "configuration", "metadata", "tenant", *CALLS["ListTasks"]})
    ),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
    | st.sampled_from(["1", "TASK_STATE_FAILED", "true", "2026-01-01T00:00:00Z", "\0", "9" * 400]),
    max_size=3,
)


@st.composite
def by_path(draw: st.DrawFn) -> tuple[str, str, bytes | None]:
    """Return verb, path and body of a request to HTTP+JSON."""
    verb, template, good = draw(st.sampled_from(PATHS))
    path = "/a2a/rest" + template.replace("{}", draw(segments)) + "?" + str(httpx.QueryParams(draw(queries)))
    if good is None:
        return verb, path, None
    nested = st.integers(1, 100_000).map(lambda depth: b"[" * depth + b"]" * depth)
    return verb, path, draw(changed(good).map(encoded) | values.map(encoded) | st.binary(max_size=100) | nested)


@FUZZ
@given(request=by_path(), version=versions)
async def test_any_request_has_an_answer_by_http(
    scene: Scene, request: tuple[str, str, bytes | None], version: str | None
) -> None:
    await scene.send(*request, a2a_version=version)


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, Any]:
    """Return a method of gRPC and a request message of its, with values that JSON has not."""
    method = draw(st.sampled_from(sorted(CALLS)))
    kind = pb.DESCRIPTOR.services_by_name["A2AService"].methods_by_name[method].input_type
    request: Any = getattr(pb, kind.name)()
    try:
        ParseDict(draw(changed(CALLS[method])), request, ignore_unknown_fields=True)
    except Exception:  # noqa: BLE001  # what JSON cannot say is no request here
        ParseDict(CALLS[method], request)
    number = draw(st.sampled_from([math.nan, math.inf, -math.inf, 1e300, -0.0]))
    match draw(st.integers(0, 5)):
        case 0 if kind.name == "SendMessageRequest":
            request.message.metadata.fields["x"].number_value = number
        case 1 if kind.name == "SendMessageRequest":
            request.message.parts.add().data.struct_value.fields["x"].number_value = number
        case 2 if kind.name == "SendMessageRequest":
            request.metadata.fields["skillId"].number_value = number
        case 3 if kind.name == "ListTasksRequest":
            request.status_timestamp_after.seconds = draw(st.integers(-(2**63), 2**63 - 1))
            request.status_timestamp_after.nanos = draw(st.integers(-(2**31), 2**31 - 1))
        case 4 if kind.name == "ListTasksRequest":
            request.status = draw(st.integers(-(2**31), 2**31 - 1))
        case _:
            pass
    return method, request


@FUZZ
@given(call=requests())
async def test_any_message_has_an_answer_by_grpc(scene: Scene, call: tuple[str, Any]) -> None:
    status = await scene.grpc("lf.a2a.v1.A2AService", call[0], call[1].SerializeToString(), version="1.0")
    assert status not in BROKEN, (status, call)


def _deep_message(depth: int) -> bytes:
    """Return a SendMessageRequest whose message has metadata that deep."""
    inner = struct.pack("<Bd", 0x11, 1.0)
    for _ in range(depth):
        held = b"\x0a" + _length(inner) + inner
        inner = b"\x32" + _length(held) + held
    entry = b"\x0a\x01x\x12" + _length(inner) + inner
    good: Any = pb.SendMessageRequest()
    ParseDict({**CALLS["SendStreamingMessage"]}, good)
    metadata = b"\x0a" + _length(entry) + entry
    number = pb.Message.DESCRIPTOR.fields_by_name["metadata"].number
    more = bytes([number << 3 | 2]) + _length(metadata) + metadata
    place = pb.SendMessageRequest.DESCRIPTOR.fields_by_name["message"].number
    return good.SerializeToString() + bytes([place << 3 | 2]) + _length(more) + more


def _length(value: bytes) -> bytes:
    size, found = len(value), bytearray()
    while size > 127:
        found.append(size & 127 | 128)
        size >>= 7
    found.append(size)
    return bytes(found)


@FUZZ
@given(
    method=st.sampled_from(sorted(CALLS)),
    request=st.binary(max_size=100) | st.integers(1, 300).map(_deep_message),
)
async def test_any_bytes_have_an_answer_by_grpc(scene: Scene, method: str, request: bytes) -> None:
    kind = pb.DESCRIPTOR.services_by_name["A2AService"].methods_by_name[method].input_type
    status = await scene.grpc("lf.a2a.v1.A2AService", method, request, version="1.0")
    try:
        getattr(pb, kind.name).FromString(request)
    except Exception:  # noqa: BLE001  # no message at all: gRPC says so itself
        return
    assert status not in BROKEN, (status, method, request)


OLD_SERVICE = a2a_v0_3_pb2.DESCRIPTOR.services_by_name["A2AService"]


@st.composite
def old_requests(draw: st.DrawFn) -> tuple[str, bytes]:
    """Return a method of 0.3's gRPC and a request message of its."""
    method = draw(st.sampled_from(sorted(OLD_SERVICE.methods_by_name)))
    kind = OLD_SERVICE.methods_by_name[method].input_type
    made: Any = message_factory.GetMessageClass(kind)()
    for field in kind.fields:
        if field.type == field.TYPE_STRING:
            setattr(made, field.name, draw(st.sampled_from(["", "x", f"tasks/{NO_TASK}", "tasks//", "a/b/c", "\0"])))
    if "request" in kind.fields_by_name:
        made.request.message_id = "m"
        made.request.role = draw(st.integers(0, 3))
        part = made.request.content.add()
        part.data.data.fields["x"].number_value = draw(st.sampled_from([1.0, math.nan, math.inf]))
    return method, made.SerializeToString()


@FUZZ
@given(call=old_requests())
async def test_any_message_of_0_3_has_an_answer_by_grpc(scene: Scene, call: tuple[str, bytes]) -> None:
    status = await scene.grpc(OLD_SERVICE.full_name, *call, version="0.3")
    assert status not in BROKEN, (status, call)
