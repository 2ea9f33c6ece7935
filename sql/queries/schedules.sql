-- add_schedule
-- A standing order of the caller, unless it has as many as it may.
insert into rag.schedule (
    tenant_id, schedule_id, name, workflow, request, options, cron, time_zone, every_s, missed, until, next_at,
    subject, scopes, groups, team, token_ids, token_issued_at
)
select
    rag.current_tenant(), {schedule_id}, {name}, {workflow}, {request}, {options}, {cron}, {time_zone}, {every_s}, {missed},
    {until}, {next_at}, rag.current_subject(), {scopes}::text[], {groups}::text[], {team}, {token_ids}::text[], {token_issued_at}
where (select count(*) from rag.schedule s where s.tenant_id = (select rag.current_tenant())) < {most}
returning *;

-- list_schedules
-- The caller's own, by name.
select *
from rag.schedule
where tenant_id = (select rag.current_tenant())
order by name;

-- find_schedule
-- One of the caller's own.
select *
from rag.schedule
where tenant_id = (select rag.current_tenant()) and name = {name};

-- get_schedule
-- The one that a claim's seal opens.
select *
from rag.schedule
where tenant_id = (select rag.current_tenant()) and schedule_id = {schedule_id};

-- pause_schedule
-- Nothing is due any more.
update rag.schedule
set state = 'paused', next_at = null
where tenant_id = (select rag.current_tenant()) and name = {name} and state = 'active'
returning *;

-- remove_schedule
-- And its place in the queue with it.
delete from rag.schedule
where tenant_id = (select rag.current_tenant()) and name = {name}
returning *;

-- restore_schedule
-- A schedule that was taken away, under a new grant: what it has done so far stays with it.
insert into rag.schedule (
    tenant_id, schedule_id, name, workflow, request, options, cron, time_zone, every_s, missed, until, next_at, last_at,
    last_task_id, fired, skipped, created_at, subject, scopes, groups, team, token_ids, token_issued_at
)
values (
    rag.current_tenant(), {schedule_id}, {name}, {workflow}, {request}, {options}, {cron}, {time_zone}, {every_s}, {missed},
    {until}, {next_at}, {last_at}, {last_task_id}, {fired}, {skipped}, {created_at}, rag.current_subject(),
    {scopes}::text[], {groups}::text[], {team}, {token_ids}::text[], {token_issued_at}
)
returning *;

-- claim_schedules
-- Leases schedules of any tenant that are due, each with a seal for it alone.
select c.schedule_id, c.due_at, c.attempts, c.seal
from queue.claim_schedules_v1({wanted}, {lease_s}) c;

-- move_on
-- From the time that is due to the next one (null: there is none); no row if somebody else has, or it was paused.
update rag.schedule
set
    next_at = {next_at},
    state = case when {next_at}::timestamptz is null then 'stopped' else 'active' end,
    reason = case when {next_at}::timestamptz is null then {reason}::text end,
    last_at = case when {task_id}::uuid is null then last_at else {due_at} end,
    last_task_id = coalesce({task_id}::uuid, last_task_id),
    fired = fired + ({task_id}::uuid is not null)::integer,
    skipped = skipped + ({task_id}::uuid is null)::integer
where tenant_id = (select rag.current_tenant())
    and schedule_id = {schedule_id}
    and state = 'active'
    and next_at = {due_at}::timestamptz
returning schedule_id;

-- stop_schedule
-- It can do no more, and says why.
update rag.schedule
set state = 'stopped', reason = {reason}, next_at = null
where tenant_id = (select rag.current_tenant())
    and schedule_id = {schedule_id}
    and state = 'active'
    and next_at = {due_at}::timestamptz
returning schedule_id;
