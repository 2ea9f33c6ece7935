"""A task of somebody who is in groups: for whom it exists, at each door of both servers and for injected SQL."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import anyio
import httpx
import pytest
from langchain_core.runnables import RunnableConfig
from mcp_types import ResourceTemplateReference

from mcp_server.resources.artifacts import ARTIFACT
from rag.db.pool import Database
from rag.errors import Forbidden, NotFound, SealRefused
from rag.identity.principal import Principal
from rag.identity.scopes import Audience
from rag.tasks import store
from rag.tasks.values import EventKind, TaskFilter, TaskState
from sql import Query, load_queries
from tests.support import tasks
from tests.support.agents import Rpc, a2a_server, message
from tests.support.index import stored
from tests.support.mcp_scene import McpScene, mcp_scene
from tests.support.mcp_wire import answered
from tests.support.world import ALL_SCOPES, Cluster, World, world
from workflows.checkpoints import RunContext, TenantPostgresSaver, open_checkpoints

pytestmark = pytest.mark.anyio
SECRET = "The secret merger of the harbour railways."
NAMES = ResourceTemplateReference(uri=ARTIFACT.uri)
USERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "owner": ("bob", ("board", "staff")),
    "owner who has left the board": ("bob", ()),
    "member of both groups and another": ("ann", ("staff", "audit", "board")),
    "member of one of them": ("eve", ("staff",)),
    "member of a group that is called much the same": ("eve", ("boards", "staff", "board,staff", "{board,staff}")),
    "member of none": ("eve", ()),
    "one of another tenant": ("bob", ("board", "staff")),
}
SEES = {"owner", "owner who has left the board", "member of both groups and another"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A task of Bob's, who is in two groups, with what it has made of documents of theirs."""

    mcp: McpScene
    database: Database
    a2a: Rpc
    bob: Principal
    task: UUID

    def principal(self, who: str) -> Principal:
        """Return one of USERS as the servers know them."""
        user, groups = USERS[who]
        tenant = self.mcp.rival if "another tenant" in who else self.mcp.acme
        return dataclasses.replace(self.mcp.world.principal(tenant, user=user), groups=groups)

    def token(self, who: str, audience: Audience) -> str:
        """Return a token of one of USERS."""
        user, groups = USERS[who]
        tenant = self.mcp.rival if "another tenant" in who else self.mcp.acme
        return self.mcp.world.issuer.issue(
            tenant_id=tenant.tenant_id,
            subject=user,
            audience=audience,
            scopes=ALL_SCOPES,
            lifetime_s=600.0,
            groups=groups,
        )

    async def tool(self, who: str, name: str, arguments: dict[str, Any]) -> Any:
        """Call an MCP tool and return the whole answer."""
        params = {"name": name, "arguments": arguments}
        return answered(await self.mcp.send("tools/call", params, token=self.token(who, Audience.MCP)))

    async def rpc(self, who: str, method: str, params: dict[str, Any]) -> Any:
        """Call an A2A method and return the whole answer as text."""
        own = dataclasses.replace(self.a2a, token=self.token(who, Audience.A2A))
        return (await own.raw(method, params)).text


@asynccontextmanager
async def scene_of(world: World) -> AsyncGenerator[Scene]:
    """Both servers, a task that works, and no worker."""
    async with (
        mcp_scene(world) as mcp,
        a2a_server(world) as base,
        httpx.AsyncClient(timeout=20.0) as http,
        world.database(claims=True) as database,
    ):
        scene = Scene(
            mcp=mcp,
            database=database,
            a2a=Rpc(base=base, token="", http=http),
            bob=mcp.world.principal(mcp.acme),
            task=uuid4(),
        )
        bob = scene.principal("owner")
        task = await tasks.accept(database, bob, question=f"Tell me of this: {SECRET}")
        await tasks.progress(database, bob, task, SECRET, fence=None)
        async with database.tenant(bob) as session:
            artifact = {"artifact_id": "answer", "name": "answer", "append": False, "last_chunk": True}
            payload = {**artifact, "parts": [{"text": SECRET}]}
            await store.append(session, task, EventKind.ARTIFACT, payload, fence=None)
        yield dataclasses.replace(scene, bob=bob, task=task)


@pytest.fixture(name="scene")
async def scene_fixture(world: World) -> AsyncGenerator[Scene]:
    """A scene of the test's own."""
    async with scene_of(world) as own:
        with anyio.fail_after(60):
            yield own


@pytest.fixture(scope="module", name="stage")
async def stage_fixture(cluster: Cluster) -> AsyncGenerator[Scene]:
    """The scene of all tests that change nothing."""
    async with world(cluster) as own, scene_of(own) as shared:
        yield shared


async def mcp_list(scene: Scene, who: str, task: str) -> Any:
    """Complete task ids by the beginning of one: how MCP lists tasks."""
    return await complete(scene, who, "id", task[:8])


async def complete(scene: Scene, who: str, name: str, value: str, **others: str) -> Any:
    """Complete a variable of the artifacts' URI."""
    params: dict[str, Any] = {
        "ref": NAMES.model_dump(mode="json", by_alias=True),
        "argument": {"name": name, "value": value},
        "context": {"arguments": others},
    }
    return answered(await scene.mcp.send("completion/complete", params, token=scene.token(who, Audience.MCP)))


Door = Callable[[Scene, str, str], Awaitable[Any]]
READING: dict[str, Door] = {
    "task_status": lambda s, who, task: s.tool(who, "task_status", {"task_id": task}),
    "task_status, waiting": lambda s, who, task: s.tool(
        who, "task_status", {"task_id": task, "wait_s": 20, "after_version": 0}
    ),
    "task_result": lambda s, who, task: s.tool(who, "task_result", {"task_id": task}),
    "resource": lambda s, who, task: s.mcp.send(
        "resources/read", {"uri": ARTIFACT.uri_of(id=task, name="answer")}, token=s.token(who, Audience.MCP)
    ),
    "completion of ids": mcp_list,
    "completion of names": lambda s, who, task: complete(s, who, "name", "", id=task),
    "GetTask": lambda s, who, task: s.rpc(who, "GetTask", {"id": task}),
    "ListTasks": lambda s, who, task: s.rpc(who, "ListTasks", {"contextId": f"context-{task}"}),
    "a message to it": lambda s, who, task: s.rpc(who, "SendMessage", message("and then?", taskId=task)),
    "a streamed message to it": lambda s, who, task: s.rpc(
        who, "SendStreamingMessage", message("and then?", taskId=task)
    ),
}
ENDING: dict[str, Door] = {
    "cancel_task": lambda s, who, task: s.tool(who, "cancel_task", {"task_id": task}),
    "CancelTask": lambda s, who, task: s.rpc(who, "CancelTask", {"id": task}),
}


async def told(scene: Scene, door: Door, who: str, task: UUID) -> str:
    """Return the answer as text, without the id that was asked for."""
    answer = await door(scene, who, str(task))
    if isinstance(answer, dict):
        answer = json.dumps(answer, sort_keys=True)
    text = answer if isinstance(answer, str) else str(answer.text)
    return text.replace(str(task), "ID")


@pytest.mark.parametrize("door", READING)
async def test_whoever_is_not_in_all_groups_of_a_task_is_told_what_is_told_of_none(stage: Scene, door: str) -> None:
    nothing = uuid4()
    for who in USERS:
        absent = await told(stage, READING[door], who, nothing)
        answer = await told(stage, READING[door], who, stage.task)
        assert (answer != absent) == (who in SEES), (who, answer)
        assert who in SEES or "secret" not in answer


@pytest.mark.parametrize("door", ENDING)
async def test_only_who_sees_a_task_can_cancel_it(scene: Scene, door: str) -> None:
    for who in sorted(set(USERS) - SEES):
        absent = await told(scene, ENDING[door], who, uuid4())
        assert await told(scene, ENDING[door], who, scene.task) == absent
    assert (await tasks.read(scene.database, scene.bob, scene.task)).state is TaskState.WORKING
    await told(scene, ENDING[door], "member of both groups and another", scene.task)
    assert (await tasks.read(scene.database, scene.bob, scene.task)).state is TaskState.CANCELED


async def test_only_who_sees_a_task_can_follow_it(scene: Scene) -> None:
    for who in sorted(set(USERS) - SEES):
        absent, answer = [await scene.rpc(who, "SubscribeToTask", {"id": str(one)}) for one in (uuid4(), scene.task)]
        assert answer == absent
    for who in sorted(SEES):
        own = dataclasses.replace(scene.a2a, token=scene.token(who, Audience.A2A))
        async with own.stream("SubscribeToTask", {"id": str(scene.task)}) as events:
            first = await anext(events)
            assert first.result["task"]["artifacts"][0]["parts"][0]["text"] == SECRET


async def test_a_list_and_its_total_and_pages_are_over_what_the_caller_sees(scene: Scene) -> None:
    open_one = await tasks.accept(scene.database, dataclasses.replace(scene.bob, groups=()))
    own = await tasks.accept(scene.database, scene.principal("member of one of them"))
    for _ in range(3):
        await tasks.accept(scene.database, scene.bob)
    eve = dataclasses.replace(scene.a2a, token=scene.token("member of one of them", Audience.A2A))
    first = await eve.call("ListTasks", {"pageSize": 1})
    assert first["totalSize"] == 2
    assert [task["id"] for task in first["tasks"]] == [str(own)]
    second = await eve.call("ListTasks", {"pageSize": 1, "pageToken": first["nextPageToken"]})
    assert [task["id"] for task in second["tasks"]] == [str(open_one)]
    assert not second.get("nextPageToken")
    # a position of a member's leads an outsider to nothing that it could not reach without
    bob = dataclasses.replace(scene.a2a, token=scene.token("owner", Audience.A2A))
    borrowed = (await bob.call("ListTasks", {"pageSize": 1}))["nextPageToken"]
    shown = await eve.call("ListTasks", {"pageSize": 100, "pageToken": borrowed})
    assert {task["id"] for task in shown["tasks"]} <= {str(own), str(open_one)}
    assert shown["totalSize"] == 2


# --- one injected statement -----------------------------------------------------------------------------------------


async def inject(scene: Scene, who: str, text: str) -> list[tuple[object, ...]]:
    """Run a statement of somebody's own choice in a session of theirs."""
    named = {"task": f"'{scene.task}'", "tenant": "rag.current_tenant()", "grant": GRANT}
    for name, value in named.items():
        text = text.replace("{" + name + "}", value)
    query = Query(name="injected", description="", text=text, parameters=())
    async with scene.mcp.server.runtime.database.tenant(scene.principal(who)) as session:
        return [tuple(row.values()) for row in await session.fetch(query)]


GRANT = "gen_random_uuid(), 'c', 'rag', '{\"question\": \"?\"}', '{}', '{corpus:read}'"
FRUITLESS = [
    "select * from rag.task where task_id = {task}",
    "select * from rag.task_event where task_id = {task}",
    "update rag.task set state = 'canceled' where task_id = {task} returning 1",
    "select 1 from rag.task where task_id = {task} for update",
    "select thread_id from checkpoint.checkpoints",
    "delete from checkpoint.checkpoint_writes returning 1",
    "select queue.finish_run_v1({task})",
    "select queue.lock_run_v1({task}, null)",
]
REFUSED = [
    # a grant of groups, of a life, or of a name that is not the caller's: its run would be
    "select * from rag.create_task_v2({grant}, '{board,staff}', null, '{t}', 0, null, null)",
    "select rag.create_task_v1({grant}, '{board,staff}', null, '{t}', 0, null)",
    "select * from rag.create_task_v2({grant}, '{}', null, '{}', 0, null, null)",
    "select * from rag.create_task_v2({grant}, '{}', null, '{t}', 99999999999, null, null)",
    "insert into rag.task (tenant_id, task_id, context_id, workflow, state, version, input, subject, scopes, groups, "
    "token_ids, token_issued_at) values ({tenant}, gen_random_uuid(), 'c', 'rag', 'submitted', 1, '{}', 'bob', '{}', "
    "'{}', '{t}', 0)",
    "update rag.task set subject = 'eve'",
    "update rag.task set groups = '{}'",
    "update rag.task set token_ids = '{}'",
    # words in the mouth of a task that is not to be seen
    "insert into rag.task_event (tenant_id, task_id, seq, kind, payload, subject, groups) "
    "values ({tenant}, {task}, 99, 'status', '{}', 'eve', '{}')",
    "insert into rag.task_event (tenant_id, task_id, seq, kind, payload, subject, groups) "
    "values ({tenant}, {task}, 99, 'status', '{}', 'bob', '{board,staff}')",
    "insert into checkpoint.checkpoints (thread_id, checkpoint_id, checkpoint, subject) "
    "values ({task}, 'x', '{}', 'bob')",
    "select seal.mint_v3({tenant}, 'eve', {task}, 60)",
    "select queue.sees_task_v1({task})",
]


async def everything(scene: Scene) -> list[object]:
    """Return all that the database holds of tasks."""
    tables = ("rag.task", "rag.task_event", "queue.run", "checkpoint.checkpoints", "checkpoint.checkpoint_writes")
    return [tuple(row) for table in tables for row in await stored(scene.mcp.world, f"select t::text from {table} t")]


@pytest.mark.parametrize("attempt", FRUITLESS)
async def test_no_statement_reaches_a_task_that_its_caller_does_not_see(scene: Scene, attempt: str) -> None:
    claim = await tasks.claim(scene.database)
    assert scene.mcp.world.settings.worker_database_url is not None
    async with open_checkpoints(scene.mcp.world.settings.worker_database_url, pool_size=1, application="test") as pool:
        context = RunContext(seal=lambda: scene.database.seal(scene.bob), task_id=scene.task, fence=claim.fence)
        where: RunnableConfig = {
            "configurable": {"thread_id": str(scene.task), "checkpoint_ns": "", "checkpoint_id": "1"}
        }
        await TenantPostgresSaver(pool, context).aput_writes(where, [("evidence", SECRET)], "node")
    before = await everything(scene)
    assert "secret" in str(before)
    for who in sorted(set(USERS) - SEES):
        assert await inject(scene, who, attempt) in ([], [(None,)], [("",)]), who
        assert await everything(scene) == before


@pytest.mark.parametrize("attempt", REFUSED)
async def test_no_statement_writes_more_into_a_task_than_its_caller_is(stage: Scene, attempt: str) -> None:
    before = await everything(stage)
    with pytest.raises((SealRefused, Forbidden)):
        await inject(stage, "member of one of them", attempt)
    assert await everything(stage) == before


async def test_nothing_is_queued_for_a_task_that_the_caller_does_not_see(scene: Scene) -> None:
    before = await everything(scene)
    await inject(scene, "one of another tenant", "select queue.enqueue_run_v1(gen_random_uuid())")
    await stored(scene.mcp.world, "delete from queue.run")
    await inject(scene, "member of one of them", "select queue.enqueue_run_v1({task})")
    assert await stored(scene.mcp.world, "select 1 from queue.run") == []
    assert before != await everything(scene)


# --- those who must see it ------------------------------------------------------------------------------------------


async def test_the_seal_of_a_claim_opens_its_own_task_and_no_document_and_no_other_task(scene: Scene) -> None:
    other = await tasks.accept(scene.database, scene.bob)
    await store.cancel(scene.database, scene.bob, other)
    claim = await tasks.claim(scene.database)
    await scene.mcp.put("Deal", text=SECRET, groups=("board",))
    async with scene.database.sealed(claim.seal) as session:
        assert (await store.get_task(session, scene.task)).task_id == scene.task
        assert len(await store.events_after(session, scene.task, 0)) == 3
        assert await store.count_tasks(session, TaskFilter()) == 1
        with pytest.raises(NotFound):
            await store.get_task(session, other)
        documents = Query(name="q", description="", text="select 1 from rag.document", parameters=())
        assert await session.fetch(documents) == []
        # and ends it, when its grant cannot
        payload = store.status_payload(TaskState.FAILED, "gave up")
        await store.append(session, scene.task, EventKind.STATUS, payload, fence=claim.fence, state=TaskState.FAILED)
    assert (await tasks.read(scene.database, scene.bob, scene.task)).state is TaskState.FAILED
    assert await stored(scene.mcp.world, "select 1 from queue.run") == []


async def test_a_task_of_somebody_without_groups_is_the_whole_tenants(scene: Scene) -> None:
    task = await tasks.accept(scene.database, dataclasses.replace(scene.bob, groups=()))
    for who in USERS:
        if "another tenant" in who:
            with pytest.raises(NotFound):
                await tasks.read(scene.database, scene.principal(who), task)
        else:
            assert (await tasks.read(scene.database, scene.principal(who), task)).task_id == task


@pytest.mark.parametrize("name", ["events_after", "artifact_events", "list_tasks"])
async def test_no_row_of_a_log_or_a_list_costs_a_look_at_another_table(scene: Scene, name: str) -> None:
    query = load_queries("tasks")[name]
    explained = dataclasses.replace(query, text=f"explain {query.text}")
    values = {"task_id": scene.task, "after": 0, "page_size": 9}
    given = {parameter: values.get(parameter) for parameter in query.parameters}
    async with scene.mcp.server.runtime.database.tenant(scene.principal("member of one of them")) as session:
        plan = "\n".join(str(row["QUERY PLAN"]) for row in await session.fetch(explained, **given))
    assert "InitPlan" in plan
    assert "SubPlan" not in plan
    assert plan.count(" on task") == 1, plan
