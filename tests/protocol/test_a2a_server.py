"""The A2A face over real HTTP: the SDK's own client, bare requests, hostile ones, and two replicas on one log."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import anyio
import httpx
import pytest
from a2a.client import Client, ClientConfig, create_client
from a2a.types import a2a_pb2 as pb
from a2a.utils.errors import TaskNotCancelableError, TaskNotFoundError

from a2a_server.app import MAX_BODY_BYTES
from rag.db.pool import Database
from rag.identity.principal import Principal
from rag.identity.scopes import Audience, Scope
from rag.tasks import store
from rag.tasks.values import EventKind, TaskState
from rag.tenants.operator import Tenant
from tests.support import tasks
from tests.support.agents import Rpc, a2a_server, message
from tests.support.world import ALL_SCOPES, Cluster, World, world

pytestmark = pytest.mark.anyio
BOUND_S = 20.0
SEQ = "urn:bulkhead:a2a:resume:v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A server, two tenants, and a database by which the test plays the worker."""

    world: World
    base: str
    acme: Tenant
    rival: Tenant
    database: Database
    http: httpx.AsyncClient

    def rpc(self, tenant: Tenant | None = None, *, base: str | None = None, **token: Any) -> Rpc:
        """Return a bare client for a user of `tenant` (acme)."""
        bearer = self.world.token(tenant or self.acme, audience=Audience.A2A, **token)
        return Rpc(base=base or self.base, token=bearer, http=self.http)

    @asynccontextmanager
    async def sdk(self) -> AsyncGenerator[Client]:
        """Open the SDK's own client, which reads the card first."""
        token = self.world.token(self.acme, audience=Audience.A2A)
        async with (
            httpx.AsyncClient(headers={"authorization": f"Bearer {token}"}, timeout=BOUND_S) as http,
            await create_client(self.base, ClientConfig(httpx_client=http)) as client,
        ):
            yield client

    def worker(self, task_id: str) -> Played:
        """Return what appends to the log as the task's worker would."""
        return Played(database=self.database, ada=self.world.principal(self.acme), task_id=UUID(task_id))


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """The test as the worker of one task."""

    database: Database
    ada: Principal
    task_id: UUID

    async def status(self, state: TaskState, text: str) -> None:
        """Append a status."""
        await tasks.status(self.database, self.ada, self.task_id, state, text, fence=None)

    async def text(self, text: str, *, append: bool) -> None:
        """Append a piece of the answer."""
        payload = {
            "artifact_id": "answer",
            "name": "answer",
            "parts": [{"text": text}],
            "append": append,
            "last_chunk": False,
        }
        async with self.database.tenant(self.ada) as session:
            await store.append(session, self.task_id, EventKind.ARTIFACT, payload, fence=None)

    async def whole_story(self) -> None:
        """Work, answer in two pieces, complete: events 2 to 5."""
        await self.status(TaskState.WORKING, "searching…")
        await self.text("It is ", append=False)
        await self.text("unlawful.", append=True)
        await self.status(TaskState.COMPLETED, "done")


@pytest.fixture(scope="module", name="stage")
async def stage_fixture(cluster: Cluster) -> AsyncGenerator[Scene]:
    """One replica for all tests of the file."""
    async with (
        world(cluster) as own,
        own.database() as database,
        a2a_server(own) as base,
        httpx.AsyncClient(timeout=BOUND_S) as http,
    ):
        acme, rival = await own.tenant("acme"), await own.tenant("rival")
        yield Scene(world=own, base=base, acme=acme, rival=rival, database=database, http=http)


@pytest.fixture(name="scene")
async def scene_fixture(stage: Scene) -> Scene:
    """The file's replica, with tenants of the test's own."""
    number = uuid4().hex[:8]
    acme, rival = await stage.world.tenant(f"acme-{number}"), await stage.world.tenant(f"rival-{number}")
    return dataclasses.replace(stage, acme=acme, rival=rival)


def _send(text: str = "why?") -> pb.SendMessageRequest:
    part = pb.Part(text=text)
    return pb.SendMessageRequest(message=pb.Message(message_id=str(uuid4()), role=pb.Role.ROLE_USER, parts=[part]))


async def _submitted(rpc: Rpc, **fields: Any) -> dict[str, Any]:
    params = {**message(**fields), "configuration": {"returnImmediately": True}}
    return (await rpc.call("SendMessage", params))["task"]


# --- probes


async def test_probes_need_no_token(scene: Scene) -> None:
    assert (await scene.http.get(f"{scene.base}/healthz")).json() == {"status": "ok"}
    assert (await scene.http.get(f"{scene.base}/readyz")).json() == {"status": "ready"}


# --- the SDK's own client


async def test_the_sdk_client_streams_a_task_to_its_end(scene: Scene) -> None:
    seen: list[str] = []
    task_id, task = "", pb.Task()
    async with scene.sdk() as client, anyio.create_task_group() as group:
        async for event in client.send_message(_send()):
            seen.append(str(event.WhichOneof("payload")))
            if event.HasField("task"):
                group.start_soon(scene.worker(event.task.id).whole_story)
                task_id = event.task.id
        task = await client.get_task(pb.GetTaskRequest(id=task_id))
    assert seen == ["task", "status_update", "artifact_update", "artifact_update", "status_update"]
    assert task.status.state == pb.TaskState.TASK_STATE_COMPLETED
    assert [part.text for part in task.artifacts[0].parts] == ["It is unlawful."]
    assert [part.text for one in task.history for part in one.parts] == ["why?", "searching…"]


async def test_the_sdk_client_lists_subscribes_and_cancels(scene: Scene) -> None:
    canceled = pb.Task()
    async with scene.sdk() as client:
        task = await _submitted(scene.rpc())
        listed = await client.list_tasks(pb.ListTasksRequest())
        assert [one.id for one in listed.tasks] == [task["id"]]
        states: list[int] = []
        async for event in client.subscribe(pb.SubscribeToTaskRequest(id=task["id"])):
            if event.HasField("task"):
                states.append(event.task.status.state)
                canceled = await client.cancel_task(pb.CancelTaskRequest(id=task["id"]))
            else:
                states.append(event.status_update.status.state)
        assert canceled.status.state == pb.TaskState.TASK_STATE_CANCELED
        assert states == [pb.TaskState.TASK_STATE_SUBMITTED, pb.TaskState.TASK_STATE_CANCELED]
        with pytest.raises(TaskNotCancelableError):
            await client.cancel_task(pb.CancelTaskRequest(id=task["id"]))
        with pytest.raises(TaskNotFoundError):
            await client.get_task(pb.GetTaskRequest(id=str(uuid4())))


# --- sending


async def test_a_send_waits_for_the_end_unless_told_otherwise(scene: Scene) -> None:
    rpc = scene.rpc()
    answers: list[dict[str, Any]] = []

    async def ask() -> None:
        answers.append(await rpc.call("SendMessage", message()))

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        while not (listed := (await rpc.call("ListTasks", {}))["tasks"]):
            await anyio.lowlevel.checkpoint()
        assert listed[0]["status"]["state"] == "TASK_STATE_SUBMITTED"
        await scene.worker(listed[0]["id"]).whole_story()
    assert answers[0]["task"]["status"]["state"] == "TASK_STATE_COMPLETED"
    assert answers[0]["task"]["artifacts"][0]["parts"] == [{"text": "It is unlawful.", "mediaType": "text/plain"}]


async def test_a_task_keeps_the_context_it_was_sent_with_or_gets_a_new_one(scene: Scene) -> None:
    rpc = scene.rpc()
    assert (await _submitted(rpc, contextId="my-context"))["contextId"] == "my-context"
    assert UUID((await _submitted(rpc))["contextId"])


async def test_every_status_has_a_timestamp_from_the_first_on(scene: Scene) -> None:
    assert (await _submitted(scene.rpc()))["status"]["timestamp"]


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"contextId": "x" * 257}, -32602),
        ({"messageId": "x" * 257}, -32602),
        ({"messageId": ""}, -32602),
        ({"role": "ROLE_AGENT"}, -32602),
        ({"role": 99}, -32602),
        ({"parts": []}, -32602),
        ({"parts": [{"text": "   "}]}, -32602),
        ({"parts": [{"text": "x" * 5000}]}, -32602),
        ({"parts": [{"text": "nul \x00"}]}, -32602),
        ({"contextId": "nul \x00"}, -32602),
        ({"parts": [{"url": "https://example.com/a.pdf"}]}, -32005),
        ({"parts": [{"raw": "aGk="}]}, -32602),
        ({"parts": [{"data": {"a": 1}}]}, -32602),
        ({"parts": [{"text": "hi", "mediaType": "text/x-evil"}]}, -32005),
        ({"taskId": "not-a-uuid"}, -32001),
        ({"taskId": "00000000-0000-4000-8000-000000000000"}, -32001),
        ({"metadata": {"skillId": "no-such-skill"}}, -32602),
        ({"metadata": {"much": "x" * 5000}}, -32602),
    ],
)
async def test_a_bad_message_is_refused_and_leaves_no_task(scene: Scene, fields: dict[str, Any], code: int) -> None:
    rpc = scene.rpc()
    assert (await rpc.error("SendMessage", message(**fields)))["code"] == code
    assert (await rpc.error("SendStreamingMessage", message(**fields)))["code"] == code
    assert (await rpc.call("ListTasks", {}))["tasks"] == []


async def test_output_modes_that_we_do_not_have_are_refused(scene: Scene) -> None:
    rpc = scene.rpc()
    images = {**message(), "configuration": {"acceptedOutputModes": ["image/png"]}}
    assert (await rpc.error("SendMessage", images))["code"] == -32005


async def test_a_message_to_a_working_task_is_refused_and_not_dropped(scene: Scene) -> None:
    rpc = scene.rpc()
    task = await _submitted(rpc)
    busy = await rpc.error("SendMessage", message(taskId=task["id"]))
    assert (busy["code"], busy["data"][0]["metadata"]["code"]) == (-32004, "task_busy")
    elsewhere = await rpc.error("SendMessage", message(taskId=task["id"], contextId="another"))
    assert elsewhere["code"] == -32602
    await scene.worker(task["id"]).whole_story()
    ended = await rpc.error("SendMessage", message(taskId=task["id"]))
    assert ended["code"] == -32004
    assert "ended" in ended["message"]


# --- streams


async def test_a_stream_numbers_its_events_without_a_gap_and_closes_at_the_end(scene: Scene) -> None:
    async with scene.rpc().stream("SendStreamingMessage", message()) as events:
        first = await anext(events)
        task_id = first.result["task"]["id"]
        await scene.worker(task_id).whole_story()
        rest = [event async for event in events]
    assert [event.id for event in (first, *rest)] == [1, 2, 3, 4, 5]
    for event in (first, *rest):
        (body,) = event.result.values()
        assert body["metadata"][SEQ]["seq"] == event.id
        assert body.get("taskId", body.get("id")) == task_id
    assert [event.result["artifactUpdate"].get("append", False) for event in rest[1:3]] == [False, True]
    assert rest[-1].result["statusUpdate"]["status"]["state"] == "TASK_STATE_COMPLETED"


async def test_a_client_that_was_cut_off_gets_each_remaining_event_once(scene: Scene) -> None:
    rpc = scene.rpc()
    async with rpc.stream("SendStreamingMessage", message()) as events:
        task_id = (await anext(events)).result["task"]["id"]
        worker = scene.worker(task_id)
        await worker.status(TaskState.WORKING, "searching…")
        assert (await anext(events)).id == 2
    await worker.text("missed", append=False)  # while nobody listens
    async with rpc.stream("SubscribeToTask", {"id": task_id}, last_event_id="2") as events:
        assert (await anext(events)).id == 3
        await worker.text(" and live", append=True)
        assert (await anext(events)).id == 4
        await worker.status(TaskState.COMPLETED, "done")
        assert [event.id async for event in events] == [5]


async def test_what_was_missed_is_told_even_after_the_end_and_then_no_more(scene: Scene) -> None:
    rpc = scene.rpc()
    task = await _submitted(rpc)
    await scene.worker(task["id"]).whole_story()
    async with rpc.stream("SubscribeToTask", {"id": task["id"]}, last_event_id="3") as events:
        assert [event.id async for event in events] == [4, 5]
    async with rpc.stream("SubscribeToTask", {"id": task["id"]}, last_event_id="0") as events:
        assert [next(iter(event.result)) async for event in events] == [
            "task",
            "statusUpdate",
            "artifactUpdate",
            "artifactUpdate",
            "statusUpdate",
        ]
    assert (await rpc.error("SubscribeToTask", {"id": task["id"]}, last_event_id="5"))["code"] == -32004
    assert (await rpc.error("SubscribeToTask", {"id": task["id"]}))["code"] == -32004


@pytest.mark.parametrize("position", ["6", "-1", "x", "1.5", "99999999999999999999", "0x1"])
async def test_a_last_event_id_that_was_never_sent_is_refused(scene: Scene, position: str) -> None:
    rpc = scene.rpc()
    task = await _submitted(rpc)
    error = await rpc.error("SubscribeToTask", {"id": task["id"]}, last_event_id=position)
    assert error["code"] == -32602


async def test_a_subscriber_begins_with_a_snapshot_that_holds_what_came_before(scene: Scene) -> None:
    rpc = scene.rpc()
    task = await _submitted(rpc)
    worker = scene.worker(task["id"])
    await worker.status(TaskState.WORKING, "searching…")
    await worker.text("It is ", append=False)
    async with rpc.stream("SubscribeToTask", {"id": task["id"]}) as events:
        snapshot = await anext(events)
        assert snapshot.id == 3
        assert snapshot.result["task"]["artifacts"][0]["parts"][0]["text"] == "It is "
        assert snapshot.result["task"]["status"]["message"]["parts"][0]["text"] == "searching…"
        await worker.text("unlawful.", append=True)
        assert (await anext(events)).id == 4


async def test_two_replicas_tell_one_story(scene: Scene) -> None:
    """A subscriber on one replica sees what is done on the other, and a cancel there."""
    async with a2a_server(scene.world) as other:
        here, there = scene.rpc(), scene.rpc(base=other)
        async with here.stream("SendStreamingMessage", message()) as events:
            task_id = (await anext(events)).result["task"]["id"]
            async with there.stream("SubscribeToTask", {"id": task_id}) as others:
                assert (await anext(others)).id == 1
                await scene.worker(task_id).status(TaskState.WORKING, "on it")
                await there.call("CancelTask", {"id": task_id})
                mine, theirs = [event.data async for event in events], [event.data async for event in others]
    assert mine == theirs
    assert mine[-1]["result"]["statusUpdate"]["status"]["state"] == "TASK_STATE_CANCELED"


async def test_a_stream_is_not_buffered_by_proxies(scene: Scene) -> None:
    body = {"jsonrpc": "2.0", "id": 1, "method": "SendStreamingMessage", "params": message()}
    rpc = scene.rpc()
    headers = {"authorization": f"Bearer {rpc.token}", "A2A-Version": "1.0", "A2A-Extensions": SEQ}
    async with scene.http.stream("POST", rpc.url, json=body, headers=headers) as response:
        assert response.headers["x-accel-buffering"] == "no"
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["a2a-extensions"] == SEQ


async def test_a_stream_ends_when_its_token_is_revoked(scene: Scene) -> None:
    rpc = scene.rpc()
    token_id = scene.world.verifier(Audience.A2A).verify(rpc.token).token_ids[0]
    async with rpc.stream("SendStreamingMessage", message()) as events:
        task_id = (await anext(events)).result["task"]["id"]
        async with scene.world.operator() as operator:
            await operator.revoke_token(scene.acme.tenant_id, token_id)
        await scene.worker(task_id).status(TaskState.WORKING, "secret progress")
        (last,) = [event async for event in events]
    assert last.event == "error"
    assert last.data["error"]["data"][0]["metadata"]["code"] == "revoked"
    refused = await rpc.raw("GetTask", {"id": task_id})
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, 'Bearer error="invalid_token"')


# --- reading


async def test_history_is_as_long_as_asked(scene: Scene) -> None:
    rpc = scene.rpc()
    task = await _submitted(rpc)
    await scene.worker(task["id"]).whole_story()
    for length, texts in ((None, ["why?", "searching…"]), (1, ["searching…"]), (0, []), (9, ["why?", "searching…"])):
        params = {"id": task["id"]} if length is None else {"id": task["id"], "historyLength": length}
        got = await rpc.call("GetTask", params)
        assert [one["parts"][0]["text"] for one in got.get("history", [])] == texts
    assert (await rpc.error("GetTask", {"id": task["id"], "historyLength": -1}))["code"] == -32602


async def test_a_list_pages_latest_first_and_leaves_artifacts_out_by_default(scene: Scene) -> None:
    rpc = scene.rpc()
    made = [(await _submitted(rpc, contextId="c"))["id"] for _ in range(5)]
    await scene.worker(made[0]).whole_story()
    seen: list[str] = []
    token = ""
    while True:
        page = await rpc.call("ListTasks", {"pageSize": 2, "pageToken": token})
        assert (page["pageSize"], page["totalSize"]) == (2, 5)
        assert all("artifacts" not in task for task in page["tasks"])
        seen += [task["id"] for task in page["tasks"]]
        token = page["nextPageToken"]
        if not token:
            break
    assert seen == [made[0], *reversed(made[1:])]
    (done,) = (await rpc.call("ListTasks", {"status": "TASK_STATE_COMPLETED", "includeArtifacts": True}))["tasks"]
    assert done["artifacts"][0]["parts"][0]["text"] == "It is unlawful."
    assert (await rpc.call("ListTasks", {"contextId": "other"}))["tasks"] == []
    since = {"statusTimestampAfter": done["status"]["timestamp"]}
    assert [task["id"] for task in (await rpc.call("ListTasks", since))["tasks"]] == [made[0]]


@pytest.mark.parametrize("size", [0, 101, -1])
async def test_a_page_size_out_of_bounds_is_refused(scene: Scene, size: int) -> None:
    assert (await scene.rpc().error("ListTasks", {"pageSize": size}))["code"] == -32602


@pytest.mark.parametrize("name", ["TASK_STATE_DONE", "completed", "-1"])
async def test_a_list_by_a_state_that_there_is_not_is_refused(scene: Scene, name: str) -> None:
    await _submitted(scene.rpc())
    refused = await scene.rpc().error("ListTasks", {"status": name})
    assert (refused["code"], refused["message"]) == (-32602, "status is not the state of a task")
    assert (await scene.rpc().call("ListTasks", {"status": ""}))["totalSize"] == 1


async def test_a_cursor_is_good_for_its_own_tenant_only(scene: Scene) -> None:
    mine, theirs = scene.rpc(), scene.rpc(scene.rival)
    for _ in range(2):
        await _submitted(mine)
    token = (await mine.call("ListTasks", {"pageSize": 1}))["nextPageToken"]
    for rpc, text in ((theirs, token), (mine, token[:-2] + "AA"), (mine, "x"), (mine, "é"), (mine, "A" * 5000)):
        assert (await rpc.error("ListTasks", {"pageToken": text}))["code"] == -32602


# --- walls


async def test_a_foreign_task_is_as_unknown_as_one_that_never_was(scene: Scene) -> None:
    task = await _submitted(scene.rpc())
    stranger = scene.rpc(scene.rival)
    never = str(uuid4())
    for method in ("GetTask", "CancelTask", "SubscribeToTask"):
        foreign, unknown = [(await stranger.raw(method, {"id": id_})) for id_ in (task["id"], never)]
        assert foreign.content == unknown.content
        assert foreign.json()["error"]["code"] == -32001
    foreign, unknown = [(await stranger.raw("SendMessage", message(taskId=id_))) for id_ in (task["id"], never)]
    assert foreign.content == unknown.content
    assert (await stranger.call("ListTasks", {}))["totalSize"] == 0


async def test_the_tenant_of_a_request_is_the_tokens_and_no_other(scene: Scene) -> None:
    rpc = scene.rpc()
    task = await _submitted(rpc)
    mine, theirs = str(scene.acme.tenant_id), str(scene.rival.tenant_id)
    assert (await rpc.call("GetTask", {"id": task["id"], "tenant": mine}))["id"] == task["id"]
    stranger = scene.rpc(scene.rival)
    for method, params in (
        ("GetTask", {"id": task["id"]}),
        ("ListTasks", {}),
        ("CancelTask", {"id": task["id"]}),
        ("SubscribeToTask", {"id": task["id"]}),
        ("SendMessage", message()),
    ):
        assert (await stranger.error(method, {**params, "tenant": mine}))["code"] == -32602
        assert (await rpc.error(method, {**params, "tenant": theirs}))["code"] == -32602


async def test_without_a_good_token_nothing_is_read(scene: Scene) -> None:
    rpc = scene.rpc()
    for header in (None, "Bearer", "Bearer  x y", "Basic YTpi", "Bearer not.a.token", f"Token {rpc.token}"):
        headers = {"authorization": header} if header is not None else {}
        response = await scene.http.post(rpc.url, content=b"{", headers=headers)
        assert response.status_code == 401
        assert response.headers["www-authenticate"].startswith("Bearer")
    other = scene.world.token(scene.acme, audience=Audience.MCP)
    expired = scene.world.token(scene.acme, audience=Audience.A2A, lifetime_s=-60.0)
    for token in (other, expired):
        refused = await scene.http.post(rpc.url, json={}, headers={"authorization": f"Bearer {token}"})
        assert refused.status_code == 401
        assert 'error="invalid_token"' in refused.headers["www-authenticate"]
    assert (await scene.http.get(f"{scene.base}/anything")).status_code == 401


async def test_scopes_are_asked_for_at_the_door_and_by_the_skill(scene: Scene) -> None:
    no_tasks = scene.rpc(scopes=ALL_SCOPES - {Scope.TASKS_RUN})
    refused = await no_tasks.raw("ListTasks", {})
    assert refused.status_code == 403
    assert 'scope="tasks:run"' in refused.headers["www-authenticate"]
    no_corpus = scene.rpc(scopes=frozenset({Scope.TASKS_RUN}))
    refused = await no_corpus.raw("SendMessage", message())
    assert refused.status_code == 403
    assert "corpus:read" in refused.json()["error"]["message"]


async def test_a_tenant_over_its_rate_is_told_when_to_come_back(scene: Scene) -> None:
    async with a2a_server(scene.world, request_limit_per_minute=6) as base:
        mine, theirs = scene.rpc(base=base), scene.rpc(scene.rival, base=base)
        answers = [await mine.raw("ListTasks", {}) for _ in range(3)]
        assert answers[-1].status_code == 429
        assert int(answers[-1].headers["retry-after"]) >= 1
        assert (await theirs.raw("ListTasks", {})).status_code == 200


# --- the protocol's edges


@pytest.mark.parametrize("version", ["", "0.3", "1.7", "2.0", "1", "latest", "1.0x"])
async def test_another_version_of_the_protocol_is_refused(scene: Scene, version: str) -> None:
    rpc = scene.rpc()
    response = await rpc.raw("ListTasks", {}, A2A_Version=version)
    assert response.json()["error"]["code"] == -32009
    assert response.json()["id"] == 1


async def test_the_version_may_come_with_a_patch_number_or_in_the_query(scene: Scene) -> None:
    rpc = scene.rpc()
    assert "result" in (await rpc.raw("ListTasks", {}, A2A_Version="1.0.1")).json()
    body = {"jsonrpc": "2.0", "id": 1, "method": "ListTasks", "params": {}}
    headers = {"authorization": f"Bearer {rpc.token}"}
    response = await scene.http.post(f"{rpc.url}?A2A-Version=1.0", json=body, headers=headers)
    assert "result" in response.json()


async def test_the_endpoint_answers_with_and_without_a_slash(scene: Scene) -> None:
    rpc = scene.rpc()
    body = {"jsonrpc": "2.0", "id": 1, "method": "ListTasks", "params": {}}
    headers = {"authorization": f"Bearer {rpc.token}", "A2A-Version": "1.0"}
    for url in (rpc.url, rpc.url + "/"):
        assert "result" in (await scene.http.post(url, json=body, headers=headers)).json()
    assert (await scene.http.get(rpc.url, headers=headers)).status_code == 405


HOSTILE: list[tuple[bytes, int]] = [
    (b"", -32700),
    (b"{", -32700),
    (b"\xff\xfe{}", -32700),
    (b'{"a": NaN}', -32700),
    (b'"\\ud800"', -32700),
    (b"[" * 100_000, -32700),
    (b'{"params":' + b'{"a":' * 2000 + b"1" + b"}" * 2001, -32700),
    (b"null", -32600),
    (b"42", -32600),
    (b'"SendMessage"', -32600),
    (b"[]", -32600),
    (b'[{"jsonrpc":"2.0","id":1,"method":"ListTasks"}]', -32600),
    (b"{}", -32600),
    (b'{"jsonrpc":"1.0","id":1,"method":"ListTasks"}', -32600),
    (b'{"jsonrpc":"2.0","id":{"a":1},"method":"ListTasks"}', -32600),
    (b'{"jsonrpc":"2.0","id":true,"method":"ListTasks"}', -32600),
    (b'{"jsonrpc":"2.0","id":18446744073709551616,"method":"ListTasks","params":{}}', -32600),
    (b'{"jsonrpc":"2.0","id":' + b"9" * 5000 + b',"method":"ListTasks","params":{}}', -32700),
    (b"[" * 1000 + b"]" * 1000, -32600),
    (b'{"jsonrpc":"2.0","id":1,"method":"GetTask","params":{"id":' + b"[" * 1000 + b"]" * 1000 + b"}}", -32602),
    (b'{"jsonrpc":"2.0","id":1,"method":"ListTasks","params":{"status":99}}', -32602),
    (b'{"jsonrpc":"2.0","id":1,"method":"ListTasks","params":{"status":-1}}', -32602),
    (b'{"jsonrpc":"2.0","id":1,"method":7}', -32600),
    (b'{"jsonrpc":"2.0","id":1,"method":"tasks/drop"}', -32601),
    (b'{"jsonrpc":"2.0","id":1,"method":"__class__"}', -32601),
    (b'{"jsonrpc":"2.0","id":1,"method":"GetTask","params":[]}', -32602),
    (b'{"jsonrpc":"2.0","id":1,"method":"GetTask","params":{}}', -32602),
    (b'{"jsonrpc":"2.0","id":1,"method":"GetTask","params":{"id":7}}', -32602),
    (b'{"jsonrpc":"2.0","id":1,"method":"GetTask","params":{"id":"\'; drop table rag.task; --"}}', -32001),
    (b'{"jsonrpc":"2.0","id":1,"method":"GetTask","params":{"id":"' + b"9" * 100_000 + b'"}}', -32001),
    (b'{"jsonrpc":"2.0","id":1,"method":"ListTasks","params":{"pageSize":1e99}}', -32602),
    (b'{"jsonrpc":"2.0","id":1,"method":"ListTasks","params":{"statusTimestampAfter":"yesterday"}}', -32602),
    (b'{"jsonrpc":"2.0","id":1,"method":"ListTasks","params":{"contextId":"\\u0000"}}', -32602),
]


@pytest.mark.parametrize(("body", "code"), HOSTILE, ids=[f"{number}" for number in range(len(HOSTILE))])
async def test_hostile_bodies_get_an_error_code_and_no_text_of_ours(scene: Scene, body: bytes, code: int) -> None:
    rpc = scene.rpc()
    headers = {"authorization": f"Bearer {rpc.token}", "A2A-Version": "1.0", "content-type": "application/json"}
    response = await scene.http.post(rpc.url, content=body, headers=headers)
    answer = response.json()
    assert answer["error"]["code"] == code, answer
    for leak in ("Traceback", "Error(", "Exception", "select ", "asyncpg", "ParseDict", "recursion", "/rag/"):
        assert leak not in response.text


async def test_an_id_that_no_answer_could_repeat_starts_nothing(scene: Scene) -> None:
    rpc = scene.rpc()
    for method in ("SendMessage", "SendStreamingMessage"):
        body = {"jsonrpc": "2.0", "id": 2**70, "method": method, "params": message()}
        headers = {"authorization": f"Bearer {rpc.token}", "A2A-Version": "1.0"}
        answer = (await scene.http.post(rpc.url, json=body, headers=headers)).json()
        assert (answer["error"]["code"], answer["id"]) == (-32600, None)
    assert (await rpc.call("ListTasks", {}))["totalSize"] == 0


async def test_another_media_type_is_refused(scene: Scene) -> None:
    rpc = scene.rpc()
    for media_type in ("text/plain", "application/xml", ""):
        headers = {"authorization": f"Bearer {rpc.token}", "A2A-Version": "1.0", "content-type": media_type}
        response = await scene.http.post(rpc.url, content=b"{}", headers=headers)
        assert response.json()["error"]["code"] == -32005


async def test_a_body_over_the_limit_is_refused_with_and_without_a_length(scene: Scene) -> None:
    rpc = scene.rpc()
    headers = {"authorization": f"Bearer {rpc.token}", "A2A-Version": "1.0", "content-type": "application/json"}
    big = b" " * (MAX_BODY_BYTES + 1)

    async def chunks() -> AsyncGenerator[bytes]:
        for _ in range(3):
            yield big[: MAX_BODY_BYTES // 2]

    for content in (big, chunks()):
        refused = await scene.http.post(rpc.url, content=content, headers=headers)
        assert (refused.status_code, refused.json()["error"]["code"]) in {(413, 413), (413, -32600)}
    assert "result" in (await rpc.raw("ListTasks", {})).json()


async def test_who_asks_whether_to_send_a_body_over_the_limit_is_told_before(scene: Scene) -> None:
    url = httpx.URL(scene.rpc().url)
    assert url.port is not None
    fields = {"host": url.host, "content-length": MAX_BODY_BYTES + 1, "expect": "100-continue"}
    head = f"POST {url.path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    async with await anyio.connect_tcp(url.host, url.port) as connection:
        await connection.send(f"{head}\r\n".encode())
        with anyio.fail_after(BOUND_S):
            assert (await connection.receive()).startswith(b"HTTP/1.1 413 ")
