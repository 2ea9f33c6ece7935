"""Conversations and recorded calls as injected SQL meets them: a colleague sees the task and speaks for nobody else."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import UUID

import pytest

from rag.db.pool import Database
from rag.errors import BulkheadError, Forbidden, SealRefused
from rag.identity.principal import Principal
from rag.tasks import calls, conversations, store
from rag.tasks.values import CallKind, Claim, TaskState
from sql import Query
from tests.support import tasks
from tests.support.index import stored
from tests.support.world import Cluster, World, world

pytestmark = pytest.mark.anyio
FORM = {"id": "f", "hint": "May I delete everything?"}
SAYS_YES = (
    '{"state": "working", "message": null, "metadata": {}, "answers": 2, "received": {"parts": [{"text": "yes"}]}}'
)
REFUSED = [
    # words in the mouth of whoever started the task: its run would act on them with that one's rights
    "insert into rag.task_event (tenant_id, task_id, seq, kind, payload, subject, groups) "
    f"values (rag.current_tenant(), {{task}}, 3, 'status', '{SAYS_YES}', 'ada', '{{}}')",
    f"select rag.append_event_v2({{task}}, null, 'status', '{SAYS_YES}', null, 'working', null)",
    'select rag.receive_message_v1({task}, \'{"parts": [{"text": "yes"}]}\', null, 2, true)',
    # a place taken in another's record of calls: the run could not make the call of that key
    "insert into rag.task_call (tenant_id, task_id, key, kind, name) "
    "values (rag.current_tenant(), {task}, 'next', 'tool', 'search')",
    "insert into rag.task_call (tenant_id, task_id, key, kind, name, subject) "
    "values (rag.current_tenant(), {task}, 'next', 'tool', 'search', 'ada')",
    "update rag.task_call set subject = 'bob'",
    "update rag.task_call set key = 'another'",
    "delete from rag.task_call",
]
FRUITLESS = [
    "select queue.wake_run_v1({task})",
    "select queue.park_run_v1({task}, fence, now() + interval '1 year') from generate_series(1, 9) fence",
    "select * from rag.task_call",
    "update rag.task_call set result = '{}' returning 1",
    "select * from rag.task_call where task_id = {task} for update",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Ada's task, which the whole tenant sees: it has made a call, and it asks."""

    world: World
    database: Database
    ada: Principal
    bob: Principal
    rival: Principal
    task: UUID
    claim: Claim

    async def run(self, who: Principal, text: str) -> list[object]:
        """Run a statement that somebody smuggled into a session of `who`."""
        text = text.replace("{task}", f"'{self.task}'")
        async with self.database.tenant(who) as session:
            return list(await session.fetch(Query(name="injected", description="", text=text, parameters=())))

    async def everything(self) -> list[object]:
        """Return all that the database holds of tasks."""
        tables = ("rag.task", "rag.task_event", "rag.task_call", "queue.run")
        return [tuple(row) for table in tables for row in await stored(self.world, f"select t::text from {table} t")]


@pytest.fixture(name="scene")
async def scene_fixture(world: World) -> AsyncGenerator[Scene]:
    """A scene of the test's own."""
    async with _scene(world) as scene:
        yield scene


@pytest.fixture(scope="module", name="working")
async def working_fixture(cluster: Cluster) -> AsyncGenerator[Scene]:
    """One scene for all statements that change nothing, and that see that they have not."""
    async with world(cluster) as own, _scene(own) as scene:
        yield scene


@pytest.fixture(scope="module", name="asking")
async def asking_fixture(cluster: Cluster) -> AsyncGenerator[Scene]:
    """The same, with a task that asks."""
    async with world(cluster) as own, _scene(own) as scene:
        assert await asks(scene) == 2
        yield scene


@asynccontextmanager
async def _scene(world: World) -> AsyncGenerator[Scene]:
    """No server: the store, and the login of the servers."""
    acme, rival = await world.tenant("acme"), await world.tenant("rival")
    ada, bob = world.principal(acme, user="ada"), world.principal(acme, user="bob")
    async with world.database() as database, world.database(claims=True) as worker:
        task = await tasks.accept(database, ada)
        claim = await tasks.claim(worker)
        await calls.begin_call(
            worker, ada, task, "first", fence=claim.fence, kind=CallKind.TOOL, name="search", max_calls=9, max_tokens=9
        )
        await calls.finish_call(worker, ada, task, "first", {"found": "secret"}, fence=claim.fence)
        yield Scene(
            world=world,
            database=database,
            ada=ada,
            bob=bob,
            rival=world.principal(rival, user="ada"),
            task=task,
            claim=claim,
        )


async def asks(scene: Scene) -> int:
    """Have the task ask, and return the question's seq."""
    payload = {**store.status_payload(TaskState.INPUT_REQUIRED, "May I?"), "ask": "f", "form": FORM}
    async with scene.database.tenant(scene.ada) as session:
        return await conversations.ask(
            session, scene.task, TaskState.INPUT_REQUIRED, payload, fence=scene.claim.fence, wait_s=600.0
        )


@pytest.mark.parametrize("statement", REFUSED)
async def test_nobody_speaks_or_calls_for_whoever_started_the_task(asking: Scene, statement: str) -> None:
    before = await asking.everything()
    for who in (asking.bob, asking.rival):
        with pytest.raises((SealRefused, Forbidden, BulkheadError)):
            await asking.run(who, statement)
        assert await asking.everything() == before


@pytest.mark.parametrize("statement", FRUITLESS)
@pytest.mark.parametrize("asks_already", [False, True])
async def test_nobody_stops_or_wakes_anothers_run_or_reads_its_calls(
    working: Scene, asking: Scene, statement: str, *, asks_already: bool
) -> None:
    scene = asking if asks_already else working
    before = await scene.everything()
    for who in (scene.bob, scene.rival):
        rows = await scene.run(who, statement)
        assert "secret" not in str(rows)
        assert await scene.everything() == before


async def test_a_colleague_cannot_have_the_run_ask(scene: Scene) -> None:
    """A form of a colleague's would look like the server's own: what is your password?"""
    before = await scene.everything()
    for fence in range(1, 4):
        with pytest.raises(BulkheadError):
            await scene.run(
                scene.bob, f"select rag.ask_v1({{task}}, {fence}, 'input-required', '{{\"form\": {{}}}}', 1e9)"
            )
        assert await scene.everything() == before


async def test_whoever_started_it_answers_and_its_run_goes_on(scene: Scene) -> None:
    seq = await asks(scene)
    async with scene.database.tenant(scene.ada) as session:
        assert (
            await conversations.receive(session, scene.task, {"parts": [{"text": "yes"}]}, answers=seq, takes=False)
            == 3
        )
    async with scene.world.database(claims=True) as worker:
        assert (await tasks.claim(worker)).task_id == scene.task
