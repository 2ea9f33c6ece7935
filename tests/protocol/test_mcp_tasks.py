"""Tasks through the MCP face: the same durable rows as the A2A server's, run by a real worker, followed over HTTP."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import anyio
import asyncpg
import httpx
import pytest
from mcp.shared.exceptions import MCPError

from mcp_server.tools.tasks import MAX_DATA_BYTES, MAX_TEXT_CHARS
from rag.db.listener import LONGEST_WAIT_S
from rag.identity.scopes import Audience, Scope
from rag.tasks import store
from rag.tasks.values import EventKind, TaskFilter, TaskState
from tests.support import tasks
from tests.support.agents import Rpc, a2a_server, worker
from tests.support.gated_model import gated_model
from tests.support.mcp_scene import McpScene, bad, good, mcp_scene
from tests.support.processes import fleet_settings, started
from tests.support.served import served_at
from tests.support.world import World

pytestmark = pytest.mark.anyio
BOUND_S = 25.0
FRAUD = "It shall be unlawful for any person to use any manipulative or deceptive device in the sale of any security."
QUESTION = "Who may not use a manipulative or deceptive device in the sale of a security?"


@pytest.fixture(name="scene")
async def scene_fixture(world: World) -> AsyncGenerator[McpScene]:
    """A running server with one document; no worker yet."""
    async with mcp_scene(world) as scene:
        await scene.put("Law", text=FRAUD)
        with anyio.fail_after(BOUND_S):
            yield scene


@asynccontextmanager
async def working(scene: McpScene, **settings: Any) -> AsyncGenerator[None]:
    """Run a worker whose nodes call the scene's server."""
    own = dataclasses.replace(scene.world.settings, mcp_public_url=scene.server.url, lease_s=2.0, **settings)
    async with worker(own):
        yield


class Heard:
    """Hears progress: a callback of the library's client."""

    def __init__(self) -> None:
        """Begin with nothing heard."""
        self.all: list[tuple[float, str | None]] = []
        self.any = anyio.Event()

    async def __call__(self, progress: float, total: float | None, message: str | None) -> None:
        """Take note."""
        self.all.append((progress, message))
        self.any.set()


async def test_a_delegated_task_reports_while_it_is_waited_for_and_brings_its_checked_citations(
    scene: McpScene,
) -> None:
    heard = Heard()
    async with working(scene), scene.client() as client:
        done = good(
            await client.call_tool("delegate_task", {"message": QUESTION, "wait_s": 20}, progress_callback=heard)
        )
        assert (done["state"], done["finished"], done["workflow"], done["started"]) == ("completed", True, "rag", True)
        (answer,) = done["result"]
        (data,) = answer["data"]
        assert (data["answerer"], answer["next_start"], done["artifacts"]) == ("extractive", None, ["answer"])
        for citation in data["citations"]:
            assert citation["quote"] == FRAUD[int(citation["start"]) : int(citation["end"])]
            assert citation["verified"] is True
        assert data["citations"]
        positions = [progress for progress, _ in heard.all]
        assert positions == sorted(set(positions))
        assert [message for _, message in heard.all][:2] == ["searching…", "found 1 passage in 1 document"]
        assert heard.all[-1] == (done["version"], "completed")
        again = good(await client.call_tool("task_result", {"task_id": done["task_id"]}))
        assert again["result"] == done["result"]
        assert answer["uri"] == f"bulkhead://tasks/{done['task_id']}/artifacts/answer"
        status = good(await client.call_tool("task_status", {"task_id": done["task_id"], "wait_s": 60}))
        assert status == {key: value for key, value in again.items() if key != "result"}


async def test_what_a_workflow_takes_besides_the_message_is_given_as_options(scene: McpScene) -> None:
    order = {"message": "fraud in the sale of securities", "workflow": "research", "options": {"profile": "legal"}}
    async with working(scene):
        done = await scene.ask("delegate_task", {**order, "wait_s": 60})
    assert (done["state"], done["workflow"]) == ("completed", "research")
    (report,) = done["result"]
    assert [section["title"] for section in report["data"][0]["sections"]][:2] == ["Scope", "Definitions"]
    token = scene.world.token(scene.acme, audience=Audience.A2A)
    async with a2a_server(scene.world) as base, httpx.AsyncClient(timeout=BOUND_S) as http:
        shown = await Rpc(base=base, token=token, http=http).call("GetTask", {"id": done["task_id"]})
    assert [part.get("text", part.get("data")) for part in shown["history"][0]["parts"]] == [
        order["message"],
        order["options"],
    ]


async def test_the_a2a_server_shows_the_same_task(scene: McpScene) -> None:
    accepted = await scene.ask("delegate_task", {"message": QUESTION, "context_id": "case-7"})
    token = scene.world.token(scene.acme, audience=Audience.A2A)
    async with a2a_server(scene.world) as base, httpx.AsyncClient(timeout=BOUND_S) as http:
        rpc = Rpc(base=base, token=token, http=http)
        shown = await rpc.call("GetTask", {"id": accepted["task_id"]})
        assert (shown["contextId"], shown["status"]["state"]) == ("case-7", "TASK_STATE_SUBMITTED")
        assert shown["history"][0]["parts"][0]["text"] == QUESTION
        async with working(scene), rpc.stream("SubscribeToTask", {"id": accepted["task_id"]}) as events:
            last = [event async for event in events][-1]
        assert last.result["statusUpdate"]["status"]["state"] == "TASK_STATE_COMPLETED"
    done = await scene.ask("task_result", {"task_id": accepted["task_id"]})
    assert (done["state"], done["result"][0]["name"]) == ("completed", "answer")


async def test_news_end_a_wait_that_asks_for_them_and_the_end_ends_every_wait(scene: McpScene) -> None:
    accepted = await scene.ask("delegate_task", {"message": QUESTION})
    task_id, ada = UUID(accepted["task_id"]), scene.world.principal(scene.acme)
    assert (accepted["state"], accepted["version"], accepted["result"]) == ("submitted", 1, None)
    found: dict[str, Any] = {}

    async def wait(name: str, **more: Any) -> None:
        arguments = {"task_id": str(task_id), "wait_s": 20, **more}
        found[name] = await scene.ask("task_status", arguments)
        returned[name].set()

    returned = {name: anyio.Event() for name in ("news", "end")}
    async with scene.world.database() as database, anyio.create_task_group() as group:
        group.start_soon(lambda: wait("news", after_version=1))
        group.start_soon(lambda: wait("end"))
        await tasks.progress(database, ada, task_id, "half way", fence=None)
        await returned["news"].wait()
        assert not returned["end"].is_set()
        assert (found["news"]["message"], found["news"]["finished"]) == ("half way", False)
        # what is news to this caller has happened already: no waiting
        late = await scene.ask("task_status", {"task_id": str(task_id), "wait_s": 20, "after_version": 1})
        assert late["version"] == found["news"]["version"] == 2
        await tasks.status(database, ada, task_id, TaskState.FAILED, "no luck", fence=None)
        await returned["end"].wait()
    assert (found["end"]["state"], found["end"]["message"], found["end"]["finished"]) == ("failed", "no luck", True)
    failed = await scene.ask("task_result", {"task_id": str(task_id)})
    assert (failed["result"], failed["message"]) == ([], "no luck")


async def test_the_process_as_deployed_is_woken_by_the_log_and_does_not_wait_for_its_poll(
    scene: McpScene, tmp_path: Path
) -> None:
    settings = fleet_settings(scene.world.settings)
    heard, ada = Heard(), scene.world.principal(scene.acme)
    async with started("mcp_server", settings, tmp_path), scene.world.database() as database:
        own = dataclasses.replace(scene, server=dataclasses.replace(scene.server, url=settings.mcp_url))
        accepted = await own.ask("delegate_task", {"message": QUESTION})
        task_id = UUID(accepted["task_id"])
        async with own.client() as client, anyio.create_task_group() as group:

            async def wait() -> None:
                arguments = {"task_id": str(task_id), "wait_s": 60}
                await client.call_tool("task_status", arguments, progress_callback=heard)

            group.start_soon(wait)
            while not heard.all:
                await tasks.progress(database, ada, task_id, "more", fence=None)
                await anyio.sleep(0.1)
            # now it has read what there is, and waits
            with anyio.fail_after(LONGEST_WAIT_S / 3):
                await tasks.status(database, ada, task_id, TaskState.FAILED, "no luck", fence=None)
                while heard.all[-1][1] != "no luck":
                    await anyio.lowlevel.checkpoint()


async def test_whoever_waits_is_answered_when_the_processes_are_told_to_end(scene: McpScene, tmp_path: Path) -> None:
    settings, ada = fleet_settings(scene.world.settings, mcp_workers=2), scene.world.principal(scene.acme)
    waiting, states = [Heard(), Heard()], list[str]()
    async with started("mcp_server", settings, tmp_path) as process, scene.world.database() as database:
        own = dataclasses.replace(scene, server=dataclasses.replace(scene.server, url=settings.mcp_url))
        task_id = (await own.ask("delegate_task", {"message": QUESTION}))["task_id"]

        async def wait(heard: Heard) -> None:
            async with own.client() as client:
                # else the library asks for it after the answer, to check the answer by: of a server that is gone
                await client.list_tools()
                arguments = {"task_id": task_id, "wait_s": 100}
                result = await client.call_tool("task_status", arguments, progress_callback=heard)
            states.append(good(result)["state"])

        async with anyio.create_task_group() as group:
            for heard in waiting:
                group.start_soon(wait, heard)
            while not all(heard.all for heard in waiting):
                await tasks.progress(database, ada, UUID(task_id), "more", fence=None)
                await anyio.sleep(0.1)
            process.signal(signal.SIGTERM)
        assert states == ["working", "working"]
        assert await process.wait() == 0


async def test_a_wait_has_a_bound_and_an_unfinished_task_has_no_result_yet(scene: McpScene) -> None:
    accepted = await scene.ask("delegate_task", {"message": QUESTION, "wait_s": 1})
    assert (accepted["state"], accepted["finished"], accepted["result"]) == ("submitted", False, None)
    waited = await scene.ask("task_status", {"task_id": accepted["task_id"], "wait_s": 1})
    assert waited["state"] == "submitted"
    unfinished = await scene.ask("task_result", {"task_id": accepted["task_id"]})
    assert (unfinished["finished"], unfinished["result"]) == (False, None)


async def test_whoever_is_cut_off_while_waiting_leaves_the_task_running(scene: McpScene) -> None:
    async with (
        gated_model("It shall be ", "unlawful [1].") as model,
        working(scene, **served_at(model.base_url, "tiny")),
    ):
        async with anyio.create_task_group() as group:
            group.start_soon(scene.ask, "delegate_task", {"message": QUESTION, "wait_s": 60})
            await model.answer(0)
            group.cancel_scope.cancel()
        answer = await model.answer(0)
        assert not answer.left.is_set()
        async with (
            scene.world.database() as database,
            database.tenant(scene.world.principal(scene.acme)) as session,
        ):
            (task,) = await store.list_tasks(session, TaskFilter(), page_size=9)
        assert task.state is TaskState.WORKING
        await nothing_running(scene)
        answer.allow(9)
        done = await scene.ask("task_status", {"task_id": str(task.task_id), "wait_s": 20})
        assert done["state"] == "completed"


async def nothing_running(scene: McpScene) -> None:
    """Return once no transaction of the server is open: bounded by the test."""
    admin = await asyncpg.connect(scene.world.superuser_url)
    try:
        while await admin.fetchval(
            "select count(*) from pg_stat_activity where datname = current_database() and application_name = 'test-mcp'"
            " and state <> 'idle'"
        ):
            await anyio.lowlevel.checkpoint()
    finally:
        await admin.close()


async def test_a_crowd_that_waits_leaves_places_for_others_of_the_same_user(world: World) -> None:
    """The runs that it waits for are among these."""
    async with mcp_scene(world, request_limit_per_minute=None) as scene:
        await scene.put("Law", text=FRAUD)
        accepted = await scene.ask("delegate_task", {"message": QUESTION})
        with anyio.fail_after(BOUND_S):
            async with anyio.create_task_group() as group, scene.client() as client:
                places = good(await client.call_tool("usage"))["user"]["concurrency"]
                for _ in range(places + 4):
                    group.start_soon(scene.ask, "task_status", {"task_id": accepted["task_id"], "wait_s": 60})
                while good(await client.call_tool("usage"))["user"]["running"] < 4:
                    await anyio.lowlevel.checkpoint()
                for _ in range(places):
                    assert good(await client.call_tool("hybrid_search", {"query": "device"}))["hits"]
                await client.call_tool("cancel_task", {"task_id": accepted["task_id"]})


async def test_a_task_is_canceled_once_and_another_end_stands(scene: McpScene) -> None:
    accepted = await scene.ask("delegate_task", {"message": QUESTION})
    ended = await scene.ask("delegate_task", {"message": QUESTION})
    async with scene.world.database() as database:
        ada = scene.world.principal(scene.acme)
        await tasks.status(database, ada, UUID(ended["task_id"]), TaskState.COMPLETED, "done", fence=None)
    async with scene.client() as client:
        first = good(await client.call_tool("cancel_task", {"task_id": accepted["task_id"]}))
        assert (first["state"], first["message"]) == ("canceled", "canceled on request")
        assert good(await client.call_tool("cancel_task", {"task_id": accepted["task_id"]})) == first
        refused = bad(await client.call_tool("cancel_task", {"task_id": ended["task_id"]}))
        assert refused == ("task_not_cancelable", "the task has already ended: it is completed")
        assert bad(await client.call_tool("cancel_task", {"task_id": str(uuid4())})) == (
            "not_found",
            "there is no such task",
        )


async def test_the_same_key_twice_is_one_task_even_at_once_and_another_order_under_it_is_refused(
    scene: McpScene,
) -> None:
    order = {"message": QUESTION, "idempotency_key": "order-1"}
    answers: list[dict[str, Any]] = []

    async def delegate() -> None:
        answers.append(await scene.ask("delegate_task", order))

    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(delegate)
    assert len({answer["task_id"] for answer in answers}) == 1
    assert sorted(answer["started"] for answer in answers) == [False, False, False, True]
    async with scene.client() as client:
        code, _ = bad(await client.call_tool("delegate_task", {**order, "message": "Something else?"}))
        assert code == "conflict"
    bob = await scene.ask("delegate_task", order, user="bob")
    theirs = await scene.ask("delegate_task", order, scene.rival)
    assert bob["started"] is theirs["started"] is True
    assert len({answers[0]["task_id"], bob["task_id"], theirs["task_id"]}) == 3
    async with scene.world.database() as database, database.tenant(scene.world.principal(scene.acme)) as session:
        assert await store.count_tasks(session, TaskFilter()) == 2


async def test_what_no_workflow_can_do_is_refused_and_nothing_is_stored(scene: McpScene) -> None:
    async with scene.client() as client:
        for arguments, reason in (
            ({"message": " "}, "question: String should have at least 1 character"),
            ({"message": "x" * 5000}, "question: String should have at most 4000 characters"),
            ({"message": "x", "workflow": "alchemy"}, "known: rag"),
            ({"message": "a\0b"}, "message has NUL"),
            ({"message": "a", "context_id": "\0"}, "context_id has NUL"),
            ({"message": "a", "wait_s": 121}, "wait_s"),
            ({"message": "a", "options": {"profile": "legal"}}, "profile: Extra inputs"),
            ({"message": "a", "workflow": "research", "options": {"profile": "poetry"}}, "profile: Input should be"),
            ({"message": "a", "workflow": "research", "options": {"question": "b"}}, "is the text of the message"),
            ({"message": "a", "workflow": "ingest", "options": {"files": []}}, "files are sent over A2A"),
            ({"message": "a", "options": {"filter": {"x": "a\0b"}}}, "options object has NUL"),
            ({"message": "a", "options": {"filter": "x" * 20_000}}, "options object is larger than"),
            ({"message": "a", "options": []}, "options"),
        ):
            code, text = bad(await client.call_tool("delegate_task", arguments))
            assert (code, reason in text) == ("invalid_input", True), text
    async with scene.client(scopes=frozenset({Scope.TASKS_RUN})) as client:
        # the tool is covered, what the workflow would do is not
        with pytest.raises(MCPError) as refused:
            await client.call_tool("delegate_task", {"message": QUESTION})
        assert (refused.value.code, refused.value.message) == (40300, "this needs the scope corpus:read")
    async with scene.world.database() as database, database.tenant(scene.world.principal(scene.acme)) as session:
        assert await store.count_tasks(session, TaskFilter()) == 0


async def test_a_long_result_is_read_in_parts_and_large_data_at_its_resource(scene: McpScene) -> None:
    accepted = await scene.ask("delegate_task", {"message": QUESTION})
    task_id, ada = UUID(accepted["task_id"]), scene.world.principal(scene.acme)
    long, short = "0123456789" * (MAX_TEXT_CHARS // 5), "𐍈"
    async with scene.world.database() as database:
        for name, parts in (
            ("short", [{"text": short}, {"data": {"n": 1}}]),
            ("long", [{"text": long[:7]}, {"text": long[7:]}, {"data": {"x": "y" * MAX_DATA_BYTES}}]),
        ):
            payload = {"artifact_id": name, "name": name, "parts": parts, "append": False, "last_chunk": True}
            async with database.tenant(ada) as session:
                await store.append(session, task_id, EventKind.ARTIFACT, payload, fence=None)
        await tasks.status(database, ada, task_id, TaskState.COMPLETED, "done", fence=None)
    both = (await scene.ask("task_result", {"task_id": str(task_id)}))["result"]
    assert [(one["name"], one["text"], one["data"], one["data_omitted"]) for one in both] == [
        ("short", short, [{"n": 1}], False),
        ("long", long[: MAX_TEXT_CHARS - 1], [], True),
    ]
    arguments: dict[str, Any] = {"task_id": str(task_id), "artifact": "long", "start": 0}
    read = ""
    while arguments["start"] is not None:
        (part,) = (await scene.ask("task_result", arguments))["result"]
        read, arguments["start"] = read + part["text"], part["next_start"]
    assert read == long
    async with scene.client() as client:
        past = good(await client.call_tool("task_result", {**arguments, "start": 2**50}))["result"][0]
        assert (past["text"], past["start"], past["next_start"]) == ("", len(long), None)
        assert (
            bad(await client.call_tool("task_result", {**arguments, "start": 0, "artifact": "none"}))[0] == "not_found"
        )
        wrong = {"task_id": str(task_id), "start": 5}
        assert bad(await client.call_tool("task_result", wrong))[0] == "invalid_input"


async def test_a_revoked_caller_is_told_while_it_waits(scene: McpScene) -> None:
    token = scene.token(user="mallory")
    accepted = await scene.ask("delegate_task", {"message": QUESTION}, token=token)
    token_id = scene.world.verifier(Audience.MCP).verify(token).token_ids[0]
    heard = Heard()

    async def revoke() -> None:
        async with scene.world.database() as database, scene.world.operator() as operator:
            ada = scene.world.principal(scene.acme)
            await tasks.progress(database, ada, UUID(accepted["task_id"]), "first", fence=None)
            await heard.any.wait()
            await operator.revoke_token(scene.acme.tenant_id, token_id)
            await tasks.progress(database, ada, UUID(accepted["task_id"]), "second", fence=None)

    arguments = {"task_id": accepted["task_id"], "wait_s": 20}
    async with anyio.create_task_group() as group:
        group.start_soon(revoke)
        async with scene.client(token=token) as client:
            with pytest.raises(MCPError) as refused:
                await client.call_tool("task_status", arguments, progress_callback=heard)
            assert (refused.value.code, refused.value.message) == (40100, "The token was revoked.")
