"""Recurring tasks on a real PostgreSQL: each time starts one task, whoever races, dies, is revoked or comes late."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import anyio
import asyncpg
import pytest

from rag.clock import system_clock
from rag.db.pool import Database
from rag.errors import Conflict, Forbidden, InvalidInput, NotFound
from rag.identity.principal import Principal
from rag.identity.scopes import Scope
from rag.schedules import store
from rag.schedules.timing import timing
from rag.schedules.values import Missed, Schedule, ScheduleState
from rag.tasks.store import list_tasks
from rag.tasks.values import Task, TaskFilter
from sql import Query
from tests.support import tasks
from tests.support.schedules import hourly, make_due, scheduler_process, started_for
from tests.support.world import World
from workflows.schedules import Ordered, fire_due, order, resume, run_now

pytestmark = pytest.mark.anyio
BOUND_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Two tenants on one database."""

    world: World
    database: Database
    ada: Principal
    bob: Principal
    """Of Ada's tenant."""
    eve: Principal

    async def fire(self) -> int:
        """Fire what is due, as one worker would."""
        return await fire_due(self.database, clock=system_clock)

    async def found(self, principal: Principal | None = None, name: str = "digest") -> Schedule:
        """Return a schedule as its owner sees it."""
        async with self.database.tenant(principal or self.ada) as session:
            return await store.find(session, name)

    async def tasks(self, principal: Principal | None = None) -> list[Task]:
        """Return the tasks that somebody sees, latest first."""
        async with self.database.tenant(principal or self.ada) as session:
            return await list_tasks(session, TaskFilter(), page_size=100)

    async def resume(self, principal: Principal | None = None, name: str = "digest") -> Schedule:
        """Resume a schedule."""
        return await resume(self.database, principal or self.ada, name, until=None, clock=system_clock)


@pytest.fixture(name="setting")
async def setting_fixture(world: World) -> AsyncGenerator[Setting]:
    """Ada and Bob of tenant acme, Eve of tenant globex."""
    acme, globex = await world.tenant("acme"), await world.tenant("globex")
    async with world.database(pool_size=8, claims=True) as database:
        yield Setting(
            world=world,
            database=database,
            ada=world.principal(acme),
            bob=world.principal(acme, user="bob"),
            eve=world.principal(globex, user="eve"),
        )


async def _sql(world: World, statement: str, *values: object) -> None:
    connection = await asyncpg.connect(world.superuser_url)
    try:
        await connection.execute(statement, *values)
    finally:
        await connection.close()


async def test_what_is_due_starts_a_task_under_its_makers_grant_and_waits_for_the_next_time(setting: Setting) -> None:
    made = await hourly(setting.database, setting.ada, text="why is it?")
    assert await setting.fire() == 0, "it is due in an hour"
    due = await make_due(setting.world)
    assert await setting.fire() == 1
    (task,) = await setting.tasks()
    assert task.grant == made.grant
    assert task.input["question"] == "why is it?"
    assert task.context_id == f"schedule-{made.schedule_id}"
    (first,) = await tasks.events(setting.database, setting.ada, task.task_id)
    assert first.payload["message"]["metadata"] == {"schedule": "digest", "scheduledAt": due.isoformat()}
    now = await setting.found()
    assert (now.fired, now.last_at, now.last_task_id) == (1, due, task.task_id)
    assert now.next_at == due + timedelta(hours=1)
    assert (await tasks.claim(setting.database)).task_id == task.task_id
    assert await setting.fire() == 0


async def test_three_workers_that_race_without_leases_and_break_off_anywhere_start_each_once(setting: Setting) -> None:
    """Leases of no length let every worker have every claim: only the transaction that fires keeps them apart."""
    names = [f"s{number}" for number in range(12)]
    for name in names:
        await hourly(setting.database, setting.ada, name)
    chance = random.Random(20)
    rounds = 3
    for _ in range(rounds):
        await make_due(setting.world)
        with anyio.fail_after(BOUND_S):
            async with anyio.create_task_group() as group:
                for _ in range(3):
                    group.start_soon(_broken_off, setting, chance)
            while await fire_due(setting.database, clock=system_clock, lease_s=0.0):
                pass
    found = await started_for(setting.world)
    assert set(found.values()) == {1}
    assert len({context for context, _ in found}) == len(names)
    for name in names:
        fired = [time for context, time in found if context.endswith(str((await setting.found(name=name)).schedule_id))]
        assert len(fired) == (await setting.found(name=name)).fired == len(set(fired)) <= rounds
        assert len(fired) >= 1


async def _broken_off(setting: Setting, chance: random.Random) -> None:
    for _ in range(4):
        with anyio.move_on_after(chance.uniform(0.0, 0.06)):
            await fire_due(setting.database, clock=system_clock, lease_s=0.0, claim=12)


async def test_of_three_processes_of_which_one_is_killed_each_time_is_started_once(setting: Setting) -> None:
    names = [f"s{number:02}" for number in range(60)]
    for name in names:
        await hourly(setting.database, setting.ada, name)
    due = await make_due(setting.world)
    with (
        scheduler_process(setting.world) as first,
        scheduler_process(setting.world),
        scheduler_process(setting.world),
        anyio.fail_after(BOUND_S),
    ):
        killed = False
        while True:
            started = await started_for(setting.world)
            if started and not killed:
                first.kill()  # in the middle of its claim: what it had leased is left to the others
                killed = True
                await _sql(setting.world, "update queue.schedule set leased_until = null")
            if len(started) == len(names):
                break
    assert killed
    assert {time for _, time in started} == {due}
    assert set((await started_for(setting.world)).values()) == {1}


async def test_what_fails_between_moving_on_and_starting_does_neither(setting: Setting) -> None:
    await hourly(setting.database, setting.ada)
    due = await make_due(setting.world)
    await _sql(setting.world, "revoke insert on rag.task_event from bulkhead_app")
    assert await fire_due(setting.database, clock=system_clock, lease_s=0.0) == 1
    assert (await setting.found()).next_at == due
    assert await setting.tasks() == []
    await _sql(setting.world, "grant insert on rag.task_event to bulkhead_app")
    assert await fire_due(setting.database, clock=system_clock, lease_s=0.0) == 1
    assert (await setting.found()).fired == len(await setting.tasks()) == 1


@pytest.mark.parametrize("kind", ["token", "user", "tenant"])
async def test_a_revoked_grant_stops_it_with_the_reason_until_it_is_resumed(setting: Setting, kind: str) -> None:
    await hourly(setting.database, setting.ada)
    await make_due(setting.world)
    async with setting.world.operator() as operator:
        if kind == "token":
            await operator.revoke_token(setting.ada.tenant_id, setting.ada.token_ids[0])
        elif kind == "user":
            await operator.revoke_user(setting.ada.tenant_id, setting.ada.subject)
        else:
            await operator.revoke_tenant(setting.ada.tenant_id)
    assert await setting.fire() == 1
    # later than what was revoked, to the second that a token is dated with
    ada = dataclasses.replace(setting.ada, token_ids=("another",), issued_at=system_clock() + 1)
    stopped = await setting.found(ada)
    assert stopped.state is ScheduleState.STOPPED
    assert "was revoked" in str(stopped.reason)
    assert await setting.tasks(ada) == []

    resumed = await setting.resume(ada)
    assert (resumed.state, resumed.reason, resumed.schedule_id) == (ScheduleState.ACTIVE, None, stopped.schedule_id)
    assert resumed.grant.token_ids == ("another",)
    await make_due(setting.world)
    assert await setting.fire() == 1
    assert len(await setting.tasks(ada)) == 1


async def test_a_paused_one_waits_and_a_resumed_one_starts_at_its_next_time(setting: Setting) -> None:
    await hourly(setting.database, setting.ada)
    await make_due(setting.world, since_s=3 * 3600)
    async with setting.database.tenant(setting.ada) as session:
        assert (await store.pause(session, "digest")).state is ScheduleState.PAUSED
        assert (await store.pause(session, "digest")).next_at is None
    assert await setting.fire() == 0
    resumed = await setting.resume()
    assert resumed.next_at is not None
    assert resumed.next_at > datetime.now(UTC) + timedelta(minutes=59)
    assert await setting.fire() == 0


async def test_pausing_wins_or_loses_against_a_firing_and_never_both(setting: Setting) -> None:
    await hourly(setting.database, setting.ada)
    await make_due(setting.world)
    (due,) = await store.claim_due(setting.database, wanted=1, lease_s=60.0)
    async with setting.database.tenant(setting.ada) as session:
        await store.pause(session, "digest")
    async with setting.database.tenant(setting.ada) as session:
        assert not await store.move_on(session, due, next_at=due.due_at + timedelta(hours=1), task_id=None)
    assert (await setting.found()).state is ScheduleState.PAUSED


async def test_a_removed_one_is_gone_and_its_tasks_go_on(setting: Setting) -> None:
    await hourly(setting.database, setting.ada)
    await make_due(setting.world)
    await setting.fire()
    await make_due(setting.world)
    async with setting.database.tenant(setting.ada) as session:
        await store.remove(session, "digest")
    assert await setting.fire() == 0
    assert len(await setting.tasks()) == 1
    with pytest.raises(NotFound):
        await setting.found()


@pytest.mark.parametrize(("missed", "started"), [(Missed.ONCE, 1), (Missed.SKIP, 0)])
async def test_times_that_were_missed_start_one_task_or_none(setting: Setting, missed: Missed, started: int) -> None:
    await hourly(setting.database, setting.ada, missed=missed)
    due = await make_due(setting.world, since_s=5.5 * 3600)
    assert await setting.fire() == 1
    assert await setting.fire() == 0
    found = await setting.found()
    assert (found.fired, found.skipped) == (started, 1 - started)
    assert found.next_at == due + timedelta(hours=6), "on its grid"
    assert len(await setting.tasks()) == started
    await make_due(setting.world, since_s=60)
    await setting.fire()
    assert (await setting.found()).fired == started + 1, "a minute late is not missed"


async def test_it_ends_when_its_time_is_over(setting: Setting) -> None:
    await hourly(setting.database, setting.ada)
    await make_due(setting.world)
    await _sql(setting.world, "update rag.schedule set until = now() + interval '10 minutes'")
    assert await setting.fire() == 1
    found = await setting.found()
    assert (found.state, found.fired) == (ScheduleState.STOPPED, 1)
    assert "its time is over" in str(found.reason)


async def test_one_whose_workflow_is_no_more_stops_with_that_reason(setting: Setting) -> None:
    await hourly(setting.database, setting.ada)
    await _sql(setting.world, "update rag.schedule set workflow = 'gone'")
    await make_due(setting.world)
    await setting.fire()
    stopped = await setting.found()
    assert stopped.state is ScheduleState.STOPPED
    assert "there is no such skill" in str(stopped.reason)


async def test_nobody_sees_or_changes_anothers(setting: Setting) -> None:
    await hourly(setting.database, setting.ada)
    for other in (setting.bob, setting.eve):
        async with setting.database.tenant(other) as session:
            assert await store.list_schedules(session) == []
            for act in (store.find, store.pause, store.remove):
                with pytest.raises(NotFound):
                    await act(session, "digest")
        with pytest.raises(NotFound):
            await setting.resume(other)
        with pytest.raises(NotFound):
            await run_now(setting.database, other, "digest", key=None, clock=system_clock)
        await hourly(setting.database, other)  # a name is its owner's own
    assert (await setting.found()).state is ScheduleState.ACTIVE


async def test_an_order_is_checked_when_it_is_made(setting: Setting) -> None:
    when = timing(cron="0 7 * * *", time_zone="Europe/Berlin", every_s=None)
    good = Ordered(name="digest", text="why?", timing=when)

    async def refused(ordered: Ordered, principal: Principal = setting.ada) -> str:
        with pytest.raises((InvalidInput, Forbidden)) as caught:
            await order(setting.database, principal, ordered, clock=system_clock)
        return caught.value.message

    assert "there is no such skill" in await refused(dataclasses.replace(good, workflow="nonesuch"))
    assert "name" in await refused(dataclasses.replace(good, name="No Spaces"))
    assert "NUL" in await refused(dataclasses.replace(good, text="a\0b"))
    await refused(dataclasses.replace(good, text=""))
    assert "400 days" in await refused(dataclasses.replace(good, until=datetime.now(UTC) + timedelta(days=401)))
    soon = datetime.now(UTC) + timedelta(seconds=1)
    yearly = timing(cron="0 0 29 2 *", time_zone=None, every_s=None)
    assert "before the schedule ends" in await refused(dataclasses.replace(good, timing=yearly, until=soon))
    narrow = dataclasses.replace(setting.ada, scopes=frozenset({Scope.TASKS_RUN}))
    await refused(good, narrow)
    with pytest.raises(NotFound):
        await setting.found()


async def test_the_same_order_again_is_the_same_and_another_is_refused(setting: Setting) -> None:
    first = await hourly(setting.database, setting.ada)
    assert (await hourly(setting.database, setting.ada)).schedule_id == first.schedule_id
    with pytest.raises(Conflict, match="another schedule of that name"):
        await hourly(setting.database, setting.ada, text="something else")


async def test_nobody_has_more_than_a_hundred(setting: Setting) -> None:
    for number in range(store.MOST_SCHEDULES):
        await hourly(setting.database, setting.ada, f"s{number}")
    with pytest.raises(Conflict, match="no more"):
        await hourly(setting.database, setting.ada, "one-more")
    await hourly(setting.database, setting.bob, "one-more")


async def test_run_now_starts_one_task_per_key_and_leaves_the_times_alone(setting: Setting) -> None:
    made = await hourly(setting.database, setting.ada)
    started = {await run_now(setting.database, setting.ada, "digest", key="once", clock=system_clock) for _ in range(3)}
    assert len(started) == 1
    await run_now(setting.database, setting.ada, "digest", key=None, clock=system_clock)
    assert len(await setting.tasks()) == 2
    now = await setting.found()
    assert (now.next_at, now.fired) == (made.next_at, 0)


async def test_a_grant_that_is_not_the_sealed_callers_is_not_stored(setting: Setting) -> None:
    await hourly(setting.database, setting.ada)
    wider = dataclasses.replace(setting.ada, groups=("board",))
    async with setting.world.database() as app:
        for statement in (
            "update rag.schedule set groups = '{board}'",
            "update rag.schedule set request = 'something else'",
            "update rag.schedule set until = now() + interval '1 day'",
            "insert into queue.schedule (schedule_id, tenant_id, due_at) select gen_random_uuid(), tenant_id, now() "
            "from rag.schedule",
        ):
            with pytest.raises(Forbidden):
                await _injected(app, setting.ada, statement)
        copy = (
            "insert into rag.schedule (tenant_id, schedule_id, name, workflow, request, every_s, until, next_at, "
            "subject, scopes, groups, token_ids, token_issued_at) "
            "select tenant_id, gen_random_uuid(), 'copy', workflow, request, every_s, until, next_at, "
            "{subject}, scopes, {groups}, {tokens}, token_issued_at from rag.schedule"
        )
        for stolen in (
            {"subject": "'bob'", "groups": "groups", "tokens": "token_ids"},
            {"subject": "subject", "groups": "'{board}'::text[]", "tokens": "token_ids"},
            {"subject": "subject", "groups": "groups", "tokens": "'{}'::text[]"},
        ):
            with pytest.raises(Forbidden):
                await _injected(app, setting.ada, copy.format(**stolen))
        kept = {"subject": "subject", "groups": "'{board}'::text[]", "tokens": "token_ids"}
        await _injected(app, wider, copy.format(**kept))


async def _injected(database: Database, principal: Principal, statement: str) -> None:
    """Run what an attacker would have a server run, as it is."""
    query = Query(name="injected", description="", text=statement, parameters=())
    async with database.tenant(principal) as session:
        await session.fetch(query)
