"""What the A2A compatibility kit sends, answered as it expects, on each binding; and two replicas behind a balancer."""

from __future__ import annotations

import dataclasses
import itertools
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import anyio
import grpc.aio
import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from rag.identity.scopes import Audience
from rag.tenants.operator import Tenant
from tests.support.agents import Replica, a2a_replica, message, worker
from tests.support.bindings import BINDINGS, Binding, GrpcBinding, Item, Refused, RestBinding, RpcBinding
from tests.support.servers import serving
from tests.support.world import Cluster, World, world

pytestmark = pytest.mark.anyio
BOUND_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Kit:
    """Two replicas and a worker, all of one installation, as the kit finds them."""

    world: World
    tenant: Tenant
    base: str
    """Of the balancer."""
    replicas: tuple[Replica, Replica]
    http: httpx.AsyncClient
    channel: grpc.aio.Channel

    def client(self, binding: str) -> Binding:
        """Return a client that reaches the two in turn; by gRPC, one of them."""
        token = self.world.token(self.tenant, audience=Audience.A2A)
        if binding == "grpc":
            return GrpcBinding(channel=self.channel, token=token)
        kind = RpcBinding if binding == "jsonrpc" else RestBinding
        return kind(base=self.base, token=token, http=self.http)


@pytest.fixture(scope="module", name="kit")
async def kit_fixture(cluster: Cluster) -> AsyncGenerator[Kit]:
    """The stage for all tests of the file."""
    async with world(cluster) as own, httpx.AsyncClient(timeout=BOUND_S) as http:
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            base = f"http://127.0.0.1:{listening.getsockname()[1]}"
            async with (
                a2a_replica(own, public=base, test_fixtures="on") as one,
                a2a_replica(own, public=base, test_fixtures="on") as other,
                worker(dataclasses.replace(own.settings, worker_slots=8)),
                _balanced((one.base, other.base), listening),
                grpc.aio.insecure_channel(one.grpc) as channel,
            ):
                tenant = await own.tenant("kit")
                yield Kit(world=own, tenant=tenant, base=base, replicas=(one, other), http=http, channel=channel)


@asynccontextmanager
async def _balanced(bases: tuple[str, ...], listening: socket.socket) -> AsyncGenerator[None]:
    """Serve what hands each request to the next replica, whatever connection it came by."""
    turn = itertools.cycle(bases)

    async with httpx.AsyncClient(timeout=BOUND_S) as http:

        async def forward(request: Request) -> Response:
            url = f"{next(turn)}{request.url.path}" + (f"?{request.url.query}" if request.url.query else "")
            headers = {name: value for name, value in request.headers.items() if name != "host"}
            sent = http.build_request(request.method, url, headers=headers, content=await request.body())
            answer = await http.send(sent, stream=True)
            return StreamingResponse(
                _relayed(answer), status_code=answer.status_code, headers=dict(answer.headers.items())
            )

        routes = [Route("/{path:path}", forward, methods=["GET", "POST", "DELETE"])]
        async with serving(Starlette(routes=routes), listening):
            yield


async def _relayed(answer: httpx.Response) -> AsyncGenerator[bytes]:
    try:
        async for chunk in answer.aiter_raw():
            yield chunk
    finally:
        with anyio.CancelScope(shield=True):
            await answer.aclose()


def _message(prefix: str, **fields: Any) -> dict[str, Any]:
    return message("hello", messageId=f"{prefix}-{uuid4().hex}", **fields)


async def _streamed(client: Binding, params: dict[str, Any]) -> list[Item]:
    with anyio.fail_after(BOUND_S):
        async with client.stream("SendStreamingMessage", params) as events:
            return [event async for event in events]


@pytest.fixture(params=BINDINGS)
def client(kit: Kit, request: pytest.FixtureRequest) -> Binding:
    """A client by each binding."""
    return kit.client(request.param)


ARTIFACTS = {
    "tck-artifact-text": [{"text": "Generated text content", "mediaType": "text/plain"}],
    "tck-artifact-file": [{"raw": "dGNr", "filename": "output.txt", "mediaType": "text/plain"}],
    "tck-artifact-file-url": [
        {"url": "https://example.com/output.txt", "filename": "output.txt", "mediaType": "text/plain"}
    ],
    "tck-artifact-data": [{"data": {"key": "value", "count": 42}, "mediaType": "application/json"}],
}
STREAMS = {
    "tck-stream-001": [{"text": "Stream hello from TCK", "mediaType": "text/plain"}],
    "tck-stream-003": [{"text": "Stream task lifecycle", "mediaType": "text/plain"}],
    "tck-stream-ordering-001": [{"text": "Ordered output", "mediaType": "text/plain"}],
    "tck-stream-artifact-text": [{"text": "Streamed text content", "mediaType": "text/plain"}],
    "tck-stream-artifact-file": [{"raw": "dGNr", "filename": "output.txt", "mediaType": "text/plain"}],
}


async def test_a_task_is_completed_with_a_message_each_time_it_is_asked_for(client: Binding) -> None:
    again = _message("tck-complete-task")
    made: set[str] = set()
    for _ in range(3):
        task = (await client.call("SendMessage", again))["task"]
        assert task["status"]["state"] == "TASK_STATE_COMPLETED"
        assert task["status"]["message"]["parts"][0]["text"] == "Hello from TCK"
        made.add(task["id"])
    assert len(made) == 3


async def test_a_delayed_task_is_waited_for_unless_told_otherwise(client: Binding) -> None:
    now = {**_message("tck-delayed-complete"), "configuration": {"returnImmediately": True}}
    task = (await client.call("SendMessage", now))["task"]
    assert task["status"]["state"] in {"TASK_STATE_SUBMITTED", "TASK_STATE_WORKING"}
    waited = (await client.call("SendMessage", _message("tck-delayed-complete")))["task"]
    assert waited["status"]["state"] == "TASK_STATE_COMPLETED"


@pytest.mark.parametrize("prefix", ARTIFACTS)
async def test_an_artifact_has_the_part_that_was_asked_for(client: Binding, prefix: str) -> None:
    task = (await client.call("SendMessage", _message(prefix)))["task"]
    assert task["status"]["state"] == "TASK_STATE_COMPLETED"
    assert [artifact["parts"] for artifact in task["artifacts"]] == [ARTIFACTS[prefix]]


async def test_an_answer_may_be_a_message_and_no_task(client: Binding) -> None:
    answer = await client.call("SendMessage", _message("tck-message-response", contextId="c-1"))
    assert answer["message"]["role"] == "ROLE_AGENT"
    assert answer["message"]["contextId"] == "c-1"
    assert answer["message"]["parts"][0]["text"] == "Direct message response"
    (event,) = await _streamed(client, _message("tck-message-response"))
    assert (event.kind, event.body["parts"][0]["text"]) == ("message", "Direct message response")


async def test_a_task_that_asks_is_answered_in_the_same_context_without_naming_it(client: Binding) -> None:
    task = (await client.call("SendMessage", _message("tck-input-required")))["task"]
    assert task["status"]["state"] == "TASK_STATE_INPUT_REQUIRED"
    with pytest.raises(Refused) as elsewhere:
        await client.call("SendMessage", _message("tck-complete-task", taskId=task["id"], contextId="other"))
    assert elsewhere.value.reason == "INVALID_PARAMS"
    again = (await client.call("SendMessage", _message("tck-input-required", taskId=task["id"])))["task"]
    assert again["status"]["state"] == "TASK_STATE_INPUT_REQUIRED"
    answered = (await client.call("SendMessage", _message("tck-complete-task", taskId=task["id"])))["task"]
    assert (answered["id"], answered["contextId"]) == (task["id"], task["contextId"])
    assert answered["status"]["state"] == "TASK_STATE_COMPLETED"
    with pytest.raises(Refused) as ended:
        await client.call("SendMessage", _message("tck-complete-task", taskId=task["id"]))
    assert ended.value.reason == "UNSUPPORTED_OPERATION"


async def test_a_task_that_asks_can_be_canceled_and_its_subscribers_hear_the_answer(client: Binding) -> None:
    task = (await client.call("SendMessage", _message("tck-input-required")))["task"]
    async with client.stream("SubscribeToTask", {"id": task["id"]}) as events:
        assert (await anext(events)).kind == "task"
        canceled = await client.call("CancelTask", {"id": task["id"]})
        assert canceled["status"]["state"] == "TASK_STATE_CANCELED"
        with anyio.fail_after(BOUND_S):
            assert [event.body["status"]["state"] async for event in events] == ["TASK_STATE_CANCELED"]
    with pytest.raises(Refused) as refused:
        await client.call("CancelTask", {"id": task["id"]})
    assert refused.value.reason == "TASK_NOT_CANCELABLE"


async def test_a_task_may_be_rejected(client: Binding) -> None:
    task = (await client.call("SendMessage", _message("tck-reject-task")))["task"]
    assert task["status"]["state"] == "TASK_STATE_REJECTED"
    assert task["status"]["message"]["parts"][0]["text"] == "rejected"


@pytest.mark.parametrize("prefix", STREAMS)
async def test_a_stream_works_brings_its_artifact_and_completes(client: Binding, prefix: str) -> None:
    events = await _streamed(client, _message(prefix))
    assert events[0].kind == "task"
    # the worker may have begun before the stream's first event was read, which then says so
    said = [event for event in events if event.kind == "artifactUpdate"]
    parts = [event.body["artifact"]["parts"] for event in said] or [
        artifact["parts"] for artifact in events[0].body["artifacts"]
    ]
    assert parts == [STREAMS[prefix]]
    last = events[-1].body
    assert last["status"]["state"] == "TASK_STATE_COMPLETED"
    assert [event.id for event in events[1:]] == list(range(events[0].id + 1, events[0].id + len(events)))  # pyright: ignore[reportOptionalOperand]


async def test_a_stream_may_be_nothing_but_the_task_s_end(client: Binding) -> None:
    events = await _streamed(client, _message("tck-stream-002"))
    assert events[-1].body["status"]["state"] == "TASK_STATE_COMPLETED"


async def test_an_artifact_in_chunks_is_appended_to_and_ends_with_the_last(client: Binding) -> None:
    task = (await client.call("SendMessage", _message("tck-stream-artifact-chunked")))["task"]
    assert task["artifacts"][0]["parts"] == [{"text": "chunk-1 chunk-2", "mediaType": "text/plain"}]
    async with client.stream("SubscribeToTask", {"id": task["id"]}, last_event_id="0") as events:
        chunks = [event.body async for event in events if event.kind == "artifactUpdate"]
    assert [(chunk.get("append", False), chunk.get("lastChunk", False)) for chunk in chunks] == [
        (False, False),
        (True, True),
    ]


async def test_whoever_subscribes_again_hears_the_rest_on_whichever_replica(kit: Kit, client: Binding) -> None:
    async with client.stream("SendStreamingMessage", _message("test-resubscribe-message-id")) as events:
        task_id = (await anext(events)).body["id"]
    heard: list[list[Item]] = []

    async def listen(binding: str) -> None:
        async with kit.client(binding).stream("SubscribeToTask", {"id": task_id}) as again:
            heard.append([event async for event in again])

    with anyio.fail_after(BOUND_S):
        async with anyio.create_task_group() as group:
            for binding in BINDINGS * 2:
                group.start_soon(listen, binding)
    assert len(heard) == 6
    assert all(one[0].kind == "task" for one in heard)
    assert {one[-1].body["status"]["state"] for one in heard} == {"TASK_STATE_COMPLETED"}


async def test_the_balanced_card_names_the_balancer_and_replicas_agree_to_the_byte(kit: Kit) -> None:
    path = "/.well-known/agent-card.json"
    cards = [(await kit.http.get(f"{replica.base}{path}")) for replica in kit.replicas]
    urls = {one["url"] for one in cards[0].json()["supportedInterfaces"]}
    assert urls == {f"{kit.base}/a2a/jsonrpc", f"{kit.base}/a2a/rest"}
    assert "last-modified" in cards[0].headers
    task = (await kit.client("jsonrpc").call("SendMessage", _message("tck-artifact-data")))["task"]
    token = kit.world.token(kit.tenant, audience=Audience.A2A)
    told = [
        await RestBinding(base=replica.base, token=token, http=kit.http).call("GetTask", {"id": task["id"]})
        for replica in kit.replicas
    ]
    assert told[0] == told[1]


async def test_without_the_setting_the_kit_s_messages_are_messages_like_any_other(world: World) -> None:
    acme = await world.tenant("acme")
    async with a2a_replica(world, grpc=False) as replica, httpx.AsyncClient(timeout=BOUND_S) as http:
        client = RpcBinding(base=replica.base, token=world.token(acme, audience=Audience.A2A), http=http)
        now = {**_message("tck-message-response"), "configuration": {"returnImmediately": True}}
        task = (await client.call("SendMessage", now))["task"]
        assert task["metadata"]["skillId"] == "rag"
        with pytest.raises(Refused):
            await client.call("SendMessage", message(metadata={"skillId": "fixture"}))
