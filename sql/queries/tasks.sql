-- create_task
-- Accept a task: row, first event and queue entry in one statement; or the task that the caller's key stands for already.
select c.task_id, c.context_id, c.workflow, c.input, c.created
from rag.create_task_v2(
    {task_id}, {context_id}, {workflow}, {input}, {message},
    {scopes}::text[], {groups}::text[], {team}, {token_ids}::text[], {token_issued_at}, {traceparent}, {key}
) c;

-- get_task
-- One task that the caller sees (docs/adr/0011-task-readers.md), as all of these.
select *
from rag.task
where tenant_id = (select rag.current_tenant()) and task_id = {task_id};

-- summarize_task
-- One task with its latest status and the names of its artifacts, in the order of their first appearance.
select
    t.*,
    (
        select e.payload ->> 'message'
        from rag.task_event e
        where e.tenant_id = t.tenant_id and e.task_id = t.task_id and e.kind = 'status'
        order by e.seq desc
        limit 1
    ) as message,
    array(
        select e.payload ->> 'name'
        from rag.task_event e
        where e.tenant_id = t.tenant_id and e.task_id = t.task_id and e.kind = 'artifact'
        group by 1
        order by min(e.seq)
    ) as artifacts
from rag.task t
where t.tenant_id = (select rag.current_tenant()) and t.task_id = {task_id};

-- count_own
-- The caller's own tasks by state, and how many of them were started in this month (UTC).
select
    t.state,
    count(*) as tasks,
    count(*) filter (where t.created_at >= date_trunc('month', clock_timestamp(), 'UTC')) as this_month
from rag.task t
where t.tenant_id = (select rag.current_tenant()) and t.subject = {subject}
group by t.state;

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

-- artifact_events
-- Of one task's log, what its artifacts are folded from.
select seq, kind, payload, created_at
from rag.task_event
where tenant_id = (select rag.current_tenant()) and task_id = {task_id} and kind = 'artifact'
order by seq;

-- artifact_names
-- The names of one task's artifacts.
select distinct payload ->> 'name' as name
from rag.task_event
where tenant_id = (select rag.current_tenant()) and task_id = {task_id} and kind = 'artifact';

-- latest_tasks
-- Ids of the tasks that changed last, latest first.
select task_id
from rag.task
where tenant_id = (select rag.current_tenant())
order by updated_at desc, task_id desc
limit {wanted};

-- tasks_between
-- Ids of tasks that lie between two, both included, in their order.
select task_id
from rag.task
where tenant_id = (select rag.current_tenant()) and task_id between {first} and {last}
order by task_id
limit {wanted};
