-- A task is a conversation. A run may ask and wait; whoever started the task answers, or tells a working run something more.
-- What a run does to the outside is a call with a key and one recorded result.

alter table rag.task
    add column asked bigint,                        -- seq of the status that asks; null while nobody is asked
    add column answer_by timestamptz,               -- and until when an answer is waited for
    add column inbox bigint not null default 0;     -- seq of the last message that came while the task worked
grant update (asked, answer_by, inbox) on rag.task to bulkhead_app;

-- 1. Parking. A run that waits for an answer stays in the queue, leased to nobody until the time for the answer is over: then
-- it is claimed like any other, and whoever claims it ends the task. Others see the task, and leave its run alone.
grant select (subject) on rag.task to bulkhead_queue;
set local role bulkhead_queue;
create function queue.owns_task_v1(task uuid) returns boolean
language sql stable security invoker
set search_path = ''
as $$
    select exists (
        select
        from rag.task t
        where t.tenant_id = rag.current_tenant() and t.task_id = task and t.subject = rag.current_subject()
    );
$$;
revoke execute on function queue.owns_task_v1(uuid) from public;
reset role;

create function queue.park_run_v1(task uuid, held bigint, until timestamptz) returns void
language sql volatile security definer
set search_path = ''
as $$
    update queue.run
    set worker = null, leased_until = until, fence = fence + 1, attempt = 0
    where task_id = task and fence = held and tenant_id = rag.current_tenant() and queue.owns_task_v1(task);
$$;
-- Nobody holds a run that waits; should somebody have claimed it to end it, the new fence takes it from them.
create function queue.wake_run_v1(task uuid) returns void
language sql volatile security definer
set search_path = ''
as $$
    update queue.run
    set worker = null, leased_until = null, fence = fence + 1, attempt = 0
    where task_id = task and tenant_id = rag.current_tenant() and queue.owns_task_v1(task);
    select pg_notify('bulkhead_run', '');
$$;
grant execute on function queue.park_run_v1(uuid, bigint, timestamptz), queue.wake_run_v1(uuid) to bulkhead_app;
alter function queue.park_run_v1(uuid, bigint, timestamptz) owner to bulkhead_queue;
alter function queue.wake_run_v1(uuid) owner to bulkhead_queue;

-- Many runs wait for answers, and none of them is looked at by whoever looks for work: a time that does not change within the
-- statement can be searched in an index, which clock_timestamp() cannot.
set local role bulkhead_queue;
create index run_by_due on queue.run ((coalesce(leased_until, '-infinity'::timestamptz)));
create index run_by_worker on queue.run (worker) where worker is not null;

create or replace function queue.claim_runs_v1(claimant text, wanted integer, lease_s double precision)
returns table (task_id uuid, fence bigint, attempt integer, seal text)
language sql volatile security definer
set search_path = ''
as $$
    with suspect as materialized (
        select q.task_id
        from queue.run q
        where coalesce(q.leased_until, '-infinity'::timestamptz) <= statement_timestamp()
            and q.attempt >= 2
            and not exists (
                select from queue.run h
                where h.worker = claimant and h.attempt > 2 and h.leased_until > statement_timestamp()
            )
        order by q.enqueued_at
        for update skip locked
        limit least(wanted, 1)
    ),
    other as materialized (
        select q.task_id
        from queue.run q
        where coalesce(q.leased_until, '-infinity'::timestamptz) <= statement_timestamp() and q.attempt < 2
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

-- 2. The log. A run does what it is told and shows what it asks with the rights of whoever started it: nobody else puts words
-- into either mouth.
create policy own_words on rag.task_event as restrictive for insert to bulkhead_app
with check (not payload ?| array['received', 'form'] or subject = (select rag.current_subject()));

-- As rag.append_event_v1. A run that would complete the task says up to which message it has `read` (null: it takes none);
-- null is returned, and nothing written, while there is a later one.
create function rag.append_event_v2(
    task uuid,
    held bigint,
    event_kind text,
    event_payload jsonb,
    event_key text,
    next text,
    read bigint
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
    if next = 'completed' and stored.inbox > read then
        return null;
    end if;
    update rag.task t
    set
        version = t.version + 1,
        state = coalesce(next, t.state),
        updated_at = clock_timestamp(),
        -- whatever it becomes, it asks no longer
        asked = case when next is null then t.asked end,
        answer_by = case when next is null then t.answer_by end
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

-- Workers of the version before call this until they are replaced.
create or replace function rag.append_event_v1(
    task uuid,
    held bigint,
    event_kind text,
    event_payload jsonb,
    event_key text,
    next text
)
returns bigint
language sql volatile security invoker
set search_path = ''
as $$
    select rag.append_event_v2(task, held, event_kind, event_payload, event_key, next, null);
$$;

-- Has the run ask: the status that carries the question, and the run parked for up to `wait_s` seconds, in one. Returns the
-- question's seq.
-- Raises BH001 if `held` is outdated, BH002 if the task has ended.
create function rag.ask_v1(
    task uuid,
    held bigint,
    next text,                          -- input-required or auth-required
    event_payload jsonb,
    wait_s double precision
)
returns bigint
language plpgsql volatile security invoker
set search_path = ''
as $$
declare
    tenant uuid := rag.current_tenant();
    stored rag.task;
    until timestamptz := clock_timestamp() + make_interval(secs => wait_s);
begin
    perform queue.lock_run_v1(task, held);
    select * into stored from rag.task t where t.tenant_id = tenant and t.task_id = task for no key update;
    if next not in ('input-required', 'auth-required') or not rag.task_may_become(stored.state, next) then
        raise exception 'task has ended' using errcode = 'BH002';
    end if;
    update rag.task t
    set
        version = stored.version + 1,
        state = next,
        updated_at = clock_timestamp(),
        asked = stored.version + 1,
        answer_by = until
    where t.tenant_id = tenant and t.task_id = task;
    insert into rag.task_event (tenant_id, task_id, seq, kind, payload, subject, groups)
    values (tenant, task, stored.version + 1, 'status', event_payload, stored.subject, stored.groups);
    perform queue.park_run_v1(task, held, until);
    perform pg_notify('bulkhead_task', task::text || ' ' || (stored.version + 1)::text);
    return stored.version + 1;
end
$$;

-- Takes a message of the caller whose task it is. It answers the question with the seq `answers`, and the run goes on; or
-- (null) it is told to a run that `takes` messages. Returns the message's seq; for a key that the log already holds, the seq
-- that it has there.
-- Raises BH002 if the task has ended, BH006 if it takes no such message now, BH007 if the task is another's.
create function rag.receive_message_v1(
    task uuid,
    message jsonb,
    message_key text,
    answers bigint,
    takes boolean
)
returns bigint
language plpgsql volatile security invoker
set search_path = ''
as $$
declare
    tenant uuid := rag.current_tenant();
    stored rag.task;
    new_seq bigint;
    next text;
begin
    perform queue.lock_run_v1(task, null);
    select * into stored from rag.task t where t.tenant_id = tenant and t.task_id = task for no key update;
    if stored.subject is distinct from rag.current_subject() then
        raise exception 'the task is another''s' using errcode = 'BH007';
    end if;
    if message_key is not null then
        select e.seq into new_seq
        from rag.task_event e
        where e.tenant_id = tenant and e.task_id = task and e.key = message_key;
        if found then
            return new_seq;
        end if;
    end if;
    if stored.state in ('completed', 'failed', 'canceled', 'rejected') then
        raise exception 'task has ended' using errcode = 'BH002';
    end if;
    if stored.asked is distinct from answers or (answers is null and not takes) then
        raise exception 'task is busy' using errcode = 'BH006';
    end if;
    next := case when answers is null then stored.state else 'working' end;
    new_seq := stored.version + 1;
    update rag.task t
    set
        version = new_seq,
        state = next,
        updated_at = clock_timestamp(),
        asked = null,
        answer_by = null,
        inbox = case when answers is null then new_seq else t.inbox end
    where t.tenant_id = tenant and t.task_id = task;
    insert into rag.task_event (tenant_id, task_id, seq, kind, payload, key, subject, groups)
    values (
        tenant, task, new_seq, 'status',
        jsonb_build_object(
            'state', next, 'message', null, 'metadata', '{}'::jsonb, 'received', message, 'answers', answers
        ),
        message_key, stored.subject, stored.groups
    );
    if answers is not null then
        perform queue.wake_run_v1(task);
    end if;
    perform pg_notify('bulkhead_task', task::text || ' ' || new_seq::text);
    return new_seq;
end
$$;

-- 3. Calls. A call that was begun and has no result was lost with its worker: beginning it again is a further attempt.
create table rag.task_call (
    tenant_id uuid not null,
    task_id uuid not null,
    key text not null,
    kind text not null check (kind in ('model', 'tool', 'external')),
    name text not null,
    attempts integer not null default 1,
    result jsonb,
    prompt_tokens bigint not null default 0,
    completion_tokens bigint not null default 0,
    subject text not null default rag.current_subject(),
    started_at timestamptz not null default clock_timestamp(),
    finished_at timestamptz,
    primary key (tenant_id, task_id, key),
    constraint task_call_task foreign key (tenant_id, task_id) references rag.task on delete cascade
);
call rag.isolate('rag.task_call');
create policy own_runs on rag.task_call as restrictive to bulkhead_app
    using (subject = (select rag.current_subject()));
-- and none takes a place in another's record, where the run could then not make the call of that key
create policy of_an_own_task on rag.task_call as restrictive for insert to bulkhead_app
with check (
    exists (
        select
        from rag.task t
        where t.tenant_id = task_call.tenant_id and t.task_id = task_call.task_id and t.subject = task_call.subject
    )
);
grant select, insert, update (attempts, result, prompt_tokens, completion_tokens, finished_at) on rag.task_call
to bulkhead_app;

-- Begins a call, or tells its result if it has one. `refused`: the task has made as many calls, or used as many tokens, as it
-- may, and this one was not begun. The totals count logical calls, and the tokens of those that have ended.
-- Raises BH001 if `held` is outdated.
create function rag.begin_call_v1(
    task uuid,
    held bigint,
    call_key text,
    call_kind text,
    call_name text,
    max_calls bigint,
    max_tokens bigint
)
returns table (
    refused boolean, result jsonb, attempts integer, calls bigint, repeated bigint, prompt_tokens bigint, completion_tokens bigint
)
language plpgsql volatile security invoker
set search_path = ''
as $$
#variable_conflict use_column
declare
    tenant uuid := rag.current_tenant();
    known rag.task_call;
    total record;
begin
    perform queue.hold_fence_v1(task, held);
    -- one at a time: the bound is for all of a task's calls
    perform 1 from rag.task t where t.tenant_id = tenant and t.task_id = task for no key update;
    select count(*) as calls, coalesce(sum(c.attempts - 1), 0)::bigint as repeated,
        coalesce(sum(c.prompt_tokens), 0)::bigint as prompted, coalesce(sum(c.completion_tokens), 0)::bigint as completed
    into total
    from rag.task_call c
    where c.tenant_id = tenant and c.task_id = task;
    select * into known from rag.task_call c where c.tenant_id = tenant and c.task_id = task and c.key = call_key;
    if found and known.result is not null then
        return query select false, known.result, known.attempts, total.calls, total.repeated, total.prompted, total.completed;
        return;
    end if;
    if total.prompted + total.completed >= max_tokens or (known.key is null and total.calls >= max_calls) then
        return query select true, null::jsonb, 0, total.calls, total.repeated, total.prompted, total.completed;
        return;
    end if;
    if known.key is not null then
        update rag.task_call c
        set attempts = c.attempts + 1
        where c.tenant_id = tenant and c.task_id = task and c.key = call_key;
        return query select false, null::jsonb, known.attempts + 1,
            total.calls, total.repeated + 1, total.prompted, total.completed;
        return;
    end if;
    insert into rag.task_call (tenant_id, task_id, key, kind, name) values (tenant, task, call_key, call_kind, call_name);
    return query select false, null::jsonb, 1, total.calls + 1, total.repeated, total.prompted, total.completed;
end
$$;

-- Records the result of a call; the first one stands. Raises BH001 if `held` is outdated.
create function rag.finish_call_v1(
    task uuid,
    held bigint,
    call_key text,
    call_result jsonb,
    prompted bigint,
    completed bigint
)
returns void
language plpgsql volatile security invoker
set search_path = ''
as $$
declare
    tenant uuid := rag.current_tenant();
begin
    perform queue.hold_fence_v1(task, held);
    update rag.task_call c
    set result = call_result, prompt_tokens = prompted, completion_tokens = completed, finished_at = clock_timestamp()
    where c.tenant_id = tenant and c.task_id = task and c.key = call_key and c.result is null;
end
$$;

grant execute on function
    rag.append_event_v2(uuid, bigint, text, jsonb, text, text, bigint),
    rag.ask_v1(uuid, bigint, text, jsonb, double precision),
    rag.receive_message_v1(uuid, jsonb, text, bigint, boolean),
    rag.begin_call_v1(uuid, bigint, text, text, text, bigint, bigint),
    rag.finish_call_v1(uuid, bigint, text, jsonb, bigint, bigint)
to bulkhead_app;
