-- Sealed tenant context: which tenant a transaction works for is proved by a MAC, not claimed by a setting.
-- tenancy.md 1: policies call rag.current_tenant(), which verifies the seal once per statement and raises 42501.

create schema seal;
create schema rag;
create schema queue;
revoke all on schema seal, rag, queue from public;
alter default privileges revoke execute on functions from public;
grant usage on schema rag to bulkhead_app, bulkhead_maintenance, bulkhead_queue;
grant usage on schema queue to bulkhead_app;
grant usage, create on schema queue to bulkhead_queue;
grant usage on schema seal to bulkhead_queue, bulkhead_maintenance;

-- HMAC keys as precomputed pads (RFC 2104), so that a verification is two sha256() calls and no extension.
create table seal.key (
    kid text primary key check (kid ~ '^[A-Za-z0-9_-]{1,32}$'),
    inner_pad bytea not null check (length(inner_pad) = 64),
    outer_pad bytea not null check (length(outer_pad) = 64),
    active boolean not null,
    created_at timestamptz not null default clock_timestamp()
);
-- exactly one key seals; others only verify, during a rotation
create unique index key_one_active on seal.key (active) where active;

create table rag.tenant (
    tenant_id uuid primary key,
    name text not null,
    tier text not null default 'free',
    language regconfig not null default 'pg_catalog.english',
    created_at timestamptz not null default clock_timestamp(),
    constraint tenant_name_unique unique (name),
    constraint tenant_name_form check (name ~ '^[a-z0-9][a-z0-9-]{0,62}$'),
    constraint tenant_tier_known check (tier in ('free', 'pro', 'enterprise'))
);
alter table rag.tenant enable row level security;
alter table rag.tenant force row level security;
grant select on rag.tenant to bulkhead_app;
grant select, insert, update on rag.tenant to bulkhead_maintenance;
-- the control plane: operators see every tenant's row, and so does the function that checks that a tenant exists
create policy tenant_control on rag.tenant
    to bulkhead_owner, bulkhead_maintenance
    using (true)
    with check (true);

-- Revocation epochs. A seal carries the token ids and issue time it stands on; a row here outdates them at once.
create table seal.revocation (
    tenant_id uuid not null references rag.tenant,
    kind text not null check (kind in ('token', 'user', 'tenant')),
    subject text not null,
    revoked_before double precision not null,  -- Unix seconds; tokens issued at or before this moment are dead
    revoked_at timestamptz not null default clock_timestamp(),
    primary key (tenant_id, kind, subject)
);
alter table seal.revocation enable row level security;
alter table seal.revocation force row level security;
grant select, insert, update on seal.revocation to bulkhead_maintenance;
create policy revocation_control on seal.revocation
    to bulkhead_owner, bulkhead_maintenance
    using (true)
    with check (true);

-- Returns the verified payload of this transaction's seal. The order of the steps is the security argument:
-- 1 a context is present; 2 its key is known; 3 the mac is right; 4 it has not expired; 5 the tenant exists;
-- 6 neither token, user nor tenant has been revoked. Anything else raises 42501; nothing ever returns "no tenant".
create function seal.verified_context() returns jsonb
language plpgsql stable parallel safe security definer
set search_path = ''
as $$
declare
    context text := current_setting('app.context', true);
    payload_text text;
    payload jsonb;
    expected bytea;
    given bytea;
    tenant uuid;
    issued double precision;
begin
    if context is null or context = '' then
        raise exception 'tenant context refused' using errcode = '42501', detail = 'missing';
    end if;
    payload_text := substr(context, length(split_part(context, '.', 1)) + length(split_part(context, '.', 2)) + 3);
    select sha256(outer_pad || sha256(inner_pad || convert_to(payload_text, 'UTF8')))
        into expected
        from seal.key
        where kid = split_part(context, '.', 1);
    given := convert_to(split_part(context, '.', 2), 'UTF8');
    -- both sides are hashed again, so that the comparison's timing says nothing about the expected mac
    if expected is null or sha256(given) is distinct from sha256(convert_to(encode(expected, 'hex'), 'UTF8')) then
        raise exception 'tenant context refused' using errcode = '42501', detail = 'forged';
    end if;
    payload := payload_text::jsonb;
    if ((payload ->> 'exp')::double precision > extract(epoch from clock_timestamp())) is not true then
        raise exception 'tenant context refused' using errcode = '42501', detail = 'expired';
    end if;
    tenant := (payload ->> 'tenant')::uuid;
    issued := (payload ->> 'iat')::double precision;
    if tenant is null or issued is null or not exists (select from rag.tenant t where t.tenant_id = tenant) then
        raise exception 'tenant context refused' using errcode = '42501', detail = 'unknown tenant';
    end if;
    if exists (
        select
        from seal.revocation r
        where r.tenant_id = tenant
            and (
                (r.kind = 'token' and payload -> 'jti' ? r.subject)
                or (r.kind = 'user' and r.subject = payload ->> 'sub' and issued <= r.revoked_before)
                or (r.kind = 'tenant' and issued <= r.revoked_before)
            )
    ) then
        raise exception 'tenant context refused' using errcode = '42501', detail = 'revoked';
    end if;
    return payload;
end
$$;

create function rag.current_tenant() returns uuid
language plpgsql stable parallel safe security definer
set search_path = ''
as $$
begin
    return (seal.verified_context() ->> 'tenant')::uuid;
end
$$;
grant execute on function rag.current_tenant() to bulkhead_app, bulkhead_queue, bulkhead_maintenance;

create function rag.current_subject() returns text
language plpgsql stable parallel safe security definer
set search_path = ''
as $$
begin
    return seal.verified_context() ->> 'sub';
end
$$;
grant execute on function rag.current_subject() to bulkhead_app, bulkhead_queue;

-- Sets the context for this transaction only and verifies it at once. The policies' own check is lazy (an empty table
-- would answer "no rows" without any context), so this eager one is the first wall and they are the second.
create function rag.open_context_v1(context text) returns uuid
language plpgsql volatile security invoker
set search_path = ''
as $$
begin
    perform set_config('app.context', context, true);
    return rag.current_tenant();
end
$$;
grant execute on function rag.open_context_v1(text) to bulkhead_app;

-- Mints a seal for work that starts from a queue, without a caller. Only the queue functions may call it.
create function seal.mint_v1(tenant uuid, subject text, lifetime_s double precision) returns text
language plpgsql volatile security definer
set search_path = ''
as $$
declare
    signer seal.key;
    now_s double precision := extract(epoch from clock_timestamp());
    payload text;
begin
    select * into strict signer from seal.key where active;
    payload := jsonb_build_object(
        'tenant', tenant, 'sub', subject, 'groups', '[]'::jsonb, 'jti', '[]'::jsonb,
        'iat', now_s, 'exp', now_s + lifetime_s
    )::text;
    return signer.kid || '.'
        || encode(sha256(signer.outer_pad || sha256(signer.inner_pad || convert_to(payload, 'UTF8'))), 'hex')
        || '.' || payload;
end
$$;
grant execute on function seal.mint_v1(uuid, text, double precision) to bulkhead_queue;

create policy tenant_isolation on rag.tenant
    to bulkhead_app
    using (tenant_id = (select rag.current_tenant()))
    with check (tenant_id = (select rag.current_tenant()));
