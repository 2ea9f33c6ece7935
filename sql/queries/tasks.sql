-- create_task
-- Accept a task: row, first event and queue entry in one statement.
select rag.create_task_v1(
    {task_id}, {context_id}, {workflow}, {input}, {message},
    {scopes}::text[], {groups}::text[], {team}, {token_ids}::text[], {token_issued_at}, {traceparent}
);

-- get_task
-- One task of the caller's tenant.
select *
from rag.task
where tenant_id = (select rag.current_tenant()) and task_id = {task_id};

-- list_tasks
-- A page, latest change first; every filter may be null. The cursor is the last row of the page before.
select *
from rag.task
where tenant_id = (select rag.current_tenant())
    and ({context_id}::text is null or context_id = {context_id}::text)
    and ({state}::text is null or state = {state}::text)
    and ({since}::timestamptz is null or updated_at >= {since}::timestamptz)
    and ({before_time}::timestamptz is null or (updated_at, task_id) < ({before_time}::timestamptz, {before_id}::uuid))
order by updated_at desc, task_id desc
limit {page_size};

-- count_tasks
-- How many tasks the same filters match.
select count(*)
from rag.task
where tenant_id = (select rag.current_tenant())
    and ({context_id}::text is null or context_id = {context_id}::text)
    and ({state}::text is null or state = {state}::text)
    and ({since}::timestamptz is null or updated_at >= {since}::timestamptz);

-- events_after
-- The log of one task from a position on.
select seq, kind, payload, created_at
from rag.task_event
where tenant_id = (select rag.current_tenant()) and task_id = {task_id} and seq > {after}
order by seq;

-- events_of
-- The logs of several tasks, for a list; without artifacts unless they are asked for.
select task_id, seq, kind, payload, created_at
from rag.task_event
where tenant_id = (select rag.current_tenant())
    and task_id = any({task_ids}::uuid[])
    and ({artifacts}::boolean or kind <> 'artifact')
order by task_id, seq;

-- append_event
-- Append one event, once per key, and move the task's state; null `fence` is a face, not a worker.
select rag.append_event_v1({task_id}, {fence}, {kind}, {payload}, {key}, {state});

-- claim_runs
-- Lease up to `wanted` runs of any tenant; each comes with a seal for its tenant.
select task_id, fence, attempt, seal
from queue.claim_runs_v1({worker}, {wanted}, {lease_s});

-- heartbeat_runs
-- Extend the leases that this worker still holds; one that is missing from the answer is lost.
select task_id, fence
from queue.heartbeat_runs_v1({worker}, {task_ids}::uuid[], {fences}::bigint[], {lease_s});

-- release_runs
-- Hand runs back before their leases end.
select queue.release_runs_v1({worker}, {task_ids}::uuid[], {fences}::bigint[]);
