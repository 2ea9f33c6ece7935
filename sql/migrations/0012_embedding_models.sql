-- A tenant's change of embedding model (retrieval.md 3): the vectors of the next model are made beside those that its
-- searches use, and one transaction makes the next model the tenant's own when every chunk that was found by the old
-- vectors is found by the new ones. A search reads the tenant's model and its vectors in one snapshot: it sees the change
-- wholly or not at all, and needs no lock. Afterwards the old vectors are deleted, some at a time.

alter table rag.tenant
    add column next_model_id smallint references rag.embedding_model,  -- being filled; null: no change is under way
    add constraint tenant_next_model check (next_model_id <> model_id);

-- A tenant that has vectors is settled on the model that made them: another default of the installation is then only the
-- default of tenants to come.
alter table rag.embedding no force row level security;
update rag.tenant t
set model_id = (
    select e.model_id
    from rag.embedding e
    where e.tenant_id = t.tenant_id
    group by e.model_id
    order by count(*) desc, e.model_id
    limit 1
)
where t.model_id is null;
alter table rag.embedding force row level security;

-- The worker, which fills, also switches; the policy on rag.tenant keeps it to the tenant of its seal.
grant update (model_id, next_model_id) on rag.tenant to bulkhead_worker;

-- The models of the sealed tenant, which stay what they are until the caller's transaction ends. Who is first to embed
-- for a tenant settles it on the installation's default.
create function rag.hold_models_v1(default_model smallint)
returns table (model_id smallint, next_model_id smallint)
language sql volatile security invoker
set search_path = ''
as $$
    update rag.tenant t
    set model_id = default_model, next_model_id = nullif(t.next_model_id, default_model)
    where t.tenant_id = rag.current_tenant() and t.model_id is null;

    select t.model_id, t.next_model_id from rag.tenant t where t.tenant_id = rag.current_tenant() for share;
$$;

-- Makes the next model the sealed tenant's own and says 'switched'; or says why it does not: 'none' is being filled, some
-- vectors are 'missing', or a tenant of this size needs a 'graph' first. Whoever adds vectors holds the models, so none of
-- the old model alone is added between the look and the switch. A chunk with no vector of either was imputed before and
-- is imputed after.
create function rag.switch_model_v1() returns text
language plpgsql volatile security invoker
set search_path = ''
set plan_cache_mode = force_custom_plan
as $$
declare
    tenant uuid := rag.current_tenant();
    -- as in rag.search_v2: above it a search uses a graph
    exact_chunks constant bigint := 5000;
    models rag.tenant;
begin
    select * into strict models from rag.tenant t where t.tenant_id = tenant for no key update;
    if models.next_model_id is null then
        return 'none';
    end if;
    if (select sum(s.chunks) > exact_chunks from rag.corpus_change s where s.tenant_id = tenant) and not exists (
        select from rag.vector_index i
        where i.tenant_id = tenant and i.model_id = models.next_model_id and i.ready
    ) then
        return 'graph';
    end if;
    if exists (
        select
        from rag.embedding o
        where o.tenant_id = tenant and o.model_id = models.model_id and not exists (
            select
            from rag.embedding n
            where n.tenant_id = tenant and n.model_id = models.next_model_id and n.chunk_id = o.chunk_id
        )
    ) then
        return 'missing';
    end if;
    update rag.tenant t
    set model_id = t.next_model_id, next_model_id = null
    where t.tenant_id = tenant;
    return 'switched';
end
$$;

-- Deletes up to `wanted` of the sealed tenant's vectors that are of neither its model nor its next, and says how many.
create function rag.sweep_vectors_v1(wanted integer) returns integer
language plpgsql volatile security invoker
set search_path = ''
set plan_cache_mode = force_custom_plan
as $$
declare
    tenant uuid := rag.current_tenant();
    others smallint[] := array(
        select m.model_id
        from rag.embedding_model m
        join rag.tenant t on t.tenant_id = tenant and m.model_id <> t.model_id
        where m.model_id is distinct from t.next_model_id
    );
    swept integer;
begin
    with old as materialized (
        select e.model_id, e.chunk_id
        from rag.embedding e
        where e.tenant_id = tenant and e.model_id = any (others)
        limit wanted
    )
    delete from rag.embedding e
    using old
    where e.tenant_id = tenant and e.model_id = old.model_id and e.chunk_id = old.chunk_id;
    get diagnostics swept = row_count;
    return swept;
end
$$;

grant execute on function rag.hold_models_v1(smallint), rag.switch_model_v1(), rag.sweep_vectors_v1(integer)
to bulkhead_worker;

-- One row for each tenant whose model is changing or whose old vectors are still there. No lease: workers share a tenant by
-- slices of its chunks, each taken under the row's lock. A slice whose worker died is found missing at the end, and the
-- walk begins again.
grant usage on schema queue to bulkhead_maintenance;
set local role bulkhead_queue;
create table queue.model_switch (
    tenant_id uuid primary key,
    available_at timestamptz not null default clock_timestamp(),
    attempts integer not null default 0,     -- failures in a row
    after_chunk bigint not null default 0    -- up to here the chunks have been handed out
);
create index model_switch_by_time on queue.model_switch (available_at);

-- The caller sets rag.tenant.next_model_id in the same transaction, after this call: every taker of both locks takes this
-- one first.
create function queue.enqueue_switch_v1(tenant uuid) returns void
language sql volatile security definer
set search_path = ''
as $$
    insert into queue.model_switch (tenant_id)
    values (tenant)
    on conflict (tenant_id) do update set available_at = clock_timestamp(), attempts = 0, after_chunk = 0;
    select pg_notify('bulkhead_embedding', '');
$$;

-- A seal of the tenant that has waited longest; null when none is due.
create function queue.claim_switch_v1() returns text
language sql volatile security definer
set search_path = ''
as $$
    with due as materialized (
        select q.tenant_id
        from queue.model_switch q
        where q.available_at <= clock_timestamp()
        order by q.available_at
        for update skip locked
        limit 1
    )
    update queue.model_switch s
    set available_at = clock_timestamp()
    from due
    where s.tenant_id = due.tenant_id
    returning seal.mint_v2(s.tenant_id, 'system:embedder', 600);
$$;

-- How far the sealed tenant's chunks have been handed out, held until the caller's transaction ends; null: it is done.
create function queue.hold_switch_v1() returns bigint
language sql volatile security definer
set search_path = ''
as $$
    select q.after_chunk from queue.model_switch q where q.tenant_id = rag.current_tenant() for update;
$$;

create function queue.move_switch_v1(upto bigint, delay_s double precision) returns void
language sql volatile security definer
set search_path = ''
as $$
    update queue.model_switch
    set after_chunk = upto, attempts = 0, available_at = clock_timestamp() + make_interval(secs => delay_s)
    where tenant_id = rag.current_tenant();
$$;

-- The slice after `resume` came to nothing: it is handed out again, later and later, at most a minute.
create function queue.fail_switch_v1(resume bigint) returns void
language sql volatile security definer
set search_path = ''
as $$
    update queue.model_switch
    set after_chunk = least(after_chunk, resume),
        attempts = attempts + 1,
        available_at = clock_timestamp() + make_interval(secs => least(60, 1 << least(attempts, 6)))
    where tenant_id = rag.current_tenant();
$$;

create function queue.finish_switch_v1() returns void
language sql volatile security definer
set search_path = ''
as $$
    delete from queue.model_switch where tenant_id = rag.current_tenant();
$$;

-- Gives a claimed document back untried: its model does not answer. No attempt is counted, or all that was put during an
-- outage would come back half an hour after it.
create function queue.postpone_embedding_v1(document uuid, delay_s double precision) returns void
language sql volatile security definer
set search_path = ''
as $$
    update queue.embedding
    set attempts = greatest(attempts - 1, 0), available_at = clock_timestamp() + make_interval(secs => delay_s)
    where tenant_id = rag.current_tenant() and document_id = document;
$$;

-- For operators: which tenants have work left, and what fails.
create function queue.switches_v1() returns table (tenant_id uuid, attempts integer)
language sql stable security definer
set search_path = ''
as $$
    select q.tenant_id, q.attempts from queue.model_switch q;
$$;

-- the owner's default privileges keep everybody off its functions; this role has none of its own
revoke execute on function
    queue.enqueue_switch_v1(uuid),
    queue.claim_switch_v1(),
    queue.hold_switch_v1(),
    queue.move_switch_v1(bigint, double precision),
    queue.fail_switch_v1(bigint),
    queue.finish_switch_v1(),
    queue.postpone_embedding_v1(uuid, double precision),
    queue.switches_v1()
from public;
grant execute on function
    queue.claim_switch_v1(),
    queue.hold_switch_v1(),
    queue.move_switch_v1(bigint, double precision),
    queue.fail_switch_v1(bigint),
    queue.finish_switch_v1(),
    queue.postpone_embedding_v1(uuid, double precision)
to bulkhead_worker;
grant execute on function queue.enqueue_switch_v1(uuid), queue.switches_v1() to bulkhead_maintenance;
reset role;
