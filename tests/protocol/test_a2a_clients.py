"""The SDK's own client by each binding that the cards name, gRPC in TLS, and the process that serves all of them."""

from __future__ import annotations

import signal
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from uuid import uuid4

import anyio
import grpc
import grpc.aio
import httpx
import pytest
from a2a.client import Client, ClientCallContext, ClientConfig, create_client
from a2a.types import a2a_pb2 as pb
from a2a.utils.errors import TaskNotCancelableError, TaskNotFoundError

from rag.cli.supervisor import free_port
from rag.identity.scopes import Audience
from rag.identity.tls import ensure_development_tls
from rag.tenants.operator import Tenant
from tests.support.agents import Replica, a2a_replica, message, worker
from tests.support.bindings import GrpcBinding, Refused
from tests.support.processes import fleet_settings, started
from tests.support.world import World

pytestmark = pytest.mark.anyio
BOUND_S = 20.0


@asynccontextmanager
async def _client(world: World, tenant: Tenant, replica: Replica, binding: str) -> AsyncGenerator[Client]:
    """Open the SDK's client the way a user would: by the public card, and for gRPC by the extended one."""
    token = world.token(tenant, audience=Audience.A2A)
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(
            httpx.AsyncClient(headers={"authorization": f"Bearer {token}"}, timeout=BOUND_S)
        )
        config = ClientConfig(
            httpx_client=http,
            supported_protocol_bindings=["HTTP+JSON" if binding == "GRPC" else binding],
        )
        client = await stack.enter_async_context(await create_client(replica.base, config))
        if binding == "GRPC":
            card = await client.get_extended_agent_card(pb.GetExtendedAgentCardRequest())
            config.grpc_channel_factory = grpc.aio.insecure_channel
            config.supported_protocol_bindings = ["GRPC"]
            client = await stack.enter_async_context(await create_client(card, config))
        yield client


def _sent(prefix: str, *, task_id: str = "") -> pb.SendMessageRequest:
    name = f"{prefix}-{uuid4()}"
    head = pb.Message(message_id=name, role=pb.Role.ROLE_USER, parts=[pb.Part(text="hi")], task_id=task_id)
    return pb.SendMessageRequest(message=head)


@pytest.mark.parametrize("binding", ["JSONRPC", "HTTP+JSON", "GRPC"])
async def test_the_sdk_s_client_streams_answers_lists_and_cancels(world: World, binding: str) -> None:
    tenant = await world.tenant("acme")
    token = world.token(tenant, audience=Audience.A2A)
    context = ClientCallContext(service_parameters={"authorization": f"Bearer {token}"})
    async with (
        a2a_replica(world, test_fixtures="on") as replica,
        worker(world.settings),
        _client(world, tenant, replica, binding) as client,
    ):
        seen = [event async for event in client.send_message(_sent("tck-stream-artifact-chunked"), context=context)]
        assert seen[0].WhichOneof("payload") == "task"
        assert seen[-1].status_update.status.state == pb.TaskState.TASK_STATE_COMPLETED
        (asking,) = [
            event.task.id
            async for event in client.send_message(_sent("tck-input-required"), context=context)
            if event.HasField("task")
        ]
        answer = _sent("tck-complete-task", task_id=asking)
        ends = [event async for event in client.send_message(answer, context=context)]
        assert ends[-1].status_update.status.state == pb.TaskState.TASK_STATE_COMPLETED
        listed = await client.list_tasks(pb.ListTasksRequest(), context=context)
        assert listed.total_size == 2
        with pytest.raises(TaskNotCancelableError):
            await client.cancel_task(pb.CancelTaskRequest(id=asking), context=context)
        with pytest.raises(TaskNotFoundError):
            await client.get_task(pb.GetTaskRequest(id=str(uuid4())), context=context)


async def test_grpc_speaks_tls_with_the_server_s_certificate(world: World, tmp_path: Path) -> None:
    files = ensure_development_tls(tmp_path)
    tenant = await world.tenant("acme")
    token = world.token(tenant, audience=Audience.A2A)
    async with a2a_replica(world, tls_certificate=files.certificate, tls_key=files.key) as replica:
        trust = grpc.ssl_channel_credentials(await anyio.Path(files.ca).read_bytes())
        async with grpc.aio.secure_channel(replica.grpc, trust) as channel:
            client = GrpcBinding(channel=channel, token=token)
            assert (await client.call("ListTasks", {}))["totalSize"] == 0
        async with grpc.aio.insecure_channel(replica.grpc) as channel:
            with pytest.raises(Refused) as refused:
                await GrpcBinding(channel=channel, token=token).call("ListTasks", {})
            assert refused.value.status == "UNAVAILABLE"


async def test_a_process_ends_its_streams_and_itself_on_sigterm(world: World, tmp_path: Path) -> None:
    tenant = await world.tenant("acme")
    token = world.token(tenant, audience=Audience.A2A)
    port = free_port("127.0.0.1")
    settings = fleet_settings(world.settings, a2a_grpc_port=port)
    async with (
        started("a2a_server", settings, tmp_path) as process,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        client = GrpcBinding(channel=channel, token=token)
        async with client.stream("SendStreamingMessage", message()) as events:
            assert (await anext(events)).kind == "task"
            with anyio.fail_after(BOUND_S):
                process.signal(signal.SIGTERM)
                with pytest.raises(Refused) as refused:
                    await anext(events)
                assert refused.value.status == "UNAVAILABLE"
                assert await process.wait() == 0
        assert "Traceback" not in process.log.read_text(encoding="utf-8")


async def test_a_port_that_is_taken_is_refused_by_its_setting(world: World, tmp_path: Path) -> None:
    async with a2a_replica(world) as replica:
        port = int(replica.grpc.rpartition(":")[2])
        settings = fleet_settings(world.settings, a2a_grpc_port=port)
        with pytest.raises(AssertionError, match="BULKHEAD_A2A_GRPC_PORT"):
            async with started("a2a_server", settings, tmp_path):
                pass
