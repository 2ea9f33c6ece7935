"""An Idempotency-Key at the A2A door: one task for one key and request, on any replica, however often it is sent."""

from __future__ import annotations

import gc
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import anyio
import grpc.aio
import httpx
import pytest

from a2a_server.protocol.idempotency import EXTENSION
from rag.db.pool import Database
from rag.identity.scopes import Audience
from rag.tasks.retention import retire_due
from rag.tasks.values import TaskState
from rag.tenants.operator import Tenant
from tests.support import ended, tasks
from tests.support.agents import Rpc, a2a_replica, a2a_server, message
from tests.support.bindings import Binding, GrpcBinding, Refused, RestBinding, RpcBinding
from tests.support.world import World

pytestmark = pytest.mark.anyio
BOUND_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Two replicas on one log, and two tenants."""

    world: World
    bases: tuple[str, str]
    acme: Tenant
    rival: Tenant
    database: Database
    http: httpx.AsyncClient

    def rpc(self, tenant: Tenant | None = None, *, replica: int = 0, key: str | None = None, **token: Any) -> Rpc:
        """Return a bare client, which sends `key` with every request."""
        bearer = self.world.token(tenant or self.acme, audience=Audience.A2A, **token)
        client = Rpc(base=self.bases[replica], token=bearer, http=self.http)
        if key is not None:
            client.headers["Idempotency-Key"] = f'"{key}"'
        return client


@pytest.fixture(name="scene")
async def scene_fixture(world: World) -> AsyncGenerator[Scene]:
    """No worker: tasks stay as they are accepted."""
    acme, rival = await world.tenant("acme"), await world.tenant("rival")
    async with (
        world.database(pool_size=4, claims=True) as database,
        a2a_server(world) as first,
        a2a_server(world) as second,
        httpx.AsyncClient(timeout=BOUND_S) as http,
    ):
        yield Scene(world=world, bases=(first, second), acme=acme, rival=rival, database=database, http=http)


def _params(text: str = "why?", **fields: Any) -> dict[str, Any]:
    return {**message(text, **fields), "configuration": {"returnImmediately": True}}


async def _sent(rpc: Rpc, text: str = "why?", **fields: Any) -> str:
    return (await rpc.call("SendMessage", _params(text, **fields)))["task"]["id"]


async def _end(scene: Scene, task_id: str) -> None:
    ada = scene.world.principal(scene.acme)
    await tasks.status(scene.database, ada, UUID(task_id), TaskState.COMPLETED, "done", fence=None)


async def test_the_same_request_under_one_key_is_one_task_on_every_replica(scene: Scene) -> None:
    found = {await _sent(scene.rpc(replica=replica, key="order-1")) for replica in (0, 1, 0)}
    assert len(found) == 1
    assert (await tasks.claim(scene.database)).task_id == UUID(found.pop())


async def test_of_many_at_once_one_is_accepted(scene: Scene) -> None:
    found: list[str] = []

    async def send(number: int) -> None:
        found.append(await _sent(scene.rpc(replica=number % 2, key="order-1")))

    with anyio.fail_after(BOUND_S):
        async with anyio.create_task_group() as group:
            for number in range(16):
                group.start_soon(send, number)
    assert len(found) == 16
    assert len(set(found)) == 1


async def test_another_request_under_the_same_key_is_refused_and_stores_nothing(scene: Scene) -> None:
    first = await _sent(scene.rpc(key="order-1"))
    refused = await scene.rpc(key="order-1").error("SendMessage", _params("something else"))
    assert refused["code"] == -32004
    assert "choose another key" in refused["message"]
    assert (await scene.rpc().call("ListTasks", {}))["totalSize"] == 1
    assert await _sent(scene.rpc(key="order-1")) == first


async def test_a_key_is_its_own_users(scene: Scene) -> None:
    ids = {
        await _sent(scene.rpc(key="order-1")),
        await _sent(scene.rpc(key="order-1", user="bob")),
        await _sent(scene.rpc(scene.rival, key="order-1")),
    }
    assert len(ids) == 3


async def test_without_a_key_one_message_id_makes_as_many_tasks_as_it_is_sent(scene: Scene) -> None:
    ids = {await _sent(scene.rpc(), messageId="tck-complete-task-1") for _ in range(3)}
    assert len(ids) == 3


async def test_the_key_may_stand_in_the_metadata(scene: Scene) -> None:
    first = await _sent(scene.rpc(), metadata={EXTENSION: "order-1"})
    assert await _sent(scene.rpc(key="order-1")) == first
    assert (await scene.rpc().error("SendMessage", _params("else", metadata={EXTENSION: "order-1"})))["code"] == -32004


async def test_a_key_of_a_bad_form_is_refused(scene: Scene) -> None:
    refused = await scene.rpc(key="k" * 129).error("SendMessage", _params())
    assert refused["code"] == -32602
    assert "1 to 128" in refused["message"]


async def test_sent_again_after_the_end_it_is_answered_at_once_streamed_or_not(scene: Scene) -> None:
    task_id = await _sent(scene.rpc(key="order-1"))
    await _end(scene, task_id)
    with anyio.fail_after(BOUND_S):
        whole = (await scene.rpc(key="order-1", replica=1).call("SendMessage", message()))["task"]
        async with scene.rpc(key="order-1").stream("SendStreamingMessage", message()) as events:
            streamed = [event.result async for event in events]
    assert (whole["id"], whole["status"]["state"]) == (task_id, "TASK_STATE_COMPLETED")
    assert [event["task"]["id"] for event in streamed] == [task_id]
    assert streamed[0]["task"]["status"]["state"] == "TASK_STATE_COMPLETED"


async def test_sent_again_while_it_works_it_waits_for_the_end_of_the_one_task(scene: Scene) -> None:
    task_id = await _sent(scene.rpc(key="order-1"))
    found: list[dict[str, Any]] = []

    async def again() -> None:
        found.append((await scene.rpc(key="order-1", replica=1).call("SendMessage", message()))["task"])

    with anyio.fail_after(BOUND_S):
        async with anyio.create_task_group() as group:
            group.start_soon(again)
            await _end(scene, task_id)
    assert [(one["id"], one["status"]["state"]) for one in found] == [(task_id, "TASK_STATE_COMPLETED")]


async def test_a_key_ends_with_its_task(scene: Scene) -> None:
    first = await _sent(scene.rpc(key="order-1"))
    await _end(scene, first)
    async with scene.world.operator() as operator:
        await operator.set_task_retention(scene.acme.tenant_id, 3600.0)
    await ended.age(scene.world, UUID(first), seconds=3700.0)
    assert await retire_due(scene.database) == 1
    second = await _sent(scene.rpc(key="order-1"))
    assert second != first


async def test_a_follow_up_under_a_key_is_one_message(scene: Scene) -> None:
    task_id = UUID(await _sent(scene.rpc()))
    ada = scene.world.principal(scene.acme)
    claim = await tasks.claim(scene.database)
    await ended.ask(scene.database, ada, task_id, fence=claim.fence)

    async def answer(text: str, *, replica: int = 0) -> dict[str, Any]:
        sent = _params(text, taskId=str(task_id))
        return (await scene.rpc(replica=replica, key="answer-1").raw("SendMessage", sent)).json()

    first, again = await answer("2024"), await answer("2024", replica=1)
    assert first["result"]["task"]["id"] == again["result"]["task"]["id"] == str(task_id)
    other = await answer("2025")
    assert other["error"]["code"] == -32004
    events = await tasks.events(scene.database, ada, task_id)
    assert [event.payload["received"]["parts"] for event in events if "received" in event.payload] == [
        [{"text": "2024"}]
    ]


async def test_a_reader_from_within_a_compacted_gap_is_given_the_snapshot(scene: Scene) -> None:
    task_id = await _sent(scene.rpc())
    ada = scene.world.principal(scene.acme)
    pieces = ["It ", "is ", "unlawful."]
    for number, text in enumerate(pieces):
        await _artifact(scene, task_id, text, append=number > 0)  # events 2 to 4
    await _artifact(scene, task_id, "".join(pieces), append=False)  # event 5
    await _end(scene, task_id)
    await ended.age(scene.world, UUID(task_id), seconds=700.0)
    assert await retire_due(scene.database) == 1
    assert [event.seq for event in await tasks.events(scene.database, ada, UUID(task_id))] == [1, 2, 5, 6]

    async def resumed(position: int) -> list[dict[str, Any]]:
        opened = scene.rpc().stream("SubscribeToTask", {"id": task_id}, Last_Event_ID=str(position))
        with anyio.fail_after(BOUND_S):
            async with opened as events:
                return [event.result async for event in events]

    (snapshot,) = await resumed(2)
    assert snapshot["task"]["artifacts"][0]["parts"][0]["text"] == "It is unlawful."
    assert snapshot["task"]["status"]["state"] == "TASK_STATE_COMPLETED"
    assert [next(iter(event)) for event in await resumed(4)] == ["artifactUpdate", "statusUpdate"]


async def _artifact(scene: Scene, task_id: str, text: str, *, append: bool) -> None:
    await ended.artifact(scene.database, scene.world.principal(scene.acme), UUID(task_id), text, append=append)


async def test_one_key_is_one_task_whichever_binding_it_comes_by(world: World) -> None:
    token = world.token(await world.tenant("acme"), audience=Audience.A2A)
    asked = _params("why?", contextId="c1")
    async with (
        a2a_replica(world) as replica,
        httpx.AsyncClient(timeout=BOUND_S) as http,
        grpc.aio.insecure_channel(replica.grpc) as channel,
    ):
        clients: list[Binding] = [
            RpcBinding(base=replica.base, token=token, http=http, version="1.0"),
            RestBinding(base=replica.base, token=token, http=http, version="1.0"),
            GrpcBinding(channel=channel, token=token, version="1.0"),
        ]
        found = [(await one.call("SendMessage", asked, idempotency_key="k"))["task"]["id"] for one in clients]
        while clients:
            with pytest.raises(Refused, match="choose another key"):
                await clients.pop().call("SendMessage", _params("else"), idempotency_key="k")
    assert len(set(found)) == 1
    # whoever lets go of gRPC last waits for its thread: here, and not wherever garbage is collected next
    del channel
    gc.collect()
