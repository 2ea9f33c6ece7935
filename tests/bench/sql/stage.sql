-- What the benchmarks put beside the product: staged rows, the questions, a long-lived seal for each tenant.
-- COPY is refused under row-level security: an administrator copies into unlogged tables, the tenant inserts from them.
create schema bench;
grant usage on schema bench to bulkhead_app;

create unlogged table bench.staged_document (
    tenant_id uuid not null,
    number integer not null,
    ordinal bigint not null default nextval('rag.ordinal_seq'),
    document_id uuid not null,
    source text not null,
    title text not null,
    text text not null,
    chunks integer not null
);

create unlogged table bench.staged_chunk (
    tenant_id uuid not null,
    document integer not null,         -- staged_document.number
    number integer not null,
    start_char integer not null,
    end_char integer not null,
    heading text not null,
    text text not null,
    vector public.halfvec not null
);

-- The words of staged chunks, for blocks that are made in one go (fill_postings.sql).
create table bench.word (
    term text not null,
    chunk_id bigint not null,
    frequency smallint not null,
    title_frequency smallint not null,
    length smallint not null
) partition by hash (term);
do $$
begin
    for part in 0..15 loop
        execute format(
            'create unlogged table bench.%I partition of bench.word for values with (modulus 16, remainder %s)',
            'word_' || lpad(part::text, 2, '0'), part
        );
    end loop;
end
$$;
create unlogged table bench.measure (
    ordinal bigint not null,
    chunks integer not null,
    terms bigint not null
);

create table bench.caller (
    documents integer primary key,     -- the tenant is named by its size
    tenant_id uuid not null,
    model_id smallint not null,
    seal text not null
);

create table bench.question (
    documents integer not null,
    number integer not null,
    query text not null,
    vector public.halfvec not null,
    primary key (documents, number)
);

grant select on all tables in schema bench to bulkhead_app;
