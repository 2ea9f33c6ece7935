-- What the tenants of a tier may ask for (docs/limits.md), as data: an operator changes the numbers, and every server
-- follows within half a minute. Rates are in units of cost; a keyword search is one unit.

create table rag.tier (
    name text not null,
    tenant_per_minute integer not null,  -- of all of a tenant's users together
    tenant_burst integer not null,  -- at once, after a pause
    tenant_concurrency integer not null,  -- operations at a time in one server process
    user_per_minute integer not null,
    user_burst integer not null,
    user_concurrency integer not null,
    changed_at timestamptz not null default clock_timestamp(),
    constraint tier_name primary key (name),
    constraint tier_known check (name in ('free', 'pro', 'enterprise')),
    -- the largest numbers keep a burst's microseconds far below 2^53, up to where Redis's arithmetic is exact
    constraint tier_rates check (
        least(tenant_per_minute, tenant_burst, tenant_concurrency) >= 1
        and least(user_per_minute, user_burst, user_concurrency) >= 1
        and greatest(tenant_per_minute, user_per_minute) <= 10000000
        and greatest(tenant_burst, user_burst) <= 1000000
        and greatest(tenant_concurrency, user_concurrency) <= 100000
    )
);

insert into rag.tier (
    name, tenant_per_minute, tenant_burst, tenant_concurrency, user_per_minute, user_burst, user_concurrency
)
values
    ('free', 6000, 1000, 32, 3000, 500, 16),
    ('pro', 30000, 5000, 128, 6000, 1000, 32),
    ('enterprise', 300000, 50000, 512, 30000, 5000, 128);

-- The servers and operators read it; who changes it has become the owner. Rates are no tenant's secret.
grant select on rag.tier to bulkhead_app, bulkhead_maintenance;

alter table rag.tenant
    drop constraint tenant_tier_known,
    add constraint tenant_tier_known foreign key (tier) references rag.tier (name);
