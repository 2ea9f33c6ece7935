-- Work that starts without a caller starts here (tenancy.md 2). Queues hold ids only, have no grant for the app role and
-- no row-level security (it would break the claim itself); they are reached through the functions below, all owned by
-- bulkhead_queue, which nobody can log in as. A claim hands out ids with a seal minted for that one tenant.

create table queue.embedding (
    tenant_id uuid not null,
    document_id uuid not null,
    available_at timestamptz not null default clock_timestamp(),
    attempts integer not null default 0,
    primary key (tenant_id, document_id)
);
create index embedding_by_time on queue.embedding (available_at);

create table queue.run (
    task_id uuid primary key,
    tenant_id uuid not null,
    fence bigint not null default 0,
    attempt integer not null default 0,
    worker text,
    leased_until timestamptz,
    enqueued_at timestamptz not null default clock_timestamp(),
    -- A unique index makes every change of the fence take the row's strongest lock, which conflicts with the KEY SHARE
    -- lock that a fenced write holds; a heartbeat changes no key and passes. So no write of an outdated owner can commit
    -- after the claim that outdated it.
    constraint run_fence unique (task_id, fence)
);
create index run_by_time on queue.run (enqueued_at);

alter table queue.embedding owner to bulkhead_queue;
alter table queue.run owner to bulkhead_queue;

create function queue.enqueue_embedding_v1(document uuid) returns void
language sql volatile security definer
set search_path = ''
as $$
    insert into queue.embedding (tenant_id, document_id)
    values (rag.current_tenant(), document)
    on conflict (tenant_id, document_id) do update set available_at = clock_timestamp(), attempts = 0;
    select pg_notify('bulkhead_embedding', '');
$$;

-- A claim leases a document for lease_s seconds; one that is not finished by then is offered again, more and more rarely.
-- NOTE: materialized, here and below: a subquery may be scanned once per row of the join (it is, by a plan that expects
-- one row), and skips what this statement has just taken: the limit would then hold for each scan and for nothing else.
create function queue.claim_embeddings_v1(wanted integer, lease_s double precision)
returns table (document_id uuid, attempts integer, seal text)
language sql volatile security definer
set search_path = ''
as $$
    with due as materialized (
        select q.tenant_id, q.document_id
        from queue.embedding q
        where q.available_at <= clock_timestamp()
        order by q.available_at
        for update skip locked
        limit wanted
    )
    update queue.embedding e
    set available_at = clock_timestamp() + make_interval(secs => lease_s * (1 << least(e.attempts, 6))),
        attempts = e.attempts + 1
    from due
    where e.tenant_id = due.tenant_id and e.document_id = due.document_id
    returning e.document_id, e.attempts, seal.mint_v1(e.tenant_id, 'system:embedder', 600);
$$;

create function queue.finish_embedding_v1(document uuid) returns void
language sql volatile security definer
set search_path = ''
as $$
    delete from queue.embedding where tenant_id = rag.current_tenant() and document_id = document;
$$;

-- How many of this tenant's documents still wait for vectors.
create function queue.pending_embeddings_v1() returns bigint
language sql stable security definer
set search_path = ''
as $$
    select count(*) from queue.embedding where tenant_id = (select rag.current_tenant());
$$;

create function queue.enqueue_run_v1(task uuid) returns void
language sql volatile security definer
set search_path = ''
as $$
    insert into queue.run (task_id, tenant_id) values (task, rag.current_tenant());
    select pg_notify('bulkhead_run', '');
$$;

-- A run that has twice broken off may be what kills workers. A worker holds one such at a time: so it takes others with it
-- twice at most, and never fails them all together.
create function queue.claim_runs_v1(claimant text, wanted integer, lease_s double precision)
returns table (task_id uuid, fence bigint, attempt integer, seal text)
language sql volatile security definer
set search_path = ''
as $$
    with suspect as materialized (
        select q.task_id
        from queue.run q
        where (q.leased_until is null or q.leased_until <= clock_timestamp())
            and q.attempt >= 2
            and not exists (
                select from queue.run h
                where h.worker = claimant and h.attempt > 2 and h.leased_until > clock_timestamp()
            )
        order by q.enqueued_at
        for update skip locked
        limit least(wanted, 1)
    ),
    other as materialized (
        select q.task_id
        from queue.run q
        where (q.leased_until is null or q.leased_until <= clock_timestamp()) and q.attempt < 2
        order by q.enqueued_at
        for update skip locked
        limit wanted - (select count(*) from suspect)
    ),
    due as (
        select task_id from suspect
        union all
        select task_id from other
    )
    update queue.run r
    set worker = claimant,
        fence = r.fence + 1,
        attempt = r.attempt + 1,
        leased_until = clock_timestamp() + make_interval(secs => lease_s)
    from due
    where r.task_id = due.task_id
    returning r.task_id, r.fence, r.attempt, seal.mint_v1(r.tenant_id, 'system:worker', 600);
$$;

-- Extends the leases that this worker still holds and returns them; one that is missing from the answer is lost.
create function queue.heartbeat_runs_v1(claimant text, tasks uuid[], fences bigint[], lease_s double precision)
returns table (task_id uuid, fence bigint)
language sql volatile security definer
set search_path = ''
as $$
    update queue.run r
    set leased_until = clock_timestamp() + make_interval(secs => lease_s)
    from unnest(tasks, fences) as held (task_id, fence)
    where r.task_id = held.task_id and r.fence = held.fence and r.worker = claimant
    returning r.task_id, r.fence;
$$;

-- Hands runs back before their lease ends (SIGTERM): another worker takes them at once, and no attempt is counted.
create function queue.release_runs_v1(claimant text, tasks uuid[], fences bigint[]) returns integer
language plpgsql volatile security definer
set search_path = ''
as $$
declare
    released integer;
begin
    update queue.run r
    set worker = null, leased_until = null, fence = r.fence + 1, attempt = r.attempt - 1
    from unnest(tasks, fences) as held (task_id, fence)
    where r.task_id = held.task_id and r.fence = held.fence and r.worker = claimant;
    get diagnostics released = row_count;
    if released > 0 then
        perform pg_notify('bulkhead_run', '');
    end if;
    return released;
end
$$;

-- Raises BH001 unless the caller still owns the run; the lock keeps it so until the caller's transaction ends.
create function queue.hold_fence_v1(task uuid, held bigint) returns void
language plpgsql volatile security definer
set search_path = ''
as $$
begin
    perform 1
    from queue.run r
    where r.task_id = task and r.fence = held and r.tenant_id = rag.current_tenant()
    for key share;
    if not found then
        raise exception 'fence lost' using errcode = 'BH001';
    end if;
end
$$;

-- Taken before a task's row by whoever is about to end the task, so that the two locks always come in this order and a
-- cancel never meets a fenced write in a deadlock. Waits for fenced writes in flight. Raises BH001 as hold_fence_v1, unless
-- `held` is null (a face).
create function queue.lock_run_v1(task uuid, held bigint) returns void
language plpgsql volatile security definer
set search_path = ''
as $$
begin
    perform 1
    from queue.run r
    where r.task_id = task and (held is null or r.fence = held) and r.tenant_id = rag.current_tenant()
    for update;
    if not found and held is not null then
        raise exception 'fence lost' using errcode = 'BH001';
    end if;
end
$$;

-- The task has ended: nothing is left to run, and every fence handed out for it is outdated.
create function queue.finish_run_v1(task uuid) returns void
language sql volatile security definer
set search_path = ''
as $$
    delete from queue.run where task_id = task and tenant_id = rag.current_tenant();
$$;

-- Four functions look across tenants; the claims hand out a seal of any tenant that waits. They are the worker's alone: in
-- reach of the servers' login, one statement injected there could claim a seal and read with it.
do $$
declare
    signature regprocedure;
    across boolean;
begin
    for signature, across in
        select p.oid::regprocedure, p.proname ~ '^(claim|heartbeat|release)_'
        from pg_proc p
        where p.pronamespace = 'queue'::regnamespace
    loop
        execute format(
            'grant execute on function %s to %I', signature,
            case when across then 'bulkhead_worker' else 'bulkhead_app' end
        );
        execute format('alter function %s owner to bulkhead_queue', signature);
    end loop;
end
$$;
