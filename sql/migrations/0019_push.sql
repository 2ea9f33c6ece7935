-- Webhooks of tasks, and the outbox that tells them (docs/push.md). What to tell is in the log already: of each webhook there is
-- a position in it. At least once, in order, one at a time for each.

-- A webhook is its maker's alone, whoever else sees the task, and never changes: one that is set again is another one. The
-- credentials in it are closed (rag.identity.secretbox). It carries its maker's grant: what it is told is what the maker may
-- read then, and nothing once its token is revoked.
create table rag.push_config (
    tenant_id uuid not null,
    push_id uuid not null default gen_random_uuid(),
    task_id uuid not null,
    config_id text not null,            -- what its maker calls it
    url text not null,
    scheme text,
    secrets bytea,
    first_seq bigint not null,          -- it is told the task as it stood there, then every event after
    subject text not null,
    groups text[] not null,
    token_ids text[] not null,
    token_issued_at double precision not null,
    created_at timestamptz not null default clock_timestamp(),
    primary key (tenant_id, push_id),
    constraint push_config_name unique (tenant_id, task_id, subject, config_id),
    constraint push_config_name_length check (length(config_id) between 1 and 256),
    constraint push_config_url_length check (length(url) between 1 and 2048),
    constraint push_config_task foreign key (tenant_id, task_id) references rag.task on delete cascade
);
call rag.isolate('rag.push_config');
create policy own_or_claimed on rag.push_config as restrictive to bulkhead_app
    using (subject = (select rag.current_subject()) or task_id = (select rag.current_task()));
create policy own_grant on rag.push_config as restrictive for insert to bulkhead_app
with check (
    rag.is_own_grant_v1(subject, groups, token_ids, token_issued_at)
    and exists (
        select
        from rag.task t
        where t.tenant_id = push_config.tenant_id and t.task_id = push_config.task_id
    )
);
-- what is in the credentials, closed as they are, is the worker's business alone
grant insert, delete, select (tenant_id, push_id, task_id, config_id, url, scheme, subject) on rag.push_config
to bulkhead_app;
-- and to close them again under a newer key
grant select, update (secrets) on rag.push_config to bulkhead_worker;

-- The outbox: a row while there is, or may come, something to tell.
create table queue.push (
    push_id uuid primary key,
    tenant_id uuid not null,
    task_id uuid not null,
    next_seq bigint not null,
    due_at timestamptz,                 -- null: nothing to tell now. While leased: when the lease ends
    again boolean not null default false,  -- the log has grown since the claim
    leased boolean not null default false,
    fence bigint not null default 0,
    attempts integer not null default 0,
    reason text,                        -- why the last attempt failed: a word of ours
    dead_at timestamptz
)
-- an event of a task that is being told about changes no indexed column: most of its updates stay on the page
with (fillfactor = 70);
create index push_by_task on queue.push (task_id);
create index push_by_time on queue.push (tenant_id, due_at) where due_at is not null;
create index push_leased on queue.push (tenant_id) where leased;
create index push_dead on queue.push (dead_at) where dead_at is not null;

create function queue.begin_push_v1() returns trigger
language plpgsql volatile security definer
set search_path = ''
as $$
begin
    insert into queue.push (push_id, tenant_id, task_id, next_seq, due_at)
    values (new.push_id, new.tenant_id, new.task_id, new.first_seq, clock_timestamp());
    perform pg_notify('bulkhead_push', '');
    return null;
end
$$;
create trigger push_begins after insert on rag.push_config
for each row execute function queue.begin_push_v1();

create function queue.end_push_v1() returns trigger
language plpgsql volatile security definer
set search_path = ''
as $$
begin
    delete from queue.push q where q.push_id = old.push_id and q.tenant_id = old.tenant_id;
    return null;
end
$$;
create trigger push_ends after delete on rag.push_config
for each row execute function queue.end_push_v1();

-- The log has grown. The row is written whatever is in it: so a claim that is under way is waited for, and what it may have
-- read too early is looked at again. A retry keeps its time.
create function queue.note_event_v1() returns trigger
language plpgsql volatile security definer
set search_path = ''
as $$
begin
    update queue.push q
    set again = true, due_at = coalesce(q.due_at, clock_timestamp())
    where q.task_id = new.task_id and q.tenant_id = new.tenant_id and q.dead_at is null;
    if found then
        perform pg_notify('bulkhead_push', '');
    end if;
    return null;
end
$$;
create trigger event_is_told after insert on rag.task_event
for each row execute function queue.note_event_v1();

-- Leases up to `wanted` webhooks that are due, longest waiting first, and of one tenant no more than `per_tenant` at a time.
create function queue.claim_pushes_v1(wanted integer, per_tenant integer, lease_s double precision)
returns table (push_id uuid, task_id uuid, next_seq bigint, attempts integer, fence bigint, seal text)
language sql volatile security definer
set search_path = ''
as $$
    with recursive tenants as (
        (select q.tenant_id from queue.push q where q.due_at is not null order by q.tenant_id limit 1)
        union all
        select (
            select q.tenant_id
            from queue.push q
            where q.due_at is not null and q.tenant_id > t.tenant_id
            order by q.tenant_id
            limit 1
        )
        from tenants t
        where t.tenant_id is not null
    ),
    picked as materialized (
        select c.push_id
        from tenants t
        cross join lateral (
            select q.push_id, q.due_at
            from queue.push q
            -- an index is not searched for what changes within a statement, as clock_timestamp() does
            where q.tenant_id = t.tenant_id and q.due_at <= statement_timestamp()
            order by q.due_at
            limit greatest(0, per_tenant - (
                select count(*)
                from queue.push h
                where h.tenant_id = t.tenant_id and h.leased and h.due_at > clock_timestamp()
            ))
        ) c
        where t.tenant_id is not null
        order by c.due_at
        limit wanted
    ),
    due as materialized (
        select q.push_id
        from queue.push q
        where q.push_id in (select p.push_id from picked p) and q.due_at <= statement_timestamp()
        for update skip locked
    )
    update queue.push q
    set due_at = clock_timestamp() + make_interval(secs => lease_s), again = false, leased = true, fence = q.fence + 1
    from due
    where q.push_id = due.push_id
    returning q.push_id, q.task_id, q.next_seq, q.attempts, q.fence,
        seal.mint_v3(q.tenant_id, 'system:push', q.task_id, 600);
$$;

-- What follows is for whoever holds the claim; the answer is whether that is still so.

-- It was told everything before `next`; the lease begins anew.
create function queue.advance_push_v1(push uuid, held bigint, next bigint, lease_s double precision) returns boolean
language plpgsql volatile security definer
set search_path = ''
as $$
begin
    update queue.push q
    set next_seq = next, attempts = 0, reason = null, due_at = clock_timestamp() + make_interval(secs => lease_s)
    where q.push_id = push and q.fence = held and q.leased and q.tenant_id = rag.current_tenant();
    return found;
end
$$;

-- Ends the lease: nothing is left to tell, unless the log has grown meanwhile, or `soon`: then it is offered again at once.
create function queue.rest_push_v1(push uuid, held bigint, soon boolean) returns boolean
language plpgsql volatile security definer
set search_path = ''
as $$
begin
    update queue.push q
    set leased = false, due_at = case when soon or q.again then clock_timestamp() end
    where q.push_id = push and q.fence = held and q.leased and q.tenant_id = rag.current_tenant();
    if found and soon then
        perform pg_notify('bulkhead_push', '');
    end if;
    return found;
end
$$;

-- An attempt has failed: the next is in `delay_s` seconds; null: there is none, until an operator says so.
create function queue.fail_push_v1(push uuid, held bigint, delay_s double precision, why text) returns boolean
language plpgsql volatile security definer
set search_path = ''
as $$
begin
    update queue.push q
    set leased = false,
        attempts = q.attempts + 1,
        reason = why,
        due_at = clock_timestamp() + make_interval(secs => delay_s),
        dead_at = case when delay_s is null then clock_timestamp() end
    where q.push_id = push and q.fence = held and q.leased and q.tenant_id = rag.current_tenant();
    return found;
end
$$;

-- The task has ended and its end was told, or the webhook is gone.
create function queue.finish_push_v1(push uuid, held bigint) returns boolean
language plpgsql volatile security definer
set search_path = ''
as $$
begin
    delete from queue.push q
    where q.push_id = push and q.fence = held and q.tenant_id = rag.current_tenant();
    return found;
end
$$;

-- Operators: what was given up, and how it is tried again, from where it stopped.
create function queue.dead_pushes_v1(tenant uuid)
returns table (push_id uuid, tenant_id uuid, task_id uuid, next_seq bigint, attempts integer, reason text, dead_at timestamptz)
language sql stable security definer
set search_path = ''
as $$
    select q.push_id, q.tenant_id, q.task_id, q.next_seq, q.attempts, q.reason, q.dead_at
    from queue.push q
    where q.dead_at is not null and (tenant is null or q.tenant_id = tenant)
    order by q.dead_at desc
    limit 1000;
$$;

create function queue.redeliver_pushes_v1(tenant uuid, push uuid) returns bigint
language plpgsql volatile security definer
set search_path = ''
as $$
declare
    revived bigint;
begin
    update queue.push q
    set dead_at = null, attempts = 0, due_at = clock_timestamp()
    where q.dead_at is not null and q.tenant_id = tenant and (push is null or q.push_id = push);
    get diagnostics revived = row_count;
    if revived > 0 then
        perform pg_notify('bulkhead_push', '');
    end if;
    return revived;
end
$$;

revoke execute on function
    queue.begin_push_v1(), queue.end_push_v1(), queue.note_event_v1(),
    queue.claim_pushes_v1(integer, integer, double precision),
    queue.advance_push_v1(uuid, bigint, bigint, double precision),
    queue.rest_push_v1(uuid, bigint, boolean),
    queue.fail_push_v1(uuid, bigint, double precision, text),
    queue.finish_push_v1(uuid, bigint),
    queue.dead_pushes_v1(uuid),
    queue.redeliver_pushes_v1(uuid, uuid)
from public;
grant execute on function
    queue.claim_pushes_v1(integer, integer, double precision),
    queue.advance_push_v1(uuid, bigint, bigint, double precision),
    queue.rest_push_v1(uuid, bigint, boolean),
    queue.fail_push_v1(uuid, bigint, double precision, text),
    queue.finish_push_v1(uuid, bigint)
to bulkhead_worker;
grant execute on function queue.dead_pushes_v1(uuid), queue.redeliver_pushes_v1(uuid, uuid) to bulkhead_maintenance;
alter table queue.push owner to bulkhead_queue;
alter function queue.begin_push_v1() owner to bulkhead_queue;
alter function queue.end_push_v1() owner to bulkhead_queue;
alter function queue.note_event_v1() owner to bulkhead_queue;
alter function queue.claim_pushes_v1(integer, integer, double precision) owner to bulkhead_queue;
alter function queue.advance_push_v1(uuid, bigint, bigint, double precision) owner to bulkhead_queue;
alter function queue.rest_push_v1(uuid, bigint, boolean) owner to bulkhead_queue;
alter function queue.fail_push_v1(uuid, bigint, double precision, text) owner to bulkhead_queue;
alter function queue.finish_push_v1(uuid, bigint) owner to bulkhead_queue;
alter function queue.dead_pushes_v1(uuid) owner to bulkhead_queue;
alter function queue.redeliver_pushes_v1(uuid, uuid) owner to bulkhead_queue;
