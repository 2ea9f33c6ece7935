-- Durable tasks and their append-only event log (a2a.md 2.4). The log is the truth: a task's row is its latest state,
-- its artifacts are folded from the events on read, and every subscriber on any replica reads the same rows.

create table rag.task (
    tenant_id uuid not null references rag.tenant,
    task_id uuid not null,
    context_id text not null,
    workflow text not null,
    state text not null,
    version bigint not null,            -- the seq of the last event: gap-free per task
    input jsonb not null,
    -- the grant that a run acts under once its caller is gone: what the caller's token said, never the token
    subject text not null,
    scopes text[] not null,
    groups text[] not null,
    team text,
    token_ids text[] not null,          -- revoking any of them ends the run
    token_issued_at double precision not null,
    traceparent text,
    created_at timestamptz not null default clock_timestamp(),
    updated_at timestamptz not null default clock_timestamp(),
    primary key (tenant_id, task_id),
    constraint task_state_known check (
        state in ('submitted', 'working', 'input-required', 'auth-required', 'completed', 'failed', 'canceled', 'rejected')
    ),
    constraint task_context_length check (length(context_id) between 1 and 256)
);
-- ListTasks pages newest first
create index task_by_time on rag.task (tenant_id, updated_at desc, task_id desc);
create index task_by_context on rag.task (tenant_id, context_id, updated_at desc, task_id desc);

create table rag.task_event (
    tenant_id uuid not null,
    task_id uuid not null,
    seq bigint not null,
    kind text not null check (kind in ('task', 'status', 'artifact')),
    payload jsonb not null,
    key text,                           -- a replayed step finds its key here and appends nothing
    created_at timestamptz not null default clock_timestamp(),
    primary key (tenant_id, task_id, seq),
    constraint task_event_key unique (tenant_id, task_id, key),
    constraint task_event_task foreign key (tenant_id, task_id) references rag.task
);

call rag.isolate('rag.task');
call rag.isolate('rag.task_event');
grant select, insert, update on rag.task to bulkhead_app;
grant select, insert on rag.task_event to bulkhead_app;

-- Which state may follow which (A2A 1.0, section 4.1.3). Terminal states are followed by nothing.
create function rag.task_may_become(current text, next text) returns boolean
language sql immutable parallel safe
set search_path = ''
return case current
    when 'submitted' then next in ('working', 'completed', 'failed', 'canceled', 'rejected', 'input-required', 'auth-required')
    when 'working' then next in ('working', 'completed', 'failed', 'canceled', 'rejected', 'input-required', 'auth-required')
    when 'input-required' then next in ('working', 'failed', 'canceled', 'completed')
    when 'auth-required' then next in ('working', 'failed', 'canceled', 'completed')
    else false
end;

-- Accepts a task: row, first event and queue entry, or nothing. A task id is only told to a caller once this commits.
create function rag.create_task_v1(
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
language plpgsql volatile security invoker
set search_path = ''
as $$
declare
    tenant uuid := rag.current_tenant();
begin
    insert into rag.task (
        tenant_id, task_id, context_id, workflow, state, version, input,
        subject, scopes, groups, team, token_ids, token_issued_at, traceparent
    )
    values (
        tenant, task, context, workflow_name, 'submitted', 1, workflow_input,
        rag.current_subject(), grant_scopes, grant_groups, grant_team, grant_tokens, grant_issued_at, trace
    );
    insert into rag.task_event (tenant_id, task_id, seq, kind, payload)
    values (tenant, task, 1, 'task', jsonb_build_object('message', first_message));
    perform queue.enqueue_run_v1(task);
    return 1;
end
$$;

-- Appends one event and moves the task to `next` (null: stays). Returns its seq; for a key that the log already holds,
-- the seq that it has there.
-- Raises BH001 if `held` (the worker's fence; null for a face) is outdated, BH002 if the task has ended or may not become
-- `next`. Locks: the run, then the task, everywhere; the task's lock makes seq gap-free.
create function rag.append_event_v1(
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
    new_seq bigint;
begin
    if ends then
        perform queue.lock_run_v1(task, held);
    elsif held is not null then
        perform queue.hold_fence_v1(task, held);
    end if;
    perform 1 from rag.task t where t.tenant_id = tenant and t.task_id = task for no key update;
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
    insert into rag.task_event (tenant_id, task_id, seq, kind, payload, key)
    values (tenant, task, new_seq, event_kind, event_payload, event_key);
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

grant execute on function
    rag.task_may_become(text, text),
    rag.create_task_v1(uuid, text, text, jsonb, jsonb, text[], text[], text, text[], double precision, text),
    rag.append_event_v1(uuid, bigint, text, jsonb, text, text)
to bulkhead_app;
