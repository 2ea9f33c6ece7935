-- A tenant's documents, their chunks, posting blocks and vectors (retrieval.md 2-3).
-- Every key starts with tenant_id; every table carries the same policy. Values of the global sequences order rows
-- within a tenant and never leave the server: their gaps would tell one tenant of another's writes.

create sequence rag.chunk_id_seq as bigint;
create sequence rag.posting_block_seq as bigint;
grant usage on sequence rag.chunk_id_seq, rag.posting_block_seq to bulkhead_app;

-- One row per model that has filled vectors; a new model is filled beside the old one (retrieval.md 3).
create table rag.embedding_model (
    model_id smallint generated always as identity primary key,
    name text not null,
    dimension integer not null check (dimension between 1 and 4000),
    constraint embedding_model_unique unique (name, dimension)
);
grant select on rag.embedding_model to bulkhead_app, bulkhead_maintenance;

create table rag.document (
    tenant_id uuid not null references rag.tenant,
    document_id uuid not null,
    source text not null,
    title text not null,
    media_type text not null,
    metadata jsonb not null default '{}',
    content_hash bytea not null,
    text text not null,
    version integer not null default 1,
    chunks integer not null,
    created_at timestamptz not null default clock_timestamp(),
    updated_at timestamptz not null default clock_timestamp(),
    primary key (tenant_id, document_id),
    constraint document_source_unique unique (tenant_id, source),
    constraint document_source_length check (length(source) between 1 and 1024),
    constraint document_title_length check (length(title) between 1 and 512)
);

create table rag.chunk (
    tenant_id uuid not null,
    chunk_id bigint not null,
    document_id uuid not null,
    number integer not null,           -- position in the document, from 0
    start_char integer not null,       -- half-open character span in document.text
    end_char integer not null,
    heading text not null,
    text text not null,
    terms integer not null,            -- length in indexed terms: BM25's dl
    primary key (tenant_id, chunk_id),
    constraint chunk_span check (0 <= start_char and start_char < end_char),
    constraint chunk_document foreign key (tenant_id, document_id) references rag.document on delete cascade
) partition by hash (tenant_id);
create index chunk_by_document on rag.chunk (tenant_id, document_id, number);

create table rag.embedding (
    tenant_id uuid not null,
    model_id smallint not null references rag.embedding_model,
    chunk_id bigint not null,
    document_id uuid not null,
    vector public.halfvec not null,
    primary key (tenant_id, model_id, chunk_id),
    constraint embedding_chunk foreign key (tenant_id, chunk_id) references rag.chunk on delete cascade
) partition by hash (tenant_id);
-- the cascade from rag.chunk looks rows up by chunk alone
create index embedding_by_chunk on rag.embedding (tenant_id, chunk_id);

-- At most 128 postings a row. Under row-level security a GIN index is unusable (tsv @@ query is not leakproof), while
-- equality on (tenant_id, term) is: retrieval.md 1 measured 269 ms against 0.1 ms.
create table rag.posting (
    tenant_id uuid not null references rag.tenant,
    term text not null,
    block bigint not null default nextval('rag.posting_block_seq'),
    chunk_ids bigint[] not null,
    frequencies integer[] not null,    -- tf of the term in each chunk
    lengths integer[] not null,        -- dl of each chunk
    primary key (tenant_id, term, block),
    constraint posting_block_size check (cardinality(chunk_ids) between 1 and 128),
    constraint posting_block_shape check (
        cardinality(chunk_ids) = cardinality(frequencies) and cardinality(chunk_ids) = cardinality(lengths)
    )
) partition by hash (tenant_id);

-- Chunks that left the corpus while their postings still stand; searches take them out before the top-k.
create table rag.tombstone (
    tenant_id uuid not null references rag.tenant,
    chunk_id bigint not null,
    primary key (tenant_id, chunk_id)
);

-- N and the sum of lengths as append-only changes: a shared counter row would make a tenant's writers queue.
create table rag.corpus_change (
    tenant_id uuid not null references rag.tenant,
    change_id uuid not null default gen_random_uuid(),
    chunks integer not null,
    terms bigint not null,
    primary key (tenant_id, change_id)
);

do $$
declare
    parent text;
    part integer;
begin
    foreach parent in array array['chunk', 'embedding', 'posting'] loop
        for part in 0..15 loop
            execute format(
                'create table rag.%I partition of rag.%I for values with (modulus 16, remainder %s)',
                parent || '_' || lpad(part::text, 2, '0'), parent, part
            );
        end loop;
    end loop;
end
$$;

-- The one policy of every tenant table. Partitions get it too: a partition named directly must be as closed as its parent.
create procedure rag.isolate(target regclass)
language plpgsql
set search_path = ''
as $$
begin
    execute format('alter table %s enable row level security', target);
    execute format('alter table %s force row level security', target);
    execute format(
        'create policy tenant_isolation on %s to bulkhead_app '
        'using (tenant_id = (select rag.current_tenant())) with check (tenant_id = (select rag.current_tenant()))',
        target
    );
end
$$;

do $$
declare
    target regclass;
begin
    for target in
        select c.oid::regclass
        from pg_class c
        where c.relnamespace = 'rag'::regnamespace
            and c.relkind in ('r', 'p')
            and c.relname ~ '^(document|chunk|embedding|posting)(_\d\d)?$|^(tombstone|corpus_change)$'
    loop
        call rag.isolate(target);
    end loop;
end
$$;

grant select, insert, update, delete on rag.document to bulkhead_app;
grant select, insert, delete on rag.chunk, rag.embedding, rag.posting to bulkhead_app;
grant select, insert on rag.tombstone, rag.corpus_change to bulkhead_app;
