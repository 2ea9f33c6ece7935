-- alerts_in_force
-- How many budgets of all tenants were used to 80 and to 100 per cent in a period that is not over.
select b.mark, b.scope, b.period, count(*) as budgets
from rag.budget_alert b
where b.ends_at > clock_timestamp()
group by b.mark, b.scope, b.period;

-- standing
-- The budgets that a caller is held to, and how they stand at a moment: their own, their team's and the tenant's, whether or not
-- anything was held against them yet. Which ones apply is what rag.budgets_of_v1 says; tasks and requests have none that last.
with own as materialized (
    select distinct on (b.scope, b.model, b.period) b.scope, b.model, b.period, b.amount
    from rag.budget b
    where b.tenant_id = {tenant_id}
        and b.period in ('day', 'month')
        and case b.scope
            when 'user' then b.scope_id in ('', {subject}::text)
            when 'team' then b.scope_id in ('', {team}::text)
            else true
        end
    order by b.scope, b.model, b.period, b.scope_id desc
),
applies as (
    select o.scope, o.model, o.period, o.amount
    from own o
    where o.scope <> 'team' or {team}::text is not null
    union all
    select 'tenant', '', d.period, d.amount
    from rag.tenant t
    join rag.tier_budget d on d.tier = t.tier
    where t.tenant_id = {tenant_id}
        and not exists (select from own o where o.scope = 'tenant' and o.model = '' and o.period = d.period)
),
spans as (
    select
        p.*,
        case p.scope when 'user' then {subject}::text when 'team' then {team}::text else '' end as scope_id,
        date_trunc(p.period, {moment}::timestamptz at time zone 'UTC') at time zone 'UTC' as starts_at,
        (date_trunc(p.period, {moment}::timestamptz at time zone 'UTC') + ('1 ' || p.period)::interval)
            at time zone 'UTC' as ends_at
    from applies p
)
select
    s.scope,
    s.scope_id,
    s.model,
    s.period,
    s.starts_at,
    s.ends_at,
    s.amount,
    coalesce(a.held, u.held, 0) as held,
    coalesce(a.settled, u.settled, 0) as settled,
    coalesce(a.overrun, 0) as overrun
from spans s
left join rag.budget_account a on a.tenant_id = {tenant_id} and a.scope = s.scope and a.scope_id = s.scope_id
    and a.model = s.model and a.period = s.period and a.starts_at = s.starts_at
-- a budget that is younger than calls of its period has no account before the next one, and will begin with them
left join lateral (
    select
        sum(c.cost) as settled,
        sum(c.upper) filter (where c.state in ('held', 'started')) as held
    from rag.charge c
    where a.account_id is null
        and c.tenant_id = {tenant_id}
        and c.kind = 'call'
        and c.held_at >= s.starts_at
        and (s.model = '' or c.model = s.model)
        and (s.scope <> 'user' or c.subject = s.scope_id)
        and (s.scope <> 'team' or c.team = s.scope_id)
) u on true
order by s.scope, s.model, s.period;
