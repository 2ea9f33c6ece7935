-- list_models
-- Every embedding model that this database knows.
select m.model_id, m.name, m.dimension
from rag.embedding_model m
order by m.model_id;

-- hold_models
-- The model of the sealed tenant and the one being filled, neither of which changes before this transaction ends.
select h.model_id, h.next_model_id
from rag.hold_models_v1({default_model}::smallint) h;

-- claim_switch
-- A seal of a tenant whose models are changing; null when none is due.
select queue.claim_switch_v1();

-- hold_switch
-- How far the sealed tenant's chunks have been handed out; null when its change of models is done.
select queue.hold_switch_v1();

-- list_unfilled
-- The next chunks of the sealed tenant that have a vector of its model and none of the next, with the title that they stand
-- under. What has neither is on the queue of documents, and gets both from there.
select c.chunk_id, c.document_id, d.title, c.text
from (
    select o.chunk_id
    from rag.embedding o
    where o.tenant_id = (select rag.current_tenant())
        and o.model_id = {active}
        and o.chunk_id > {after}
        and not exists (
            select
            from rag.embedding n
            where n.tenant_id = (select rag.current_tenant())
                and n.model_id = {next}
                and n.chunk_id = o.chunk_id
                and n.chunk_id > {after}  -- or a merge would read all that is filled already, for each slice
        )
    order by o.chunk_id
    limit {wanted}
) u
join rag.chunk c on c.tenant_id = (select rag.current_tenant()) and c.chunk_id = u.chunk_id
join rag.document d on d.tenant_id = (select rag.current_tenant()) and d.document_id = c.document_id
order by c.chunk_id;

-- move_switch
-- Notes how far the chunks have been handed out, and when to look again.
select queue.move_switch_v1({after}, {delay_s});

-- fail_switch
-- Hands out the chunks after this one again, later.
select queue.fail_switch_v1({after});

-- hold_documents
-- Keeps writers away from these documents until this transaction ends.
select d.document_id
from rag.document d
where d.tenant_id = (select rag.current_tenant()) and d.document_id = any({document_ids}::uuid[])
order by d.document_id
for share;

-- switch_model
-- Makes the next model the sealed tenant's own, or says why not: none, missing or graph.
select rag.switch_model_v1();

-- sweep_vectors
-- Deletes vectors of models that the sealed tenant no longer uses, and says how many.
select rag.sweep_vectors_v1({wanted});

-- finish_switch
-- Nothing is left to do.
select queue.finish_switch_v1();

-- postpone_embedding
-- Gives a claimed document back untried.
select queue.postpone_embedding_v1({document_id}, {delay_s});

-- enqueue_switch
-- Has the workers look at a tenant's models; before they are changed, in the same transaction.
select queue.enqueue_switch_v1({tenant_id});

-- set_next_model
-- Names the model to fill, null for none; no row where it is the tenant's model already.
update rag.tenant t
set next_model_id = {model_id}::smallint
where t.tenant_id = {tenant_id} and t.model_id is distinct from {model_id}::smallint
returning t.tenant_id;

-- clear_next_model
-- Ends a change that is under way; no row where there is none.
update rag.tenant t
set next_model_id = null
where t.tenant_id = {tenant_id} and t.next_model_id is not null
returning t.tenant_id;

-- model_status
-- Each tenant's models and how far their vectors are, for operators.
select
    t.tenant_id, t.name, m.name as model, m.dimension, n.name as next_model, n.dimension as next_dimension,
    coalesce((select sum(s.chunks) from rag.corpus_change s where s.tenant_id = t.tenant_id), 0)::bigint as chunks,
    (select count(*) from rag.embedding e where e.tenant_id = t.tenant_id and e.model_id = t.model_id) as filled,
    (select count(*) from rag.embedding e where e.tenant_id = t.tenant_id and e.model_id = t.next_model_id) as next_filled,
    (
        select count(*)
        from rag.embedding e
        where e.tenant_id = t.tenant_id and e.model_id = any (
            array(
                select o.model_id
                from rag.embedding_model o
                where o.model_id <> t.model_id and o.model_id is distinct from t.next_model_id
            )
        )
    ) as unused,
    exists (
        select from rag.vector_index i where i.tenant_id = t.tenant_id and i.model_id = t.model_id and i.ready
    ) as graph,
    exists (
        select from rag.vector_index i where i.tenant_id = t.tenant_id and i.model_id = t.next_model_id and i.ready
    ) as next_graph,
    q.attempts
from rag.tenant t
left join rag.embedding_model m on m.model_id = t.model_id
left join rag.embedding_model n on n.model_id = t.next_model_id
left join queue.switches_v1() q on q.tenant_id = t.tenant_id
where {tenant_id}::uuid is null or t.tenant_id = {tenant_id}::uuid
order by t.name;

-- models_in_use
-- Every model with the number of tenants whose searches use it and of those that are changing to it, for operators.
select
    m.name, m.dimension,
    (select count(*) from rag.tenant t where t.model_id = m.model_id) as tenants,
    (select count(*) from rag.tenant t where t.next_model_id = m.model_id) as changing
from rag.embedding_model m
order by m.name, m.dimension;

-- find_model
-- The models of a name, and of a dimension where one is given.
select m.model_id, m.dimension
from rag.embedding_model m
where m.name = {name} and ({dimension}::integer is null or m.dimension = {dimension}::integer)
order by m.dimension;
