-- What servers and workers do most often, each as one call that opens its context itself: a round trip instead of four. The call is
-- a transaction of its own, at whose end the context is gone.

-- The log of one task from a position on.
create function rag.events_after_v1(context text, task uuid, after bigint)
returns table (seq bigint, kind text, payload jsonb, created_at timestamptz)
language plpgsql volatile security invoker
set search_path = ''
as $$
#variable_conflict use_column
declare
    tenant uuid := rag.open_context_v1(context);
begin
    return query
    select e.seq, e.kind, e.payload, e.created_at
    from rag.task_event e
    where e.tenant_id = tenant and e.task_id = task and e.seq > after
    order by e.seq;
end
$$;

-- As rag.append_event_v2.
create function rag.append_event_alone_v1(
    context text,
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
begin
    perform rag.open_context_v1(context);
    return rag.append_event_v2(task, held, event_kind, event_payload, event_key, next, read);
end
$$;

-- As rag.create_task_v3, whose `context` is the conversation.
create function rag.create_task_alone_v1(
    context text,
    task uuid,
    conversation text,
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
begin
    perform rag.open_context_v1(context);
    return query
    select *
    from rag.create_task_v3(
        task, conversation, workflow_name, workflow_input, first_message,
        grant_scopes, grant_groups, grant_team, grant_tokens, grant_issued_at, trace, key, hash
    );
end
$$;

grant execute on function
    rag.events_after_v1(text, uuid, bigint),
    rag.append_event_alone_v1(text, uuid, bigint, text, jsonb, text, text, bigint),
    rag.create_task_alone_v1(
        text, uuid, text, text, jsonb, jsonb, text[], text[], text, text[], double precision, text, text, bytea
    )
to bulkhead_app;
