-- Who sees a task (docs/adr/0011-task-readers.md). A run acts with the groups of its grant, and what it makes may quote
-- whatever those groups may read. So a task is its own subject's, and that of callers who are in all of its groups.

create function rag.current_groups() returns text[]
language plpgsql stable parallel safe security definer
set search_path = ''
as $$
begin
    return array(select jsonb_array_elements_text(seal.verified_context() -> 'groups'));
end
$$;

-- The one task that a claim's seal opens; null in every caller's.
create function rag.current_task() returns uuid
language plpgsql stable parallel safe security definer
set search_path = ''
as $$
begin
    return (seal.verified_context() ->> 'task')::uuid;
end
$$;

-- Whether a grant is no more than the sealed caller's own: a run may do nothing that its caller may not, and ends with it.
create function rag.is_own_grant_v1(grantor text, named text[], tokens text[], issued_at double precision) returns boolean
language plpgsql stable parallel safe security definer
set search_path = ''
as $$
declare
    context jsonb := seal.verified_context();
begin
    return grantor = context ->> 'sub'
        and named <@ array(select jsonb_array_elements_text(context -> 'groups'))
        and tokens @> array(select jsonb_array_elements_text(context -> 'jti'))
        and issued_at <= (context ->> 'iat')::double precision;
end
$$;
grant execute on function
    rag.current_groups(),
    rag.current_task()
to bulkhead_app, bulkhead_queue;
grant execute on function rag.is_own_grant_v1(text, text[], text[], double precision) to bulkhead_app;

-- 1. Each event says again whose its task is: a look at the task for every row of a log would cost more than the log. A
-- checkpoint is read by its own run alone, which acts as the subject. The owner sees what is stored already while row-level
-- security is not forced.
do $$
declare
    target text;
begin
    foreach target in array array[
        'rag.task', 'rag.task_event',
        'checkpoint.checkpoints', 'checkpoint.checkpoint_blobs', 'checkpoint.checkpoint_writes'
    ] loop
        execute format('alter table %s no force row level security', target);
    end loop;
end
$$;

alter table rag.task_event
    add column subject text,
    add column groups text[];
update rag.task_event e
set subject = t.subject, groups = t.groups
from rag.task t
where t.tenant_id = e.tenant_id and t.task_id = e.task_id;
alter table rag.task_event
    alter column subject set not null,
    alter column groups set not null;

do $$
declare
    target text;
begin
    foreach target in array array['checkpoints', 'checkpoint_blobs', 'checkpoint_writes'] loop
        execute format('alter table checkpoint.%I add column subject text', target);
        execute format(
            'update checkpoint.%I c set subject = t.subject from rag.task t '
            'where t.tenant_id = c.tenant_id and t.task_id::text = c.thread_id', target
        );
        -- of no task: nobody can go on with it
        execute format('delete from checkpoint.%I where subject is null', target);
        execute format(
            'alter table checkpoint.%I alter column subject set default rag.current_subject(), '
            'alter column subject set not null', target
        );
        execute format(
            'create policy own_runs on checkpoint.%I as restrictive to bulkhead_app '
            'using (subject = (select rag.current_subject()))', target
        );
    end loop;

    foreach target in array array['rag.task', 'rag.task_event'] loop
        execute format(
            'create policy readers on %s as restrictive to bulkhead_app, bulkhead_queue '
            'using (subject = (select rag.current_subject()) or groups <@ (select rag.current_groups()) '
            'or task_id = (select rag.current_task()))', target
        );
    end loop;

    foreach target in array array[
        'rag.task', 'rag.task_event',
        'checkpoint.checkpoints', 'checkpoint.checkpoint_blobs', 'checkpoint.checkpoint_writes'
    ] loop
        execute format('alter table %s force row level security', target);
    end loop;
end
$$;

-- 2. What a task and an event say of whose they are is true, and stays so.
create policy own_grant on rag.task as restrictive for insert to bulkhead_app
with check (rag.is_own_grant_v1(subject, groups, token_ids, token_issued_at));
create policy of_a_visible_task on rag.task_event as restrictive for insert to bulkhead_app
with check (
    exists (
        select
        from rag.task t
        where t.tenant_id = task_event.tenant_id
            and t.task_id = task_event.task_id
            and t.subject = task_event.subject
            and t.groups = task_event.groups
    )
);
revoke update on rag.task from bulkhead_app;
grant update (state, version, updated_at) on rag.task to bulkhead_app;

-- Accepts a task as rag.create_task_v1 does, unless the caller has one under this key: then nothing is written, and that one is
-- returned. Of two at once with one key the second waits for the first.
create function rag.create_task_v2(
    task uuid,
    context text,
    workflow_name text,
    workflow_input jsonb,
    first_message jsonb,
    grant_scopes text[],
    grant_groups text[],
    grant_team text,
    grant_tokens text[],
    grant_issued_at double precision,
    trace text,
    key text                            -- null: a task of its own
)
returns table (task_id uuid, context_id text, workflow text, input jsonb, created boolean)
language plpgsql volatile security invoker
set search_path = ''
as $$
#variable_conflict use_column
declare
    tenant uuid := rag.current_tenant();
    caller text := rag.current_subject();
begin
    insert into rag.task (
        tenant_id, task_id, context_id, workflow, state, version, input,
        subject, scopes, groups, team, token_ids, token_issued_at, traceparent, idempotency_key
    )
    values (
        tenant, task, context, workflow_name, 'submitted', 1, workflow_input,
        caller, grant_scopes, grant_groups, grant_team, grant_tokens, grant_issued_at, trace, key
    )
    on conflict (tenant_id, subject, idempotency_key) where idempotency_key is not null do nothing;
    if found then
        insert into rag.task_event (tenant_id, task_id, seq, kind, payload, subject, groups)
        values (tenant, task, 1, 'task', jsonb_build_object('message', first_message), caller, grant_groups);
        perform queue.enqueue_run_v1(task);
        return query select task, context, workflow_name, workflow_input, true;
        return;
    end if;
    return query
    select t.task_id, t.context_id, t.workflow, t.input, false
    from rag.task t
    where t.tenant_id = tenant and t.subject = caller and t.idempotency_key = key;
end
$$;
grant execute on function
    rag.create_task_v2(uuid, text, text, jsonb, jsonb, text[], text[], text, text[], double precision, text, text)
to bulkhead_app;

-- Servers of the version before call this until they are replaced.
create or replace function rag.create_task_v1(
    task uuid,
    context text,
    workflow_name text,
    workflow_input jsonb,
    first_message jsonb,
    grant_scopes text[],
    grant_groups text[],
    grant_team text,
    grant_tokens text[],
    grant_issued_at double precision,
    trace text
)
returns bigint
language sql volatile security invoker
set search_path = ''
as $$
    select 1::bigint
    from rag.create_task_v2(
        task, context, workflow_name, workflow_input, first_message,
        grant_scopes, grant_groups, grant_team, grant_tokens, grant_issued_at, trace, null
    );
$$;

-- As before, and the event says whose it is.
create or replace function rag.append_event_v1(
    task uuid,
    held bigint,
    event_kind text,
    event_payload jsonb,
    event_key text,
    next text
)
returns bigint
language plpgsql volatile security invoker
set search_path = ''
as $$
declare
    tenant uuid := rag.current_tenant();
    ends boolean := coalesce(next in ('completed', 'failed', 'canceled', 'rejected'), false);
    stored rag.task;
    new_seq bigint;
begin
    if ends then
        perform queue.lock_run_v1(task, held);
    elsif held is not null then
        perform queue.hold_fence_v1(task, held);
    end if;
    select * into stored from rag.task t where t.tenant_id = tenant and t.task_id = task for no key update;
    if event_key is not null then
        select e.seq into new_seq
        from rag.task_event e
        where e.tenant_id = tenant and e.task_id = task and e.key = event_key;
        if found then
            return new_seq;
        end if;
    end if;
    update rag.task t
    set version = t.version + 1, state = coalesce(next, t.state), updated_at = clock_timestamp()
    where t.tenant_id = tenant and t.task_id = task and rag.task_may_become(t.state, coalesce(next, 'working'))
    returning t.version into new_seq;
    if not found then
        raise exception 'task has ended' using errcode = 'BH002';
    end if;
    insert into rag.task_event (tenant_id, task_id, seq, kind, payload, key, subject, groups)
    values (tenant, task, new_seq, event_kind, event_payload, event_key, stored.subject, stored.groups);
    if ends then
        perform queue.finish_run_v1(task);
    end if;
    -- opaque to the sibling sessions that could LISTEN: a random id and a number (tenancy.md 2)
    perform pg_notify('bulkhead_task', task::text || ' ' || new_seq::text);
    if next = 'canceled' then
        -- workers look at once whether they still hold their runs
        perform pg_notify('bulkhead_cancel', '');
    end if;
    return new_seq;
end
$$;

-- 3. A claim's seal opens the one task that was claimed, and no group's.
create function seal.mint_v3(tenant uuid, subject text, task uuid, lifetime_s double precision) returns text
language plpgsql volatile security definer
set search_path = ''
as $$
declare
    signer seal.key;
    now_s double precision := extract(epoch from clock_timestamp());
    payload text;
begin
    select * into strict signer from seal.key where active;
    payload := jsonb_build_object(
        'tenant', tenant, 'sub', subject, 'groups', '[]'::jsonb, 'jti', '[]'::jsonb, 'task', task,
        'iat', now_s, 'exp', now_s + lifetime_s
    )::text;
    return signer.kid || '.'
        || encode(sha256(signer.outer_pad || sha256(signer.inner_pad || convert_to(payload, 'UTF8'))), 'hex')
        || '.' || payload;
end
$$;
grant execute on function seal.mint_v3(uuid, text, uuid, double precision) to bulkhead_queue;

-- The queue's functions, which every server may call, do nothing to the run of a task that their caller does not see.
grant select (tenant_id, task_id) on rag.task to bulkhead_queue;
create policy queued on rag.task to bulkhead_queue
    using (tenant_id = (select rag.current_tenant()))
    with check (false);

set local role bulkhead_queue;
drop function queue.lock_run_v1(uuid, bigint);

create function queue.sees_task_v1(task uuid) returns boolean
language sql stable security invoker
set search_path = ''
as $$
    select exists (select from rag.task t where t.tenant_id = rag.current_tenant() and t.task_id = task);
$$;
revoke execute on function queue.sees_task_v1(uuid) from public;

create or replace function queue.enqueue_run_v1(task uuid) returns void
language sql volatile security definer
set search_path = ''
as $$
    insert into queue.run (task_id, tenant_id) select task, rag.current_tenant() where queue.sees_task_v1(task);
    select pg_notify('bulkhead_run', '');
$$;

create or replace function queue.finish_run_v1(task uuid) returns void
language sql volatile security definer
set search_path = ''
as $$
    delete from queue.run
    where task_id = task and tenant_id = rag.current_tenant() and queue.sees_task_v1(task);
$$;

create or replace function queue.claim_runs_v1(claimant text, wanted integer, lease_s double precision)
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
    returning r.task_id, r.fence, r.attempt, seal.mint_v3(r.tenant_id, 'system:worker', r.task_id, 600);
$$;
reset role;

-- made by who may use its language, as before
create function queue.lock_run_v1(task uuid, held bigint) returns void
language plpgsql volatile security definer
set search_path = ''
as $$
begin
    perform 1
    from queue.run r
    where r.task_id = task
        and (held is null or r.fence = held)
        and r.tenant_id = rag.current_tenant()
        and queue.sees_task_v1(task)
    for update;
    if not found and held is not null then
        raise exception 'fence lost' using errcode = 'BH001';
    end if;
end
$$;
grant execute on function queue.lock_run_v1(uuid, bigint) to bulkhead_app;
alter function queue.lock_run_v1(uuid, bigint) owner to bulkhead_queue;

-- the last of its callers has gone over to mint_v3
drop function seal.mint_v1(uuid, text, double precision);
