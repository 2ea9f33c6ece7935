-- Writing a document: the text, its chunks and its postings in one transaction, so that it is found at commit.
-- The caller has opened the sealed context; nothing here names a tenant that the seal does not.

-- Takes a document's chunks out of the searchable corpus. Postings stay until compaction; tombstones hide them.
create function rag.drop_chunks_v1(document uuid) returns void
language sql volatile security invoker
set search_path = ''
as $$
    insert into rag.tombstone (tenant_id, chunk_id)
    select c.tenant_id, c.chunk_id
    from rag.chunk c
    where c.tenant_id = rag.current_tenant() and c.document_id = document;

    insert into rag.corpus_change (tenant_id, chunks, terms)
    select rag.current_tenant(), -count(*), -coalesce(sum(c.terms), 0)
    from rag.chunk c
    where c.tenant_id = rag.current_tenant() and c.document_id = document
    having count(*) > 0;

    delete from rag.chunk c where c.tenant_id = rag.current_tenant() and c.document_id = document;
$$;

-- Inserts or replaces the document that `source` names. The same content again changes nothing and says 'unchanged'.
-- Chunks arrive as parallel arrays in document order; headings are indexed with the text of their chunk.
create function rag.put_document_v1(
    document uuid,
    document_source text,
    document_title text,
    document_media_type text,
    document_metadata jsonb,
    hash bytea,
    body text,
    starts integer[],
    ends integer[],
    headings text[],
    texts text[]
)
returns table (outcome text, version integer)
language plpgsql volatile security invoker
set search_path = ''
as $$
declare
    tenant uuid := rag.current_tenant();
    config regconfig;
    stored rag.document;
    new_version integer;
begin
    select t.language into strict config from rag.tenant t where t.tenant_id = tenant;
    loop
        insert into rag.document as d (
            tenant_id, document_id, source, title, media_type, metadata, content_hash, text, chunks
        )
        values (
            tenant, document, document_source, document_title, document_media_type, document_metadata, hash, body,
            cardinality(texts)
        )
        -- no target: two first writers may collide on either of the two unique keys
        on conflict do nothing;
        if found then
            new_version := 1;
            outcome := 'created';
            exit;
        end if;
        select * into stored
        from rag.document d
        where d.tenant_id = tenant and d.source = document_source
        for update;
        -- not found: it was deleted between the two statements, so insert again
        if found then
            if stored.content_hash = hash then
                return query select 'unchanged'::text, stored.version;
                return;
            end if;
            perform rag.drop_chunks_v1(stored.document_id);
            new_version := stored.version + 1;
            outcome := 'updated';
            update rag.document d
            set title = document_title, media_type = document_media_type, metadata = document_metadata,
                content_hash = hash, text = body, chunks = cardinality(texts), version = new_version,
                updated_at = clock_timestamp()
            where d.tenant_id = tenant and d.document_id = stored.document_id;
            exit;
        end if;
    end loop;

    with piece as materialized (
        select nextval('rag.chunk_id_seq') as chunk_id, p.*
        from (
            select p.*
            from unnest(starts, ends, headings, texts) with ordinality as p (start_char, end_char, heading, text, n)
            order by p.n
        ) p
    ),
    word as materialized (
        select
            p.chunk_id,
            w.lexeme,
            cardinality(w.positions) as frequency,
            sum(cardinality(w.positions)) over (partition by p.chunk_id)::integer as length
        from piece p
        cross join lateral unnest(
            to_tsvector(config, concat_ws(E'\n', document_title, nullif(p.heading, ''), p.text))
        ) as w
    ),
    measured as materialized (
        select w.chunk_id, max(w.length) as length
        from word w
        group by w.chunk_id
    ),
    stored_chunk as (
        insert into rag.chunk (
            tenant_id, chunk_id, document_id, number, start_char, end_char, heading, text, terms
        )
        select tenant, p.chunk_id, document, p.n - 1, p.start_char, p.end_char, p.heading, p.text,
            coalesce(m.length, 0)
        from piece p
        left join measured m on m.chunk_id = p.chunk_id
        returning terms
    ),
    change as (
        insert into rag.corpus_change (tenant_id, chunks, terms)
        select tenant, count(*), coalesce(sum(s.terms), 0) from stored_chunk s
    )
    insert into rag.posting (tenant_id, term, chunk_ids, frequencies, lengths)
    select
        tenant,
        b.lexeme,
        array_agg(b.chunk_id order by b.chunk_id),
        array_agg(b.frequency order by b.chunk_id),
        array_agg(b.length order by b.chunk_id)
    from (
        select w.*, (row_number() over (partition by w.lexeme order by w.chunk_id) - 1) / 128 as block
        from word w
    ) b
    group by b.lexeme, b.block;

    perform queue.enqueue_embedding_v1(document);
    return query select outcome, new_version;
end
$$;

create function rag.delete_document_v1(document uuid) returns boolean
language plpgsql volatile security invoker
set search_path = ''
as $$
declare
    tenant uuid := rag.current_tenant();
begin
    perform 1 from rag.document d where d.tenant_id = tenant and d.document_id = document for update;
    if not found then
        return false;
    end if;
    perform rag.drop_chunks_v1(document);
    delete from rag.document d where d.tenant_id = tenant and d.document_id = document;
    perform queue.finish_embedding_v1(document);
    return true;
end
$$;

grant execute on function
    rag.drop_chunks_v1(uuid),
    rag.put_document_v1(uuid, text, text, text, jsonb, bytea, text, integer[], integer[], text[], text[]),
    rag.delete_document_v1(uuid)
to bulkhead_app;
