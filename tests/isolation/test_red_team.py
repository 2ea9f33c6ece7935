"""What one login shared by all tenants could do beside reading rows: each way that row-level security does not see."""

from __future__ import annotations

import re

import anyio
import asyncpg
import pytest

from rag.db.pool import Database, Session
from rag.errors import SealRefused
from rag.tasks import store
from rag.tenants.operator import Tenant
from sql import Query
from tests.support import tasks
from tests.support.documents import put_raw_document
from tests.support.world import World

pytestmark = pytest.mark.anyio

BEYOND_ROWS = [
    # at sibling sessions
    "select pg_terminate_backend({sibling})",
    "select pg_cancel_backend({sibling})",
    "select pg_advisory_lock(1)",
    "select pg_advisory_xact_lock(1, 2)",
    "select pg_try_advisory_lock_shared(1)",
    # at the seals of tenants whose work waits, and at their leases
    "select seal from queue.claim_embeddings_v2(100, 0)",
    "select seal from queue.claim_runs_v1('mine', 100, 0)",
    "select queue.heartbeat_runs_v1('mine', array[gen_random_uuid()], array[1::bigint], -60)",
    "select queue.release_runs_v1('mine', array[gen_random_uuid()], array[1::bigint])",
    "select seal from queue.claim_pushes_v1(100, 100, 0)",
    "select queue.advance_push_v1(gen_random_uuid(), 1, 1, 0)",
    "select queue.rest_push_v1(gen_random_uuid(), 1, true)",
    "select queue.fail_push_v1(gen_random_uuid(), 1, null, 'x')",
    "select queue.finish_push_v1(gen_random_uuid(), 1)",
    "select * from queue.dead_pushes_v1(null)",
    "select queue.redeliver_pushes_v1(gen_random_uuid(), null)",
    "select seal from queue.claim_schedules_v1(100, 0)",
    "select seal from queue.claim_ended_v1(100, 0, 0)",
    "select queue.finish_ended_v1(gen_random_uuid(), true)",
    "select seal.mint_v3(gen_random_uuid(), 'ada', gen_random_uuid(), 60)",
    "select queue.owns_task_v1(gen_random_uuid())",
    # at how long tasks live, and at whom else their runs may ask
    "select rag.delete_task_v1(gen_random_uuid(), 1)",
    "select rag.compact_task_v1(gen_random_uuid(), 1)",
    "update rag.tenant set task_retention_s = 3600",
    "select url from rag.external_server",
    "insert into rag.external_server (tenant_id, name, url, tools) "
    "values (gen_random_uuid(), 'x', 'https://x/', array['x'])",
    # at the rights of what starts by itself, and at where webhooks lead
    "update rag.schedule set scopes = array['corpus:write']",
    "update rag.schedule set groups = array['board']",
    "update rag.schedule set token_ids = array[]::text[]",
    "update rag.schedule set subject = 'eve'",
    "update rag.schedule set request = 'another'",
    "update rag.schedule set until = 'infinity'",
    "update rag.push_config set url = 'https://x/'",
    "select secrets from rag.push_config",
    # at a place outside of every policy
    "select lo_from_bytea(0, 'loot')",
    "select lo_create(0)",
    "select lo_import('/etc/hostname')",
    "copy (select 1) to program 'true'",
    "copy (select 1) to '/dev/null'",
    "select pg_read_file('PG_VERSION')",
    # at what statements mean
    "do $$ begin end $$",
    "create function public.f() returns integer language sql return 1",
    "create function pg_temp.f() returns integer language sql return 1",
    "create operator public.= (leftarg = uuid, rightarg = uuid, function = uuid_ne)",
    "create temp view document as select 1",
    "create schema mine",
    "call rag.isolate('rag.document')",
    "alter function rag.current_tenant() volatile",
    # at the login itself
    "set session authorization bulkhead_owner",
    "set session_replication_role = replica",
    "set log_min_error_statement = debug5",
    "select setval('rag.ordinal_seq', 1)",
    "select last_value from rag.ordinal_seq",
]


OPAQUE = {"bulkhead_run", "bulkhead_cancel", "bulkhead_embedding", "bulkhead_push"}
HOOK = (
    "insert into rag.push_config (tenant_id, task_id, config_id, url, first_seq, subject, groups, token_ids, "
    "token_issued_at) select t.tenant_id, t.task_id, 'secret', 'https://secret.example/', 1, t.subject, t.groups, "
    "t.token_ids, t.token_issued_at from rag.task t where t.task_id = '{task}'"
)


async def sql(session: Session, text: str) -> list[dict[str, object]]:
    """Run a statement of the attacker's own choice inside a session of ours."""
    rows = await session.fetch(Query(name="injected", description="", text=text, parameters=()))
    return [dict(row) for row in rows]


async def is_refused(connection: asyncpg.Connection, statement: str) -> bool:
    try:
        await connection.execute(statement)
    except asyncpg.InsufficientPrivilegeError:
        return True
    return False


async def test_no_power_of_the_login_reaches_beyond_rows(world: World) -> None:
    sibling = await asyncpg.connect(world.settings.database_url)
    attacker = await asyncpg.connect(world.settings.database_url)
    try:
        attempts = [attempt.format(sibling=sibling.get_server_pid()) for attempt in BEYOND_ROWS]
        assert [attempt for attempt in attempts if not await is_refused(attacker, attempt)] == []
        assert await sibling.fetchval("select 1") == 1
    finally:
        await attacker.close()
        await sibling.close()


async def test_turning_row_security_off_makes_reading_an_error(world: World) -> None:
    acme = await world.tenant("acme")
    async with world.database() as database, database.tenant(world.principal(acme)) as session:
        await sql(session, "set local row_security = off")
        with pytest.raises(SealRefused):
            await sql(session, "select * from rag.document")


async def test_what_a_statement_prepares_never_meets_the_next_tenant(world: World) -> None:
    """Under the name that the driver uses for opening a context: it would be handed the next tenant's seal."""
    acme, globex = await world.tenant("acme"), await world.tenant("globex")
    loot: list[object] = []
    spy = await asyncpg.connect(world.settings.database_url)

    def keep(_connection: object, _pid: int, _channel: str, text: object) -> None:
        loot.append(text)

    await spy.add_listener("loot", keep)
    try:
        async with world.database(pool_size=1) as database:
            await _replace_the_opening_statement(database, world, acme)
            async with database.tenant(world.principal(globex)) as session:
                assert await sql(session, "select 1 as one") == [{"one": 1}]
        await spy.execute("select pg_notify('loot', 'end')")
        with anyio.fail_after(5):
            while "end" not in loot:
                await spy.fetchval("select 1")
    finally:
        await spy.close()
    assert loot == ["end"]


async def _replace_the_opening_statement(database: Database, world: World, tenant: Tenant) -> None:
    async with database.tenant(world.principal(tenant)) as session:
        (opening,) = await sql(
            session, "select name from pg_prepared_statements where statement = 'select rag.open_context_v1($1)'"
        )
        await sql(session, f"deallocate {opening['name']}")
        await sql(
            session,
            f"prepare {opening['name']} (text) as select case when pg_notify('loot', $1) is null "
            "then rag.open_context_v1($1) else rag.open_context_v1($1) end",
        )


async def test_a_sibling_sees_statements_but_no_seal_and_no_value(world: World) -> None:
    acme = await world.tenant("acme")
    async with world.database() as database, database.tenant(world.principal(acme, user="ada-lovelace")) as session:
        await put_raw_document(session, title="Draft of a merger", text="Nobody may know.")
        attacker = await asyncpg.connect(world.settings.database_url)
        try:
            seen = [
                str(row)
                for view in ("pg_stat_activity", "pg_prepared_statements", "pg_cursors", "pg_locks")
                for row in await attacker.fetch(f"select * from {view}")
            ]
        finally:
            await attacker.close()
    assert any("rag.put_document_v2" in row for row in seen), "the sibling's statement is what the attacker looks at"
    for secret in (str(acme.tenant_id), "ada-lovelace", "merger", "Nobody"):
        assert not any(secret in row for row in seen), secret


async def test_wake_ups_name_no_tenant_and_quote_nothing(world: World) -> None:
    ada = world.principal(await world.tenant("acme"))
    heard: list[tuple[str, str]] = []

    def keep(_connection: object, _pid: int, channel: str, text: object) -> None:
        heard.append((channel, str(text)))

    spy = await asyncpg.connect(world.settings.database_url)
    try:
        for channel in sorted(OPAQUE | {"bulkhead_task"}):
            await spy.add_listener(channel, keep)
        async with world.database() as database:
            async with database.tenant(ada) as session:
                await put_raw_document(session, title="t", text="Some text.")
            task_id = await tasks.accept(database, ada, question="a secret question")
            async with database.tenant(ada) as session:
                await sql(session, HOOK.format(task=task_id))
            await tasks.progress(database, ada, task_id, "a secret answer", fence=None)
            await store.cancel(database, ada, task_id)
        with anyio.fail_after(5):
            while {channel for channel, _ in heard} < OPAQUE | {"bulkhead_task"}:
                await spy.fetchval("select 1")
    finally:
        await spy.close()
    for channel, text in heard:
        if channel == "bulkhead_task":
            assert re.fullmatch(rf"{task_id} \d+", text)
        else:
            assert text == ""


async def test_the_planners_statistics_of_walled_tables_are_hidden(world: World) -> None:
    acme = await world.tenant("acme")
    async with world.database() as database, database.tenant(world.principal(acme)) as session:
        await put_raw_document(session, title="Draft of a merger", text="Nobody may know.")
    admin = await asyncpg.connect(world.superuser_url)
    attacker = await asyncpg.connect(world.settings.database_url)
    try:
        await admin.execute("analyze")
        query = "select distinct tablename from pg_stats where schemaname in ('rag', 'seal', 'queue', 'checkpoint')"
        assert {row["tablename"] for row in await admin.fetch(query)} > {"document", "tenant"}
        assert {row["tablename"] for row in await attacker.fetch(query)} <= {"embedding_model", "tier", "tier_budget"}
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await attacker.execute("select stavalues1 from pg_statistic")
    finally:
        await attacker.close()
        await admin.close()
