"""BASE TOKEN HOOK TRANSPORT: drives an A2A server through a2a-sdk 0.3 and prints what a program of then sees, as JSON.

Runs in an environment of its own (`make interop-a2a`). The server knows the messages of the compatibility kit.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import anyio
import grpc.aio
import httpx
from a2a.client import A2AClientError, Client, ClientConfig, ClientFactory
from a2a.types import (
    GetTaskPushNotificationConfigParams,
    Message,
    Part,
    PushNotificationAuthenticationInfo,
    PushNotificationConfig,
    Role,
    Task,
    TaskIdParams,
    TaskPushNotificationConfig,
    TaskQueryParams,
    TextPart,
    TransportProtocol,
)

BOUND_S = 30.0
QUESTION = "What is the notice period of the lease?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bearing:
    """Puts the token into the metadata of each call: this client has no other place for it."""

    token: str

    async def __call__(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        """Go on with the token."""
        metadata = grpc.aio.Metadata(*(details.metadata or ()), ("authorization", f"Bearer {self.token}"))
        return await continuation(details._replace(metadata=metadata), request)


def bearing(token: str) -> list[Any]:
    """Return interceptors for both kinds of call; gRPC asks what each is an instance of."""
    kinds = {"unary_unary": grpc.aio.UnaryUnaryClientInterceptor, "unary_stream": grpc.aio.UnaryStreamClientInterceptor}
    own = Bearing(token=token)
    return [type("Bears", (kind,), {f"intercept_{name}": staticmethod(own)})() for name, kind in kinds.items()]


async def connected(base: str, http: httpx.AsyncClient, token: str, transport: str) -> Client:
    """Open the client by the card that it can use: for gRPC the extended one."""
    door = TransportProtocol.jsonrpc if transport == "GRPC" else TransportProtocol(transport)
    client = await ClientFactory.connect(base, ClientConfig(httpx_client=http, supported_transports=[door]))
    if transport != "GRPC":
        return client

    def channel(target: str) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(target, interceptors=bearing(token))

    config = ClientConfig(grpc_channel_factory=channel, supported_transports=[TransportProtocol.grpc])
    return await ClientFactory.connect(await client.get_card(), config)


def message(prefix: str, text: str = "hi", task_id: str | None = None) -> Message:
    """Return a message of this client's form."""
    part = Part(root=TextPart(text=text))
    return Message(message_id=f"{prefix}-{uuid4()}", role=Role.user, parts=[part], task_id=task_id)


def seen(event: Any) -> dict[str, Any]:
    """Return an event as JSON: the update, or the task that it begins with."""
    task, update = event
    return (update or task).model_dump(mode="json", exclude_none=True)


async def refusal(work: Any) -> str:
    """Return what a call that must be refused was refused with."""
    try:
        await work
    except (A2AClientError, grpc.aio.AioRpcError) as refused:
        return str(refused)
    return "taken"


async def last(client: Client, sent: Message) -> Task:
    """Send a message and return the task as it is when the answer ends."""
    events = [event async for event in client.send_message(sent)]
    task, _ = events[-1]
    return task


async def report(client: Client, hook: str) -> dict[str, Any]:
    """Do all that this client can."""
    card = await client.get_card()
    streamed = [seen(event) async for event in client.send_message(message("rag", QUESTION))]
    answered = await client.get_task(TaskQueryParams(id=streamed[0]["id"]))
    left = client.send_message(message("test-resubscribe-message-id"))
    begun, _ = await anext(left)
    place = TaskIdParams(id=begun.id)
    again = client.resubscribe(place)
    first = seen(await anext(again))
    canceled = await client.cancel_task(place)
    rest = [seen(event) async for event in again]
    await left.aclose()
    asking = await last(client, message("tck-input-required"))
    config = PushNotificationConfig(
        id="kept",
        url=hook,
        token="opaque",
        authentication=PushNotificationAuthenticationInfo(schemes=["Bearer"], credentials="secret"),
    )
    await client.set_task_callback(TaskPushNotificationConfig(task_id=asking.id, push_notification_config=config))
    named = GetTaskPushNotificationConfigParams(id=asking.id, push_notification_config_id="kept")
    got = await client.get_task_callback(named)
    told = await last(client, message("tck-complete-task", task_id=asking.id))
    return {
        "card": card.model_dump(mode="json", exclude_none=True),
        "streamed": streamed,
        "answered": answered.model_dump(mode="json", exclude_none=True),
        "first": first,
        "canceled": canceled.model_dump(mode="json", exclude_none=True),
        "rest": rest,
        "again": await refusal(client.cancel_task(place)),
        "unknown": await refusal(client.get_task(TaskQueryParams(id=str(uuid4())))),
        "asking": asking.model_dump(mode="json", exclude_none=True),
        "config": got.model_dump(mode="json", exclude_none=True),
        "told": told.model_dump(mode="json", exclude_none=True),
    }


async def main(base: str, token: str, hook: str, transport: str) -> None:
    """Connect, do it, print it."""
    with anyio.fail_after(BOUND_S):
        async with httpx.AsyncClient(headers={"Authorization": f"Bearer {token}"}, timeout=BOUND_S) as http:
            client = await connected(base, http, token, transport)
            print(json.dumps(await report(client, hook)))
            await client.close()


anyio.run(main, *sys.argv[1:])
