-- The maintenance process builds and drops the graphs of large tenants (retrieval.md 3). It works over all tenants and so
-- sees no content: which tenant has how many vectors, and the graphs that there are. What it builds, it builds as the owner.

create policy chunk_counts on rag.corpus_change to bulkhead_maintenance using (true) with check (false);
create policy vector_counts on rag.embedding to bulkhead_maintenance using (true) with check (false);
grant select (tenant_id, chunks) on rag.corpus_change to bulkhead_maintenance;
grant select (tenant_id, model_id) on rag.embedding to bulkhead_maintenance;

create policy vector_index_control on rag.vector_index to bulkhead_maintenance using (true) with check (true);
grant select, insert, update, delete on rag.vector_index to bulkhead_maintenance;

-- A graph against the truth: how many of the ten nearest chunks it finds, over what the caller may read. Both
-- lists are read in one snapshot, and nothing of the query stays. Null where there is no graph to be judged.
create function rag.recall_at_10_v1(context text, query_vector public.halfvec, vector_model smallint)
returns table (recall double precision, chunks bigint)
language plpgsql stable security invoker
set search_path = ''
set plan_cache_mode = force_custom_plan
as $$
#variable_conflict use_column
declare
    tenant uuid := rag.open_context_v1(context);
    audiences bigint[] := rag.current_audiences();
    dimension integer;
    true_distances double precision[];
    found_distances double precision[];
begin
    perform 1 from rag.vector_index i where i.tenant_id = tenant and i.model_id = vector_model and i.ready;
    if not found then
        return;
    end if;
    select m.dimension into strict dimension from rag.embedding_model m where m.model_id = vector_model;
    -- as rag.search_v2 asks for a hundred candidates
    perform set_config('hnsw.ef_search', '300', true);
    perform set_config('hnsw.iterative_scan', 'strict_order', true);
    -- whatever the planner's statistics say of a tenant that has just grown
    perform set_config('enable_sort', 'off', true);
    execute format(
        'select array_agg(f.distance order by f.distance) from ('
        'select (e.vector::public.halfvec(%1$s)) operator(public.<=>) $1 as distance '
        'from rag.embedding e '
        'where e.tenant_id = $2 and e.model_id = $3 and e.audience = any ($4) '
        'order by (e.vector::public.halfvec(%1$s)) operator(public.<=>) $1 limit 100) f',
        dimension
    )
    into found_distances
    using query_vector, tenant, vector_model, audiences;
    perform set_config('enable_sort', 'on', true);
    -- without the cast no index fits: every vector is looked at
    select array_agg(f.distance order by f.distance)
    into true_distances
    from (
        select e.vector operator(public.<=>) query_vector as distance
        from rag.embedding e
        where e.tenant_id = tenant and e.model_id = vector_model and e.audience = any (audiences)
        order by distance
        limit 10
    ) f;
    if true_distances is null then
        return;
    end if;
    return query
    select
        -- by distance: of chunks that are equally near any will do
        count(*) filter (where d <= true_distances[cardinality(true_distances)])::double precision
            / cardinality(true_distances),
        (
            select sum(c.chunks) from rag.corpus_change c where c.tenant_id = tenant and c.audience = any (audiences)
        )::bigint
    from unnest(found_distances[1:cardinality(true_distances)]) d;
end
$$;
grant execute on function rag.recall_at_10_v1(text, public.halfvec, smallint) to bulkhead_app;
