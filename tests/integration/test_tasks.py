"""The durable task log: its order, its states, its fences and its walls, on a real PostgreSQL."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from uuid import UUID

import anyio
import asyncpg
import pytest

from rag.db.listener import listener
from rag.db.pool import Database
from rag.errors import FenceLost, NotFound, Revoked, TaskNotCancelable
from rag.identity.principal import Principal
from rag.tasks import leases, store
from rag.tasks.feed import TASK_CHANNEL, Feeds
from rag.tasks.fold import fold_artifacts
from rag.tasks.values import TERMINAL, EventKind, TaskFilter, TaskState
from tests.support import tasks
from tests.support.documents import put_raw_document
from tests.support.world import World
from workflows.cancellation import CLEAN_UP_S
from workflows.registry import WORKFLOWS

pytestmark = pytest.mark.anyio


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Two tenants on one database."""

    world: World
    database: Database
    ada: Principal
    eve: Principal


@pytest.fixture(name="setting")
async def setting_fixture(world: World) -> AsyncGenerator[Setting]:
    """Ada of tenant acme, Eve of tenant globex."""
    acme, globex = await world.tenant("acme"), await world.tenant("globex")
    async with world.database(pool_size=8, claims=True) as database:
        yield Setting(
            world=world,
            database=database,
            ada=world.principal(acme),
            eve=world.principal(globex, user="eve"),
        )


async def test_an_accepted_task_is_submitted_with_its_message_as_event_one(setting: Setting) -> None:
    task_id = await tasks.accept(setting.database, setting.ada, question="why?")
    task = await tasks.read(setting.database, setting.ada, task_id)
    (first,) = await tasks.events(setting.database, setting.ada, task_id)
    assert (task.state, task.version, task.input) == (TaskState.SUBMITTED, 1, {"question": "why?"})
    assert (first.seq, first.kind) == (1, EventKind.TASK)
    assert first.payload["message"]["parts"] == [{"text": "why?"}]
    assert task.grant.principal(task.tenant_id, expires_at=1.0).token_ids == setting.ada.token_ids


async def test_concurrent_appends_get_every_seq_once_without_a_gap(setting: Setting) -> None:
    task_id = await tasks.accept(setting.database, setting.ada)
    claim = await tasks.claim(setting.database)
    seqs: list[int] = []

    async def append_one(number: int) -> None:
        seqs.append(await tasks.progress(setting.database, setting.ada, task_id, f"step {number}", fence=claim.fence))

    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            for number in range(24):
                group.start_soon(append_one, number)
    assert sorted(seqs) == list(range(2, 26))
    assert [event.seq for event in await tasks.events(setting.database, setting.ada, task_id)] == list(range(1, 26))


async def test_concurrent_appends_of_one_key_make_one_event(setting: Setting) -> None:
    task_id = await tasks.accept(setting.database, setting.ada)
    claim = await tasks.claim(setting.database)
    seqs: set[int] = set()

    async def append_same() -> None:
        seqs.add(
            await tasks.progress(setting.database, setting.ada, task_id, "once", fence=claim.fence, key="step:search")
        )

    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            for _ in range(8):
                group.start_soon(append_same)
    assert seqs == {2}
    assert len(await tasks.events(setting.database, setting.ada, task_id)) == 2


@pytest.mark.parametrize("end", sorted(TERMINAL))
async def test_nothing_follows_a_terminal_state(setting: Setting, end: TaskState) -> None:
    task_id = await tasks.accept(setting.database, setting.ada)
    await tasks.status(setting.database, setting.ada, task_id, end, "over", fence=None)
    for following in TaskState:
        with pytest.raises(TaskNotCancelable):
            await tasks.status(setting.database, setting.ada, task_id, following, "more", fence=None)
    assert (await tasks.read(setting.database, setting.ada, task_id)).version == 2


async def test_a_replayed_key_answers_even_after_the_end(setting: Setting) -> None:
    task_id = await tasks.accept(setting.database, setting.ada)
    first = await tasks.progress(setting.database, setting.ada, task_id, "one", fence=None, key="k")
    await tasks.status(setting.database, setting.ada, task_id, TaskState.COMPLETED, "done", fence=None)
    assert await tasks.progress(setting.database, setting.ada, task_id, "one", fence=None, key="k") == first


async def test_the_former_owner_of_a_run_writes_nothing_after_take_over(setting: Setting) -> None:
    task_id = await tasks.accept(setting.database, setting.ada)
    # a lease of no length stands for a worker that was stopped past its lease
    former = await tasks.claim(setting.database, worker="worker-a", lease_s=0.0)
    owner = await tasks.claim(setting.database, worker="worker-b")
    assert (former.attempt, owner.attempt) == (1, 2)
    with pytest.raises(FenceLost):
        await tasks.progress(setting.database, setting.ada, task_id, "late", fence=former.fence)
    with pytest.raises(FenceLost):
        await tasks.status(setting.database, setting.ada, task_id, TaskState.COMPLETED, "late", fence=former.fence)
    await tasks.progress(setting.database, setting.ada, task_id, "on time", fence=owner.fence)
    texts = [event.payload.get("message") for event in await tasks.events(setting.database, setting.ada, task_id)]
    assert texts[1:] == ["on time"]


async def test_a_claim_waits_out_a_fenced_write_that_is_still_open(setting: Setting) -> None:
    """An expired lease is not enough to take a run whose owner is in the middle of a transaction."""
    task_id = await tasks.accept(setting.database, setting.ada)
    former = await tasks.claim(setting.database, worker="worker-a", lease_s=0.0)
    async with setting.database.tenant(setting.ada) as session:
        payload = store.status_payload(TaskState.WORKING, "in flight")
        await store.append(session, task_id, EventKind.STATUS, payload, fence=former.fence)
        assert await leases.claim_runs(setting.database, worker="worker-b", wanted=1, lease_s=60) == []
    assert (await tasks.claim(setting.database, worker="worker-b")).fence == former.fence + 1


async def test_a_heartbeat_passes_a_fenced_write_and_tells_what_is_lost(setting: Setting) -> None:
    task_id = await tasks.accept(setting.database, setting.ada)
    claim = await tasks.claim(setting.database)
    async with setting.database.tenant(setting.ada) as session:
        payload = store.status_payload(TaskState.WORKING, "in flight")
        await store.append(session, task_id, EventKind.STATUS, payload, fence=claim.fence)
        with anyio.fail_after(5):
            alive = await leases.heartbeat_runs(setting.database, worker="worker-a", held=[claim], lease_s=60)
        assert alive == {(task_id, claim.fence)}
    await store.cancel(setting.database, setting.ada, task_id)
    assert await leases.heartbeat_runs(setting.database, worker="worker-a", held=[claim], lease_s=60) == set()


async def test_a_released_run_is_claimed_at_once_and_the_attempt_is_not_counted(setting: Setting) -> None:
    task_id = await tasks.accept(setting.database, setting.ada)
    drained = await tasks.claim(setting.database, worker="worker-a", lease_s=3600)
    assert await leases.release_runs(setting.database, worker="worker-a", held=[drained]) == 1
    taken = await tasks.claim(setting.database, worker="worker-b")
    assert (taken.task_id, taken.attempt) == (task_id, 1)
    with pytest.raises(FenceLost):
        await tasks.progress(setting.database, setting.ada, task_id, "late", fence=drained.fence)


async def test_a_claim_takes_no_more_than_is_wanted_whatever_the_planner_expects(setting: Setting) -> None:
    """A queue is nearly empty when its statistics are taken, and full when they are used."""
    admin = await asyncpg.connect(setting.world.superuser_url)
    try:
        await tasks.accept(setting.database, setting.ada)
        async with setting.database.tenant(setting.ada) as session:
            await put_raw_document(session, title="a", text="first")
        await admin.execute("vacuum analyze queue.run")
        await admin.execute("vacuum analyze queue.embedding")
        for number in range(11):
            await tasks.accept(setting.database, setting.ada)
            async with setting.database.tenant(setting.ada) as session:
                await put_raw_document(session, title="a", text=f"one of many: {number}")
        runs = await leases.claim_runs(setting.database, worker="worker-a", wanted=3, lease_s=60)
        documents = await admin.fetch("select document_id from queue.claim_embeddings_v2(3, 60)")
        assert (len(runs), len(documents)) == (3, 3)
    finally:
        await admin.close()


async def test_a_run_that_broke_off_twice_never_fails_those_that_ran_beside_it(setting: Setting) -> None:
    """One of four kills its worker within the lease, each time, before any other of them ends."""
    poison = await tasks.accept(setting.database, setting.ada)
    beside = [await tasks.accept(setting.database, setting.ada) for _ in range(3)]
    attempts = dict.fromkeys(beside, 0)
    killed = 0
    while killed < 5:
        # a lease of no length stands for a worker that dies at once; each life has its own name
        claims = await leases.claim_runs(setting.database, worker=f"worker-{killed}", wanted=4, lease_s=0.0)
        assert claims
        for claim in claims:
            if claim.task_id != poison:
                attempts[claim.task_id] = claim.attempt
        killed += any(claim.task_id == poison for claim in claims)
    assert set(attempts.values()) == {2}


async def test_a_worker_holds_one_run_that_broke_off_twice_and_fresh_ones_beside_it(setting: Setting) -> None:
    for _ in range(2):
        await tasks.accept(setting.database, setting.ada)
    for _ in range(2):
        assert len(await leases.claim_runs(setting.database, worker="dead", wanted=4, lease_s=0.0)) == 2
    fresh = await tasks.accept(setting.database, setting.ada)
    claims = [await leases.claim_runs(setting.database, worker=name, wanted=4, lease_s=60) for name in ("a", "a", "b")]
    assert [[claim.attempt for claim in one] for one in claims] == [[3, 1], [], [3]]
    assert claims[0][1].task_id == fresh


async def test_every_workflow_ends_while_the_seal_of_its_claim_still_holds(setting: Setting) -> None:
    """The end of a run that is over its time is told under that seal."""
    await tasks.accept(setting.database, setting.ada)
    claimed_at = time.time()
    claim = await tasks.claim(setting.database)
    holds_s = json.loads(claim.seal.split(".", 2)[2])["exp"] - claimed_at
    for workflow in WORKFLOWS:
        assert workflow.time_limit_s + CLEAN_UP_S + 60.0 < holds_s, workflow.name


async def test_a_cancel_ends_the_task_and_takes_the_run_from_its_worker(setting: Setting) -> None:
    task_id = await tasks.accept(setting.database, setting.ada)
    claim = await tasks.claim(setting.database)
    await store.cancel(setting.database, setting.ada, task_id)
    with pytest.raises(FenceLost):
        await tasks.progress(setting.database, setting.ada, task_id, "late", fence=claim.fence)
    with pytest.raises(TaskNotCancelable):
        await store.cancel(setting.database, setting.ada, task_id)


async def test_cancels_and_fenced_writes_at_once_never_deadlock(setting: Setting) -> None:
    async def write_until_fenced(task_id: UUID, fence: int) -> None:
        with suppress(FenceLost):
            while True:
                await tasks.progress(setting.database, setting.ada, task_id, "more", fence=fence)

    with anyio.fail_after(30):
        for _ in range(8):
            task_id = await tasks.accept(setting.database, setting.ada)
            claim = await tasks.claim(setting.database)
            async with anyio.create_task_group() as group:
                group.start_soon(write_until_fenced, task_id, claim.fence)
                group.start_soon(write_until_fenced, task_id, claim.fence)
                await store.cancel(setting.database, setting.ada, task_id)


async def test_another_tenant_cannot_find_list_append_or_cancel(setting: Setting) -> None:
    task_id = await tasks.accept(setting.database, setting.ada)
    claim = await tasks.claim(setting.database)
    with pytest.raises(NotFound):
        await tasks.read(setting.database, setting.eve, task_id)
    with pytest.raises(NotFound):
        await store.cancel(setting.database, setting.eve, task_id)
    async with setting.database.tenant(setting.eve) as session:
        assert await store.list_tasks(session, TaskFilter(), page_size=100) == []
        assert await store.count_tasks(session, TaskFilter()) == 0
        assert await store.events_after(session, task_id, 0) == []
    with pytest.raises(FenceLost):
        await tasks.progress(setting.database, setting.eve, task_id, "stolen", fence=claim.fence)
    with pytest.raises(TaskNotCancelable):
        await tasks.progress(setting.database, setting.eve, task_id, "stolen", fence=None)
    assert len(await tasks.events(setting.database, setting.ada, task_id)) == 1


async def test_raw_sql_under_another_tenants_seal_sees_and_changes_no_task(setting: Setting) -> None:
    await tasks.accept(setting.database, setting.ada)
    connection = await asyncpg.connect(setting.world.settings.database_url)
    try:
        async with connection.transaction():
            await connection.execute("select rag.open_context_v1($1)", setting.database.seal(setting.eve))
            for table in ("rag.task", "rag.task_event"):
                assert await connection.fetchval(f"select count(*) from {table}") == 0
            assert await connection.execute("update rag.task set state = 'failed'") == "UPDATE 0"
        for statement in ("select * from queue.run", "update queue.run set fence = 0"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(statement)
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute("select * from rag.task")  # no context: an error, never an empty answer
    finally:
        await connection.close()


async def test_an_event_of_the_log_can_be_neither_changed_nor_removed(setting: Setting) -> None:
    await tasks.accept(setting.database, setting.ada)
    connection = await asyncpg.connect(setting.world.settings.database_url)
    try:
        for statement in ("update rag.task_event set seq = 9", "delete from rag.task_event", "delete from rag.task"):
            async with connection.transaction():
                await connection.execute("select rag.open_context_v1($1)", setting.database.seal(setting.ada))
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    async with connection.transaction():
                        await connection.execute(statement)
    finally:
        await connection.close()


async def test_a_claims_seal_opens_its_own_tenant_and_no_other(setting: Setting) -> None:
    mine = await tasks.accept(setting.database, setting.ada)
    claim = await tasks.claim(setting.database)
    theirs = await tasks.accept(setting.database, setting.eve)
    async with setting.database.sealed(claim.seal) as session:
        assert (await store.get_task(session, mine)).task_id == mine
        with pytest.raises(NotFound):
            await store.get_task(session, theirs)


async def test_a_grant_dies_with_the_token_it_came_from(setting: Setting) -> None:
    task_id = await tasks.accept(setting.database, setting.ada)
    task = await tasks.read(setting.database, setting.ada, task_id)
    running_as = task.grant.principal(task.tenant_id, expires_at=0.0)
    async with setting.world.operator() as operator:
        await operator.revoke_token(task.tenant_id, setting.ada.token_ids[0])
    with pytest.raises(Revoked):
        await tasks.read(setting.database, running_as, task_id)


async def test_a_list_pages_through_every_task_once_latest_change_first(setting: Setting) -> None:
    made = [await tasks.accept(setting.database, setting.ada) for _ in range(7)]
    await tasks.progress(setting.database, setting.ada, made[0], "touched", fence=None)
    seen = []
    before = None
    async with setting.database.tenant(setting.ada) as session:
        while page := await store.list_tasks(session, TaskFilter(), page_size=3, before=before):
            seen += [task.task_id for task in page]
            before = (page[-1].updated_at, page[-1].task_id)
    assert seen == [made[0], *reversed(made[1:])]


async def test_filters_of_a_list_hold_together(setting: Setting) -> None:
    made = [await tasks.accept(setting.database, setting.ada) for _ in range(3)]
    await tasks.progress(setting.database, setting.ada, made[1], "on it", fence=None)
    second = await tasks.read(setting.database, setting.ada, made[1])
    async with setting.database.tenant(setting.ada) as session:
        working = await store.list_tasks(session, TaskFilter(state=TaskState.WORKING), page_size=10)
        of_context = await store.list_tasks(session, TaskFilter(context_id=f"context-{made[2]}"), page_size=10)
        since = await store.list_tasks(session, TaskFilter(since=second.updated_at), page_size=10)
        counted = await store.count_tasks(session, TaskFilter(state=TaskState.SUBMITTED))
    assert [task.task_id for task in working] == [made[1]]
    assert [task.task_id for task in of_context] == [made[2]]
    assert [task.task_id for task in since] == [made[1]]
    assert counted == 2


async def test_an_artifact_restarted_by_a_new_attempt_keeps_nothing_of_the_old_one(setting: Setting) -> None:
    task_id = await tasks.accept(setting.database, setting.ada)
    async with setting.database.tenant(setting.ada) as session:
        for append, text in ((False, "half an"), (True, " ans"), (False, "a whole"), (True, " answer")):
            payload = {
                "artifact_id": "answer",
                "name": "answer",
                "parts": [{"text": text}],
                "append": append,
                "last_chunk": False,
            }
            await store.append(session, task_id, EventKind.ARTIFACT, payload, fence=None)
    (artifact,) = fold_artifacts(await tasks.events(setting.database, setting.ada, task_id))
    assert artifact.parts == ({"text": "a whole answer"},)


async def test_texts_of_one_kind_become_one_part_and_others_stay_as_they_are(setting: Setting) -> None:
    task_id = await tasks.accept(setting.database, setting.ada)
    markdown = {"media_type": "text/markdown", "filename": "report.md"}
    for number, part in enumerate(
        [{"text": "a"}, {"text": "b"}, {"text": "# c", **markdown}, {"text": "d", **markdown}]
    ):
        async with setting.database.tenant(setting.ada) as session:
            payload = {"artifact_id": "x", "name": "x", "parts": [part], "append": number > 0, "last_chunk": False}
            await store.append(session, task_id, EventKind.ARTIFACT, payload, fence=None)
    (artifact,) = fold_artifacts(await tasks.events(setting.database, setting.ada, task_id))
    assert artifact.parts == ({"text": "ab"}, {"text": "# cd", **markdown})


@pytest.mark.parametrize("said", ["", " ", " x", " -1", " 1 2", " " + "9" * 5_000, " ٣"])
async def test_whatever_a_wake_up_says_a_reader_reads_its_log(setting: Setting, said: str) -> None:
    task_id = await tasks.accept(setting.database, setting.ada)
    assert setting.world.settings.database_url
    async with listener(setting.world.settings.database_url, [TASK_CHANNEL], application="test") as wakeups:
        feeds = Feeds(database=setting.database, wakeups=wakeups)
        async with aclosing(feeds.follow(setting.ada, task_id, after=0)) as events:
            assert (await anext(events)).seq == 1
            await tasks.progress(setting.database, setting.ada, task_id, "more", fence=None)
            wakeups.notify(TASK_CHANNEL, f"{task_id}{said}")
            with anyio.fail_after(5):
                assert (await anext(events)).seq == 2


async def test_a_waiter_is_woken_by_its_own_task_only(setting: Setting) -> None:
    mine = await tasks.accept(setting.database, setting.ada)
    other = await tasks.accept(setting.database, setting.ada)
    assert setting.world.settings.database_url
    async with listener(setting.world.settings.database_url, ["bulkhead_task"], application="test") as wakeups:
        with (
            wakeups.subscribe("bulkhead_task", key=str(mine)) as woken,
            wakeups.subscribe("bulkhead_task") as any_task,
        ):
            await tasks.progress(setting.database, setting.ada, other, "theirs", fence=None)
            assert await any_task.wait(timeout_s=5)
            assert not await woken.wait(timeout_s=0)
            await tasks.progress(setting.database, setting.ada, mine, "mine", fence=None)
            assert await woken.wait(timeout_s=5)


async def test_a_listener_whose_connection_is_killed_wakes_everybody_and_listens_again(setting: Setting) -> None:
    task_id = await tasks.accept(setting.database, setting.ada)
    assert setting.world.settings.database_url
    admin = await asyncpg.connect(setting.world.superuser_url)
    try:
        async with listener(setting.world.settings.database_url, ["bulkhead_task"], application="to-kill") as wakeups:
            with wakeups.subscribe("bulkhead_task", key=str(task_id)) as woken:
                assert await admin.fetchval(
                    "select pg_terminate_backend(pid) from pg_stat_activity"
                    " where application_name = 'to-kill' and datname = current_database()"
                )
                assert await woken.wait(timeout_s=10)  # the wake-up of the reconnect
                await tasks.progress(setting.database, setting.ada, task_id, "again", fence=None)
                assert await woken.wait(timeout_s=5)
    finally:
        await admin.close()
