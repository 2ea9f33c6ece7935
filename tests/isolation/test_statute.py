"""The exact words of one tenant's statute, asked for by another through every door: all three processes, real law."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import pytest
from a2a.server.request_handlers.request_handler import RequestHandler
from rich.console import Console

from mcp_server.tools import TOOLS
from rag.cli.ask import run_ask
from rag.cli.ingest import run_ingest
from rag.cli.supervisor import free_port, running
from rag.clients.a2a import a2a_client
from rag.clients.mcp import McpClient, mcp_client
from rag.errors import BulkheadError
from rag.identity.scopes import Audience
from rag.runtime import http_client
from rag.settings import Settings
from rag.tenants.operator import Tenant
from tests.support.agents import Rpc
from tests.support.world import World
from workflows.registry import WORKFLOWS

pytestmark = pytest.mark.anyio

SAMPLES = Path(__file__).parents[2] / "samples"
STATUTE = SAMPLES / "securities" / "15-78j-manipulative-and-deceptive-devices.md"
WORDS = "to effect a short sale, or to use or employ any stop-loss order in connection with the purchase or sale"
MARKS = ("78j", "stop-loss order in connection with", "insider trading")
"""What only securities' documents say; none of it may reach patents. (Arguments are echoed by no tool.)"""
QUESTION = "May one use a stop-order to effect a short sale of a security?"
ASKING: dict[str, dict[str, Any]] = {
    "rag": {"filter": {"field": "source", "prefix": "15-"}},
    "research": {"profile": "legal"},
    "compare": {"documents": ["THEIRS", STATUTE.name]},
    "ingest": {},
    "hybrid": {},
    "react": {"max_steps": 3},
}
HELLO = {"messageId": "m", "role": "ROLE_USER", "parts": [{"text": "and then?"}]}
METHODS: dict[str, dict[str, Any]] = {
    "SendMessage": {"message": {**HELLO, "taskId": "TASK"}},
    "SendStreamingMessage": {"message": {**HELLO, "taskId": "TASK"}},
    "GetTask": {"id": "TASK"},
    "ListTasks": {"contextId": "TASK", "includeArtifacts": True},
    "CancelTask": {"id": "TASK"},
    "SubscribeToTask": {"id": "TASK"},
    "CreateTaskPushNotificationConfig": {"taskId": "TASK", "url": "https://hook.example/"},
    "GetTaskPushNotificationConfig": {"taskId": "TASK", "id": "hook"},
    "ListTaskPushNotificationConfigs": {"taskId": "TASK"},
    "DeleteTaskPushNotificationConfig": {"taskId": "TASK", "id": "hook"},
}
SCHEDULES = [
    ("GET", ""),
    ("GET", "/theirs"),
    ("DELETE", "/theirs"),
    *(("POST", f"/theirs/{verb}") for verb in ("pause", "resume", "run")),
]
ORDER = {"request": f"What does {STATUTE.name} say?", "every_s": 3600}


@pytest.fixture(name="settings")
def settings_fixture(world: World, tmp_path: Path) -> Settings:
    return dataclasses.replace(
        world.settings, data_dir=tmp_path, mcp_port=free_port("127.0.0.1"), a2a_port=free_port("127.0.0.1")
    )


async def test_no_door_shows_one_tenant_the_statute_of_another(world: World, settings: Settings) -> None:
    securities, patents = await world.tenant("securities"), await world.tenant("patents")
    async with running(settings, os.environ):  # noqa: TID251  # PATH and the like, for the child processes
        async with client_of(world, settings, securities) as client:
            await run_ingest([STATUTE, *sorted((SAMPLES / "securities").glob("15-78t*.md"))], client)
            await embedded(client)
            hits = (await client.call("hybrid_search", {"query": WORDS}))["hits"]
            assert hits[0]["source"] == STATUTE.name, "its owner finds it"
            theirs = hits[0]["document_id"]
            delegated = await client.call("delegate_task", {"message": "May one use a stop-order?", "wait_s": 60})
            assert delegated["state"] == "completed"
            their_task = delegated["task_id"]
        async with http_client(settings) as http:
            bearer = {"authorization": f"Bearer {world.token(securities, audience=Audience.A2A)}"}
            made = await http.put(f"{settings.a2a_url}/schedules/theirs", json=ORDER, headers=bearer)
            assert made.status_code == 201
        async with client_of(world, settings, patents) as client:
            await run_ingest(sorted((SAMPLES / "patents").glob("35-10*.md")), client)
            await embedded(client)
            attempts: dict[str, list[dict[str, Any]]] = {
                "hybrid_search": [
                    {"query": WORDS, "limit": 50, "mode": mode} for mode in ("hybrid", "keyword", "semantic")
                ],
                "search_documents": [{"query": WORDS}, {"query": STATUTE.name}],
                "find_similar": [{"document_id": theirs}, {"document_id": theirs, "chunk": 0}],
                "retrieve_document": [
                    {"document_id": theirs},
                    {"document_id": theirs, "start": 0, "end": 50},
                    {"document_id": theirs, "chunk": 0, "around": 3},
                ],
                "list_documents": [{"limit": 100}, {"source_prefix": "15-"}],
                "document_stats": [{}],
                "delete_document": [{"document_id": theirs}],
                "put_document": [{"source": STATUTE.name, "title": "Mine", "text": "A text of patents' own."}],
                "put_documents": [
                    {"documents": [{"source": STATUTE.name, "title": "Mine", "text": "A text of patents' own."}]}
                ],
                "delegate_task": [{"message": f"What is this about: {STATUTE.name}?", "wait_s": 60}],
                "task_status": [{"task_id": their_task}],
                "task_result": [{"task_id": their_task}],
                "cancel_task": [{"task_id": their_task}],
                "usage": [{}],
            }
            assert set(attempts) == {tool.name for tool in TOOLS}, "a new tool needs an attempt here"
            for tool, all_arguments in attempts.items():
                for arguments in all_arguments:
                    answer = await answer_of(client, tool, arguments)
                    assert not [mark for mark in MARKS if mark in answer.replace(STATUTE.name, "")], tool
                    named = {"document_id", "task_id"} & arguments.keys()
                    if named:
                        absent = {**arguments, **dict.fromkeys(named, str(uuid4()))}
                        assert answer == await answer_of(client, tool, absent), "a foreign id reads like an absent one"
        assert set(ASKING) == {workflow.name for workflow in WORKFLOWS}, "a new workflow needs an attempt here"
        for skill, options in ASKING.items():
            named = json.loads(json.dumps(options).replace("THEIRS", theirs))
            asked = await ask(world, settings, patents, skill=skill, options=named)
            assert not [mark for mark in MARKS if mark in asked.replace(QUESTION, "")], skill
        await _try_the_a2a_doors(world, settings, patents, their_task)
        async with client_of(world, settings, securities) as client:
            kept = await client.call("retrieve_document", {"document_id": theirs})
            assert "stop-loss order in connection with" in kept["text"], "and it is still there"


def client_of(world: World, settings: Settings, tenant: Tenant) -> Any:
    return mcp_client(settings.mcp_url, world.token(tenant, audience=Audience.MCP))


async def embedded(client: McpClient) -> None:
    with anyio.fail_after(60):
        while (await client.call("list_documents", {"limit": 1}))["embeddings_pending"]:  # noqa: ASYNC110  # other process
            await anyio.sleep(0.2)


async def answer_of(client: McpClient, tool: str, arguments: dict[str, Any]) -> str:
    try:
        return json.dumps(await client.call(tool, arguments), sort_keys=True)
    except BulkheadError as exc:
        return f"{exc.code}: {exc.message}"


async def ask(world: World, settings: Settings, tenant: Tenant, *, skill: str, options: dict[str, Any]) -> str:
    """Return all that became of it, as text."""
    token = world.token(tenant, audience=Audience.A2A)
    async with http_client(settings) as http, a2a_client(settings.a2a_url, token, http=http) as client:
        with anyio.fail_after(60):
            try:
                asked = await run_ask(client, QUESTION, progress=Console(quiet=True), skill=skill, options=options)
            except BulkheadError as exc:
                return f"{exc.code}: {exc.message}"
    return json.dumps(dataclasses.asdict(asked))


async def _try_the_a2a_doors(world: World, settings: Settings, tenant: Tenant, their_task: str) -> None:
    """Ask each method, and the door for schedules, for what is the other tenant's: it reads like what is not there."""
    methods = {name for name in vars(RequestHandler) if name.startswith("on_")}
    assert len(methods) == len(METHODS) + 1, "a new method needs an attempt here; the extended card names no task"
    absent = str(uuid4())
    async with http_client(settings) as http:
        rpc = Rpc(base=settings.a2a_url, token=world.token(tenant, audience=Audience.A2A), http=http)
        for method, params in METHODS.items():
            theirs, none = [
                (await rpc.raw(method, json.loads(json.dumps(params).replace("TASK", task)))).text.replace(task, "ID")
                for task in (their_task, absent)
            ]
            assert theirs == none, method
            assert not [mark for mark in MARKS if mark in theirs], method
        headers = {"authorization": f"Bearer {rpc.token}", "idempotency-key": "theirs"}
        for verb, path in SCHEDULES:
            answer = await http.request(verb, f"{settings.a2a_url}/schedules{path}", headers=headers)
            assert answer.json() == {"schedules": []} or answer.status_code == 404, verb
