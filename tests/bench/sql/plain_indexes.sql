create index plain_tenant on bench.plain (tenant_id);
create index plain_words on bench.plain using gin (tsv);
create index plain_vectors on bench.plain using hnsw (embedding public.vector_cosine_ops);
create index plain_computed on bench.plain using gin (to_tsvector('pg_catalog.english', content));
