"""What becomes of a task's data after its end: what is compacted, what is taken away, and what is never touched."""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import anyio
import asyncpg
import pytest

from rag.db.migrate import bootstrap, ensure_database, migrate
from rag.db.pool import Database
from rag.errors import Forbidden, InvalidInput, NotFound
from rag.identity.principal import Principal
from rag.installation import embedded_settings
from rag.tasks import calls
from rag.tasks.fold import fold_artifacts
from rag.tasks.retention import retire_due
from rag.tasks.values import TERMINAL, CallKind, TaskState
from sql import Query
from tests.support import tasks
from tests.support.ended import age, artifact
from tests.support.world import Cluster, World, cluster_passwords

pytestmark = pytest.mark.anyio
BOUND_S = 30.0
DAY_S = 86_400.0
BEFORE = 19
"""The last version without retention."""
SETTLED_S = 700.0
"""Longer ago than what is compacted must be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Two tenants on one database."""

    world: World
    database: Database
    ada: Principal
    eve: Principal

    async def kept(self, table: str, task_id: UUID) -> int:
        """Return how many rows of the task there are in a table, whoever may see them."""
        column = "thread_id = $1::text" if table.startswith("checkpoint.") else "task_id = $1::text::uuid"
        return await self.value(f"select count(*) from {table} where {column}", str(task_id))

    async def value(self, query: str, *values: object) -> Any:
        """Return one value as the superuser sees it."""
        connection = await asyncpg.connect(self.world.superuser_url)
        try:
            return await connection.fetchval(query, *values)
        finally:
            await connection.close()

    async def ended(self, principal: Principal | None = None, *, state: TaskState = TaskState.COMPLETED) -> UUID:
        """Make a task that has streamed, called, checkpointed and ended; its log has eight events."""
        who = principal or self.ada
        task_id = await tasks.accept(self.database, who)
        claim = await tasks.claim(self.database)
        await tasks.progress(self.database, who, task_id, "searching", fence=claim.fence)  # 2
        for number, text in enumerate(("It ", "is ", "unlawful.")):  # 3 to 5
            await artifact(self.database, who, task_id, text, append=number > 0, fence=claim.fence)
        await artifact(self.database, who, task_id, "[1]", append=False, name="citations", fence=claim.fence)  # 6
        await artifact(self.database, who, task_id, "It is unlawful.", append=False, fence=claim.fence)  # 7
        await calls.begin_call(
            self.database,
            who,
            task_id,
            "step:search",
            fence=claim.fence,
            kind=CallKind.TOOL,
            name="hybrid_search",
            max_calls=9,
            max_tokens=9,
        )
        async with self.database.tenant(who) as session:
            for table, columns, row in (
                ("checkpoints", "checkpoint_id, checkpoint", "'c', '{}'"),
                ("checkpoint_blobs", "channel, version, type", "'c', 'v', 't'"),
                ("checkpoint_writes", "checkpoint_id, task_id, idx, channel, blob", "'c', 't', 0, 'c', ''"),
            ):
                await session.fetch(
                    _query(f"insert into checkpoint.{table} (thread_id, {columns}) values ({{task}}, {row})"),
                    task=str(task_id),
                )
        await tasks.status(self.database, who, task_id, state, "over", fence=claim.fence)  # 8
        return task_id


CHECKPOINTS = ("checkpoint.checkpoints", "checkpoint.checkpoint_blobs", "checkpoint.checkpoint_writes")
EVERYTHING = ("rag.task", "rag.task_event", "rag.task_call", *CHECKPOINTS, "queue.ended")


def _query(text: str) -> Query:
    return Query(
        name="test", description="", text=text.replace("{task}", "$1"), parameters=("task",) * ("{task}" in text)
    )


@pytest.fixture(name="setting")
async def setting_fixture(world: World) -> AsyncGenerator[Setting]:
    """Ada of tenant acme, Eve of tenant globex."""
    acme, globex = await world.tenant("acme"), await world.tenant("globex")
    async with world.database(pool_size=4, claims=True) as database:
        yield Setting(
            world=world, database=database, ada=world.principal(acme), eve=world.principal(globex, user="eve")
        )


async def test_pieces_that_were_set_whole_and_checkpoints_go_and_numbers_stay(setting: Setting) -> None:
    task_id = await setting.ended()
    before = fold_artifacts(await tasks.events(setting.database, setting.ada, task_id))
    assert await retire_due(setting.database) == 0, "its readers have ten minutes"
    await age(setting.world, task_id, seconds=SETTLED_S)
    assert await retire_due(setting.database) == 1
    log = await tasks.events(setting.database, setting.ada, task_id)
    assert [event.seq for event in log] == [1, 2, 3, 6, 7, 8], "the first piece keeps the artifact's place"
    assert fold_artifacts(log) == before
    task = await tasks.read(setting.database, setting.ada, task_id)
    assert (task.version, task.compacted_to) == (8, 5)
    assert [await setting.kept(table, task_id) for table in CHECKPOINTS] == [0, 0, 0]
    assert await setting.kept("rag.task_call", task_id) == 1, "what it has done is told as long as it is kept"
    assert await retire_due(setting.database) == 0


@pytest.mark.parametrize("state", sorted(TERMINAL - {TaskState.REJECTED}))
async def test_every_end_is_an_end(setting: Setting, state: TaskState) -> None:
    task_id = await setting.ended(state=state)
    await age(setting.world, task_id, seconds=31 * DAY_S)
    assert await retire_due(setting.database) == 1
    assert await setting.kept("rag.task", task_id) == 0


async def test_a_step_takes_no_more_than_its_budget_and_all_of_them_take_everything(setting: Setting) -> None:
    task_id = await setting.ended()
    await age(setting.world, task_id, seconds=SETTLED_S)
    assert await retire_due(setting.database, budget=1) == 1
    assert (await tasks.read(setting.database, setting.ada, task_id)).compacted_to == 5
    await age(setting.world, task_id, seconds=31 * DAY_S)
    assert await retire_due(setting.database, budget=1) == 1
    assert [await setting.kept(table, task_id) for table in EVERYTHING] == [0] * len(EVERYTHING)


async def test_a_task_past_its_tenants_time_leaves_nothing(setting: Setting) -> None:
    task_id = await setting.ended()
    await age(setting.world, task_id, seconds=30 * DAY_S - 60)
    await retire_due(setting.database)
    assert (await tasks.read(setting.database, setting.ada, task_id)).state is TaskState.COMPLETED
    await age(setting.world, task_id, seconds=120)
    assert await retire_due(setting.database) == 1
    assert [await setting.kept(table, task_id) for table in EVERYTHING] == [0] * len(EVERYTHING)
    with pytest.raises(NotFound):
        await tasks.read(setting.database, setting.ada, task_id)


async def test_each_tenant_has_its_own_time_and_a_change_holds_for_what_has_ended(setting: Setting) -> None:
    hers, others = await setting.ended(), await setting.ended(setting.eve)
    for task_id in (hers, others):
        await age(setting.world, task_id, seconds=2 * DAY_S)
    await retire_due(setting.database)
    assert [await setting.kept("rag.task", one) for one in (hers, others)] == [1, 1]
    async with setting.world.operator() as operator:
        await operator.set_task_retention(setting.ada.tenant_id, DAY_S)
        await operator.set_task_retention(setting.eve.tenant_id, None)
    await age(setting.world, others, seconds=5000 * DAY_S)
    await retire_due(setting.database)
    assert [await setting.kept("rag.task", one) for one in (hers, others)] == [0, 1]


async def test_a_task_that_has_not_ended_is_never_touched(setting: Setting) -> None:
    task_id = await tasks.accept(setting.database, setting.ada)
    claim = await tasks.claim(setting.database)
    for number in range(3):
        await artifact(setting.database, setting.ada, task_id, "x", append=number == 1, fence=claim.fence)
    async with setting.world.operator() as operator:
        await operator.set_task_retention(setting.ada.tenant_id, 3600.0)
    await setting.value(
        "update rag.task set updated_at = now() - interval '9 years', created_at = now() - interval '9 years'"
    )
    assert await retire_due(setting.database, settle_s=0.0) == 0
    # not even by a queue that is wrong about it
    await setting.value(
        "insert into queue.ended (task_id, tenant_id, ended_at) select task_id, tenant_id, now() - interval '9 years' "
        "from rag.task"
    )
    assert await retire_due(setting.database) == 1
    assert [event.seq for event in await tasks.events(setting.database, setting.ada, task_id)] == [1, 2, 3, 4]
    await tasks.status(setting.database, setting.ada, task_id, TaskState.COMPLETED, "done", fence=claim.fence)
    assert await setting.kept("queue.ended", task_id) == 1, "and its end is noted when it comes"


async def test_whoever_was_revoked_leaves_no_data_behind(setting: Setting) -> None:
    task_id = await setting.ended()
    await age(setting.world, task_id, seconds=31 * DAY_S)
    async with setting.world.operator() as operator:
        await operator.revoke_tenant(setting.ada.tenant_id)
    assert await retire_due(setting.database) == 1
    assert await setting.kept("rag.task", task_id) == 0


async def test_many_workers_take_each_task_once_and_one_that_is_locked_waits_for_nobody(setting: Setting) -> None:
    ids = [await setting.ended() for _ in range(6)]
    for task_id in ids:
        await age(setting.world, task_id, seconds=31 * DAY_S)
    taken: list[int] = []
    blocker = await asyncpg.connect(setting.world.superuser_url)
    try:
        async with blocker.transaction():
            await blocker.execute("select 1 from rag.task where task_id = $1 for update", ids[0])

            async def work() -> None:
                taken.append(await retire_due(setting.database))

            with anyio.fail_after(BOUND_S):
                async with anyio.create_task_group() as group:
                    for _ in range(3):
                        group.start_soon(work)
            assert sum(taken) == len(ids)
            assert [await setting.kept("rag.task", one) for one in ids] == [1, 0, 0, 0, 0, 0]
    finally:
        await blocker.close()
    await setting.value("update queue.ended set leased_until = null")
    assert await retire_due(setting.database) == 1
    assert await setting.kept("rag.task", ids[0]) == 0


async def test_servers_may_not_take_anything_away_and_a_seal_opens_one_task(setting: Setting) -> None:
    boarded = dataclasses.replace(setting.ada, groups=("board",))  # what has no group is the whole tenant's
    first, second = await setting.ended(boarded), await setting.ended(boarded)
    async with setting.world.database() as app:
        for statement in (
            "delete from rag.task",
            "delete from rag.task_event",
            "update rag.task set compacted_to = 9",
            "select rag.delete_task_v1({task}, 100)",
            "select rag.compact_task_v1({task}, 100)",
            "select * from queue.claim_ended_v1(9, 60, 0)",
            "select queue.finish_ended_v1({task}, true)",
        ):
            with pytest.raises(Forbidden):
                await _run(app, boarded, statement, first)
    await age(setting.world, first, seconds=SETTLED_S)
    async with setting.database.unsafe_unscoped(reason="as retention does") as session:
        claimed = await session.fetch(_query("select * from queue.claim_ended_v1(9, 60, 600)"))
    assert [row["task_id"] for row in claimed] == [first]
    async with setting.database.sealed(claimed[0]["seal"]) as session:
        await session.fetch(_query("select rag.delete_task_v1({task}, 100)"), task=second)
        assert [row["task_id"] for row in await session.fetch(_query("select task_id from rag.task"))] == [first]
        visible = await session.fetch(_query("select distinct thread_id from checkpoint.checkpoints"))
        assert [row["thread_id"] for row in visible] == [str(first)]
    assert await setting.kept("rag.task", second) == 1


async def _run(database: Database, principal: Principal, statement: str, task_id: UUID) -> None:
    query = _query(statement)
    async with database.tenant(principal) as session:
        await session.fetch(query, **({"task": task_id} if query.parameters else {}))


@pytest.mark.parametrize("seconds", [3599.0, 0.0, -1.0, 3651 * DAY_S, float("nan")])
async def test_a_time_that_is_none_is_refused(setting: Setting, seconds: float) -> None:
    async with setting.world.operator() as operator:
        with pytest.raises(InvalidInput, match="1h to 3650d"):
            await operator.set_task_retention(setting.ada.tenant_id, seconds)


async def test_what_ended_before_there_was_retention_is_counted_from_its_end(cluster: Cluster) -> None:
    name = f"test_{int(time.time())}_{secrets.token_hex(6)}"
    superuser_url = await ensure_database(cluster.server.superuser_url, name)
    await bootstrap(superuser_url, cluster_passwords(cluster))
    settings = embedded_settings(cluster.settings, cluster.server, database=name)
    assert settings.owner_database_url is not None
    await migrate(settings.owner_database_url, through=BEFORE)
    connection = await asyncpg.connect(superuser_url)
    try:
        await connection.execute("insert into rag.tenant (tenant_id, name) values (gen_random_uuid(), 'acme')")
        await connection.execute(
            "insert into rag.task (tenant_id, task_id, context_id, workflow, state, version, input, subject, scopes, "
            "groups, token_ids, token_issued_at, updated_at) "
            "select tenant_id, gen_random_uuid(), 'c', 'rag', state, 1, '{}', 'ada', '{}', '{}', '{}', 1, "
            "now() - interval '40 days' from rag.tenant, unnest(array['completed', 'failed', 'working']) as state"
        )
        await migrate(settings.owner_database_url)
        noted = await connection.fetch(
            "select t.state, e.ended_at = t.updated_at as dated from rag.task t join queue.ended e using (task_id)"
        )
        await connection.execute("insert into rag.tenant (tenant_id, name) values (gen_random_uuid(), 'newcomer')")
        kept = await connection.fetch("select name, task_retention_s from rag.tenant")
    finally:
        await connection.close()
        admin = await asyncpg.connect(cluster.server.superuser_url)
        await admin.execute(f'drop database "{name}" with (force)')
        await admin.close()
    assert sorted((row["state"], row["dated"]) for row in noted) == [("completed", True), ("failed", True)]
    assert {row["name"]: row["task_retention_s"] for row in kept} == {"acme": None, "newcomer": 30 * DAY_S}
