-- Hybrid search as most multi-tenant servers on Postgres have it: one table, a stored tsvector with a GIN index, one HNSW
-- index that all tenants share, row-level security on a setting. pgvector's default settings, plain types.
create table bench.plain (
    tenant_id uuid not null,
    id bigint generated always as identity primary key,
    document_id uuid not null,
    source text not null,
    title text not null,
    content text not null,
    tsv tsvector generated always as (
        setweight(to_tsvector('pg_catalog.english', title), 'A') || to_tsvector('pg_catalog.english', content)
    ) stored,
    embedding public.vector(384) not null
);
alter table bench.plain enable row level security;
alter table bench.plain force row level security;
create policy tenant on bench.plain
    using (tenant_id = current_setting('app.current_tenant', true)::uuid);
grant select on bench.plain to bulkhead_app;
