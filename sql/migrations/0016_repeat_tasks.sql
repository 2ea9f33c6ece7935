-- A task that is asked for twice is accepted once: a caller's own key for what it wants done, unique among its keys. Whoever
-- lost an answer sends the same again and is told of the task that there is.
alter table rag.task
    add column idempotency_key text,
    add constraint task_key_length check (length(idempotency_key) between 1 and 128);
create unique index task_by_key on rag.task (tenant_id, subject, idempotency_key) where idempotency_key is not null;
-- what a caller has started, by state: its own account of itself
create index task_by_subject on rag.task (tenant_id, subject, state, created_at);

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
begin
    insert into rag.task (
        tenant_id, task_id, context_id, workflow, state, version, input,
        subject, scopes, groups, team, token_ids, token_issued_at, traceparent, idempotency_key
    )
    values (
        tenant, task, context, workflow_name, 'submitted', 1, workflow_input,
        rag.current_subject(), grant_scopes, grant_groups, grant_team, grant_tokens, grant_issued_at, trace, key
    )
    on conflict (tenant_id, subject, idempotency_key) where idempotency_key is not null do nothing;
    if found then
        insert into rag.task_event (tenant_id, task_id, seq, kind, payload)
        values (tenant, task, 1, 'task', jsonb_build_object('message', first_message));
        perform queue.enqueue_run_v1(task);
        return query select task, context, workflow_name, workflow_input, true;
        return;
    end if;
    return query
    select t.task_id, t.context_id, t.workflow, t.input, false
    from rag.task t
    where t.tenant_id = tenant and t.subject = rag.current_subject() and t.idempotency_key = key;
end
$$;
grant execute on function
    rag.create_task_v2(uuid, text, text, jsonb, jsonb, text[], text[], text, text[], double precision, text, text)
to bulkhead_app;
