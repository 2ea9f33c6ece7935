-- hold_task
-- The position of a task that the caller sees; no event is added to its log, and no webhook to it or taken away, until this
-- transaction has ended.
select version
from rag.task
where tenant_id = (select rag.current_tenant()) and task_id = {task_id}
for no key update;

-- create_config
-- A webhook of the caller's own, with the caller's grant; its place in the outbox is made by a trigger.
insert into rag.push_config (
    tenant_id, push_id, task_id, config_id, url, scheme, secrets, first_seq, subject, groups, token_ids, token_issued_at
)
values (
    (select rag.current_tenant()), {push_id}, {task_id}, {config_id}, {url}, {scheme}, {secrets}, {first_seq},
    (select rag.current_subject()), {groups}::text[], {token_ids}::text[], {token_issued_at}
);

-- get_config
-- The caller's own webhook of that name.
select push_id, task_id, config_id, url, scheme
from rag.push_config
where tenant_id = (select rag.current_tenant())
    and task_id = {task_id}
    and subject = (select rag.current_subject())
    and config_id = {config_id};

-- list_configs
-- The caller's own webhooks of one task by name, after a name (null: from the first).
select push_id, task_id, config_id, url, scheme
from rag.push_config
where tenant_id = (select rag.current_tenant())
    and task_id = {task_id}
    and subject = (select rag.current_subject())
    and ({after}::text is null or config_id > {after}::text)
order by config_id
limit {wanted};

-- count_configs
-- How many webhooks the caller has on one task.
select count(*)
from rag.push_config
where tenant_id = (select rag.current_tenant())
    and task_id = {task_id}
    and subject = (select rag.current_subject());

-- delete_config
-- Takes the caller's own webhook away; its place in the outbox goes with it.
delete from rag.push_config
where tenant_id = (select rag.current_tenant())
    and task_id = {task_id}
    and subject = (select rag.current_subject())
    and config_id = {config_id};

-- claimed_config
-- The webhook that a claim is for, with what closes its credentials and its maker's grant.
select tenant_id, push_id, task_id, config_id, url, scheme, secrets, first_seq, subject, groups, token_ids, token_issued_at
from rag.push_config
where tenant_id = (select rag.current_tenant()) and push_id = {push_id};

-- close_again
-- The same credentials under the active key.
update rag.push_config
set secrets = {secrets}
where tenant_id = (select rag.current_tenant()) and push_id = {push_id};

-- events_from
-- The next events of the log from a position on.
select seq, kind, payload, created_at
from rag.task_event
where tenant_id = (select rag.current_tenant()) and task_id = {task_id} and seq >= {seq}
order by seq
limit {wanted};

-- claim_pushes
-- Lease webhooks that are due, of any tenant; each comes with a seal for its task.
select push_id, task_id, next_seq, attempts, fence, seal
from queue.claim_pushes_v1({wanted}, {per_tenant}, {lease_s});

-- advance_push
-- Everything before `next_seq` was told; the lease begins anew.
select queue.advance_push_v1({push_id}, {fence}, {next_seq}, {lease_s});

-- rest_push
-- End the lease; nothing is left to tell, or (`soon`) somebody else goes on.
select queue.rest_push_v1({push_id}, {fence}, {soon});

-- fail_push
-- An attempt failed; null `delay_s`: no further one is made.
select queue.fail_push_v1({push_id}, {fence}, {delay_s}, {reason});

-- finish_push
-- Nothing will ever be left to tell.
select queue.finish_push_v1({push_id}, {fence});

-- dead_pushes
-- What was given up, latest first; null: of every tenant.
select push_id, tenant_id, task_id, next_seq, attempts, reason, dead_at
from queue.dead_pushes_v1({tenant_id});

-- redeliver_pushes
-- Try what was given up again: one, or (null) all of the tenant's.
select queue.redeliver_pushes_v1({tenant_id}, {push_id});
