"""The catalogue itself: every tenant table is walled, every grant is on a list, every definer function is named."""

from __future__ import annotations

from pathlib import Path

import asyncpg
import pytest

from tests.support.world import World

pytestmark = pytest.mark.anyio

WITHOUT_TENANT = {
    "migration.applied": "the ledger of migrations",
    "rag.embedding_model": "models belong to the installation",
    "rag.llm_endpoint": "model servers belong to the installation",
    "rag.llm_model": "chat models belong to the installation; which tenants are named for one is walled",
    "rag.llm_offer": "the same",
    "rag.llm_price": "the same",
    "rag.routing_rule": "rules belong to the installation",
    "rag.tier": "tiers belong to the installation; the app role reads their numbers",
    "rag.tier_budget": "the same",
    "seal.key": "no grant to anyone; read by seal.verified_context alone",
}
QUEUES = {
    "queue.run": "ids only, no grant: forced row-level security would break the claim (tenancy.md 2)",
    "queue.embedding": "ids only, no grant",
    "queue.model_switch": "ids only, no grant",
    "queue.upkeep": "ids and times only, no grant",
    "queue.write": "ids and times only, no grant",
    "queue.push": "ids, numbers, times and a word of ours only, no grant",
    "queue.schedule": "ids and times only, no grant",
    "queue.ended": "ids and times only, no grant",
    "queue.charge": "ids and times only; the ledger's functions, which are the owner's, keep it",
}
DYNAMIC = {
    "rag.isolate": "the owner's, for migrations",
    "rag.isolate_by_audience": "the owner's, for migrations",
    "rag.recall_at_10_v1": "the dimension of a registered model, an integer",
    "rag.search_v2": "the same",
}
"""Functions that run SQL which they have put together. A connection that has called one of ours goes back to its pool
as it is (`rag.db.pool`): nothing that a caller says may become SQL here."""
CHAT_MODELS = ("llm_endpoint", "llm_model", "llm_model_tenant", "llm_offer", "routing_rule")
LEDGER = ("budget_account", "charge", "budget_alert")
GRANTS = {
    ("bulkhead_app", "rag.tenant"): {"SELECT"},
    ("bulkhead_app", "rag.embedding_model"): {"SELECT"},
    ("bulkhead_app", "rag.tier"): {"SELECT"},
    ("bulkhead_app", "rag.document"): {"SELECT", "INSERT", "UPDATE", "DELETE"},
    ("bulkhead_app", "rag.chunk"): {"SELECT", "INSERT", "DELETE"},
    ("bulkhead_app", "rag.embedding"): {"SELECT", "INSERT", "DELETE"},
    ("bulkhead_app", "rag.posting"): {"SELECT", "INSERT"},
    ("bulkhead_app", "rag.tombstone"): {"SELECT", "INSERT"},
    ("bulkhead_app", "rag.corpus_change"): {"SELECT", "INSERT"},
    ("bulkhead_app", "rag.audience"): {"SELECT"},
    ("bulkhead_app", "rag.term"): {"SELECT"},
    ("bulkhead_app", "rag.spelling"): {"SELECT"},
    ("bulkhead_app", "rag.task"): {"SELECT", "INSERT"},
    ("bulkhead_app", "rag.task_event"): {"SELECT", "INSERT"},
    ("bulkhead_app", "rag.task_call"): {"SELECT", "INSERT"},
    ("bulkhead_app", "rag.push_config"): {"INSERT", "DELETE"},
    ("bulkhead_app", "checkpoint.checkpoints"): {"SELECT", "INSERT", "UPDATE", "DELETE"},
    ("bulkhead_app", "checkpoint.checkpoint_blobs"): {"SELECT", "INSERT", "UPDATE", "DELETE"},
    ("bulkhead_app", "checkpoint.checkpoint_writes"): {"SELECT", "INSERT", "UPDATE", "DELETE"},
    # besides what it has as a member of bulkhead_app: compaction
    ("bulkhead_worker", "rag.posting"): {"DELETE"},
    ("bulkhead_worker", "rag.tombstone"): {"DELETE"},
    ("bulkhead_worker", "rag.corpus_change"): {"UPDATE", "DELETE"},
    ("bulkhead_worker", "rag.term"): {"INSERT", "UPDATE", "DELETE"},
    ("bulkhead_worker", "rag.spelling"): {"INSERT", "UPDATE", "DELETE"},
    ("bulkhead_worker", "rag.sweep"): {"SELECT", "INSERT", "UPDATE", "DELETE"},
    # and the end of tasks' data
    ("bulkhead_worker", "rag.task"): {"DELETE"},
    ("bulkhead_worker", "rag.task_event"): {"DELETE"},
    ("bulkhead_app", "rag.schedule"): {"SELECT", "INSERT", "DELETE"},
    ("bulkhead_maintenance", "rag.vector_index"): {"SELECT", "INSERT", "UPDATE", "DELETE"},
    ("bulkhead_maintenance", "rag.tenant"): {"SELECT", "INSERT", "UPDATE"},
    ("bulkhead_maintenance", "rag.embedding_model"): {"SELECT"},
    ("bulkhead_maintenance", "rag.tier"): {"SELECT"},
    ("bulkhead_maintenance", "seal.revocation"): {"SELECT", "INSERT", "UPDATE"},
    # the faces have no business with another server's credentials, closed as they are
    ("bulkhead_worker", "rag.external_server"): {"SELECT"},
    ("bulkhead_worker", "rag.push_config"): {"SELECT"},
    ("bulkhead_maintenance", "rag.external_server"): {"SELECT", "INSERT", "UPDATE", "DELETE"},
    # only the worker calls chat models; versions of prices are added and never changed
    **{("bulkhead_worker", f"rag.{name}"): {"SELECT"} for name in (*CHAT_MODELS, "llm_price")},
    **{("bulkhead_maintenance", f"rag.{name}"): {"SELECT", "INSERT", "UPDATE", "DELETE"} for name in CHAT_MODELS},
    ("bulkhead_maintenance", "rag.llm_price"): {"SELECT", "INSERT"},
    # the ledger is written by functions; budgets are set by operators
    **{("bulkhead_app", f"rag.{name}"): {"SELECT"} for name in (*LEDGER, "budget", "tier_budget")},
    **{("bulkhead_maintenance", f"rag.{name}"): {"SELECT"} for name in (*LEDGER, "tier_budget")},
    ("bulkhead_maintenance", "rag.budget"): {"SELECT", "INSERT", "UPDATE", "DELETE"},
    ("bulkhead_owner", "queue.charge"): {"SELECT", "INSERT", "UPDATE", "DELETE"},
    # appending is a function's; nobody changes or deletes
    ("bulkhead_maintenance", "rag.audit"): {"SELECT"},
    ("bulkhead_maintenance", "rag.audit_head"): {"SELECT"},
}
COLUMN_GRANTS = {
    # where it stands, and nothing of whose it is
    ("bulkhead_app", "rag.task"): {("UPDATE", name) for name in ("state", "version", "updated_at")}
    | {("UPDATE", name) for name in ("asked", "answer_by", "inbox")},
    ("bulkhead_app", "rag.task_call"): {("UPDATE", name) for name in ("attempts", "result", "finished_at")}
    | {("UPDATE", name) for name in ("prompt_tokens", "completion_tokens")},
    ("bulkhead_queue", "rag.task"): {("SELECT", "tenant_id"), ("SELECT", "task_id"), ("SELECT", "subject")},
    ("bulkhead_worker", "rag.task"): {("UPDATE", "compacted_to")},
    # all but the credentials, which are closed again under newer keys
    ("bulkhead_app", "rag.push_config"): {("SELECT", name) for name in ("tenant_id", "push_id", "task_id", "config_id")}
    | {("SELECT", name) for name in ("url", "scheme", "subject")},
    ("bulkhead_worker", "rag.push_config"): {("UPDATE", "secrets")},
    # how long tasks are kept, and nothing else of a tenant
    ("bulkhead_queue", "rag.tenant"): {("SELECT", "tenant_id"), ("SELECT", "task_retention_s")},
    # where it stands, and nothing of what it does or under which grant
    ("bulkhead_app", "rag.schedule"): {("UPDATE", name) for name in ("state", "reason", "next_at", "last_at")}
    | {("UPDATE", name) for name in ("last_task_id", "fired", "skipped")},
    ("bulkhead_app", "rag.vector_index"): {("SELECT", "tenant_id"), ("SELECT", "model_id"), ("SELECT", "ready")},
    # how many vectors a tenant has, and nothing of what is in them
    ("bulkhead_maintenance", "rag.corpus_change"): {("SELECT", "tenant_id"), ("SELECT", "chunks")},
    ("bulkhead_maintenance", "rag.embedding"): {("SELECT", "tenant_id"), ("SELECT", "model_id")},
    ("bulkhead_worker", "rag.tenant"): {("UPDATE", "model_id"), ("UPDATE", "next_model_id")},
}
CONTENT = {"rag.audience", "rag.document", "rag.chunk", "rag.embedding", "rag.posting", "rag.corpus_change"} | {
    "rag.term",
    "rag.spelling",
    "rag.tombstone",
}
"""Tell something of what documents say: only to those who may read them, or who share all of their groups."""
TENANT = "(tenant_id = ( SELECT rag.current_tenant() AS current_tenant))"
CONTROL = {
    # who passes row-level security where, besides the sealed tenant: whole tables, for reading and writing
    ("bulkhead_owner", "rag.tenant"): ("true", "true"),
    ("bulkhead_maintenance", "rag.tenant"): ("true", "true"),
    ("bulkhead_owner", "seal.revocation"): ("true", "true"),
    ("bulkhead_maintenance", "seal.revocation"): ("true", "true"),
    ("bulkhead_owner", "rag.audience"): ("true", "true"),
    # whose run its functions touch: only what the policies below leave of it
    ("bulkhead_queue", "rag.task"): (TENANT, "false"),
    ("bulkhead_queue", "rag.tenant"): ("true", "false"),
    ("bulkhead_maintenance", "rag.vector_index"): ("true", "true"),
    ("bulkhead_maintenance", "rag.external_server"): ("true", "true"),
    # it routes for all tenants together, and may claim work of any
    ("bulkhead_worker", "rag.llm_model_tenant"): ("true", "false"),
    ("bulkhead_maintenance", "rag.llm_model_tenant"): ("true", "true"),
    ("bulkhead_maintenance", "rag.corpus_change"): ("true", "false"),
    ("bulkhead_maintenance", "rag.embedding"): ("true", "false"),
    # of the ledger's functions, which name the tenant that they have verified
    ("bulkhead_owner", "rag.budget"): ("true", "false"),
    **{("bulkhead_owner", f"rag.{name}"): ("true", "true") for name in LEDGER},
    **{("bulkhead_maintenance", f"rag.{name}"): ("true", "false") for name in LEDGER},
    ("bulkhead_maintenance", "rag.budget"): ("true", "true"),
    # of rag.append_audit_v1 alone, which names the tenant that it has verified
    ("bulkhead_owner", "rag.audit"): ("true", "true"),
    ("bulkhead_owner", "rag.audit_head"): ("true", "true"),
    ("bulkhead_maintenance", "rag.audit"): ("true", "false"),
    ("bulkhead_maintenance", "rag.audit_head"): ("true", "false"),
}
DEFINERS = {
    "seal.verified_context": "bulkhead_owner",
    "seal.mint_v2": "bulkhead_owner",
    "seal.mint_v3": "bulkhead_owner",
    "rag.current_audiences": "bulkhead_owner",
    "rag.audience_of_v1": "bulkhead_owner",
    "rag.current_tenant": "bulkhead_owner",
    "rag.current_subject": "bulkhead_owner",
    "rag.current_groups": "bulkhead_owner",
    "rag.current_task": "bulkhead_owner",
    "rag.is_own_grant_v1": "bulkhead_owner",
    "rag.append_audit_v1": "bulkhead_owner",
    "rag.hold_charge_v1": "bulkhead_owner",
    "rag.start_charge_v1": "bulkhead_owner",
    "rag.settle_charge_v1": "bulkhead_owner",
    "rag.release_charge_v1": "bulkhead_owner",
    "rag.reserve_task_v1": "bulkhead_owner",
    "rag.end_reserve_v1": "bulkhead_owner",
    "rag.forget_accounts_v1": "bulkhead_owner",
    "rag.guard_budgets_v1": "bulkhead_owner",
    "rag.sweep_charges_v1": "bulkhead_owner",
    "queue.sweep_charges_v1": "bulkhead_queue",
    "queue.enqueue_embedding_v2": "bulkhead_queue",
    "queue.claim_embeddings_v2": "bulkhead_queue",
    "queue.embeddings_behind_v1": "bulkhead_queue",
    "queue.postpone_embedding_v1": "bulkhead_queue",
    "queue.finish_embedding_v1": "bulkhead_queue",
    "queue.note_write_v1": "bulkhead_queue",
    "queue.claim_upkeep_v1": "bulkhead_queue",
    "queue.hold_upkeep_v1": "bulkhead_queue",
    "queue.finish_upkeep_v1": "bulkhead_queue",
    "queue.enqueue_switch_v1": "bulkhead_queue",
    "queue.claim_switch_v1": "bulkhead_queue",
    "queue.hold_switch_v1": "bulkhead_queue",
    "queue.move_switch_v1": "bulkhead_queue",
    "queue.fail_switch_v1": "bulkhead_queue",
    "queue.finish_switch_v1": "bulkhead_queue",
    "queue.switches_v1": "bulkhead_queue",
    "queue.pending_embeddings_v1": "bulkhead_queue",
    "queue.enqueue_run_v1": "bulkhead_queue",
    "queue.claim_runs_v1": "bulkhead_queue",
    "queue.heartbeat_runs_v1": "bulkhead_queue",
    "queue.release_runs_v1": "bulkhead_queue",
    "queue.hold_fence_v1": "bulkhead_queue",
    "queue.lock_run_v1": "bulkhead_queue",
    "queue.finish_run_v1": "bulkhead_queue",
    "queue.park_run_v1": "bulkhead_queue",
    "queue.wake_run_v1": "bulkhead_queue",
    "queue.begin_push_v1": "bulkhead_queue",
    "queue.end_push_v1": "bulkhead_queue",
    "queue.note_event_v1": "bulkhead_queue",
    "queue.claim_pushes_v1": "bulkhead_queue",
    "queue.advance_push_v1": "bulkhead_queue",
    "queue.rest_push_v1": "bulkhead_queue",
    "queue.fail_push_v1": "bulkhead_queue",
    "queue.finish_push_v1": "bulkhead_queue",
    "queue.dead_pushes_v1": "bulkhead_queue",
    "queue.redeliver_pushes_v1": "bulkhead_queue",
    "queue.note_schedule_v1": "bulkhead_queue",
    "queue.claim_schedules_v1": "bulkhead_queue",
    "queue.note_end_v1": "bulkhead_queue",
    "queue.claim_ended_v1": "bulkhead_queue",
    "queue.finish_ended_v1": "bulkhead_queue",
}
UNSCOPED = {
    "rag/audit/reader.py": "the maintenance login reads every chain",
    "rag/budgets/sweep.py": "ends calls of any tenant whose time is over",
    "rag/catalogue/operator.py": "the maintenance login's verbs",
    "rag/catalogue/store.py": "models and routing rules belong to no tenant",
    "rag/corpus/compaction.py": "claims tenants that wait for compaction",
    "rag/corpus/embedding.py": "claims documents that wait for vectors",
    "rag/corpus/switching.py": "claims tenants that change their model",
    "rag/cli/doctor.py": "asks whether the maintenance process is there",
    "rag/db/gates.py": "reads the catalogue",
    "rag/external/operator.py": "the maintenance login's verbs",
    "rag/db/health.py": "reads no table",
    "rag/push/store.py": "claims webhooks that are due; the maintenance login's verbs",
    "rag/runtime.py": "models belong to no tenant",
    "rag/schedules/store.py": "claims schedules that are due",
    "rag/tasks/leases.py": "claims, extends and hands back runs",
    "rag/tasks/retention.py": "claims tasks that have ended",
    "rag/tenants/models.py": "the maintenance login's verbs",
    "rag/tenants/operator.py": "the maintenance login's verbs",
}
CHECKPOINTS = ("checkpoints", "checkpoint_blobs", "checkpoint_writes")
OURS = "n.nspname in ('rag', 'seal', 'queue', 'checkpoint', 'migration')"


async def rows(world: World, query: str) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(world.superuser_url)
    try:
        return await connection.fetch(query)
    finally:
        await connection.close()


async def test_every_table_has_a_tenant_and_a_forced_wall_or_is_on_a_list(world: World) -> None:
    tables = await rows(
        world,
        f"""
        select format('%s.%s', n.nspname, c.relname) as name, c.relrowsecurity, c.relforcerowsecurity,
            exists (select from pg_attribute a where a.attrelid = c.oid and a.attname = 'tenant_id') as has_tenant,
            exists (
                select from pg_policy p
                where p.polrelid = c.oid and p.polpermissive and p.polqual is not null and p.polwithcheck is not null
            ) as walled,
            exists (
                select from pg_policy p
                where p.polrelid = c.oid and p.polpermissive and (p.polqual is null or p.polwithcheck is null)
            ) as half_open
        from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where {OURS} and c.relkind in ('r', 'p')
        """,
    )
    assert len(tables) > 50, "partitions are tables too"
    for table in tables:
        if table["name"] in WITHOUT_TENANT:
            assert not table["has_tenant"]
        elif table["name"] in QUEUES:
            assert table["has_tenant"]
            assert not table["relrowsecurity"]
        else:
            walled = (table["has_tenant"], table["relrowsecurity"], table["relforcerowsecurity"], table["walled"])
            assert walled == (True, True, True, True), table["name"]
            assert not table["half_open"], table["name"]


async def test_every_policy_for_the_app_role_compares_with_the_sealed_tenant_and_audience(world: World) -> None:
    policies = await rows(
        world,
        f"""
        select regexp_replace(format('%s.%s', n.nspname, c.relname), '_[0-9][0-9]$', '') as name,
            pg_get_expr(p.polqual, c.oid) as reads, pg_get_expr(p.polwithcheck, c.oid) as writes
        from pg_policy p join pg_class c on c.oid = p.polrelid join pg_namespace n on n.oid = c.relnamespace
        where {OURS} and p.polpermissive and (p.polroles = '{{0}}' or 'bulkhead_app'::regrole = any (p.polroles))
        """,
    )
    tenant = "(tenant_id=(SELECTrag.current_tenant()AScurrent_tenant))"
    audience = "(audience=ANY((SELECTrag.current_audiences()AScurrent_audiences)::bigint[]))"
    assert {policy["name"] for policy in policies} > CONTENT
    for policy in policies:
        wall = f"({tenant}AND{audience})" if policy["name"] in CONTENT else tenant
        found = {"".join(expression.split()) for expression in (policy["reads"], policy["writes"])}
        assert found == {wall}, policy["name"]


async def test_what_narrows_the_wall_is_on_a_list(world: World) -> None:
    """Restrictive policies only take away; the permissive ones above say what there is to take from."""
    policies = await rows(
        world,
        f"""
        select format('%s.%s', n.nspname, c.relname) as name, p.polcmd::text as verb,
            array(select r::regrole::text from unnest(p.polroles) r order by 1) as roles,
            regexp_replace(pg_get_expr(p.polqual, c.oid), '\\s', '', 'g') as reads, p.polwithcheck is null as as_read
        from pg_policy p join pg_class c on c.oid = p.polrelid join pg_namespace n on n.oid = c.relnamespace
        where {OURS} and not p.polpermissive
        """,
    )
    found = {(row["name"], row["verb"], tuple(row["roles"]), row["reads"], row["as_read"]) for row in policies}
    app, queue = ("bulkhead_app",), ("bulkhead_app", "bulkhead_queue")
    subject = "(subject=(SELECTrag.current_subject()AScurrent_subject))"
    readers = (
        f"({subject}OR(groups<@(SELECTrag.current_groups()AScurrent_groups))"
        "OR(task_id=(SELECTrag.current_task()AScurrent_task)))"
    )
    claimed = "(SELECTrag.current_task()AScurrent_task)"
    own_schedule = f"({subject}OR(schedule_id={claimed}))"
    own_runs = f"({subject}OR(thread_id=(SELECT(rag.current_task())::textAScurrent_task)))"
    own_webhook = f"({subject}OR(task_id={claimed}))"
    inserts = {"rag.tombstone", "rag.chunk", "rag.embedding", "rag.task", "rag.task_event", "rag.schedule"}
    inserts |= {"rag.push_config", "rag.task_call"}
    assert found == {
        *((name, "a", app, None, False) for name in inserts),
        *((name, "*", queue, readers, True) for name in ("rag.task", "rag.task_event")),
        *((f"checkpoint.{name}", "*", app, own_runs, True) for name in CHECKPOINTS),
        ("rag.schedule", "*", app, own_schedule, True),
        ("rag.push_config", "*", app, own_webhook, True),
        ("rag.task_call", "*", app, subject, True),
    }


async def test_whoever_passes_the_wall_is_on_a_list(world: World) -> None:
    policies = await rows(
        world,
        f"""
        select r.rolname as role, format('%s.%s', n.nspname, c.relname) as name,
            pg_get_expr(p.polqual, c.oid) as reads, pg_get_expr(p.polwithcheck, c.oid) as writes
        from pg_policy p join pg_class c on c.oid = p.polrelid join pg_namespace n on n.oid = c.relnamespace
        cross join lateral unnest(p.polroles) as named (role)
        left join pg_roles r on r.oid = named.role
        where {OURS} and p.polpermissive and named.role <> 'bulkhead_app'::regrole
        """,
    )
    assert {(row["role"], row["name"]): (row["reads"], row["writes"]) for row in policies} == CONTROL


async def test_grants_of_single_columns_are_exactly_the_list(world: World) -> None:
    granted = await rows(
        world,
        f"""
        select coalesce(r.rolname, 'public') as role, format('%s.%s', n.nspname, c.relname) as name,
            a.privilege_type as verb, k.attname as column
        from pg_attribute k join pg_class c on c.oid = k.attrelid join pg_namespace n on n.oid = c.relnamespace
        cross join lateral aclexplode(k.attacl) a
        left join pg_roles r on r.oid = a.grantee
        where {OURS}
        """,
    )
    found: dict[tuple[str, str], set[tuple[str, str]]] = {}
    for row in granted:
        found.setdefault((row["role"], row["name"]), set()).add((row["verb"], row["column"]))
    assert found == COLUMN_GRANTS


async def test_grants_are_exactly_the_list(world: World) -> None:
    granted = await rows(
        world,
        f"""
        select coalesce(r.rolname, 'public') as role, format('%s.%s', n.nspname, c.relname) as name,
            a.privilege_type as verb
        from pg_class c join pg_namespace n on n.oid = c.relnamespace
        cross join lateral aclexplode(c.relacl) a
        left join pg_roles r on r.oid = a.grantee
        where {OURS} and c.relkind in ('r', 'p', 'v', 'm') and a.grantee <> c.relowner
        """,
    )
    found: dict[tuple[str, str], set[str]] = {}
    for row in granted:
        found.setdefault((row["role"], row["name"]), set()).add(row["verb"])
    assert found == GRANTS


async def test_definer_functions_are_a_short_list_with_an_empty_search_path(world: World) -> None:
    functions = await rows(
        world,
        f"""
        select format('%s.%s', n.nspname, p.proname) as name, p.proowner::regrole::text as owner,
            p.proconfig as config, p.prosecdef as definer,
            exists (select from aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a where a.grantee = 0)
                as open_to_public
        from pg_proc p join pg_namespace n on n.oid = p.pronamespace
        where {OURS}
        """,
    )
    assert {row["name"]: row["owner"] for row in functions if row["definer"]} == DEFINERS
    for row in functions:
        assert not row["open_to_public"], row["name"]
        assert 'search_path=""' in (row["config"] or []), row["name"]


async def test_no_function_builds_sql_but_from_numbers_of_ours(world: World) -> None:
    functions = await rows(
        world,
        f"""
        select format('%s.%s', n.nspname, p.proname) as name
        from pg_proc p join pg_namespace n on n.oid = p.pronamespace
        where {OURS} and p.prosrc ~* '\\mexecute\\M'
        """,
    )
    assert {row["name"] for row in functions} == set(DYNAMIC)


def test_sessions_without_a_tenant_are_opened_in_few_places() -> None:
    root = Path(__file__).parent.parent.parent
    files = [path for room in ("rag", "workflows", "mcp_server", "a2a_server") for path in (root / room).rglob("*.py")]
    found = {str(path.relative_to(root)) for path in files if ".unsafe_unscoped" in path.read_text(encoding="utf-8")}
    assert found == set(UNSCOPED)


async def test_nobody_can_log_in_as_the_owner_of_the_queues(world: World) -> None:
    found = await rows(
        world, "select rolcanlogin, rolsuper, rolbypassrls from pg_roles where rolname = 'bulkhead_queue'"
    )
    assert [tuple(row) for row in found] == [(False, False, False)]
