-- More of what servers and workers do all the time, each as one call that opens its context itself; see 0022.

-- One task that the caller sees, and its log from a position on (null: without), as columns that lie side by side. No row: none.
create function rag.read_task_v1(context text, task uuid, after bigint)
returns table (found rag.task, seqs bigint[], kinds text[], payloads jsonb[], times timestamptz[])
language plpgsql volatile security invoker
set search_path = ''
as $$
#variable_conflict use_column
declare
    tenant uuid := rag.open_context_v1(context);
begin
    return query
    select t, e.seqs, e.kinds, e.payloads, e.times
    from rag.task t
    cross join lateral (
        select
            array_agg(v.seq order by v.seq) as seqs,
            array_agg(v.kind order by v.seq) as kinds,
            array_agg(v.payload order by v.seq) as payloads,
            array_agg(v.created_at order by v.seq) as times
        from rag.task_event v
        where v.tenant_id = tenant and v.task_id = task and v.seq > after
    ) e
    where t.tenant_id = tenant and t.task_id = task;
end
$$;

-- As rag.begin_call_v1.
create function rag.begin_call_alone_v1(
    context text,
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
begin
    perform rag.open_context_v1(context);
    return query
    select *
    from rag.begin_call_v1(task, held, call_key, call_kind, call_name, max_calls, max_tokens);
end
$$;

-- As rag.finish_call_v1.
create function rag.finish_call_alone_v1(
    context text,
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
begin
    perform rag.open_context_v1(context);
    perform rag.finish_call_v1(task, held, call_key, call_result, prompted, completed);
end
$$;

grant execute on function
    rag.read_task_v1(text, uuid, bigint),
    rag.begin_call_alone_v1(text, uuid, bigint, text, text, text, bigint, bigint),
    rag.finish_call_alone_v1(text, uuid, bigint, text, jsonb, bigint, bigint)
to bulkhead_app;
