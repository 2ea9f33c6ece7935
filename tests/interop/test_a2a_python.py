"""Python clients of the A2A server, against the processes: a2a-sdk, its 0.3, and google-adk's RemoteA2aAgent.

The last two run in environments of their own (`make interop-a2a`).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import grpc.aio
import httpx
import jwt
import orjson
import pytest
from a2a.client import Client, ClientCallContext, ClientConfig, create_client
from a2a.types import a2a_pb2 as pb
from a2a.utils.errors import TaskNotCancelableError, TaskNotFoundError, UnsupportedOperationError
from a2a.utils.signing import create_signature_verifier
from google.protobuf.json_format import MessageToDict

from a2a_server.protocol.outgoing import RESUME_EXTENSION
from tests.interop.conftest import AgentStage
from tests.interop.environments import run_python
from workflows.forms import HITL_EXTENSION

# one worker, and so one set of processes for the module
pytestmark = pytest.mark.anyio
BOUND_S = 60.0
PROGRAMS = Path(__file__).parent / "programs"
QUESTION = "What is the notice period of the lease?"
ANSWER = "The notice period of the lease is three months. [1]"
BINDINGS = pytest.mark.parametrize("binding", ["JSONRPC", "HTTP+JSON", "GRPC"])
Json = dict[str, Any]


async def verifier(base: str) -> Callable[[pb.AgentCard], None]:
    """Return a check of cards with the keys that the server publishes, and no others."""
    keys_url = f"{base}/.well-known/jwks.json"
    async with httpx.AsyncClient(timeout=BOUND_S) as http:
        keys = jwt.PyJWKSet.from_dict((await http.get(keys_url)).raise_for_status().json())

    def key_of(kid: str | None, jku: str | None) -> jwt.PyJWK:
        assert jku == keys_url
        return keys[str(kid)]

    return create_signature_verifier(key_of, ["ES256"])


@asynccontextmanager
async def connected(base: str, token: str, binding: str) -> AsyncGenerator[Client]:
    """Open the SDK's client by cards that it has verified: gRPC by the extended one."""
    verify = await verifier(base)
    async with AsyncExitStack() as stack:
        headers = {"authorization": f"Bearer {token}"}
        http = await stack.enter_async_context(httpx.AsyncClient(headers=headers, timeout=BOUND_S))
        door = "HTTP+JSON" if binding == "GRPC" else binding
        config = ClientConfig(httpx_client=http, supported_protocol_bindings=[door])
        client = await stack.enter_async_context(await create_client(base, config, signature_verifier=verify))
        card = await client.get_extended_agent_card(pb.GetExtendedAgentCardRequest(), signature_verifier=verify)
        if binding == "GRPC":
            config = ClientConfig(grpc_channel_factory=grpc.aio.insecure_channel, supported_protocol_bindings=["GRPC"])
            client = await stack.enter_async_context(await create_client(card, config))
        yield client


def sent(prefix: str, text: str = "hi", **fields: Any) -> pb.SendMessageRequest:
    """Return a message; `fields` are the message's."""
    own = pb.Message(message_id=f"{prefix}-{uuid4()}", role=pb.Role.ROLE_USER, parts=[pb.Part(text=text)], **fields)
    return pb.SendMessageRequest(message=own)


def seqs(events: list[Json]) -> list[int]:
    """Return the numbers of events, whatever they are of."""
    return [int(one["metadata"][RESUME_EXTENSION]["seq"]) for event in events for one in event.values()]


async def collected(stream: AsyncIterator[pb.StreamResponse]) -> list[Json]:
    """Return a stream's events once it has ended."""
    return [MessageToDict(event) async for event in stream]


@BINDINGS
async def test_the_sdk_streams_an_answer_from_the_documents(agent: AgentStage, binding: str) -> None:
    token = await agent.token()
    context = ClientCallContext(service_parameters={"authorization": f"Bearer {token}"})
    with anyio.fail_after(BOUND_S):
        async with connected(agent.base, token, binding) as client:
            seen = await collected(client.send_message(sent("rag", QUESTION), context=context))
            task_id = seen[0]["task"]["id"]
            read = MessageToDict(await client.get_task(pb.GetTaskRequest(id=task_id), context=context))
            listed = await client.list_tasks(pb.ListTasksRequest(include_artifacts=True), context=context)
    assert seqs(seen) == list(range(1, len(seen) + 1))
    assert seen[-1]["statusUpdate"]["status"]["state"] == "TASK_STATE_COMPLETED"
    pieces = [event["artifactUpdate"]["artifact"]["parts"] for event in seen if "artifactUpdate" in event]
    text, data = read["artifacts"][0]["parts"]
    assert (text["text"], pieces[-1][0]["text"]) == (ANSWER, ANSWER)
    assert data["data"]["citations"][0]["verified"] is True
    assert [(task.id, task.artifacts[0].parts[0].text) for task in listed.tasks] == [(task_id, ANSWER)]


@BINDINGS
async def test_the_sdk_takes_a_stream_up_again_where_it_left_it(agent: AgentStage, binding: str) -> None:
    token = await agent.token()
    bearer = {"authorization": f"Bearer {token}"}
    context = ClientCallContext(service_parameters=bearer)
    with anyio.fail_after(BOUND_S):
        async with connected(agent.base, token, binding) as client:
            left = client.send_message(sent("test-resubscribe-message-id"), context=context)
            first = (await anext(left)).task
            place = pb.SubscribeToTaskRequest(id=first.id)
            again = client.subscribe(place, context=context)
            snapshot = (await anext(again)).task
            canceled = await client.cancel_task(pb.CancelTaskRequest(id=first.id), context=context)
            rest = await collected(again)
            resuming = ClientCallContext(service_parameters={**bearer, "last-event-id": "1"})
            resumed = await collected(client.subscribe(place, context=resuming))
            with pytest.raises(TaskNotCancelableError):
                await client.cancel_task(pb.CancelTaskRequest(id=first.id), context=context)
            with pytest.raises(UnsupportedOperationError):
                await collected(client.subscribe(place, context=context))
            with pytest.raises(TaskNotFoundError):
                await client.get_task(pb.GetTaskRequest(id=str(uuid4())), context=context)
    assert snapshot.id == first.id
    assert canceled.status.state == pb.TaskState.TASK_STATE_CANCELED
    assert rest[-1]["statusUpdate"]["status"]["state"] == "TASK_STATE_CANCELED"
    assert seqs(resumed) == list(range(2, seqs(rest)[-1] + 1))


@BINDINGS
async def test_the_sdk_answers_a_task_that_asks_and_has_a_webhook_told(agent: AgentStage, binding: str) -> None:
    token = await agent.token()
    context = ClientCallContext(service_parameters={"authorization": f"Bearer {token}"})
    with anyio.fail_after(BOUND_S):
        async with connected(agent.base, token, binding) as client:
            asked = await collected(client.send_message(sent("tck-input-required"), context=context))
            task_id = asked[0]["task"]["id"]
            hook = pb.TaskPushNotificationConfig(task_id=task_id, id="one", url=agent.hook.url, token="opaque")
            made = await client.create_task_push_notification_config(hook, context=context)
            one = pb.GetTaskPushNotificationConfigRequest(task_id=task_id, id="one")
            got = await client.get_task_push_notification_config(one, context=context)
            every = pb.ListTaskPushNotificationConfigsRequest(task_id=task_id)
            listed = await client.list_task_push_notification_configs(every, context=context)
            answer = sent("tck-complete-task", task_id=task_id)
            told = await collected(client.send_message(answer, context=context))
            await agent.hook.when(lambda: any(hit.event_id == f"{task_id}/4" for hit in agent.hook.received))
            gone = pb.DeleteTaskPushNotificationConfigRequest(task_id=task_id, id="one")
            await client.delete_task_push_notification_config(gone, context=context)
            left = await client.list_task_push_notification_configs(every, context=context)
    status = asked[-1]["statusUpdate"]["status"]
    assert status["state"] == "TASK_STATE_INPUT_REQUIRED"
    assert status["message"]["metadata"][HITL_EXTENSION]["type"] == "ask_user_request"
    assert told[0]["task"]["id"] == task_id
    assert told[-1]["statusUpdate"]["status"]["state"] == "TASK_STATE_COMPLETED"
    assert (got, list(listed.configs), list(left.configs)) == (made, [made], [])
    assert (made.id, made.token) == ("one", "")


@pytest.mark.clients
@BINDINGS
async def test_a_client_of_0_3_does_everything_that_it_can(agent: AgentStage, tmp_path: Path, binding: str) -> None:
    token, hook = await agent.token(), agent.hook.url
    said = await run_python("a2a-sdk-0.3", PROGRAMS / "a2a_0_3.py", agent.base, token, hook, binding, home=tmp_path)
    seen: Json = orjson.loads(said)
    transports = {one["transport"] for one in seen["card"]["additionalInterfaces"]}
    assert (seen["card"]["preferredTransport"], transports) == ("JSONRPC", {"HTTP+JSON", "GRPC"})
    streamed, answered = seen["streamed"], seen["answered"]
    assert (streamed[0]["kind"], streamed[-1]["kind"], streamed[-1]["final"]) == ("task", "status-update", True)
    assert [int(one["metadata"][RESUME_EXTENSION]["seq"]) for one in streamed] == [*range(1, len(streamed) + 1)]
    assert {one["kind"] for one in streamed[1:]} == {"status-update", "artifact-update"}
    assert answered["artifacts"][0]["parts"][0]["text"] == ANSWER
    assert seen["first"]["id"] == seen["canceled"]["id"]
    assert seen["canceled"]["status"]["state"] == seen["rest"][-1]["status"]["state"] == "canceled"
    assert "already ended" in seen["again"] or "400" in seen["again"]
    assert "no such task" in seen["unknown"] or "404" in seen["unknown"]
    assert (seen["asking"]["status"]["state"], seen["told"]["status"]["state"]) == ("input-required", "completed")
    assert seen["told"]["id"] == seen["asking"]["id"]
    config = seen["config"]["pushNotificationConfig"]
    assert (config["id"], config["url"], config.get("token") or None) == ("kept", hook, None)
    await agent.hook.when(lambda: any(seen["told"]["id"] in one.event_id for one in agent.hook.received))


def _said(events: list[Json], *, thought: bool) -> list[str]:
    parts = [part for event in events for part in (event.get("content") or {}).get("parts", ())]
    return [part["text"] for part in parts if "text" in part and part.get("thought", False) is thought]


def _task_ids(turns: list[list[Json]]) -> list[set[str]]:
    return [{event["custom_metadata"]["a2a:task_id"] for event in turn} for turn in turns]


@pytest.mark.clients
async def test_an_agent_of_google_s_adk_asks_streams_and_is_asked(agent: AgentStage, tmp_path: Path) -> None:
    said = await run_python("google-adk", PROGRAMS / "google_adk.py", agent.base, await agent.token(), home=tmp_path)
    seen: Mapping[str, list[list[Json]]] = orjson.loads(said)
    for turns in seen.values():
        assert not [event["error_message"] for turn in turns for event in turn if "error_message" in event]
    first, second = seen["rag"]
    assert _said(first, thought=False)[-1] == ANSWER
    assert _said(second, thought=False)[-1] == "Rent is due on the first of the month. [1]"
    assert "searching…" in _said(first, thought=True)
    partial = [event["partial"] for event in first if event.get("partial") is not None]
    assert (partial[0], partial[-1]) == (True, False)
    (one,), (other,) = _task_ids(seen["rag"])
    assert one != other
    assert len({event["custom_metadata"]["a2a:context_id"] for event in first + second}) == 1
    for way in ("by_text", "by_call"):
        asked, answered = seen[way]
        (call,) = [
            part["function_call"]["args"]["input_required"]
            for event in asked
            for part in (event.get("content") or {}).get("parts", ())
            if "function_call" in part
        ]
        assert "Definitions" in call
        before, after = _task_ids([asked, answered])
        assert before == after
        assert "planned 1 section: Definitions" in _said(answered, thought=True)
        assert "## Definitions" in _said(answered, thought=False)[-1]
