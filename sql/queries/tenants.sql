-- create_tenant
-- A new tenant; its name is unique over the installation.
insert into rag.tenant (tenant_id, name, tier, language)
values (gen_random_uuid(), {name}, {tier}, {language}::text::regconfig)
returning tenant_id, name, tier, language::text as language, bm25_weight, vector_weight, cache_results, audit_query_text,
    task_retention_s, created_at;

-- list_tenants
-- Every tenant, by name.
select tenant_id, name, tier, language::text as language, bm25_weight, vector_weight, cache_results, audit_query_text,
    task_retention_s, created_at
from rag.tenant
order by name;

-- find_tenant
-- The tenant that an operator calls by its name or its id.
select tenant_id, name, tier, language::text as language, bm25_weight, vector_weight, cache_results, audit_query_text,
    task_retention_s, created_at
from rag.tenant
where name = {reference} or tenant_id::text = {reference};

-- set_weights
-- The weights of a tenant's own searches; null, both: the product's default.
update rag.tenant
set bm25_weight = {bm25_weight}, vector_weight = {vector_weight}
where tenant_id = {tenant_id}
returning tenant_id;

-- set_caching
-- Whether results of the tenant's searches may be kept.
update rag.tenant set cache_results = {allowed} where tenant_id = {tenant_id} returning tenant_id;

-- set_audit_query_text
-- Whether the tenant's audit trail keeps the texts of queries.
update rag.tenant set audit_query_text = {kept} where tenant_id = {tenant_id} returning tenant_id;

-- set_task_retention
-- How long the tenant's tasks are kept after their end, in seconds; null: for ever.
update rag.tenant set task_retention_s = {seconds} where tenant_id = {tenant_id} returning tenant_id;

-- set_tenant_tier
-- What the tenant has booked.
update rag.tenant set tier = {tier} where tenant_id = {tenant_id} returning tenant_id;

-- revoke
-- Outdate a token, a user's tokens or all tokens of a tenant, up to and including `before` (Unix seconds).
insert into seal.revocation (tenant_id, kind, subject, revoked_before)
values ({tenant_id}, {kind}, {subject}, {before})
on conflict (tenant_id, kind, subject) do update
set revoked_before = greatest(seal.revocation.revoked_before, excluded.revoked_before),
    revoked_at = clock_timestamp();
