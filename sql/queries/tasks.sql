-- create_task
-- Accept a task: row, first event and queue entry in one statement; or the task that the caller's key stands for already.
select c.task_id, c.context_id, c.workflow, c.input, c.request_hash, c.created
from rag.create_task_v3(
    {task_id}, {context_id}, {workflow}, {input}, {message},
    {scopes}::text[], {groups}::text[], {team}, {token_ids}::text[], {token_issued_at}, {traceparent}, {key}, {hash}
) c;

-- create_task_alone
-- As create_task, in one round trip.
select c.task_id, c.context_id, c.workflow, c.input, c.request_hash, c.created
from rag.create_task_alone_v1(
    {context}, {task_id}, {context_id}, {workflow}, {input}, {message},
    {scopes}::text[], {groups}::text[], {team}, {token_ids}::text[], {token_issued_at}, {traceparent}, {key}, {hash}
) c;

-- get_task
-- One task that the caller sees (docs/adr/0011-task-readers.md), as all of these.
select *
from rag.task
where tenant_id = (select rag.current_tenant()) and task_id = {task_id};

-- read_task_alone
-- One task that the caller sees, and its log from a position on (null: without), in one round trip.
select (r.found).*, r.seqs, r.kinds, r.payloads, r.times
from rag.read_task_v1({context}, {task_id}, {after}) r;

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

-- events_after_alone
-- As events_after, in one round trip.
select e.seq, e.kind, e.payload, e.created_at
from rag.events_after_v1({context}, {task_id}, {after}) e;

-- events_of
-- The logs of several tasks, for a list; without artifacts unless they are asked for.
select task_id, seq, kind, payload, created_at
from rag.task_event
where tenant_id = (select rag.current_tenant())
    and task_id = any({task_ids}::uuid[])
    and ({artifacts}::boolean or kind <> 'artifact')
order by task_id, seq;

-- append_event
-- Append one event, once per key, and move the task's state; null `fence` is a face, not a worker. A null answer: there is a
-- message after `read`, and the task was not completed.
select rag.append_event_v2({task_id}, {fence}, {kind}, {payload}, {key}, {state}, {read});

-- append_event_alone
-- As append_event, in one round trip.
select rag.append_event_alone_v1({context}, {task_id}, {fence}, {kind}, {payload}, {key}, {state}, {read}) as seq;

-- ask
-- Ask the task's caller, and park the run until it is answered.
select rag.ask_v1({task_id}, {fence}, {state}, {payload}, {wait_s});

-- receive_message
-- Take a message to a task: the answer to the question `answers`, or (null) something more for a run that `takes` it.
select rag.receive_message_v1({task_id}, {message}, {key}, {answers}, {takes});

-- find_message
-- Seq of the message that the log of one task holds under a key.
select seq
from rag.task_event
where tenant_id = (select rag.current_tenant()) and task_id = {task_id} and key = {key};

-- received_bytes
-- How much one task's caller has sent it since it was accepted.
select coalesce(sum(octet_length(payload::text)), 0)
from rag.task_event
where tenant_id = (select rag.current_tenant()) and task_id = {task_id} and kind = 'status' and payload ? 'received';

-- conversation
-- Of one task's log, what was asked and what was received after a position.
select seq, kind, payload, created_at
from rag.task_event
where tenant_id = (select rag.current_tenant())
    and task_id = {task_id}
    and seq > {after}
    and kind = 'status'
    and (payload ? 'form' or payload ? 'received')
order by seq;

-- begin_call
-- Begin a run's call to the outside, or tell the result that is recorded for its key.
select c.refused, c.result, c.attempts, c.calls, c.repeated, c.prompt_tokens, c.completion_tokens
from rag.begin_call_alone_v1({context}, {task_id}, {fence}, {key}, {kind}, {name}, {max_calls}, {max_tokens}) c;

-- finish_call
-- Record the result of a call.
select rag.finish_call_alone_v1({context}, {task_id}, {fence}, {key}, {result}, {prompt_tokens}, {completion_tokens});

-- usage
-- What one task's calls come to.
select
    count(*) as calls,
    coalesce(sum(attempts - 1), 0)::bigint as repeated,
    coalesce(sum(prompt_tokens), 0)::bigint as prompt_tokens,
    coalesce(sum(completion_tokens), 0)::bigint as completion_tokens
from rag.task_call
where tenant_id = (select rag.current_tenant()) and task_id = {task_id};

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
select queue.release_runs_v1({worker}, {task_ids}::uuid[], {fences}::bigint[]) as released;

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
