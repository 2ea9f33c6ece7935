-- Which chat models there are, where they are served, what they cost, who may use them, and which calls need how much of a
-- model (docs/models.md). Operators keep it as data; the worker, which alone calls models, follows within half a minute.
-- Names instead of numbers as keys: charges, traces and operators call a model and an endpoint by their names.

create table rag.llm_endpoint (
    name text not null,
    base_url text not null,  -- no credential is kept here: keys come from a file beside the worker, each with its URL
    kind text not null,
    enabled boolean not null default true,
    changed_at timestamptz not null default clock_timestamp(),
    constraint llm_endpoint_name primary key (name),
    constraint llm_endpoint_name_form check (name ~ '^[a-z0-9][a-z0-9-]{0,62}$'),
    -- no user, no query, no fragment, no slash at the end: /chat/completions is put after it
    constraint llm_endpoint_url check (base_url ~ '^https?://[^[:space:]@?#]+[^[:space:]@?#/]$' and length(base_url) <= 2048),
    constraint llm_endpoint_kind check (kind in ('vllm', 'openai', 'ollama')),
    constraint llm_endpoint_vllm_url check (kind <> 'vllm' or base_url ~ '/v1$')  -- /tokenize is beside /v1
);

create table rag.llm_model (
    name text not null,
    tier smallint not null,  -- 1 small, 2 medium, 3 large: numbers, since as text "large" is less than "small"
    context_tokens integer not null,  -- prompt and completion together
    tiers text[] not null default '{}',  -- tiers of tenants that may use it; at first nobody's
    changed_at timestamptz not null default clock_timestamp(),
    constraint llm_model_name primary key (name),
    constraint llm_model_name_form check (name ~ '^[A-Za-z0-9][A-Za-z0-9._/:-]{0,127}$'),
    constraint llm_model_tier check (tier between 1 and 3),
    constraint llm_model_context check (context_tokens between 1 and 100000000),
    constraint llm_model_tiers check (tiers <@ array['free', 'pro', 'enterprise'])
);

create table rag.llm_model_tenant (
    tenant_id uuid not null,
    model text not null,
    primary key (tenant_id, model),
    constraint llm_model_tenant_tenant foreign key (tenant_id) references rag.tenant,
    constraint llm_model_tenant_model foreign key (model) references rag.llm_model on delete cascade
);

create table rag.llm_offer (
    model text not null,
    endpoint text not null,
    served_name text not null,  -- what the endpoint calls the model
    priority integer not null default 100,  -- of one model's endpoints the lowest is asked first
    changed_at timestamptz not null default clock_timestamp(),
    constraint llm_offer_name primary key (model, endpoint),
    constraint llm_offer_model foreign key (model) references rag.llm_model on delete cascade,
    constraint llm_offer_endpoint foreign key (endpoint) references rag.llm_endpoint on delete cascade,
    constraint llm_offer_served_name check (length(served_name) between 1 and 256),
    constraint llm_offer_priority check (priority between 0 and 1000000)
);

-- Versions: what was charged by one stays explained by it, so none is ever changed or deleted (no grant does either), and
-- neither is a model or an endpoint that ever had a price.
create table rag.llm_price (
    price_id uuid not null default gen_random_uuid(),
    model text not null,
    endpoint text not null,
    valid_from timestamptz not null default clock_timestamp(),
    input numeric not null,  -- for a million tokens, as the next two
    cached_input numeric not null,
    output numeric not null,
    second numeric not null default 0,  -- for a second of a call's time: own hardware
    constraint llm_price_id primary key (price_id),
    constraint llm_price_moment unique (model, endpoint, valid_from),
    constraint llm_price_model foreign key (model) references rag.llm_model,
    constraint llm_price_endpoint foreign key (endpoint) references rag.llm_endpoint,
    -- plain numeric and a check: numeric(18, 6) would round what has more places, and say nothing. NaN is above all numbers.
    constraint llm_price_numbers check (
        least(input, cached_input, output, second) >= 0
        and greatest(input, cached_input, output, second) <= 1000000000
        and greatest(scale(input), scale(cached_input), scale(output), scale(second)) <= 6
    ),
    constraint llm_price_cached check (cached_input <= input)
);

create table rag.routing_rule (
    ordinal integer not null,  -- the order in which they are shown; the highest tier wins, whichever rule asks for it
    name text not null,
    tier smallint not null,
    condition jsonb not null,
    constraint routing_rule_ordinal primary key (ordinal),
    constraint routing_rule_name_unique unique (name),
    constraint routing_rule_tier check (tier between 1 and 3),
    constraint routing_rule_condition check (jsonb_typeof(condition) = 'object')
);

-- A start (docs/models.md says what each is for): `bulkhead models rules set FILE` replaces them.
insert into rag.routing_rule (ordinal, name, tier, condition)
values
    (1, 'everything', 1, '{}'),
    (2, 'weighs one thing against another', 2, '{"any_words": ["compare", "compared", "comparison", "difference", "differences", "differ", "versus", "vs", "contrast", "conflict", "conflicts", "contradict", "contradicts", "advantages", "disadvantages"]}'),
    (3, 'asks for reasons', 2, '{"any_words": ["why", "explain", "justify", "analyse", "analyze", "assess", "evaluate", "implications", "consequences"]}'),
    (4, 'a long question', 2, '{"min_question_chars": 600}'),
    (5, 'much to read', 2, '{"min_prompt_chars": 24000}'),
    (6, 'compares documents', 2, '{"workflow": ["compare"]}'),
    (7, 'plans what to research', 3, '{"workflow": ["research"], "step": ["plan"]}'),
    (8, 'decides what to do next', 3, '{"workflow": ["react"], "step": ["action"]}');

call rag.isolate('rag.llm_model_tenant');
-- The worker reads for whom each model is, all tenants together: it routes for all of them. It may claim work of any of
-- them, so that it learns nothing by that. The faces call no model and have no grant.
create policy routed on rag.llm_model_tenant to bulkhead_worker using (true) with check (false);
create policy operated on rag.llm_model_tenant to bulkhead_maintenance using (true) with check (true);

grant select on rag.llm_endpoint, rag.llm_model, rag.llm_model_tenant, rag.llm_offer, rag.llm_price, rag.routing_rule
to bulkhead_worker;
grant select, insert, update, delete on rag.llm_endpoint, rag.llm_model, rag.llm_model_tenant, rag.llm_offer, rag.routing_rule
to bulkhead_maintenance;
grant select, insert on rag.llm_price to bulkhead_maintenance;
