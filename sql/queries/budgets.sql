-- hold_charge
-- Hold the most that one physical call can cost in every budget that applies, or tell which has not that much left.
select h.refused, h.scope, h.period, h.remaining, h.resets_at
from rag.hold_charge_v1(
    {context}, {charge_id}, {call_key}, {attempt}, {model}, {endpoint}, {price_id}, {upper}, {team}, {task_id}, {max_cost},
    {lease_s}
) h;

-- start_charge
-- Note, durably, that the call is made now; false: it is not held any more.
select rag.start_charge_v1({context}, {charge_id}, {lease_s}) as started;

-- settle_charge
-- Replace a hold by what the call has cost; false: there is no such call.
select rag.settle_charge_v1(
    {context}, {charge_id}, {cost}, {estimated}, {prompt_tokens}, {cached_tokens}, {completion_tokens}
) as known;

-- release_charge
-- Give back what was held for a call that was not made, or not billed; false: there is no such call.
select rag.release_charge_v1({context}, {charge_id}) as known;

-- reserve_task
-- Reserve an amount for a task that this transaction accepts, or tell which budget has not that much left.
select r.refused, r.scope, r.period, r.remaining, r.resets_at
from rag.reserve_task_v1({task_id}, {amount}, {team}) r;

-- sweep_charges
-- End up to `wanted` calls of any tenant whose time is over; how many there were.
select queue.sweep_charges_v1({wanted}) as swept;

-- totals
-- What was spent in calls that were held between two times, by what they are asked to be told apart by.
select
    case when {by_day}::boolean then (c.held_at at time zone 'UTC')::date end as day,
    case when {by_model}::boolean then c.model end as model,
    case when {by_user}::boolean then c.subject end as subject,
    case when {by_team}::boolean then c.team end as team,
    count(*) as calls,
    count(*) filter (where c.estimated) as estimated_calls,
    coalesce(sum(c.prompt_tokens), 0)::bigint as prompt_tokens,
    coalesce(sum(c.cached_tokens), 0)::bigint as cached_tokens,
    coalesce(sum(c.completion_tokens), 0)::bigint as completion_tokens,
    sum(c.cost) as cost
from rag.charge c
where c.tenant_id = {tenant_id}
    and c.kind = 'call'
    and c.state = 'settled'
    and c.held_at >= {since}
    and c.held_at < {until}
    and ({subject}::text is null or c.subject = {subject}::text)
    and ({team}::text is null or c.team = {team}::text)
    and ({model}::text is null or c.model = {model}::text)
group by 1, 2, 3, 4
order by 1, 2, 3, 4;

-- charges
-- The same calls one by one, in the order in which they were held; a page of them, after the last row of the page before.
select
    c.charge_id, c.held_at, c.ended_at, c.task_id, c.call_key, c.attempt, c.subject, c.team, c.model, c.endpoint, c.price_id,
    c.upper, c.cost, c.estimated, c.prompt_tokens, c.cached_tokens, c.completion_tokens
from rag.charge c
where c.tenant_id = {tenant_id}
    and c.kind = 'call'
    and c.state = 'settled'
    and c.held_at >= {since}
    and c.held_at < {until}
    and ({subject}::text is null or c.subject = {subject}::text)
    and ({team}::text is null or c.team = {team}::text)
    and ({model}::text is null or c.model = {model}::text)
    and (
        {after_time}::timestamptz is null
        or (c.held_at, c.charge_id) > ({after_time}::timestamptz, {after_id}::uuid)
    )
order by c.held_at, c.charge_id
limit {wanted};

-- accounts
-- How a tenant's budgets stand at a moment; of tasks, those of one task.
select a.scope, a.scope_id, a.model, a.period, a.starts_at, a.ends_at, a.amount, a.held, a.settled, a.overrun
from rag.budget_account a
where a.tenant_id = {tenant_id}
    and a.starts_at <= {moment}
    and (a.ends_at > {moment} or (a.scope = 'task' and a.scope_id = {task_id}::text))
    and ({subject}::text is null or a.scope <> 'user' or a.scope_id = {subject}::text)
order by a.scope, a.scope_id, a.model, a.period;

-- alerts
-- Budgets that were used to 80 or 100 per cent, in the order in which they were; a page after the last row of the page before.
select
    b.account_id, b.mark, b.scope, b.scope_id, b.model, b.period, b.starts_at, b.ends_at, b.amount, b.used, b.at
from rag.budget_alert b
where b.tenant_id = {tenant_id}
    and (
        {after_time}::timestamptz is null
        or (b.at, b.account_id, b.mark) > ({after_time}::timestamptz, {after_id}::uuid, {after_mark}::smallint)
    )
order by b.at, b.account_id, b.mark
limit {wanted};

-- list_budgets
-- What an operator has set for a tenant.
select scope, scope_id, model, period, amount
from rag.budget
where tenant_id = {tenant_id}
order by scope, scope_id, model, period;

-- set_budget
-- Set, or set anew, one of a tenant's budgets; an amount of null counts and limits nothing.
insert into rag.budget (tenant_id, scope, scope_id, model, period, amount)
values ({tenant_id}, {scope}, {scope_id}, {model}, {period}, {amount})
on conflict (tenant_id, scope, scope_id, model, period) do update
set amount = excluded.amount, changed_at = clock_timestamp()
returning scope;

-- drop_budget
-- Take one of a tenant's budgets away.
delete from rag.budget
where tenant_id = {tenant_id}
    and scope = {scope}
    and scope_id = {scope_id}
    and model = {model}
    and period = {period}
returning scope;

-- list_tier_budgets
-- What the tenants of each tier may spend.
select t.name as tier, d.day, d.month
from rag.tier t
cross join lateral (
    select
        min(b.amount) filter (where b.period = 'day') as day,
        min(b.amount) filter (where b.period = 'month') as month
    from rag.tier_budget b
    where b.tier = t.name
) d
order by t.tenant_per_minute, t.name;

-- set_tier_budget
-- What a tenant of the tier may spend in a period, as the owner of the schema; null: as much as it likes.
with gone as (
    delete from rag.tier_budget
    where tier = {tier} and period = {period} and {amount}::numeric is null
),
made as (
    insert into rag.tier_budget (tier, period, amount)
    select {tier}, {period}, {amount}::numeric
    where {amount}::numeric is not null
    on conflict (tier, period) do update
    set amount = excluded.amount, changed_at = clock_timestamp()
)
select name
from rag.tier
where name = {tier};


-- task_cost
-- What the calls of one task have cost; null where none has a price.
select sum(c.cost) as cost
from rag.charge c
where c.task_id = {task_id} and c.kind = 'call' and c.price_id is not null and c.state in ('settled', 'released');
