"""What the A2A face owes its callers, on each binding alike: JSON-RPC, HTTP+JSON and gRPC over real sockets."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID, uuid4

import anyio
import asyncpg
import grpc
import grpc.aio
import httpx
import pytest
from a2a.server.context import ServerCallContext
from a2a.types import a2a_pb2 as pb
from a2a.utils.errors import ExtensionSupportRequiredError

from a2a_server.app import MAX_BODY_BYTES
from a2a_server.guard import Guard, call_context
from rag.db.pool import Database
from rag.identity.claims import LEEWAY_S
from rag.identity.scopes import Audience, Scope
from rag.tasks.values import TaskState
from rag.tenants.operator import Tenant
from tests.support import tasks
from tests.support.agents import Replica, a2a_replica, message
from tests.support.bindings import BINDINGS, Binding, GrpcBinding, Refused, RestBinding, RpcBinding
from tests.support.world import ALL_SCOPES, Cluster, World, world

pytestmark = pytest.mark.anyio
BOUND_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One replica with all bindings."""

    world: World
    replica: Replica
    database: Database
    http: httpx.AsyncClient
    channel: grpc.aio.Channel


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """The stage, two tenants of the test's own, and the binding that it is about."""

    stage: Stage
    binding: str
    acme: Tenant
    rival: Tenant

    def client(self, tenant: Tenant | None = None, *, token: str | None = None, version: str = "1.0", **of: Any) -> Any:
        """Return a client for a user of `tenant` (acme), by the scene's binding."""
        stage = self.stage
        if token is None:
            token = stage.world.token(tenant or self.acme, audience=Audience.A2A, **of)
        if self.binding == "grpc":
            return GrpcBinding(channel=stage.channel, token=token, version=version)
        kind = RpcBinding if self.binding == "jsonrpc" else RestBinding
        return kind(base=stage.replica.base, token=token, http=stage.http, version=version)

    async def submitted(self, client: Binding, **fields: Any) -> dict[str, Any]:
        """Send a message and return its task at once."""
        return (await client.call("SendMessage", at_once(**fields)))["task"]

    async def status(self, task_id: str, state: TaskState, text: str) -> None:
        """Append a status as the task's worker would."""
        ada = self.stage.world.principal(self.acme)
        await tasks.status(self.stage.database, ada, UUID(task_id), state, text, fence=None)


@pytest.fixture(scope="module", name="stage")
async def stage_fixture(cluster: Cluster) -> AsyncGenerator[Stage]:
    """A replica for all tests of the file."""
    async with world(cluster) as own, _stage(own) as stage:
        yield stage


@pytest.fixture(name="scene", params=BINDINGS)
async def scene_fixture(stage: Stage, request: pytest.FixtureRequest) -> Scene:
    """The file's replica, by each binding."""
    return await _scene(stage, request.param)


@asynccontextmanager
async def _stage(own: World, **settings: Any) -> AsyncGenerator[Stage]:
    async with (
        own.database() as database,
        a2a_replica(own, **settings) as replica,
        httpx.AsyncClient(timeout=BOUND_S) as http,
        grpc.aio.insecure_channel(replica.grpc) as channel,
    ):
        yield Stage(world=own, replica=replica, database=database, http=http, channel=channel)


async def _scene(stage: Stage, binding: str) -> Scene:
    unique = uuid4().hex[:8]
    acme, rival = await stage.world.tenant(f"acme-{unique}"), await stage.world.tenant(f"rival-{unique}")
    return Scene(stage=stage, binding=binding, acme=acme, rival=rival)


def at_once(**fields: Any) -> dict[str, Any]:
    """Return the params of a SendMessage that does not wait."""
    return {**message(**fields), "configuration": {"returnImmediately": True}}


def nested(depth: int) -> dict[str, Any]:
    """Return an object with so many levels below it."""
    return {"x": nested(depth - 1) if depth > 1 else 1}


# --- one task, by every binding


async def test_a_task_is_sent_followed_read_listed_and_canceled(scene: Scene) -> None:
    client = scene.client()
    async with client.stream("SendStreamingMessage", message("why?")) as events:
        first = await anext(events)
        task_id = first.body["id"]
        await scene.status(task_id, TaskState.WORKING, "searching…")
        second = await anext(events)
        got = await client.call("GetTask", {"id": task_id, "historyLength": 1})
        listed = await client.call("ListTasks", {"pageSize": 5})
        canceled = await client.call("CancelTask", {"id": task_id})
        last = [event async for event in events]
    assert [(event.kind, event.id) for event in (first, second, *last)] == [
        ("task", 1),
        ("statusUpdate", 2),
        ("statusUpdate", 3),
    ]
    assert first.body["status"]["state"] == "TASK_STATE_SUBMITTED"
    assert second.body["status"]["message"]["parts"][0]["text"] == "searching…"
    assert last[0].body["status"]["state"] == canceled["status"]["state"] == "TASK_STATE_CANCELED"
    assert (got["status"]["state"], len(got["history"])) == ("TASK_STATE_WORKING", 1)
    assert [task["id"] for task in listed["tasks"]] == [task_id]
    assert (listed["totalSize"], listed["nextPageToken"]) == (1, "")
    assert all(event.body["status"]["timestamp"] for event in (first, second, *last))


async def test_a_blocking_send_returns_when_the_task_asks_and_a_reply_goes_to_its_context(scene: Scene) -> None:
    client = scene.client()
    task = await scene.submitted(client, contextId="our-context")
    assert task["contextId"] == "our-context"
    with pytest.raises(Refused) as refused:
        await client.call("SendMessage", message(taskId=task["id"], contextId="another"))
    assert refused.value.reason == "INVALID_PARAMS"
    with pytest.raises(Refused) as busy:
        await client.call("SendMessage", message(taskId=task["id"]))
    assert (busy.value.reason, busy.value.code) == ("UNSUPPORTED_OPERATION", "task_busy")


async def test_whoever_was_cut_off_gets_each_remaining_event_once(scene: Scene) -> None:
    client = scene.client()
    task = await scene.submitted(client)
    for text in ("one", "two"):
        await scene.status(task["id"], TaskState.WORKING, text)
    async with client.stream("SubscribeToTask", {"id": task["id"]}, last_event_id="2") as events:
        assert (await anext(events)).id == 3
        await scene.status(task["id"], TaskState.COMPLETED, "done")
        assert [event.id async for event in events] == [4]
    async with client.stream("SubscribeToTask", {"id": task["id"]}, last_event_id="3") as events:
        assert [event.id async for event in events] == [4]
    for position in ("4", "99", "x"):
        async with client.stream("SubscribeToTask", {"id": task["id"]}, last_event_id=position) as events:
            with pytest.raises(Refused):
                await anext(events)


async def test_a_subscriber_begins_with_the_task_and_a_second_one_sees_the_same(scene: Scene) -> None:
    client = scene.client()
    task = await scene.submitted(client)
    async with (
        client.stream("SubscribeToTask", {"id": task["id"]}) as mine,
        client.stream("SubscribeToTask", {"id": task["id"]}) as theirs,
    ):
        assert [(await anext(events)).kind for events in (mine, theirs)] == ["task", "task"]
        await scene.status(task["id"], TaskState.WORKING, "on it")
        await scene.status(task["id"], TaskState.COMPLETED, "done")
        assert [event async for event in mine] == [event async for event in theirs]


async def test_what_is_as_deep_as_a_message_may_be_is_told_by_every_binding_in_every_answer(stage: Stage) -> None:
    scenes = [await _scene(stage, BINDINGS[0])]
    scenes += [replace(scenes[0], binding=binding) for binding in BINDINGS[1:]]
    parts = [{"filename": "a.txt", "mediaType": "text/plain", "text": "a"}, {"data": {"options": nested(23)}}]
    with pytest.raises(Refused, match="options"):
        await scenes[0].client().call("SendMessage", at_once(parts=parts, metadata={"skillId": "ingest"}))
    task = await scenes[0].submitted(scenes[0].client(), metadata={"a": nested(23)})
    for scene in scenes:
        client = scene.client()
        (listed,) = (await client.call("ListTasks", {}))["tasks"]
        assert listed["history"][0]["metadata"] == {"a": nested(23)}
        async with client.stream("SubscribeToTask", {"id": task["id"]}, last_event_id="0") as events:
            assert (await anext(events)).body["history"][0]["metadata"] == {"a": nested(23)}


async def test_a_page_ends_before_it_is_more_than_a_client_takes(scene: Scene) -> None:
    client = scene.client()
    parts = [{"filename": "a.txt", "mediaType": "text/plain", "text": "é" * 450_000}]
    sent = [
        (await scene.submitted(client, parts=parts, metadata={"skillId": "ingest"}, contextId="large"))["id"]
        for _ in range(5)
    ]
    pages: list[list[str]] = []
    token = ""
    while not pages or token:
        found = await client.call("ListTasks", {"pageSize": 100, "contextId": "large", "pageToken": token})
        pages.append([task["id"] for task in found["tasks"]])
        token = found["nextPageToken"]
    assert [task_id for page in pages for task_id in page] == sent[::-1]
    assert [len(page) for page in pages] == [3, 2]


async def test_a_list_pages_by_signed_cursors_of_its_own_tenant(scene: Scene) -> None:
    client = scene.client()
    made = [(await scene.submitted(client))["id"] for _ in range(3)]
    first = await client.call("ListTasks", {"pageSize": 2, "includeArtifacts": True})
    second = await client.call("ListTasks", {"pageSize": 2, "pageToken": first["nextPageToken"]})
    assert [task["id"] for task in (*first["tasks"], *second["tasks"])] == list(reversed(made))
    assert second["nextPageToken"] == ""
    stranger = scene.client(scene.rival)
    for asker, token in ((stranger, first["nextPageToken"]), (client, "x"), (client, first["nextPageToken"] + "A")):
        with pytest.raises(Refused) as refused:
            await asker.call("ListTasks", {"pageToken": token})
        assert refused.value.code == "invalid_cursor"
    since = {"statusTimestampAfter": first["tasks"][0]["status"]["timestamp"], "status": "TASK_STATE_SUBMITTED"}
    assert [task["id"] for task in (await client.call("ListTasks", since))["tasks"]] == [made[-1]]
    for size in (0, 101):
        with pytest.raises(Refused):
            await client.call("ListTasks", {"pageSize": size})


# --- who calls


OPERATIONS: Mapping[str, Callable[[str], dict[str, Any]]] = {
    "SendMessage": lambda _: at_once(),
    "SendStreamingMessage": lambda _: message(),
    "GetTask": lambda task_id: {"id": task_id},
    "ListTasks": lambda _: {},
    "CancelTask": lambda task_id: {"id": task_id},
    "SubscribeToTask": lambda task_id: {"id": task_id},
    "CreateTaskPushNotificationConfig": lambda task_id: {"taskId": task_id, "url": "https://example.com/hook"},
    "GetTaskPushNotificationConfig": lambda task_id: {"taskId": task_id, "id": "one"},
    "ListTaskPushNotificationConfigs": lambda task_id: {"taskId": task_id},
    "DeleteTaskPushNotificationConfig": lambda task_id: {"taskId": task_id, "id": "one"},
    "GetExtendedAgentCard": lambda _: {},
}


async def _refusal(client: Binding, operation: str, params: dict[str, Any], **headers: str) -> Refused:
    async def first() -> object:
        if operation not in {"SendStreamingMessage", "SubscribeToTask"}:
            return await client.call(operation, params, **headers)
        async with client.stream(operation, params, **headers) as events:
            return await anext(events)

    with pytest.raises(Refused) as refused:
        await first()
    return refused.value


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_a_request_that_names_another_tenant_than_its_token_is_refused(scene: Scene, operation: str) -> None:
    client = scene.client()
    task = await scene.submitted(client)
    params = {**OPERATIONS[operation](task["id"]), "tenant": str(scene.rival.tenant_id)}
    refused = await _refusal(client, operation, params)
    assert refused.reason == "INVALID_PARAMS"
    assert "tenant" in refused.message
    stranger = scene.client(scene.rival)
    refused = await _refusal(stranger, operation, {**params, "tenant": str(scene.acme.tenant_id)})
    assert "tenant" in refused.message
    assert (await client.call("ListTasks", {"tenant": str(scene.acme.tenant_id)}))["totalSize"] == 1


@pytest.mark.parametrize("operation", ["GetTask", "CancelTask", "SubscribeToTask"])
async def test_a_foreign_task_is_as_unknown_as_one_that_never_was(scene: Scene, operation: str) -> None:
    task = await scene.submitted(scene.client())
    stranger = scene.client(scene.rival)
    foreign, unknown = [await _refusal(stranger, operation, {"id": id_}) for id_ in (task["id"], str(uuid4()))]
    assert foreign.reason == unknown.reason == "TASK_NOT_FOUND"
    assert foreign.text == unknown.text
    assert foreign.status == {"jsonrpc": 200, "rest": 404, "grpc": "NOT_FOUND"}[scene.binding]


async def test_without_a_good_token_nobody_enters(scene: Scene) -> None:
    own = scene.stage.world
    expired = own.token(scene.acme, audience=Audience.A2A, lifetime_s=-60.0)
    for token in ("", "not.a.token", own.token(scene.acme, audience=Audience.MCP), expired):
        refused = await _refusal(scene.client(token=token), "ListTasks", {})
        assert (refused.status, refused.code) == (
            "UNAUTHENTICATED" if scene.binding == "grpc" else 401,
            "unauthenticated",
        )
    refused = await _refusal(scene.client(scopes=ALL_SCOPES - {Scope.TASKS_RUN}), "ListTasks", {})
    assert refused.status == ("PERMISSION_DENIED" if scene.binding == "grpc" else 403)
    refused = await _refusal(scene.client(scopes=frozenset({Scope.TASKS_RUN})), "SendMessage", message())
    assert (refused.status, refused.code) == ("PERMISSION_DENIED" if scene.binding == "grpc" else 403, "forbidden")


async def test_a_stream_ends_when_its_token_is_revoked(scene: Scene) -> None:
    client = scene.client()
    token_id = scene.stage.world.verifier(Audience.A2A).verify(client.token).token_ids[0]
    async with client.stream("SendStreamingMessage", message()) as events:
        task_id = (await anext(events)).body["id"]
        async with scene.stage.world.operator() as operator:
            await operator.revoke_token(scene.acme.tenant_id, token_id)
        await scene.status(task_id, TaskState.WORKING, "secret progress")
        with pytest.raises(Refused) as refused:
            await anext(events)
    assert refused.value.code == "revoked"
    assert "secret" not in refused.value.text


async def test_a_stream_ends_when_its_token_expires_and_a_new_one_goes_on_with_it(scene: Scene) -> None:
    client = scene.client(lifetime_s=2.0 - LEEWAY_S)
    async with client.stream("SendStreamingMessage", message()) as events:
        task_id = (await anext(events)).body["id"]
        with anyio.fail_after(BOUND_S), pytest.raises(Refused) as refused:
            await anext(events)
    assert refused.value.code == "unauthenticated"
    await scene.status(task_id, TaskState.WORKING, "more")
    async with scene.client().stream("SubscribeToTask", {"id": task_id}, last_event_id="1") as events:
        assert (await anext(events)).id == 2


@pytest.mark.parametrize("binding", BINDINGS)
async def test_a_tenant_over_its_rate_is_told_when_to_come_back(world: World, binding: str) -> None:
    async with _stage(world, request_limit_per_minute=6) as stage:
        scene = await _scene(stage, binding)
        client = scene.client()
        refused: Refused | None = None
        for _ in range(3):
            try:
                await client.call("ListTasks", {})
            except Refused as exc:
                refused = exc
        assert refused is not None
        assert refused.code == "rate_limited"
        assert refused.status == ("RESOURCE_EXHAUSTED" if binding == "grpc" else 429)
        if binding == "grpc":
            assert "retry-after" in refused.text
        await scene.client(scene.rival).call("ListTasks", {})


# --- the protocol's edges


@pytest.mark.parametrize("version", ["", "0.3", "1.7", "2.0", "1", "latest", "1.0x"])
async def test_another_version_of_the_protocol_is_refused(scene: Scene, version: str) -> None:
    for operation in ("ListTasks", "SendStreamingMessage"):
        refused = await _refusal(scene.client(version=version), operation, OPERATIONS[operation](""))
        assert refused.reason == "VERSION_NOT_SUPPORTED"
    assert (await scene.client().call("ListTasks", {}))["totalSize"] == 0


async def test_the_version_may_have_a_patch_number(scene: Scene) -> None:
    await scene.client(version="1.0.1").call("ListTasks", {})


async def test_an_extension_that_is_required_must_be_named() -> None:
    nobody: Any = None  # what is refused reaches neither the handler nor the caller's name
    guard = Guard(nobody, version="1.0", required={"urn:x:needed", "urn:x:other"})

    def context(*extensions: str) -> ServerCallContext:
        return call_context(nobody, {"a2a-version": "1.0"}, extensions=extensions)

    with pytest.raises(ExtensionSupportRequiredError, match="urn:x:other"):
        await guard.on_get_task(pb.GetTaskRequest(id="1"), context("urn:x:needed"))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"contextId": "x" * 257}, "INVALID_PARAMS"),
        ({"messageId": "x" * 257}, "INVALID_PARAMS"),
        ({"messageId": ""}, "INVALID_PARAMS"),
        ({"role": "ROLE_AGENT"}, "INVALID_PARAMS"),
        ({"parts": []}, "INVALID_PARAMS"),
        ({"parts": [{"text": "nul \x00"}]}, "INVALID_PARAMS"),
        ({"parts": [{"text": "hi", "mediaType": "text/x-evil"}]}, "CONTENT_TYPE_NOT_SUPPORTED"),
        ({"parts": [{"url": "https://example.com/a.pdf"}]}, "CONTENT_TYPE_NOT_SUPPORTED"),
        ({"taskId": "9" * 10_000}, "TASK_NOT_FOUND"),
        ({"metadata": {"skillId": "fixture"}}, "INVALID_PARAMS"),
        ({"metadata": nested(25)}, "INVALID_PARAMS"),
        ({"parts": [{"text": "why?"}, {"data": nested(25)}]}, "INVALID_PARAMS"),
    ],
)
async def test_a_bad_message_is_refused_and_leaves_no_task(scene: Scene, fields: dict[str, Any], reason: str) -> None:
    client = scene.client()
    for operation in ("SendMessage", "SendStreamingMessage"):
        assert (await _refusal(client, operation, message(**fields))).reason == reason
    assert (await client.call("ListTasks", {}))["totalSize"] == 0


@pytest.mark.parametrize("binding", BINDINGS)
async def test_no_answer_has_the_text_of_an_exception(world: World, binding: str) -> None:
    async with _stage(world) as stage:
        scene = await _scene(stage, binding)
        client = scene.client()
        task = await scene.submitted(client)
        admin = await asyncpg.connect(world.superuser_url)
        try:
            await admin.execute("alter table rag.task_event rename column payload to elsewhere")
        finally:
            await admin.close()
        for operation in ("GetTask", "SubscribeToTask"):
            refused = await _refusal(client, operation, {"id": task["id"]})
            assert refused.reason == "INTERNAL_ERROR"
            for leak in ("select", "payload", "column", "asyncpg", "Undefined", "rag."):
                assert leak not in refused.text


async def test_a_message_over_the_limit_is_refused_before_it_is_read(scene: Scene) -> None:
    big = message("x" * (MAX_BODY_BYTES + 1))
    refused = await _refusal(scene.client(), "SendMessage", big)
    assert refused.status == ("RESOURCE_EXHAUSTED" if scene.binding == "grpc" else 413)


async def test_a_message_that_is_small_only_while_it_is_compressed_is_refused(stage: Stage) -> None:
    scene = await _scene(stage, "grpc")
    packed = grpc.aio.insecure_channel(stage.replica.grpc, compression=grpc.Compression.Gzip)
    async with packed as channel:
        client = GrpcBinding(channel=channel, token=scene.client().token)
        refused = await _refusal(client, "SendMessage", at_once(text="x" * 20 * MAX_BODY_BYTES))
        assert refused.status == "UNIMPLEMENTED"
        assert (await scene.client().call("ListTasks", {}))["totalSize"] == 0


@pytest.mark.parametrize("binding", BINDINGS)
async def test_a_stream_ends_in_order_with_the_server(cluster: Cluster, binding: str) -> None:
    async with world(cluster) as own, _stage(own) as stage:
        scene = await _scene(stage, binding)
        client = scene.client()
        async with client.stream("SendStreamingMessage", message()) as events:
            task_id = (await anext(events)).body["id"]
            stage.replica.stopping.set()
            await scene.status(task_id, TaskState.WORKING, "which wakes the stream, as the process would")
            with pytest.raises(Refused, match="the server stops") as refused, anyio.fail_after(BOUND_S):
                await anext(events)
        if binding == "grpc":
            assert refused.value.status == "UNAVAILABLE"
        else:
            assert refused.value.code == "unavailable"
