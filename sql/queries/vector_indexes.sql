-- lead
-- Whether this session is the one that builds; it stays so until the session ends.
select pg_catalog.pg_try_advisory_lock(7102211);

-- vector_counts
-- Tenants with so many vectors of a model, counted up to `most`. Only tenants with as many chunks are looked into.
select s.tenant_id, m.model_id, m.dimension, v.vectors
from (
    select c.tenant_id
    from rag.corpus_change c
    group by c.tenant_id
    having sum(c.chunks) >= {least}::bigint
) s
cross join rag.embedding_model m
cross join lateral (
    select count(*) as vectors
    from (
        select
        from rag.embedding e
        where e.tenant_id = s.tenant_id and e.model_id = m.model_id
        limit {most}::bigint
    ) e
) v
where v.vectors >= {least}::bigint;

-- vectors_of
-- How many vectors of a model a tenant has.
select count(*) from rag.embedding e where e.tenant_id = {tenant_id} and e.model_id = {model_id}::smallint;

-- built
-- Every graph in the database and every one in the register; `valid` is null where there is none, `tenant_id` where nobody
-- has registered it.
select coalesce(i.index_name, r.index_name) as index_name, i.valid, r.tenant_id, r.model_id, coalesce(r.ready, false) as ready
from (
    select c.relname::text as index_name, x.indisvalid and x.indisready as valid
    from pg_catalog.pg_index x
    join pg_catalog.pg_class c on c.oid = x.indexrelid
    join pg_catalog.pg_inherits h on h.inhrelid = x.indrelid
    where h.inhparent = 'rag.embedding'::regclass and c.relname ~ '^graph_[0-9a-f]{32}_[0-9]+$'
) i
full join rag.vector_index r on r.index_name = i.index_name;

-- register
-- Says that a graph is being built; searches do not use it yet. Returns its name.
insert into rag.vector_index as i (tenant_id, model_id, index_name)
values (
    {tenant_id}::uuid, {model_id}::smallint,
    format('graph_%s_%s', replace({tenant_id}::uuid::text, '-', ''), {model_id}::smallint)
)
on conflict (tenant_id, model_id) do update set ready = false, built_at = null, built_chunks = null
returning i.index_name;

-- enable
-- Lets searches use a graph: what stands is whole.
update rag.vector_index i
set ready = true, built_chunks = {vectors}, built_at = clock_timestamp()
where i.tenant_id = {tenant_id} and i.model_id = {model_id}::smallint;

-- disable
-- Keeps searches from a graph from now on.
update rag.vector_index i
set ready = false
where i.tenant_id = {tenant_id} and i.model_id = {model_id}::smallint;

-- forget
-- Takes a graph out of the register.
delete from rag.vector_index i where i.tenant_id = {tenant_id} and i.model_id = {model_id}::smallint;

-- create_statement
-- The statement that builds a graph on the one partition that holds the tenant.
select format(
    'create index concurrently %I on %s using hnsw ((vector::public.halfvec(%s)) public.halfvec_cosine_ops) '
    'with (m = %s, ef_construction = %s) where tenant_id = %L and model_id = %L::smallint',
    {index_name}::text, c.oid::regclass, {dimension}::integer, {m}::integer, {ef_construction}::integer, {tenant_id}::uuid,
    {model_id}::smallint
)
from pg_catalog.pg_inherits h
join pg_catalog.pg_class c on c.oid = h.inhrelid
cross join lateral regexp_match(pg_get_expr(c.relpartbound, c.oid), 'modulus (\d+), remainder (\d+)') b
where h.inhparent = 'rag.embedding'::regclass
    and satisfies_hash_partition(h.inhparent, b[1]::integer, b[2]::integer, {tenant_id}::uuid);

-- analyze_statement
-- The statement after which the planner knows how many vectors the graph's partition has: without, it took a large tenant
-- for a small one and sorted all of its vectors.
select format('analyze %s (tenant_id, model_id, chunk_id, audience, document_id)', i.indrelid::regclass)
from pg_catalog.pg_index i
where i.indexrelid = format('rag.%I', {index_name}::text)::regclass;

-- drop_statement
-- The statement that drops a graph.
select format('drop index concurrently if exists rag.%I', {index_name}::text);

-- build_memory
-- How the server shall build: working memory in kB, and helpers beside the session's own process.
select
    set_config('maintenance_work_mem', {memory_kb}::integer::text, false),
    set_config('max_parallel_maintenance_workers', {workers}::integer::text, false);
