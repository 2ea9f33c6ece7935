-- Budgets (docs/budgets.md, docs/adr/0014-ledger.md): what may be spent, and a ledger of what is held and spent. A call is let in by
-- every budget that applies or by none, and is held against them at the most that it can cost until its cost is known.
--
--     held -> started -> settled       the call was made
--         `-> released  `-> released   nothing was sent, or nothing was billed
--
-- Locks, everywhere in this order: charges of calls, reserves, accounts; of each kind by id. Amounts are exact decimals.

-- 1. What may be spent. Periods are UTC's.
create table rag.tier_budget (
    tier text not null references rag.tier (name),
    period text not null,
    amount numeric(30, 12) not null,
    changed_at timestamptz not null default clock_timestamp(),
    primary key (tier, period),
    constraint budget_period check (period in ('day', 'month')),
    constraint budget_amount check (amount between 0 and 1000000000000)
);
-- of a whole tenant; enterprise has none unless it is given one
insert into rag.tier_budget (tier, period, amount)
values ('free', 'day', 1), ('free', 'month', 10), ('pro', 'day', 20), ('pro', 'month', 200);
grant select on rag.tier_budget to bulkhead_app, bulkhead_maintenance;

-- A tenant's own. What it says of the whole tenant, all models and one period replaces what its tier says.
create table rag.budget (
    tenant_id uuid not null references rag.tenant,
    scope text not null,
    scope_id text not null default '',      -- a user's or team's name; '': each one that has no row of its own
    model text not null default '',         -- '': all models together
    period text not null,
    amount numeric(30, 12),                 -- null: no limit, but it is counted
    changed_at timestamptz not null default clock_timestamp(),
    primary key (tenant_id, scope, scope_id, model, period),
    constraint budget_scope check (
        (scope in ('tenant', 'team', 'user') and period in ('day', 'month'))
        or (scope = 'task' and period = 'task')
        or (scope = 'request' and period = 'request')
    ),
    constraint budget_scope_id check (scope_id = '' or (scope in ('team', 'user') and length(scope_id) <= 256)),
    constraint budget_model_length check (length(model) <= 256),
    constraint budget_amount check (amount between 0 and 1000000000000)
);

-- 2. The ledger. One row for each budget that something was held against, and each of its periods.
create table rag.budget_account (
    tenant_id uuid not null,
    account_id uuid not null default gen_random_uuid(),
    scope text not null,
    scope_id text not null,
    model text not null,
    period text not null,
    starts_at timestamptz not null,
    ends_at timestamptz,                    -- null: it does not
    amount numeric(30, 12),                 -- the limit, as of the last hold; null: none
    ceiling numeric(30, 12),                -- the limit, or what had been taken already when the limit was lowered below that
    held numeric(30, 12) not null default 0,
    settled numeric(30, 12) not null default 0,
    overrun numeric(30, 12) not null default 0,     -- of calls that cost more than they could: the server was not as it was said
    alerted smallint not null default 0,    -- per cent of the amount
    primary key (tenant_id, account_id),
    constraint budget_account_key unique (tenant_id, scope, scope_id, model, period, starts_at),
    constraint budget_account_amounts check (held >= 0 and settled >= 0 and overrun >= 0),
    constraint budget_account_not_oversold check (held + settled <= ceiling)
)
-- none of the columns that change is indexed: updates stay on the page
with (fillfactor = 50);

-- One row for each physical call, and one for what a task has reserved.
create table rag.charge (
    tenant_id uuid not null,
    charge_id uuid not null,
    kind text not null,
    parent uuid,                            -- the reserve that `drawn` was taken out of
    task_id uuid,
    call_key text not null,
    attempt integer not null,
    subject text not null,
    team text,
    model text not null,
    endpoint text not null,
    price_id uuid,
    upper numeric(30, 12) not null,         -- of a call: the most that it can cost. Of a reserve: what is left of it
    drawn numeric(30, 12) not null default 0,
    cost numeric(30, 12) not null default 0,
    estimated boolean not null default false,       -- nobody knows what it has cost: `cost` is `upper`
    state text not null,
    prompt_tokens bigint,
    cached_tokens bigint,
    completion_tokens bigint,
    held_at timestamptz not null,
    started_at timestamptz,
    ended_at timestamptz,
    -- where it is held, side by side: of the cost, the account `accounts[i]` bears what lies from `begins[i]` on, up to `shares[i]`
    accounts uuid[] not null,
    shares numeric(30, 12)[] not null,
    begins numeric(30, 12)[] not null,
    primary key (tenant_id, charge_id),
    constraint charge_kind check (kind in ('call', 'reserve')),
    constraint charge_state check (state in ('held', 'started', 'settled', 'released')),
    constraint charge_amounts check (
        upper between 0 and 1000000000000 and cost between 0 and 1000000000000 and drawn between 0 and upper
    ),
    constraint charge_sizes check (
        length(call_key) <= 1024 and length(team) <= 256 and length(model) <= 256 and length(endpoint) <= 256
    )
)
with (fillfactor = 70);
create index charge_by_time on rag.charge (tenant_id, held_at, charge_id);
create index charge_by_subject on rag.charge (tenant_id, subject, held_at);
create index charge_by_task on rag.charge (tenant_id, task_id) where task_id is not null;
create unique index charge_reserve on rag.charge (tenant_id, task_id) where kind = 'reserve';

-- Until when a call may be under way.
create table queue.charge (
    tenant_id uuid not null,
    charge_id uuid not null,
    leased_until timestamptz not null,
    primary key (tenant_id, charge_id)
);
create index charge_by_lease on queue.charge (leased_until);

-- A budget that was used to 80 or 100 per cent: a row for each, once.
create table rag.budget_alert (
    tenant_id uuid not null,
    account_id uuid not null,
    mark smallint not null,
    scope text not null,
    scope_id text not null,
    model text not null,
    period text not null,
    starts_at timestamptz not null,
    ends_at timestamptz,
    amount numeric(30, 12) not null,
    used numeric(30, 12) not null,
    at timestamptz not null default clock_timestamp(),
    primary key (tenant_id, account_id, mark)
);
create index budget_alert_by_time on rag.budget_alert (tenant_id, at, account_id, mark);

call rag.isolate('rag.budget');
call rag.isolate('rag.budget_account');
call rag.isolate('rag.charge');
call rag.isolate('rag.budget_alert');
grant select on rag.budget, rag.budget_account, rag.charge, rag.budget_alert to bulkhead_app;
-- of the functions below, which name the tenant that they have just verified: logins that serve call them, and write nothing else
create policy ledger on rag.budget to bulkhead_owner using (true) with check (false);
create policy ledger on rag.budget_account to bulkhead_owner using (true) with check (true);
create policy ledger on rag.charge to bulkhead_owner using (true) with check (true);
create policy ledger on rag.budget_alert to bulkhead_owner using (true) with check (true);
-- an operator sets every tenant's budgets, reads every ledger and writes none
create policy operated on rag.budget to bulkhead_maintenance using (true) with check (true);
create policy ledger_read on rag.budget_account to bulkhead_maintenance using (true) with check (false);
create policy ledger_read on rag.charge to bulkhead_maintenance using (true) with check (false);
create policy ledger_read on rag.budget_alert to bulkhead_maintenance using (true) with check (false);
grant select, insert, update, delete on rag.budget to bulkhead_maintenance;
grant select on rag.budget_account, rag.charge, rag.budget_alert to bulkhead_maintenance;

-- 3. Inside. These are nobody's but the functions' of section 4.

-- The budgets that apply at a moment, as accounts that nothing is in; of a request's, `amount` alone says something. `called` is
-- null for what is of no one model, as a reserve.
create function rag.budgets_of_v1(tenant uuid, who text, whose text, task uuid, called text, moment timestamptz)
returns setof rag.budget_account
language sql stable security invoker
set search_path = ''
as $$
    with own as materialized (
        select distinct on (b.scope, b.model, b.period) b.scope, b.model, b.period, b.amount
        from rag.budget b
        where b.tenant_id = tenant
            and b.model in ('', coalesce(called, ''))
            and case b.scope
                when 'user' then b.scope_id in ('', who)
                when 'team' then whose is not null and b.scope_id in ('', whose)
                when 'task' then task is not null
                else true
            end
        -- a row of one's own comes before the one for everybody
        order by b.scope, b.model, b.period, b.scope_id desc
    ),
    applies as (
        select o.scope, o.model, o.period, o.amount
        from own o
        union all
        select 'tenant', '', d.period, d.amount
        from rag.tenant t
        join rag.tier_budget d on d.tier = t.tier
        where t.tenant_id = tenant
            and not exists (select from own o where o.scope = 'tenant' and o.model = '' and o.period = d.period)
    )
    select
        tenant,
        null::uuid,
        p.scope,
        case p.scope when 'user' then who when 'team' then whose when 'task' then task::text else '' end,
        p.model,
        p.period,
        case
            when p.period in ('day', 'month') then date_trunc(p.period, moment at time zone 'UTC') at time zone 'UTC'
            else 'epoch'::timestamptz
        end,
        case
            when p.period in ('day', 'month')
                then (date_trunc(p.period, moment at time zone 'UTC') + ('1 ' || p.period)::interval) at time zone 'UTC'
        end,
        p.amount,
        null::numeric,
        0::numeric,
        0::numeric,
        0::numeric,
        0::smallint
    from applies p;
$$;

-- Writes down, once each, that an account is used to 80 and to 100 per cent.
create function rag.note_budget_v1(account rag.budget_account, mark smallint) returns void
language plpgsql volatile security invoker
set search_path = ''
as $$
begin
    insert into rag.budget_alert (
        tenant_id, account_id, mark, scope, scope_id, model, period, starts_at, ends_at, amount, used
    )
    select
        account.tenant_id, account.account_id, m.mark, account.scope, account.scope_id, account.model, account.period,
        account.starts_at, account.ends_at, account.amount, account.settled + account.overrun
    from unnest(array[80, 100]) as m (mark)
    where m.mark > account.alerted and m.mark <= note_budget_v1.mark
    on conflict do nothing;
    update rag.budget_account a
    set alerted = note_budget_v1.mark
    where a.tenant_id = account.tenant_id and a.account_id = account.account_id;
end
$$;

-- Whoever takes something out of a tenant's budgets, keeps them as they are to the end of its transaction; whoever changes them
-- waits for those. Else a call that waited would be let in by a limit that is none any more, and a budget that is new would miss
-- what was not committed when it was counted.
create function rag.keep_budgets_v1(tenant uuid) returns void
language sql volatile security invoker
set search_path = ''
as $$
    select
        pg_catalog.pg_advisory_xact_lock_shared(pg_catalog.hashtextextended('ledger tiers', 0)),
        pg_catalog.pg_advisory_xact_lock_shared(pg_catalog.hashtextextended('ledger budgets ' || tenant::text, 0));
$$;

create function rag.guard_budgets_v1() returns trigger
language plpgsql volatile security definer
set search_path = ''
as $$
begin
    if tg_table_name = 'tier_budget' then
        perform pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('ledger tiers', 0));
    else
        perform pg_catalog.pg_advisory_xact_lock(
            pg_catalog.hashtextextended('ledger budgets ' || (case tg_op when 'DELETE' then old.tenant_id else new.tenant_id end)::text, 0)
        );
    end if;
    return case tg_op when 'DELETE' then old else new end;
end
$$;
create trigger budgets_guarded before insert or update or delete on rag.budget
for each row execute function rag.guard_budgets_v1();
create trigger budgets_guarded before insert or update or delete on rag.tier_budget
for each row execute function rag.guard_budgets_v1();
create trigger budgets_guarded before update of tier on rag.tenant
for each row execute function rag.guard_budgets_v1();

-- What was spent already of a budget that is counted from now on.
create function rag.spent_v1(account rag.budget_account) returns numeric
language plpgsql stable security invoker
set search_path = ''
-- with the values in the plan, which index fits is seen
set plan_cache_mode = force_custom_plan
as $$
declare
    spent numeric;
    task uuid := case when account.scope = 'task' then account.scope_id::uuid end;
begin
    select sum(c.cost + case when c.state in ('held', 'started') then c.upper else 0 end)
    into spent
    from rag.charge c
    where c.tenant_id = account.tenant_id
        and c.kind = 'call'
        and c.held_at >= account.starts_at
        and (account.model = '' or c.model = account.model)
        and (account.scope <> 'user' or c.subject = account.scope_id)
        and (account.scope <> 'team' or c.team = account.scope_id)
        and (account.scope <> 'task' or c.task_id = task);
    return coalesce(spent, 0);
end
$$;

-- Holds `most` in every account that `limits` names, or in none: then `refusing` is one that has not that much left, and nothing
-- was changed. What has been `drawn` from a reserve that is held in the accounts `reserved` is not held there a second time.
create function rag.take_budget_v1(
    tenant uuid,
    limits rag.budget_account[],
    most numeric,
    drawn numeric,
    reserved uuid[],
    out accounts uuid[],
    out shares numeric[],
    out begins numeric[],
    out refusing rag.budget_account
)
language plpgsql volatile security invoker
set search_path = ''
set plan_cache_mode = force_generic_plan
as $$
declare
    covered boolean := drawn > 0 and drawn = most;
    wanted integer := (select count(*) from unnest(limits) l where l.period <> 'request');
    known rag.budget_account[] := '{}';
    amounts numeric[];
    extras numeric[];
    only_reserve uuid;
begin
    accounts := '{}';
    shares := '{}';
    begins := '{}';
    while wanted > 0 loop
        -- One caller of a tenant makes the accounts that are missing; the others wait, and do not all add up the same charges.
        if exists (
            select from unnest(limits) l
            where l.period <> 'request'
                and not exists (
                    select
                    from rag.budget_account a
                    where a.tenant_id = tenant and a.scope = l.scope and a.scope_id = l.scope_id and a.model = l.model
                        and a.period = l.period and a.starts_at = l.starts_at
                )
        ) then
            perform pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('ledger accounts ' || tenant::text, 0));
        end if;
        -- An account begins with what was spent in its period already: the budget may be younger. What is under way counts as
        -- its bound; it will not be settled here.
        with missing as materialized (
            select l as account
            from unnest(limits) l
            where l.period <> 'request'
                and not exists (
                    select
                    from rag.budget_account a
                    where a.tenant_id = tenant and a.scope = l.scope and a.scope_id = l.scope_id and a.model = l.model
                        and a.period = l.period and a.starts_at = l.starts_at
                )
        )
        insert into rag.budget_account as a (
            tenant_id, scope, scope_id, model, period, starts_at, ends_at, amount, ceiling, settled
        )
        select
            tenant, (m.account).scope, (m.account).scope_id, (m.account).model, (m.account).period,
            (m.account).starts_at, (m.account).ends_at, (m.account).amount,
            case when (m.account).amount is not null then greatest((m.account).amount, u.used) end,
            u.used
        from missing m
        cross join lateral (select rag.spent_v1(m.account) as used) u
        -- always in this order, so that two who make the same ones wait for each other in one place
        order by (m.account).scope, (m.account).scope_id, (m.account).model, (m.account).period
        on conflict on constraint budget_account_key do nothing;

        select coalesce(array_agg(found.account), '{}')
        into known
        from (
            select a as account
            from unnest(limits) l
            join rag.budget_account a on a.tenant_id = tenant and a.scope = l.scope and a.scope_id = l.scope_id
                and a.model = l.model and a.period = l.period and a.starts_at = l.starts_at
            -- where a reserve covers all of it nothing changes, and nobody is waited for
            where l.period <> 'request' and not (covered and a.account_id = any (reserved))
            order by a.account_id
            for no key update of a
        ) found;
        exit when cardinality(known) = wanted or covered;
        -- an operator has taken one away meanwhile
    end loop;

    select
        coalesce(array_agg(k.account_id), '{}'),
        coalesce(array_agg(k.share), '{}'),
        coalesce(array_agg(k.begin), '{}'),
        array_agg(k.extra),
        array_agg(k.amount)
    into accounts, shares, begins, extras, amounts
    from (
        select
            a.account_id,
            l.amount,
            most - case when o.elsewhere then drawn else 0 end as share,
            case when o.elsewhere then drawn else 0 end as begin,
            most - case when o.elsewhere or a.account_id = any (reserved) then drawn else 0 end as extra
        from unnest(known) a
        join unnest(limits) l on l.scope = a.scope and l.scope_id = a.scope_id and l.model = a.model and l.period = a.period
        cross join lateral (
            -- the reserve is held in this budget, in an earlier period of it
            select exists (
                select
                from rag.budget_account r
                where r.tenant_id = tenant
                    and r.account_id = any (reserved)
                    and r.account_id <> a.account_id
                    and r.scope = a.scope and r.scope_id = a.scope_id and r.model = a.model and r.period = a.period
            ) as elsewhere
        ) o
        where not (o.elsewhere and covered)
    ) k;

    select a.*
    into refusing
    from unnest(accounts, extras, amounts) as x (account_id, extra, amount)
    join unnest(known) a on a.account_id = x.account_id
    where x.extra > 0 and a.held + a.settled + a.overrun + x.extra > x.amount
    order by x.amount - a.held - a.settled - a.overrun, a.ends_at desc
    limit 1;
    if refusing.account_id is not null then
        refusing.amount := amounts[array_position(accounts, refusing.account_id)];
        -- used up, and not only by what is under way: an alert says so, which is why a refusal is an answer and no error
        if refusing.alerted < 100
            and refusing.settled + refusing.overrun >= 0.8 * refusing.amount
            and refusing.settled + refusing.overrun + extras[array_position(accounts, refusing.account_id)] > refusing.amount
        then
            perform rag.note_budget_v1(refusing, 100::smallint);
        end if;
        return;
    end if;

    update rag.budget_account a
    set held = a.held + x.extra,
        amount = x.amount,
        ceiling = case when x.amount is not null then greatest(x.amount, a.held + a.settled + x.extra) end
    from unnest(accounts, extras, amounts) as x (account_id, extra, amount)
    where a.tenant_id = tenant and a.account_id = x.account_id and (x.extra > 0 or a.amount is distinct from x.amount);

    foreach only_reserve in array reserved loop
        if drawn > 0 and only_reserve <> all (accounts) then
            accounts := accounts || only_reserve;
            shares := shares || drawn;
            begins := begins || 0::numeric;
        end if;
    end loop;
end
$$;

-- Ends a call that the caller has locked: it has cost `paid`, or nothing where it was `released`. What was not known then, an
-- estimate, is corrected. Its reserve, while that is open, gets back what it lent and nobody spent.
create function rag.end_charge_v1(
    one rag.charge,
    final text,
    paid numeric,
    guessed boolean,
    prompted bigint,
    cached bigint,
    completed bigint
)
returns void
language plpgsql volatile security invoker
set search_path = ''
set plan_cache_mode = force_generic_plan
as $$
declare
    was_open boolean := one.state in ('held', 'started');
    -- what a released call had held is others' now: should it have cost something after all, that is an overrun
    bears boolean := one.state <> 'released';
    reserve rag.charge;
    back numeric := 0;
    account rag.budget_account;
    mark smallint;
begin
    if was_open and one.drawn > 0 then
        select * into reserve
        from rag.charge r
        where r.tenant_id = one.tenant_id and r.charge_id = one.parent and r.state = 'held'
        for no key update;
        if found then
            back := one.drawn - least(one.drawn, paid);
            update rag.charge r
            set upper = r.upper + back
            where r.tenant_id = one.tenant_id and r.charge_id = one.parent and back > 0;
        end if;
    end if;
    update rag.charge c
    set state = final,
        cost = paid,
        estimated = guessed,
        prompt_tokens = prompted,
        cached_tokens = cached,
        completion_tokens = completed,
        ended_at = clock_timestamp()
    where c.tenant_id = one.tenant_id and c.charge_id = one.charge_id;
    delete from queue.charge q where q.tenant_id = one.tenant_id and q.charge_id = one.charge_id;

    perform 1
    from rag.budget_account a
    where a.tenant_id = one.tenant_id and a.account_id = any (one.accounts)
    order by a.account_id
    for no key update;
    for account in
        update rag.budget_account a
        set held = a.held - d.held, settled = a.settled + d.settled, overrun = a.overrun + d.overrun
        from (
            select
                p.account_id,
                case when was_open then p.share - case when p.account_id = any (reserve.accounts) then back else 0 end
                    else 0 end as held,
                p.settled - p.was_settled as settled,
                p.part - p.settled - (p.was_part - p.was_settled) as overrun
            from (
                select
                    b.*,
                    case when bears then least(b.part, b.share) else 0 end as settled,
                    -- what it bears already; a released call bears nothing, and one that is open has paid nothing
                    least(b.was_part, b.share) as was_settled
                from (
                    select
                        s.account_id,
                        s.share,
                        -- the last one that bears the call also bears what comes after its bound
                        least(greatest(paid - s.begin, 0), case when s.begin + s.share < one.upper then s.share end) as part,
                        least(
                            greatest(one.cost - s.begin, 0), case when s.begin + s.share < one.upper then s.share end
                        ) as was_part
                    from unnest(one.accounts, one.shares, one.begins) as s (account_id, share, begin)
                ) b
            ) p
        ) d
        where a.tenant_id = one.tenant_id and a.account_id = d.account_id
        returning a.*
    loop
        mark := case
            when account.amount is null then 0
            when account.settled + account.overrun >= account.amount then 100
            when account.settled + account.overrun >= 0.8 * account.amount then 80
            else 0
        end;
        if mark > account.alerted then
            perform rag.note_budget_v1(account, mark);
        end if;
    end loop;
end
$$;

-- Gives back what is left of a task's reserve.
create function rag.end_reserve_v1() returns trigger
language plpgsql volatile security definer
set search_path = ''
as $$
declare
    reserve rag.charge;
begin
    select * into reserve
    from rag.charge r
    where r.tenant_id = new.tenant_id and r.task_id = new.task_id and r.kind = 'reserve' and r.state = 'held'
    for no key update;
    if not found then
        return null;
    end if;
    perform 1
    from rag.budget_account a
    where a.tenant_id = new.tenant_id and a.account_id = any (reserve.accounts)
    order by a.account_id
    for no key update;
    update rag.budget_account a
    set held = a.held - reserve.upper
    where a.tenant_id = new.tenant_id and a.account_id = any (reserve.accounts);
    update rag.charge r
    set state = 'released', upper = 0, ended_at = clock_timestamp()
    where r.tenant_id = new.tenant_id and r.charge_id = reserve.charge_id;
    return null;
end
$$;
create trigger task_gives_back
after insert or update of state on rag.task
for each row
when (new.state in ('completed', 'failed', 'canceled', 'rejected'))
execute function rag.end_reserve_v1();

-- An operator has taken a budget away, or a tenant has booked another tier: should the budget come again, what was spent meanwhile
-- is counted anew. What is under way finds no account then, and needs none.
create function rag.forget_accounts_v1() returns trigger
language plpgsql volatile security definer
set search_path = ''
as $$
declare
    gone uuid[];
begin
    if tg_table_name = 'budget' then
        gone := array(
            select a.account_id
            from rag.budget_account a
            where a.tenant_id = old.tenant_id and a.scope = old.scope and a.model = old.model and a.period = old.period
                and (old.scope_id = '' or a.scope_id = old.scope_id)
            order by a.account_id
            for update
        );
        delete from rag.budget_account a where a.tenant_id = old.tenant_id and a.account_id = any (gone);
    elsif tg_table_name = 'tier_budget' then
        gone := array(
            select a.account_id
            from rag.tenant t
            join rag.budget_account a on a.tenant_id = t.tenant_id
            where t.tier = old.tier and a.scope = 'tenant' and a.model = '' and a.period = old.period
            order by a.account_id
            for update of a
        );
        delete from rag.budget_account a where a.account_id = any (gone);
    elsif new.tier <> old.tier then
        gone := array(
            select a.account_id
            from rag.budget_account a
            where a.tenant_id = old.tenant_id and a.scope = 'tenant' and a.model = ''
            order by a.account_id
            for update
        );
        delete from rag.budget_account a where a.tenant_id = old.tenant_id and a.account_id = any (gone);
    end if;
    return null;
end
$$;
create trigger budget_goes after delete on rag.budget
for each row execute function rag.forget_accounts_v1();
create trigger budget_goes after delete on rag.tier_budget
for each row execute function rag.forget_accounts_v1();
create trigger tier_changes after update of tier on rag.tenant
for each row execute function rag.forget_accounts_v1();

-- 4. What servers and workers call: those accept tasks, these alone call models. Whose money it is is taken from the sealed context, all but the team, which no seal names.

-- Durability. Neither the hold nor the settlement waits for the disk, so accounts, which everybody of a tenant shares, are locked
-- for no longer than it takes to change them. The start, which touches no account, does wait, and with its own record it flushes
-- everything that was logged before it, the hold among it. So a crash of the database takes either a hold that nothing was sent
-- under, or a settlement: then the call is still `started`, and is settled at its bound.

-- Holds `most` for one physical call, or tells why not: `refused` is then 'price' or 'budget'. One that is repeated, because its
-- answer was lost, holds nothing more.
create function rag.hold_charge_v1(
    context text,
    charge uuid,
    call_key text,
    attempt integer,
    called text,
    endpoint text,
    price uuid,                             -- null: nobody knows what the call costs
    most numeric,
    team text,
    task uuid,
    max_cost numeric,                       -- of this one call; null: whatever the budgets say
    lease_s double precision
)
returns table (refused text, scope text, period text, remaining numeric, resets_at timestamptz)
language plpgsql volatile security definer
set search_path = ''
set plan_cache_mode = force_generic_plan
set lock_timeout = '3s'
as $$
declare
    caller jsonb;
    tenant uuid;
    moment timestamptz := clock_timestamp();
    limits rag.budget_account[];
    reserve rag.charge;
    lent numeric := 0;
    cap numeric;
    taken record;
begin
    perform set_config('app.context', context, true), set_config('synchronous_commit', 'off', true);
    caller := seal.verified_context();
    tenant := (caller ->> 'tenant')::uuid;
    perform rag.keep_budgets_v1(tenant);
    moment := clock_timestamp();
    if exists (select from rag.charge c where c.tenant_id = tenant and c.charge_id = charge) then
        return;
    end if;
    limits := array(select b from rag.budgets_of_v1(tenant, caller ->> 'sub', team, task, called, moment) b);
    cap := least(max_cost, (select min(l.amount) from unnest(limits) l where l.period = 'request'));
    if price is null and (cap is not null or exists (select from unnest(limits) l where l.amount is not null)) then
        return query select 'price'::text, null::text, null::text, null::numeric, null::timestamptz;
        return;
    end if;
    if most > cap then
        return query select 'budget'::text, 'request'::text, 'request'::text, cap, null::timestamptz;
        return;
    end if;
    if task is not null then
        select * into reserve
        from rag.charge r
        where r.tenant_id = tenant and r.task_id = task and r.kind = 'reserve' and r.state = 'held'
            and r.subject = caller ->> 'sub'
        for no key update;
        if found then
            lent := least(most, reserve.upper);
        end if;
    end if;
    select * into taken
    from rag.take_budget_v1(tenant, limits, most, lent, coalesce(reserve.accounts, '{}'));
    if (taken.refusing).account_id is not null then
        return query
        select
            'budget'::text, (taken.refusing).scope, (taken.refusing).period,
            greatest(
                (taken.refusing).amount - (taken.refusing).held - (taken.refusing).settled - (taken.refusing).overrun, 0
            ),
            (taken.refusing).ends_at;
        return;
    end if;
    if lent > 0 then
        update rag.charge r
        set upper = r.upper - lent
        where r.tenant_id = tenant and r.charge_id = reserve.charge_id;
    end if;
    insert into rag.charge (
        tenant_id, charge_id, kind, parent, task_id, call_key, attempt, subject, team, model, endpoint, price_id,
        upper, drawn, state, held_at, accounts, shares, begins
    )
    values (
        tenant, charge, 'call', case when lent > 0 then reserve.charge_id end, task, call_key, attempt, caller ->> 'sub',
        team, called, endpoint, price, most, lent, 'held', moment, taken.accounts, taken.shares, taken.begins
    );
    insert into queue.charge (tenant_id, charge_id, leased_until)
    values (tenant, charge, moment + make_interval(secs => lease_s));
end
$$;

-- Notes that a call is made now. False: it is not held (any more), and must not be made.
create function rag.start_charge_v1(context text, charge uuid, lease_s double precision) returns boolean
language plpgsql volatile security definer
set search_path = ''
set plan_cache_mode = force_generic_plan
set lock_timeout = '3s'
as $$
declare
    tenant uuid;
begin
    perform set_config('app.context', context, true), set_config('synchronous_commit', 'on', true);
    tenant := (seal.verified_context() ->> 'tenant')::uuid;
    update rag.charge c
    set state = 'started', started_at = clock_timestamp()
    where c.tenant_id = tenant and c.charge_id = charge and c.kind = 'call' and c.state = 'held';
    if not found then
        return false;
    end if;
    update queue.charge q
    set leased_until = clock_timestamp() + make_interval(secs => lease_s)
    where q.tenant_id = tenant and q.charge_id = charge;
    return true;
end
$$;

-- Writes what a call has cost. The first that knows it stands; false: there is no such call.
create function rag.settle_charge_v1(
    context text,
    charge uuid,
    paid numeric,
    guessed boolean,
    prompted bigint,
    cached bigint,
    completed bigint
)
returns boolean
language plpgsql volatile security definer
set search_path = ''
set plan_cache_mode = force_generic_plan
set lock_timeout = '3s'
as $$
declare
    tenant uuid;
    one rag.charge;
begin
    perform set_config('app.context', context, true), set_config('synchronous_commit', 'off', true);
    tenant := (seal.verified_context() ->> 'tenant')::uuid;
    select * into one
    from rag.charge c
    where c.tenant_id = tenant and c.charge_id = charge and c.kind = 'call'
    for no key update;
    if not found then
        return false;
    end if;
    if one.state <> 'settled' or (one.estimated and not guessed) then
        perform rag.end_charge_v1(one, 'settled', paid, guessed, prompted, cached, completed);
    end if;
    return true;
end
$$;

-- Gives back what was held for a call that was not made, or not billed. False: there is no such call.
create function rag.release_charge_v1(context text, charge uuid) returns boolean
language plpgsql volatile security definer
set search_path = ''
set plan_cache_mode = force_generic_plan
set lock_timeout = '3s'
as $$
declare
    tenant uuid;
    one rag.charge;
begin
    perform set_config('app.context', context, true), set_config('synchronous_commit', 'off', true);
    tenant := (seal.verified_context() ->> 'tenant')::uuid;
    select * into one
    from rag.charge c
    where c.tenant_id = tenant and c.charge_id = charge and c.kind = 'call'
    for no key update;
    if not found then
        return false;
    end if;
    if one.state in ('held', 'started') or one.estimated then
        perform rag.end_charge_v1(one, 'released', 0, false, null, null, null);
    end if;
    return true;
end
$$;

-- Reserves `most` for a task, in the transaction that accepts it; its calls are then paid out of that, and its end gives back the
-- rest. `refused` as of rag.hold_charge_v1. A task has one reserve; where no budget applies it has none.
create function rag.reserve_task_v1(task uuid, most numeric, grant_team text)
returns table (refused text, scope text, period text, remaining numeric, resets_at timestamptz)
language plpgsql volatile security definer
set search_path = ''
set lock_timeout = '3s'
as $$
declare
    caller jsonb := seal.verified_context();
    tenant uuid := (caller ->> 'tenant')::uuid;
    moment timestamptz := clock_timestamp();
    taken record;
begin
    perform rag.keep_budgets_v1(tenant);
    moment := clock_timestamp();
    if most <= 0 or exists (
        select from rag.charge c where c.tenant_id = tenant and c.task_id = task and c.kind = 'reserve'
    ) then
        return;
    end if;
    select * into taken
    from rag.take_budget_v1(
        tenant,
        array(
            select b
            from rag.budgets_of_v1(tenant, caller ->> 'sub', grant_team, task, null, moment) b
            where b.period <> 'request'
        ),
        most, 0, '{}'
    );
    if (taken.refusing).account_id is not null then
        return query
        select
            'budget'::text, (taken.refusing).scope, (taken.refusing).period,
            greatest(
                (taken.refusing).amount - (taken.refusing).held - (taken.refusing).settled - (taken.refusing).overrun, 0
            ),
            (taken.refusing).ends_at;
        return;
    end if;
    if cardinality(taken.accounts) > 0 then
        insert into rag.charge (
            tenant_id, charge_id, kind, task_id, call_key, attempt, subject, team, model, endpoint,
            upper, state, held_at, accounts, shares, begins
        )
        values (
            tenant, gen_random_uuid(), 'reserve', task, '', 1, caller ->> 'sub', grant_team, '', '',
            most, 'held', moment, taken.accounts, taken.shares, taken.begins
        );
    end if;
end
$$;

-- As rag.create_task_alone_v1, with a reserve for a task that is new. Nothing is written where a budget has not that much left.
-- Raises BH008, with what rag.reserve_task_v1 tells of the refusal.
create function rag.create_task_alone_v2(
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
    hash bytea,
    reserve numeric
)
returns table (task_id uuid, context_id text, workflow text, input jsonb, request_hash bytea, created boolean)
language plpgsql volatile security invoker
set search_path = ''
as $$
declare
    accepted record;
    reserved record;
begin
    perform rag.open_context_v1(context);
    select * into accepted
    from rag.create_task_v3(
        task, conversation, workflow_name, workflow_input, first_message,
        grant_scopes, grant_groups, grant_team, grant_tokens, grant_issued_at, trace, key, hash
    );
    if accepted.created then
        select * into reserved from rag.reserve_task_v1(task, reserve, grant_team);
        if reserved.refused is not null then
            raise exception 'over budget' using errcode = 'BH008', detail = to_jsonb(reserved)::text;
        end if;
    end if;
    return query
    select
        accepted.task_id, accepted.context_id, accepted.workflow, accepted.input, accepted.request_hash, accepted.created;
end
$$;

-- 5. Calls of any tenant whose time is over: a hold that nothing was sent under is released; who started had sent something, and
-- pays the bound, since nobody knows what was used.
create function rag.sweep_charges_v1(tenants uuid[], charges uuid[]) returns integer
language plpgsql volatile security definer
set search_path = ''
as $$
declare
    due rag.charge[];
    one rag.charge;
begin
    perform set_config('synchronous_commit', 'off', true);
    -- one that somebody holds is being settled
    perform 1
    from unnest(tenants, charges) as x (tenant_id, charge_id)
    join rag.charge c on c.tenant_id = x.tenant_id and c.charge_id = x.charge_id
    order by c.charge_id
    for no key update of c skip locked;
    -- and whether it is still due is seen by a statement that begins after that
    due := array(
        select c
        from unnest(tenants, charges) as x (tenant_id, charge_id)
        join rag.charge c on c.tenant_id = x.tenant_id and c.charge_id = x.charge_id
        join queue.charge q on q.tenant_id = x.tenant_id and q.charge_id = x.charge_id
        where q.leased_until <= clock_timestamp() and c.state in ('held', 'started')
        order by c.charge_id
        for no key update of c skip locked
    );
    perform 1
    from unnest(due) d
    join rag.charge r on r.tenant_id = d.tenant_id and r.charge_id = d.parent
    order by r.charge_id
    for no key update of r;
    perform 1
    from rag.budget_account a
    where (a.tenant_id, a.account_id) in (select d.tenant_id, t.id from unnest(due) d cross join unnest(d.accounts) t (id))
    order by a.account_id
    for no key update of a;
    foreach one in array due loop
        if one.state = 'held' then
            perform rag.end_charge_v1(one, 'released', 0, false, null, null, null);
        else
            perform rag.end_charge_v1(one, 'settled', one.upper, true, null, null, null);
        end if;
    end loop;
    return cardinality(due);
end
$$;

create function queue.sweep_charges_v1(wanted integer) returns integer
language plpgsql volatile security definer
set search_path = ''
as $$
declare
    tenants uuid[];
    charges uuid[];
begin
    select array_agg(due.tenant_id), array_agg(due.charge_id)
    into tenants, charges
    from (
        select q.tenant_id, q.charge_id
        from queue.charge q
        where q.leased_until <= statement_timestamp()
        order by q.leased_until
        limit wanted
    ) due;
    if charges is null then
        return 0;
    end if;
    return rag.sweep_charges_v1(tenants, charges);
end
$$;

grant execute on function
    rag.hold_charge_v1(
        text, uuid, text, integer, text, text, uuid, numeric, text, uuid, numeric, double precision
    ),
    rag.start_charge_v1(text, uuid, double precision),
    rag.settle_charge_v1(text, uuid, numeric, boolean, bigint, bigint, bigint),
    rag.release_charge_v1(text, uuid)
to bulkhead_worker;
grant execute on function
    rag.reserve_task_v1(uuid, numeric, text),
    rag.create_task_alone_v2(
        text, uuid, text, text, jsonb, jsonb, text[], text[], text, text[], double precision, text, text, bytea, numeric
    )
to bulkhead_app;
grant execute on function rag.sweep_charges_v1(uuid[], uuid[]) to bulkhead_queue;
revoke execute on function queue.sweep_charges_v1(integer) from public;
grant execute on function queue.sweep_charges_v1(integer) to bulkhead_worker;
alter table queue.charge owner to bulkhead_queue;
-- the ledger's functions, which are the owner's, keep it
set local role bulkhead_queue;
grant select, insert, update, delete on queue.charge to bulkhead_owner;
reset role;
alter function queue.sweep_charges_v1(integer) owner to bulkhead_queue;
