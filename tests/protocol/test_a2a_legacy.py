"""Clients of A2A 0.3 on the three bindings: their methods, paths and service, the same tasks, no word of a version."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import anyio
import grpc
import grpc.aio
import httpx
import pytest
from a2a.compat.v0_3 import a2a_v0_3_pb2 as v03
from a2a.compat.v0_3 import a2a_v0_3_pb2_grpc

from rag.identity.scopes import Audience
from rag.tenants.operator import Tenant
from tests.support.agents import Replica, a2a_replica, sse_events, worker
from tests.support.world import Cluster, World, world

pytestmark = pytest.mark.anyio
BOUND_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A server that knows the kit's messages, and a worker."""

    world: World
    tenant: Tenant
    replica: Replica
    http: httpx.AsyncClient
    token: str

    async def rpc(self, method: str, params: dict[str, Any], **headers: str) -> httpx.Response:
        """Send one JSON-RPC request of 0.3."""
        body = {"jsonrpc": "2.0", "id": "r1", "method": method, "params": params}
        return await self.http.post(f"{self.replica.base}/a2a/jsonrpc", json=body, headers=self._headers(headers))

    async def rest(self, verb: str, path: str, body: dict[str, Any] | None = None, **headers: str) -> httpx.Response:
        """Send one HTTP+JSON request of 0.3."""
        url = f"{self.replica.base}/a2a/rest/v1{path}"
        return await self.http.request(verb, url, json=body, headers=self._headers(headers))

    def _headers(self, more: dict[str, str]) -> dict[str, str]:
        named = {name.replace("_", "-"): value for name, value in more.items()}
        return {"authorization": f"Bearer {self.token}", **named}


@pytest.fixture(scope="module", name="scene")
async def scene_fixture(cluster: Cluster) -> AsyncGenerator[Scene]:
    """A stage for all tests of the file."""
    async with (
        world(cluster) as own,
        a2a_replica(own, test_fixtures="on") as replica,
        worker(own.settings),
        httpx.AsyncClient(timeout=BOUND_S) as http,
    ):
        tenant = await own.tenant("acme")
        token = own.token(tenant, audience=Audience.A2A)
        yield Scene(world=own, tenant=tenant, replica=replica, http=http, token=token)


def _params(prefix: str = "tck-stream-001", **fields: Any) -> dict[str, Any]:
    """A message of 0.3 over JSON-RPC."""
    part = {"kind": "text", "text": "hi"}
    head = {"kind": "message", "messageId": f"{prefix}-{uuid4()}", "role": "user", "parts": [part]}
    return {"message": {**head, **fields}, "configuration": {"blocking": True}}


def _body(prefix: str = "tck-stream-001", **fields: Any) -> dict[str, Any]:
    """A message of 0.3 over HTTP+JSON, which is that of its protobuf."""
    part = {"text": "hi"}
    head = {"messageId": f"{prefix}-{uuid4()}", "role": "ROLE_USER", "content": [part]}
    return {"message": {**head, **fields}, "configuration": {"blocking": True}}


async def test_the_card_tells_clients_of_0_3_where_to_go(scene: Scene) -> None:
    card = (await scene.http.get(f"{scene.replica.base}/.well-known/agent-card.json")).json()
    assert card["protocolVersion"].startswith("0.3")
    assert (card["url"], card["preferredTransport"]) == (f"{scene.replica.base}/a2a/jsonrpc", "JSONRPC")
    assert {"transport": "HTTP+JSON", "url": f"{scene.replica.base}/a2a/rest"} in card["additionalInterfaces"]


async def test_json_rpc_sends_reads_streams_and_cancels(scene: Scene) -> None:
    task = (await scene.rpc("message/send", _params())).json()["result"]
    assert (task["kind"], task["status"]["state"]) == ("task", "completed")
    assert task["artifacts"][0]["parts"] == [{"kind": "text", "text": "Stream hello from TCK"}]
    got = (await scene.rpc("tasks/get", {"id": task["id"]})).json()["result"]
    assert got["id"] == task["id"]
    waiting = (await scene.rpc("message/send", _params("tck-input-required"))).json()["result"]
    assert waiting["status"]["state"] == "input-required"
    canceled = (await scene.rpc("tasks/cancel", {"id": waiting["id"]})).json()["result"]
    assert canceled["status"]["state"] == "canceled"
    again = (await scene.rpc("tasks/cancel", {"id": waiting["id"]})).json()["error"]
    assert (again["code"], again["data"]["code"]) == (-32002, "task_not_cancelable")


async def test_a_json_rpc_stream_has_ids_and_is_taken_up_again(scene: Scene) -> None:
    body = {"jsonrpc": "2.0", "id": 7, "method": "message/stream", "params": _params("tck-stream-artifact-chunked")}
    url, headers = f"{scene.replica.base}/a2a/jsonrpc", {"authorization": f"Bearer {scene.token}"}
    with anyio.fail_after(BOUND_S):
        async with scene.http.stream("POST", url, json=body, headers=headers) as response:
            events = [event async for event in sse_events(response)]
    assert events[0].result["kind"] == "task"
    assert events[-1].result["final"] is True
    ids = [event.id or 0 for event in events]
    assert ids == list(range(ids[0], ids[0] + len(ids)))
    again = {**body, "method": "tasks/resubscribe", "params": {"id": events[0].result["id"]}}
    async with scene.http.stream("POST", url, json=again, headers={**headers, "last-event-id": "1"}) as response:
        assert [event.id async for event in sse_events(response)] == list(range(2, ids[-1] + 1))
    async with scene.http.stream("POST", url, json=again, headers=headers) as response:
        (refused,) = [event async for event in sse_events(response)]
    assert (refused.event, refused.data["error"]["code"]) == ("error", -32004)


async def test_http_json_sends_reads_streams_and_cancels(scene: Scene) -> None:
    task = (await scene.rest("POST", "/message:send", _body())).json()["task"]
    assert task["status"]["state"] == "TASK_STATE_COMPLETED"
    assert (await scene.rest("GET", f"/tasks/{task['id']}")).json()["id"] == task["id"]
    url, headers = f"{scene.replica.base}/a2a/rest/v1/message:stream", {"authorization": f"Bearer {scene.token}"}
    with anyio.fail_after(BOUND_S):
        async with (
            scene.http.stream("POST", url, json=_body(), headers=headers) as response,
            aclosing(sse_events(response)) as events,
        ):
            seen = [event async for event in events]
    assert seen[-1].data["statusUpdate"]["status"]["state"] == "TASK_STATE_COMPLETED"
    assert seen[-1].id
    refused = await scene.rest("POST", f"/tasks/{task['id']}:cancel", {})
    assert (refused.status_code, refused.json()["error"]["details"][0]["reason"]) == (400, "TASK_NOT_CANCELABLE")
    unknown = await scene.rest("GET", f"/tasks/{uuid4()}")
    assert (unknown.status_code, unknown.json()["error"]["status"]) == (404, "NOT_FOUND")


async def test_grpc_sends_reads_streams_and_refuses(scene: Scene) -> None:
    metadata = (("authorization", f"Bearer {scene.token}"),)
    async with grpc.aio.insecure_channel(scene.replica.grpc) as channel:
        stub: Any = a2a_v0_3_pb2_grpc.A2AServiceStub(channel)  # type: ignore[no-untyped-call]
        part = v03.Part(text="hi")
        message = v03.Message(message_id=f"tck-stream-001-{uuid4()}", role=v03.ROLE_USER, content=[part])
        request = v03.SendMessageRequest(request=message, configuration=v03.SendMessageConfiguration(blocking=True))
        sent = await stub.SendMessage(request, metadata=metadata, timeout=BOUND_S)
        assert sent.task.status.state == v03.TASK_STATE_COMPLETED
        got = await stub.GetTask(v03.GetTaskRequest(name=f"tasks/{sent.task.id}"), metadata=metadata, timeout=BOUND_S)
        assert got.id == sent.task.id
        stream = stub.SendStreamingMessage(request, metadata=metadata, timeout=BOUND_S)
        kinds = [answer.WhichOneof("payload") async for answer in stream]
        assert (kinds[0], kinds[-1]) == ("task", "status_update")
        for named, extra, code in (
            (f"tasks/{uuid4()}", metadata, grpc.StatusCode.NOT_FOUND),
            ("nonsense", metadata, grpc.StatusCode.INVALID_ARGUMENT),
            (f"tasks/{sent.task.id}", (*metadata, ("a2a-version", "1.0")), grpc.StatusCode.FAILED_PRECONDITION),
            (f"tasks/{sent.task.id}", (), grpc.StatusCode.UNAUTHENTICATED),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.GetTask(v03.GetTaskRequest(name=named), metadata=extra, timeout=BOUND_S)
            assert refused.value.code() == code


@pytest.mark.parametrize("version", ["1.0", "0.4", "0.30", "latest"])
async def test_another_version_than_0_3_does_not_reach_its_methods(scene: Scene, version: str) -> None:
    refused = (await scene.rpc("message/send", _params(), A2A_Version=version)).json()["error"]
    assert refused["code"] == -32603  # 0.3 knows no code for it
    assert "0.3" in refused["message"]
    rest = await scene.rest("POST", "/message:send", _body(), A2A_Version=version)
    assert rest.json()["error"]["details"][0]["reason"] == "VERSION_NOT_SUPPORTED"
    assert "result" in (await scene.rpc("message/send", _params(), A2A_Version="0.3")).json()


async def test_a_foreign_task_is_unknown_and_texts_of_exceptions_stay_inside(scene: Scene) -> None:
    rival = await scene.world.tenant(f"rival-{uuid4().hex[:8]}")
    task = (await scene.rpc("message/send", _params())).json()["result"]
    stranger = Scene(
        world=scene.world,
        tenant=rival,
        replica=scene.replica,
        http=scene.http,
        token=scene.world.token(rival, audience=Audience.A2A),
    )
    assert (await stranger.rpc("tasks/get", {"id": task["id"]})).json()["error"]["code"] == -32001
    assert (await stranger.rest("GET", f"/tasks/{task['id']}")).status_code == 404
    for method, params in (
        ("message/send", {"message": {"parts": "secret"}}),
        ("message/send", _params(role="nobody")),
        ("message/stream", {}),
        ("tasks/get", {"id": 7}),
        ("tasks/get", {"id": "x", "historyLength": "secret"}),
    ):
        answer = await scene.rpc(method, params)
        assert "error" in answer.json()
        for leak in ("secret", "pydantic", "validation error", "Traceback"):
            assert leak not in answer.text
    for verb, path, body in (
        ("POST", "/message:send", {"message": "secret"}),
        ("POST", "/message:stream", {"message": 7}),
        ("GET", "/tasks/x?historyLength=secret", None),
    ):
        answer = await scene.rest(verb, path, body)
        assert answer.status_code == 400
        assert "secret" not in answer.text


async def test_an_unknown_media_type_of_a_part_is_refused(scene: Scene) -> None:
    file = {"kind": "file", "file": {"uri": "https://example.com/x.pdf", "mimeType": "application/pdf"}}
    refused = (await scene.rpc("message/send", _params(parts=[file]))).json()["error"]
    assert refused["code"] == -32005
