-- Tasks that start by themselves, tasks that are asked for twice, and tasks that are over: schedules, keys with a digest of what
-- they stand for, and what becomes of the data of a task that has ended.

-- 1. A key stands for one request. What it asks for is compared by digest where the door makes one, else by workflow and input.
alter table rag.task
    add column request_hash bytea,
    add column compacted_to bigint not null default 0,  -- of the events up to this seq, those that were superseded are gone
    add constraint task_request_hash check (length(request_hash) = 32);

-- As rag.create_task_v2, with a digest of what is asked for under the key; the one that is stored comes back.
create function rag.create_task_v3(
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
    key text,
    hash bytea
)
returns table (task_id uuid, context_id text, workflow text, input jsonb, request_hash bytea, created boolean)
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
        subject, scopes, groups, team, token_ids, token_issued_at, traceparent, idempotency_key, request_hash
    )
    values (
        tenant, task, context, workflow_name, 'submitted', 1, workflow_input,
        caller, grant_scopes, grant_groups, grant_team, grant_tokens, grant_issued_at, trace, key, hash
    )
    on conflict (tenant_id, subject, idempotency_key) where idempotency_key is not null do nothing;
    if found then
        insert into rag.task_event (tenant_id, task_id, seq, kind, payload, subject, groups)
        values (tenant, task, 1, 'task', jsonb_build_object('message', first_message), caller, grant_groups);
        perform queue.enqueue_run_v1(task);
        return query select task, context, workflow_name, workflow_input, hash, true;
        return;
    end if;
    return query
    select t.task_id, t.context_id, t.workflow, t.input, t.request_hash, false
    from rag.task t
    where t.tenant_id = tenant and t.subject = caller and t.idempotency_key = key;
end
$$;
grant execute on function
    rag.create_task_v3(uuid, text, text, jsonb, jsonb, text[], text[], text, text[], double precision, text, text, bytea)
to bulkhead_app;

-- 2. Schedules: standing orders of one subject, which act under the grant of the token that they were made or resumed with.
create table rag.schedule (
    tenant_id uuid not null references rag.tenant,
    schedule_id uuid not null,
    name text not null,
    workflow text not null,
    request text not null,              -- what the task is asked, as a message's text
    options jsonb not null default '{}',
    cron text,                          -- five fields, read in time_zone; or every_s, from the moment that it was made
    time_zone text not null default 'UTC',
    every_s double precision,
    missed text not null default 'once',
    until timestamptz not null,
    state text not null default 'active',
    reason text,                        -- why it stopped
    next_at timestamptz,
    last_at timestamptz,                -- the time that was due when it last fired
    last_task_id uuid,
    fired bigint not null default 0,
    skipped bigint not null default 0,
    subject text not null,
    scopes text[] not null,
    groups text[] not null,
    team text,
    token_ids text[] not null,
    token_issued_at double precision not null,
    created_at timestamptz not null default clock_timestamp(),
    primary key (tenant_id, schedule_id),
    constraint schedule_name_unique unique (tenant_id, subject, name),
    constraint schedule_name_form check (name ~ '^[a-z0-9][a-z0-9._-]{0,62}$'),
    constraint schedule_request_length check (length(request) between 1 and 20000),
    constraint schedule_timing check ((cron is null) <> (every_s is null) and (every_s is null or every_s >= 60)),
    constraint schedule_missed_known check (missed in ('once', 'skip')),
    constraint schedule_state_known check (state in ('active', 'paused', 'stopped')),
    constraint schedule_due check ((state = 'active') = (next_at is not null)),
    constraint schedule_reason check (reason is null or state = 'stopped')
);
call rag.isolate('rag.schedule');
-- a claim's seal opens the one thing that was claimed: here, one schedule
create policy own_schedules on rag.schedule as restrictive to bulkhead_app
    using (subject = (select rag.current_subject()) or schedule_id = (select rag.current_task()));
create policy own_grant on rag.schedule as restrictive for insert to bulkhead_app
    with check (rag.is_own_grant_v1(subject, groups, token_ids, token_issued_at));
-- what it does, and under which grant, is never changed
grant select, insert, delete on rag.schedule to bulkhead_app;
grant update (state, reason, next_at, last_at, last_task_id, fired, skipped) on rag.schedule to bulkhead_app;

create table queue.schedule (
    tenant_id uuid not null,
    schedule_id uuid not null,
    due_at timestamptz not null,
    leased_until timestamptz,
    attempts integer not null default 0,
    primary key (tenant_id, schedule_id)
);
create index schedule_by_time on queue.schedule (due_at);

-- The queue follows the schedules in the transaction that changes them; nobody else writes it.
create function queue.note_schedule_v1() returns trigger
language plpgsql volatile security definer
set search_path = ''
as $$
begin
    if tg_op = 'DELETE' then
        delete from queue.schedule q where q.schedule_id = old.schedule_id and q.tenant_id = old.tenant_id;
    elsif new.next_at is null then
        delete from queue.schedule q where q.schedule_id = new.schedule_id and q.tenant_id = new.tenant_id;
    else
        insert into queue.schedule as q (schedule_id, tenant_id, due_at)
        values (new.schedule_id, new.tenant_id, new.next_at)
        on conflict (tenant_id, schedule_id) do update
        set due_at = excluded.due_at, leased_until = null, attempts = 0;
    end if;
    return null;
end
$$;
create trigger schedule_noted
after insert or delete or update of next_at on rag.schedule
for each row execute function queue.note_schedule_v1();

-- Leases schedules that are due; by statement_timestamp(), here and below, since an index is not searched for what changes within
-- a statement. A lease keeps other workers from trying at the same time; that a schedule fires once for each
-- time is the doing of whoever moves its next_at on, in the transaction that makes the task.
create function queue.claim_schedules_v1(wanted integer, lease_s double precision)
returns table (schedule_id uuid, due_at timestamptz, attempts integer, seal text)
language sql volatile security definer
set search_path = ''
as $$
    with due as materialized (
        select q.tenant_id, q.schedule_id
        from queue.schedule q
        where q.due_at <= statement_timestamp() and (q.leased_until is null or q.leased_until <= clock_timestamp())
        order by q.due_at
        for update skip locked
        limit wanted
    )
    update queue.schedule s
    set leased_until = clock_timestamp() + make_interval(secs => lease_s * (1 << least(s.attempts, 6))),
        attempts = s.attempts + 1
    from due
    where s.tenant_id = due.tenant_id and s.schedule_id = due.schedule_id
    returning s.schedule_id, s.due_at, s.attempts, seal.mint_v3(s.tenant_id, 'system:scheduler', s.schedule_id, 600);
$$;

-- 3. What becomes of a task that has ended: first its log and checkpoints shrink to what anybody still reads, then, when the
-- tenant's time is over, nothing of it stays.
alter table rag.tenant
    add column task_retention_s double precision,   -- from a task's end on; null: for ever
    add constraint tenant_task_retention check (task_retention_s between 3600 and 315360000);
-- of those that there will be: whoever is here already was promised nothing, and loses nothing without having said so
alter table rag.tenant alter column task_retention_s set default 2592000;
grant select (tenant_id, task_retention_s) on rag.tenant to bulkhead_queue;
create policy retention on rag.tenant to bulkhead_queue using (true) with check (false);

create table queue.ended (
    tenant_id uuid not null,
    task_id uuid not null,
    ended_at timestamptz not null default clock_timestamp(),
    compacted boolean not null default false,
    leased_until timestamptz,
    attempts integer not null default 0,
    primary key (tenant_id, task_id)
);
create index ended_by_tenant on queue.ended (tenant_id, ended_at);
create index ended_to_compact on queue.ended (ended_at) where not compacted;

create function queue.note_end_v1() returns trigger
language plpgsql volatile security definer
set search_path = ''
as $$
begin
    insert into queue.ended (task_id, tenant_id) values (new.task_id, new.tenant_id) on conflict do nothing;
    return null;
end
$$;
create trigger task_ended
after insert or update of state on rag.task
for each row
when (new.state in ('completed', 'failed', 'canceled', 'rejected'))
execute function queue.note_end_v1();

-- Leases tasks whose time is over, longest overdue first, and tasks that ended settle_s ago and are not compacted. Each seal
-- opens its one task.
create function queue.claim_ended_v1(wanted integer, lease_s double precision, settle_s double precision)
returns table (task_id uuid, expired boolean, attempts integer, seal text)
language sql volatile security definer
set search_path = ''
as $$
    with expired as materialized (
        select t.tenant_id, e.task_id
        from rag.tenant t
        cross join lateral (
            select q.task_id, q.ended_at
            from queue.ended q
            where q.tenant_id = t.tenant_id
                and q.ended_at <= statement_timestamp() - make_interval(secs => t.task_retention_s)
                and (q.leased_until is null or q.leased_until <= clock_timestamp())
            order by q.ended_at
            limit wanted
        ) e
        order by e.ended_at + make_interval(secs => t.task_retention_s)
        limit wanted
    ),
    fresh as materialized (
        select q.tenant_id, q.task_id
        from queue.ended q
        where not q.compacted
            and q.ended_at <= statement_timestamp() - make_interval(secs => settle_s)
            and (q.leased_until is null or q.leased_until <= clock_timestamp())
            and (q.tenant_id, q.task_id) not in (select x.tenant_id, x.task_id from expired x)
            -- a webhook that still has to be told is told every event
            and not exists (select from queue.push p where p.task_id = q.task_id and p.due_at is not null)
        order by q.ended_at
        limit wanted
    ),
    free as materialized (
        select q.tenant_id, q.task_id
        from queue.ended q
        where (q.tenant_id, q.task_id) in (table expired union all table fresh)
            and (q.leased_until is null or q.leased_until <= clock_timestamp())
        for update skip locked
    )
    update queue.ended q
    set leased_until = clock_timestamp() + make_interval(secs => lease_s * (1 << least(q.attempts, 6))),
        attempts = q.attempts + 1
    from free
    where q.tenant_id = free.tenant_id and q.task_id = free.task_id
    returning q.task_id, (q.tenant_id, q.task_id) in (table expired), q.attempts,
        seal.mint_v3(q.tenant_id, 'system:retention', q.task_id, 600);
$$;

-- The claimed task is compacted, and comes again when its time is over; or it is gone, and with it its row here.
create function queue.finish_ended_v1(task uuid, gone boolean) returns void
language sql volatile security definer
set search_path = ''
as $$
    delete from queue.ended q where q.task_id = task and q.tenant_id = rag.current_tenant() and gone;
    update queue.ended q
    set compacted = true, leased_until = null, attempts = 0
    where q.task_id = task and q.tenant_id = rag.current_tenant();
$$;

-- A claim's seal opens the checkpoints of the claimed task, as it opens its row and its log.
do $$
declare
    target text;
begin
    foreach target in array array['checkpoints', 'checkpoint_blobs', 'checkpoint_writes'] loop
        execute format(
            'alter policy own_runs on checkpoint.%I '
            'using (subject = (select rag.current_subject()) or thread_id = (select rag.current_task()::text))', target
        );
    end loop;
end
$$;
grant delete on rag.task, rag.task_event to bulkhead_worker;
grant update (compacted_to) on rag.task to bulkhead_worker;

-- Takes from the log of a task that has ended up to `budget` pieces of artifacts that a later event starts anew or sets whole,
-- and its checkpoints. Numbers stay as they are. The first piece of each artifact stays: artifacts are told in that order.
-- Returns whether there is more. Waits for no lock longer than a second.
create function rag.compact_task_v1(task uuid, budget integer) returns boolean
language plpgsql volatile security invoker
set search_path = ''
set lock_timeout = '1s'
as $$
declare
    tenant uuid := rag.current_tenant();
    removed bigint;
    reached bigint;
begin
    perform 1
    from rag.task t
    where t.tenant_id = tenant and t.task_id = task and t.state in ('completed', 'failed', 'canceled', 'rejected')
    for no key update;
    if not found then
        return false;
    end if;
    delete from checkpoint.checkpoint_writes c where c.thread_id = task::text and c.tenant_id = tenant;
    delete from checkpoint.checkpoint_blobs c where c.thread_id = task::text and c.tenant_id = tenant;
    delete from checkpoint.checkpoints c where c.thread_id = task::text and c.tenant_id = tenant;
    with artifact as materialized (
        select
            e.payload ->> 'artifact_id' as id,
            min(e.seq) as first,
            max(e.seq) filter (where not (e.payload ->> 'append')::boolean) as whole
        from rag.task_event e
        where e.tenant_id = tenant and e.task_id = task and e.kind = 'artifact'
        group by 1
    ),
    superseded as materialized (
        select e.seq
        from rag.task_event e
        join artifact a on a.id = e.payload ->> 'artifact_id'
        where e.tenant_id = tenant and e.task_id = task and e.kind = 'artifact' and e.seq > a.first and e.seq < a.whole
        order by e.seq
        limit budget
    ),
    gone as (
        delete from rag.task_event e
        where e.tenant_id = tenant and e.task_id = task and e.seq = any (array(select s.seq from superseded s))
        returning e.seq
    )
    select count(*), max(g.seq) into removed, reached from gone g;
    update rag.task t
    set compacted_to = greatest(t.compacted_to, reached)
    where t.tenant_id = tenant and t.task_id = task and reached is not null;
    return removed >= budget;
end
$$;

-- Takes away a task that has ended, latest events first, `budget` of them at a time; then the task, and with it whatever refers
-- to it. Returns whether there is more. Waits for no lock longer than a second.
create function rag.delete_task_v1(task uuid, budget integer) returns boolean
language plpgsql volatile security invoker
set search_path = ''
set lock_timeout = '1s'
as $$
declare
    tenant uuid := rag.current_tenant();
    removed bigint;
begin
    perform 1
    from rag.task t
    where t.tenant_id = tenant and t.task_id = task and t.state in ('completed', 'failed', 'canceled', 'rejected')
    for update;
    if not found then
        return false;
    end if;
    delete from checkpoint.checkpoint_writes c where c.thread_id = task::text and c.tenant_id = tenant;
    delete from checkpoint.checkpoint_blobs c where c.thread_id = task::text and c.tenant_id = tenant;
    delete from checkpoint.checkpoints c where c.thread_id = task::text and c.tenant_id = tenant;
    delete from rag.task_event e
    where e.tenant_id = tenant
        and e.task_id = task
        and e.seq = any (
            array(
                select o.seq
                from rag.task_event o
                where o.tenant_id = tenant and o.task_id = task
                order by o.seq desc
                limit budget
            )
        );
    get diagnostics removed = row_count;
    if removed >= budget then
        return true;
    end if;
    delete from rag.task t where t.tenant_id = tenant and t.task_id = task;
    return false;
end
$$;
grant execute on function rag.compact_task_v1(uuid, integer), rag.delete_task_v1(uuid, integer) to bulkhead_worker;

-- what has ended before there was an end to it
alter table rag.task no force row level security;
insert into queue.ended (task_id, tenant_id, ended_at)
select t.task_id, t.tenant_id, t.updated_at
from rag.task t
where t.state in ('completed', 'failed', 'canceled', 'rejected');
alter table rag.task force row level security;

grant execute on function
    queue.claim_schedules_v1(integer, double precision),
    queue.claim_ended_v1(integer, double precision, double precision),
    queue.finish_ended_v1(uuid, boolean)
to bulkhead_worker;
alter table queue.schedule owner to bulkhead_queue;
alter table queue.ended owner to bulkhead_queue;
alter function queue.note_schedule_v1() owner to bulkhead_queue;
alter function queue.claim_schedules_v1(integer, double precision) owner to bulkhead_queue;
alter function queue.note_end_v1() owner to bulkhead_queue;
alter function queue.claim_ended_v1(integer, double precision, double precision) owner to bulkhead_queue;
alter function queue.finish_ended_v1(uuid, boolean) owner to bulkhead_queue;
