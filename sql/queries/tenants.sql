-- create_tenant
-- A new tenant; its name is unique over the installation.
insert into rag.tenant (tenant_id, name, tier, language)
values (gen_random_uuid(), {name}, {tier}, {language}::text::regconfig)
returning tenant_id, name, tier, language::text as language, created_at;

-- list_tenants
-- Every tenant, by name.
select tenant_id, name, tier, language::text as language, created_at
from rag.tenant
order by name;

-- find_tenant
-- The tenant that an operator calls by its name or its id.
select tenant_id, name, tier, language::text as language, created_at
from rag.tenant
where name = {reference} or tenant_id::text = {reference};

-- revoke
-- Outdate a token, a user's tokens or all tokens of a tenant, up to and including `before` (Unix seconds).
insert into seal.revocation (tenant_id, kind, subject, revoked_before)
values ({tenant_id}, {kind}, {subject}, {before})
on conflict (tenant_id, kind, subject) do update
set revoked_before = greatest(seal.revocation.revoked_before, excluded.revoked_before),
    revoked_at = clock_timestamp();
