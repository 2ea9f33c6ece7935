-- list_offers
-- Every model at every endpoint that is enabled, with the price that is valid now and the tenants that may use it besides.
select
    o.model, m.tier, m.context_tokens, m.tiers,
    array(select a.tenant_id from rag.llm_model_tenant a where a.model = o.model) as tenants,
    o.endpoint, e.base_url, e.kind, o.served_name, o.priority,
    p.price_id, p.input, p.cached_input, p.output, p.second
from rag.llm_offer o
join rag.llm_model m on m.name = o.model
join rag.llm_endpoint e on e.name = o.endpoint
left join lateral (
    select v.price_id, v.input, v.cached_input, v.output, v.second
    from rag.llm_price v
    where v.model = o.model and v.endpoint = o.endpoint and v.valid_from <= statement_timestamp()
    order by v.valid_from desc
    limit 1
) p on true
where e.enabled
order by o.model, o.priority, o.endpoint;

-- is_kept
-- Whether an operator has put any model into the catalogue.
select exists (select from rag.llm_model);

-- list_rules
-- The rules that say which calls need how much of a model.
select name, tier, condition
from rag.routing_rule
order by ordinal;

-- list_endpoints
-- Every endpoint, for an operator.
select name, base_url, kind, enabled
from rag.llm_endpoint
order by name;

-- add_endpoint
-- A new endpoint.
insert into rag.llm_endpoint (name, base_url, kind)
values ({name}, {base_url}, {kind})
returning name;

-- set_endpoint
-- Where an endpoint is, what it is and whether it is asked; null leaves it as it is.
update rag.llm_endpoint
set base_url = coalesce({base_url}, base_url),
    kind = coalesce({kind}, kind),
    enabled = coalesce({enabled}, enabled),
    changed_at = clock_timestamp()
where name = {name}
returning name;

-- remove_endpoint
-- Forget an endpoint and its offers; one that ever had a price stays.
delete from rag.llm_endpoint where name = {name} returning name;

-- list_models
-- Every model with the tenants that may use it besides its tiers, by their names, for an operator.
select
    m.name, m.tier, m.context_tokens, m.tiers,
    array(
        select t.name
        from rag.llm_model_tenant a
        join rag.tenant t on t.tenant_id = a.tenant_id
        where a.model = m.name
        order by t.name
    ) as tenants
from rag.llm_model m
order by m.tier, m.name;

-- list_offers_of_models
-- Every offer, those of disabled endpoints too, with the price that is valid now, for an operator.
select
    o.model, o.endpoint, o.served_name, o.priority, e.enabled,
    p.price_id, p.valid_from, p.input, p.cached_input, p.output, p.second
from rag.llm_offer o
join rag.llm_endpoint e on e.name = o.endpoint
left join lateral (
    select v.price_id, v.valid_from, v.input, v.cached_input, v.output, v.second
    from rag.llm_price v
    where v.model = o.model and v.endpoint = o.endpoint and v.valid_from <= statement_timestamp()
    order by v.valid_from desc
    limit 1
) p on true
order by o.model, o.priority, o.endpoint;

-- add_model
-- A new model.
insert into rag.llm_model (name, tier, context_tokens, tiers)
values ({name}, {tier}, {context_tokens}, {tiers}::text[])
returning name;

-- set_model
-- What a model can do; null leaves it as it is.
update rag.llm_model
set tier = coalesce({tier}, tier),
    context_tokens = coalesce({context_tokens}, context_tokens),
    changed_at = clock_timestamp()
where name = {name}
returning name;

-- remove_model
-- Forget a model, its offers and who may use it; one that ever had a price stays.
delete from rag.llm_model where name = {name} returning name;

-- allow_tiers
-- Tenants of these tiers may use the model.
update rag.llm_model
set tiers = array(select distinct t from unnest(tiers || {tiers}::text[]) t order by t), changed_at = clock_timestamp()
where name = {name}
returning name;

-- deny_tiers
-- Tenants of these tiers may not use the model, unless they are named.
update rag.llm_model
set tiers = array(select t from unnest(tiers) t where t <> all ({tiers}::text[]) order by t), changed_at = clock_timestamp()
where name = {name}
returning name;

-- allow_tenants
-- These tenants may use the model, whatever their tier.
insert into rag.llm_model_tenant (tenant_id, model)
select t.tenant_id, {name}
from unnest({tenant_ids}::uuid[]) t (tenant_id)
on conflict do nothing;

-- deny_tenants
-- These tenants are not named any more; their tier may still allow the model.
delete from rag.llm_model_tenant where model = {name} and tenant_id = any({tenant_ids}::uuid[]);

-- offer
-- The model is served at the endpoint, under this name there, and asked in this order.
insert into rag.llm_offer (model, endpoint, served_name, priority)
values ({model}, {endpoint}, {served_name}, {priority})
on conflict (model, endpoint) do update
set served_name = excluded.served_name, priority = excluded.priority, changed_at = clock_timestamp()
returning model;

-- withdraw
-- The model is not served at the endpoint any more; its prices there stay.
delete from rag.llm_offer where model = {model} and endpoint = {endpoint} returning model;

-- add_price
-- A new version of a price, from now or from a moment to come; no row where the moment has passed or nothing is offered.
insert into rag.llm_price (model, endpoint, valid_from, input, cached_input, output, second)
select o.model, o.endpoint, coalesce({valid_from}::timestamptz, clock_timestamp()), {input}, {cached_input}, {output}, {second}
from rag.llm_offer o
where o.model = {model}
    and o.endpoint = {endpoint}
    and ({valid_from}::timestamptz is null or {valid_from}::timestamptz >= clock_timestamp())
returning price_id;

-- list_prices
-- Every version of a model's prices, the newest first.
select price_id, endpoint, valid_from, input, cached_input, output, second
from rag.llm_price
where model = {model}
order by endpoint, valid_from desc;

-- lock_rules
-- One operator at a time replaces the rules.
lock table rag.routing_rule in share row exclusive mode;

-- clear_rules
-- The rules are replaced as a whole.
delete from rag.routing_rule;

-- add_rule
-- One of the rules that replace the former ones.
insert into rag.routing_rule (ordinal, name, tier, condition)
values ({ordinal}, {name}, {tier}, {condition});
