-- The audit trail (docs/audit.md, docs/adr/0009-audit-trail.md): for each tenant one chain of rows without gaps, each with
-- the SHA-256 of itself and of the row before it. Logins that serve may append, through one function, and do nothing else.

alter table rag.tenant add column audit_query_text boolean not null default false;

-- NOTE: no foreign key to rag.tenant: what was done outlives whom it was done for.
create table rag.audit (
    tenant_id uuid not null,
    seq bigint not null,
    at timestamptz not null,            -- when the row was written; never before the row before it
    subject text not null,              -- this and token_ids are what the sealed context proves
    actor text,                         -- the service that acted for the subject
    door text not null,
    method text not null,
    target text not null,
    outcome text not null,              -- 'begun', 'ok', 'canceled' or an error code (rag/errors.py)
    documents text[] not null,          -- the first of them
    document_count integer not null,    -- all of them
    query_digest text,                  -- id of the key, ':', HMAC-SHA256 in hexadecimal
    query_text text,                    -- only of tenants that asked for it
    trace_id text,
    token_ids text[] not null,          -- jti of the token, then of those that it was exchanged from
    repeats integer not null,           -- how many refusals of one kind the row stands for
    begun bigint,                       -- seq of the row that was written before the work of this one
    previous bytea not null,            -- hash of the row before; 32 zero bytes in the first
    hash bytea not null,
    primary key (tenant_id, seq),
    constraint audit_seq check (seq >= 1),
    constraint audit_outcome check (outcome ~ '^[a-z_]{1,32}$'),
    constraint audit_counts check (document_count >= cardinality(documents) and repeats >= 1),
    -- beyond what the servers write (rag/audit/values.py): what an injected statement may append is no store of texts
    constraint audit_sizes check (
        length(door) <= 32 and length(method) <= 64 and length(target) <= 256 and length(actor) <= 256
        and length(query_digest) <= 128 and length(query_text) <= 10000 and length(trace_id) <= 64
        and cardinality(documents) <= 50
    ),
    constraint audit_hashes check (length(previous) = 32 and length(hash) = 32)
);

-- Where each chain ends. Its row is the lock that makes appends of all replicas one after another.
create table rag.audit_head (
    tenant_id uuid primary key,
    seq bigint not null,
    at timestamptz not null,
    hash bytea not null
) with (fillfactor = 50);

call rag.isolate('rag.audit');
call rag.isolate('rag.audit_head');
-- of the function below, which names the tenant that it has just verified: otherwise each of its statements verified it again
create policy audit_append on rag.audit to bulkhead_owner using (true) with check (true);
create policy audit_append on rag.audit_head to bulkhead_owner using (true) with check (true);
-- an operator reads every chain and writes none
create policy audit_read on rag.audit to bulkhead_maintenance using (true) with check (false);
create policy audit_read on rag.audit_head to bulkhead_maintenance using (true) with check (false);
grant select on rag.audit, rag.audit_head to bulkhead_maintenance;

-- Appends entries, in their order, to the chain of the one tenant that all contexts prove, and returns the seq of the
-- first. Who did it is taken from the context that an entry names (from 1), never from the entry. Nothing is appended when
-- one of the contexts is refused. Entries that need not survive a crash of the database server in the same second
-- (durable: false) do not wait for its disk; whatever is lost then is lost from the end, so the chain stays whole.
--
-- A row's hash is that of the UTF-8 text of a JSON array, as jsonb prints it: rag/audit/chain.py makes the same text.
create function rag.append_audit_v1(contexts text[], entries jsonb, durable boolean) returns bigint
language plpgsql volatile security definer
set search_path = ''
set plan_cache_mode = force_generic_plan
set lock_timeout = '3s'
as $$
declare
    tenant uuid;
    caller jsonb;
    callers jsonb[] := '{}';
    keeps_text boolean;
    head rag.audit_head;
    entry record;
    line rag.audit;
    lines rag.audit[] := '{}';
begin
    for i in 1 .. cardinality(contexts) loop
        perform set_config('app.context', contexts[i], true);
        caller := seal.verified_context();
        tenant := coalesce(tenant, (caller ->> 'tenant')::uuid);
        if tenant <> (caller ->> 'tenant')::uuid then
            raise exception 'tenant context refused' using errcode = '42501', detail = 'another tenant';
        end if;
        callers := callers || caller;
    end loop;
    if not durable then
        perform set_config('synchronous_commit', 'off', true);
    end if;

    select * into head from rag.audit_head h where h.tenant_id = tenant for update;
    if not found then
        insert into rag.audit_head (tenant_id, seq, at, hash)
        values (tenant, 0, '-infinity', decode(repeat('00', 32), 'hex'))
        on conflict (tenant_id) do nothing;
        select * into strict head from rag.audit_head h where h.tenant_id = tenant for update;
    end if;
    select t.audit_query_text into strict keeps_text from rag.tenant t where t.tenant_id = tenant;

    head.at := greatest(head.at, clock_timestamp());
    for entry in
        select e.*
        from rows from (
            jsonb_to_recordset(entries) as (
                context integer, actor text, door text, method text, target text, outcome text, documents text[],
                document_count integer, query_digest text, query_text text, trace_id text, repeats integer, begun bigint
            )
        ) with ordinality as e
        order by e.ordinality
    loop
        caller := callers[entry.context];
        line.tenant_id := tenant;
        line.seq := head.seq + 1;
        line.at := head.at;
        line.subject := caller ->> 'sub';
        line.actor := entry.actor;
        line.door := entry.door;
        line.method := entry.method;
        line.target := entry.target;
        line.outcome := entry.outcome;
        line.documents := entry.documents;
        line.document_count := entry.document_count;
        line.query_digest := entry.query_digest;
        line.query_text := case when keeps_text then entry.query_text end;
        line.trace_id := entry.trace_id;
        line.token_ids := array(select jsonb_array_elements_text(caller -> 'jti'));
        line.repeats := entry.repeats;
        line.begun := entry.begun;
        line.previous := head.hash;
        line.hash := sha256(convert_to(
            jsonb_build_array(
                'bulkhead audit v1', line.tenant_id, line.seq,
                to_char(line.at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
                line.subject, line.actor, line.door, line.method, line.target, line.outcome, line.documents,
                line.document_count, line.query_digest, line.query_text, line.trace_id, line.token_ids, line.repeats,
                line.begun, encode(line.previous, 'hex')
            )::text,
            'UTF8'
        ));
        lines := lines || line;
        head.seq := line.seq;
        head.hash := line.hash;
    end loop;
    insert into rag.audit select l.* from unnest(lines) l;
    update rag.audit_head h set seq = head.seq, at = head.at, hash = head.hash where h.tenant_id = tenant;
    return head.seq - cardinality(lines) + 1;
end
$$;
grant execute on function rag.append_audit_v1(text[], jsonb, boolean) to bulkhead_app;
