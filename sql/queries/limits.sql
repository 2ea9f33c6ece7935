-- tier_of_tenant
-- What the caller's tenant may ask for.
select
    r.name,
    r.tenant_per_minute,
    r.tenant_burst,
    r.tenant_concurrency,
    r.user_per_minute,
    r.user_burst,
    r.user_concurrency
from rag.tenant t
join rag.tier r on r.name = t.tier
where t.tenant_id = {tenant_id};

-- list_tiers
-- Every tier, the smallest first.
select
    name,
    tenant_per_minute,
    tenant_burst,
    tenant_concurrency,
    user_per_minute,
    user_burst,
    user_concurrency
from rag.tier
order by tenant_per_minute, name;

-- set_tier
-- Other numbers for a tier, as the owner of the schema; null leaves one as it is.
update rag.tier
set
    tenant_per_minute = coalesce({tenant_per_minute}::integer, tenant_per_minute),
    tenant_burst = coalesce({tenant_burst}::integer, tenant_burst),
    tenant_concurrency = coalesce({tenant_concurrency}::integer, tenant_concurrency),
    user_per_minute = coalesce({user_per_minute}::integer, user_per_minute),
    user_burst = coalesce({user_burst}::integer, user_burst),
    user_concurrency = coalesce({user_concurrency}::integer, user_concurrency),
    changed_at = clock_timestamp()
where name = {name}
returning name;
