"""Both servers over real HTTP and a tenant: what tests of a workflow from end to end stand on.

Above: protocol tests of single workflows. Below: tests.support.agents and servers. A test starts the worker it needs.
"""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import anyio
import httpx
from starlette.types import ASGIApp

from a2a_server.protocol.outgoing import RESUME_EXTENSION
from rag.clients.mcp import mcp_client
from rag.identity.scopes import Audience
from rag.settings import Settings
from rag.tenants.operator import Tenant
from tests.support.agents import Rpc, a2a_server
from tests.support.servers import mcp_server
from tests.support.world import World

__all__ = ["Ended", "WorkflowScene", "data", "file", "text", "with_new_tenant", "workflow_scene"]

BOUND_S = 60.0
STOPPED = frozenset({"COMPLETED", "FAILED", "CANCELED", "REJECTED", "INPUT_REQUIRED", "AUTH_REQUIRED"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A task that has ended, or that waits for an answer."""

    state: str
    """Without the TASK_STATE_ before it."""
    told: str
    """Its last words."""
    statuses: tuple[str, ...]
    """All of them, in order."""
    artifacts: Mapping[str, tuple[str, dict[str, Any]]]
    """(text, data) of each."""
    usage: Mapping[str, Any]
    """What its last step says that it has used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowScene:
    """The servers, and one caller of the tenant acme."""

    world: World
    settings: Settings
    """Of a worker."""
    acme: Tenant
    rpc: Rpc

    async def send(
        self, *parts: Mapping[str, Any], skill: str | None = None, to: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Send a message, to a new task or to one that there is, and return the task as it is then."""
        message: dict[str, Any] = {"messageId": str(uuid4()), "role": "ROLE_USER", "parts": list(parts)}
        if skill is not None:
            message["metadata"] = {"skillId": skill}
        if to is not None:
            message["taskId"] = to["id"]
        params = {"message": message, "configuration": {"returnImmediately": True}}
        return (await self.rpc.call("SendMessage", params))["task"]

    async def refusal(self, *parts: Mapping[str, Any], skill: str) -> str:
        """Send a message that is refused and return what is said of it."""
        message = {"messageId": str(uuid4()), "role": "ROLE_USER", "parts": list(parts), "metadata": {"skillId": skill}}
        return (await self.rpc.error("SendMessage", {"message": message}))["message"]

    async def follow(self, task: Mapping[str, Any]) -> Ended:
        """Return the task, as `send` returned it, once it has ended or waits again."""
        seen = int(task["metadata"][RESUME_EXTENSION]["seq"])
        statuses: list[str] = []
        usage: dict[str, Any] = {}
        state = ""
        with anyio.fail_after(BOUND_S):
            async with self.rpc.stream("SubscribeToTask", {"id": task["id"]}, last_event_id="0") as events:
                async for event in events:
                    status = event.result.get("statusUpdate", {}).get("status", {})
                    statuses += [part["text"] for part in status.get("message", {}).get("parts", ())]
                    usage = event.result.get("statusUpdate", {}).get("metadata", {}).get("usage", usage)
                    state = status.get("state", "").removeprefix("TASK_STATE_")
                    if state in STOPPED and (event.id or 0) > seen:
                        break
        found = await self.rpc.call("GetTask", {"id": task["id"]})
        return Ended(
            state=state,
            told=statuses[-1] if statuses else "",
            statuses=tuple(statuses),
            usage=usage,
            artifacts={one["artifactId"]: _halves(one["parts"]) for one in found.get("artifacts", ())},
        )

    async def run(self, *parts: Mapping[str, Any], skill: str) -> Ended:
        """Send a message and return the task that it made, once that has ended or waits."""
        return await self.follow(await self.send(*parts, skill=skill))

    async def tool(self, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Call a tool of the MCP server as the caller."""
        token = self.world.token(self.acme, audience=Audience.MCP)
        async with mcp_client(self.settings.mcp_url, token) as client:
            return await client.call(name, arguments)

    async def documents(self) -> dict[str, dict[str, Any]]:
        """Return the caller's documents by their source."""
        found: list[dict[str, Any]] = []
        page: dict[str, Any] = {"next_cursor": None}
        while not found or page["next_cursor"]:
            more = {"cursor": page["next_cursor"]} if page["next_cursor"] else {}
            page = await self.tool("list_documents", {"limit": 100, **more})
            found += page["documents"]
            if not found:
                break
        return {one["source"]: one for one in found}


@asynccontextmanager
async def workflow_scene(
    world: World,
    *,
    behind: Callable[[ASGIApp], ASGIApp] = lambda app: app,
    request_limit_per_minute: int | None = 60_000,
) -> AsyncGenerator[WorkflowScene]:
    """Serve until the block ends; `behind` puts a layer before the MCP server, whose limit it is."""
    acme = await world.tenant("acme")
    async with (
        mcp_server(world, behind=behind, request_limit_per_minute=request_limit_per_minute) as mcp,
        a2a_server(world) as base,
        httpx.AsyncClient(timeout=BOUND_S) as http,
    ):
        settings = dataclasses.replace(world.settings, mcp_public_url=mcp.url, a2a_public_url=base, lease_s=2.0)
        rpc = Rpc(base=base, token=world.token(acme, audience=Audience.A2A), http=http)
        yield WorkflowScene(world=world, settings=settings, acme=acme, rpc=rpc)


async def with_new_tenant(stage: WorkflowScene) -> WorkflowScene:
    """Return the same servers for the caller of a new tenant: what other tests leave behind is as good as not there."""
    acme = await stage.world.tenant(f"acme-{uuid4()}")
    token = stage.world.token(acme, audience=Audience.A2A)
    return dataclasses.replace(stage, acme=acme, rpc=dataclasses.replace(stage.rpc, token=token))


def text(words: str) -> dict[str, Any]:
    """Return a part that is text."""
    return {"text": words}


def data(**options: Any) -> dict[str, Any]:
    """Return a part that is data."""
    return {"data": options}


def file(name: str, content: bytes | str, media_type: str = "application/octet-stream") -> dict[str, Any]:
    """Return a part that is a file."""
    held = {"text": content} if isinstance(content, str) else {"raw": base64.b64encode(content).decode()}
    return {"filename": name, "mediaType": media_type, **held}


def _halves(parts: Sequence[Mapping[str, Any]]) -> tuple[str, dict[str, Any]]:
    texts = "".join(part["text"] for part in parts if "text" in part)
    found: dict[str, Any] = next((part["data"] for part in parts if "data" in part), {})
    return texts, found
