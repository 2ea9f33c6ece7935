-- put_document
-- Writes the document that its source names; says created, updated or unchanged, and the versions that now stand.
select p.outcome, p.version, p.corpus_version
from rag.put_document_v2(
    {document_id}, {source}, {title}, {media_type}, {metadata}, {groups}, {content_hash}, {text},
    {starts}, {ends}, {headings}, {texts}
) p;

-- stored_hash
-- What an identical document would be recognised by, before any work is spent on it.
select d.content_hash, d.groups, d.version, d.chunks, rag.corpus_version_v1() as corpus_version
from rag.document d
where d.tenant_id = {tenant_id} and d.document_id = {document_id};

-- get_document
-- One document with the asked part of its text; `first` counts characters from 0.
select
    d.document_id, d.source, d.title, d.media_type, d.metadata, d.groups, d.version, d.chunks, d.created_at, d.updated_at,
    length(d.text) as characters,
    substr(d.text, {first}::integer + 1, {wanted}::integer) as part
from rag.document d
where d.tenant_id = {tenant_id} and d.document_id = {document_id};

-- list_documents
-- Documents in the order of their source, after the one named; one more than a page tells whether there is another.
select
    d.document_id, d.source, d.title, d.media_type, d.metadata, d.groups, d.version, d.chunks, d.created_at, d.updated_at,
    length(d.text) as characters
from rag.document d
where d.tenant_id = {tenant_id} and d.source > {after}
order by d.source
limit {wanted};

-- list_matching
-- The same, of the documents whose source begins so and whose record a filter leaves; either may be null.
select
    d.document_id, d.source, d.title, d.media_type, d.metadata, d.groups, d.version, d.chunks, d.created_at, d.updated_at,
    length(d.text) as characters
from rag.document d
where d.tenant_id = {tenant_id}
    and d.source > {after}
    and ({prefix}::text is null or starts_with(d.source, {prefix}::text))
    and (
        {filter}::text is null
        or (
            jsonb_build_object('source', d.source, 'title', d.title, 'media_type', d.media_type, 'metadata', d.metadata)
            -- writing times as text takes longer than all the rest of a filter
            || case
                when {filter}::text ~ '(created|updated)_at'
                then jsonb_build_object(
                    'created_at', to_char(d.created_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
                    'updated_at', to_char(d.updated_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
                )
                else '{}'
            end
        ) @@ {filter}::text::jsonpath
    )
order by d.source
limit {wanted};

-- get_passages
-- One document with the text around some of its chunks, `first` to `last`, and where each of these stands.
select
    d.document_id, d.source, d.title, d.media_type, d.metadata, d.groups, d.version, d.chunks, d.created_at, d.updated_at,
    length(d.text) as characters,
    p.start_char,
    substr(d.text, p.start_char + 1, least(p.end_char - p.start_char, {wanted}::integer)) as part,
    p.passages
from rag.document d
cross join lateral (
    select
        min(c.start_char) as start_char,
        max(c.end_char) as end_char,
        jsonb_agg(
            jsonb_build_object('chunk', c.number, 'heading', c.heading, 'start', c.start_char, 'end', c.end_char)
            order by c.number
        ) as passages
    from rag.chunk c
    where c.tenant_id = {tenant_id}
        and c.chunk_id >= d.ordinal << 20 | {first}::bigint
        and c.chunk_id <= d.ordinal << 20 | {last}::bigint
) p
where d.tenant_id = {tenant_id} and d.document_id = {document_id};

-- delete_document
-- Removes a document and returns the corpus version without it; null when there was none.
select rag.delete_document_v2({document_id});

-- pending_embeddings
-- How many of this tenant's documents still wait for vectors.
select queue.pending_embeddings_v1();

-- collection
-- What the caller may read of the collection, as one row. The size of a text is known without reading it.
with readable as materialized (
    select
        d.document_id, d.source, d.title, d.chunks, d.updated_at, d.media_type,
        octet_length(d.text) as text_bytes,
        d.metadata -> 'tags' as tags
    from rag.document d
    where d.tenant_id = {tenant_id}
)
select
    (select count(*) from readable) as documents,
    (select coalesce(sum(r.chunks), 0)::bigint from readable r) as chunks,
    (select coalesce(sum(r.text_bytes), 0)::bigint from readable r) as text_bytes,
    queue.pending_embeddings_v1() as pending,
    rag.corpus_version_v1() as corpus_version,
    t.language::text as language,
    m.name as model,
    m.dimension,
    (
        select coalesce(jsonb_object_agg(k.media_type, k.documents), '{}')
        from (select r.media_type, count(*) as documents from readable r group by r.media_type) k
    ) as media_types,
    (
        select coalesce(jsonb_agg(jsonb_build_array(k.tag, k.documents) order by k.documents desc, k.tag), '[]')
        from (
            select g.tag #>> '{}' as tag, count(distinct r.document_id) as documents
            from readable r
            cross join lateral jsonb_path_query(r.tags, 'lax $[*] ? (@.type() == "string")') as g (tag)
            where length(g.tag #>> '{}') between 1 and {longest_tag}
            group by 1
            order by 2 desc, 1
            limit {most}
        ) k
    ) as tags,
    (
        select coalesce(jsonb_agg(to_jsonb(k) order by k.text_bytes desc, k.document_id), '[]')
        from (
            select r.document_id, r.source, r.title, r.chunks, r.text_bytes, r.updated_at
            from readable r
            order by r.text_bytes desc, r.document_id
            limit {named}
        ) k
    ) as largest,
    (
        select coalesce(jsonb_agg(to_jsonb(k) order by k.updated_at desc, k.document_id), '[]')
        from (
            select r.document_id, r.source, r.title, r.chunks, r.text_bytes, r.updated_at
            from readable r
            order by r.updated_at desc, r.document_id
            limit {named}
        ) k
    ) as newest
from rag.tenant t
join rag.embedding_model m on m.model_id = coalesce(t.model_id, {default_model}::smallint)
where t.tenant_id = {tenant_id};

-- claim_embeddings
-- Leases documents whose chunks wait for vectors, each with a seal for its tenant.
select c.document_id, c.attempts, c.seal
from queue.claim_embeddings_v2({wanted}, {lease_s}) c;

-- hold_document
-- Keeps writers away from a document until this transaction ends; no row when it is gone.
select d.version
from rag.document d
where d.tenant_id = (select rag.current_tenant()) and d.document_id = {document_id}
for update;

-- list_unembedded
-- Chunks of a document that have no vector of this model yet, in order, with the title that they stand under.
select c.chunk_id, d.title, c.text
from rag.chunk c
join rag.document d on d.tenant_id = c.tenant_id and d.document_id = c.document_id
where c.tenant_id = (select rag.current_tenant())
    and c.document_id = {document_id}
    and not exists (
        select
        from rag.embedding e
        where e.tenant_id = (select rag.current_tenant()) and e.model_id = {model_id} and e.chunk_id = c.chunk_id
    )
order by c.number
limit {wanted};

-- store_vectors
-- Adds vectors to chunks of a document that is held; those that were deleted before are passed over.
insert into rag.embedding (tenant_id, model_id, chunk_id, document_id, vector, audience)
select c.tenant_id, {model_id}, c.chunk_id, c.document_id, v.vector, c.audience
from unnest({chunk_ids}::bigint[], {vectors}::public.halfvec[]) as v (chunk_id, vector)
join rag.chunk c on c.tenant_id = (select rag.current_tenant()) and c.chunk_id = v.chunk_id
on conflict do nothing;

-- finish_embedding
-- Takes a document off the queue: all of its chunks have vectors.
select queue.finish_embedding_v1({document_id});

-- list_entries
-- Documents in the order of their source, with their size instead of their text; TOAST knows it without reading one.
select
    d.document_id, d.source, d.title, d.media_type, d.version, d.chunks, d.updated_at,
    octet_length(d.text) as bytes
from rag.document d
where d.tenant_id = {tenant_id} and d.source > {after}
order by d.source
limit {wanted};

-- entry
-- One document, likewise.
select
    d.document_id, d.source, d.title, d.media_type, d.version, d.chunks, d.updated_at,
    octet_length(d.text) as bytes
from rag.document d
where d.tenant_id = {tenant_id} and d.document_id = {document_id};

-- entries_of_title
-- The documents of exactly this title, likewise.
select
    d.document_id, d.source, d.title, d.media_type, d.version, d.chunks, d.updated_at,
    octet_length(d.text) as bytes
from rag.document d
where d.tenant_id = {tenant_id} and d.title_key = left(lower({title}::text), 200) and d.title = {title}::text
order by d.document_id
limit {wanted};

-- titles_from
-- Titles that begin so, whatever the letter case, in their order; none of UTF-8 sorts after U+10FFFF.
select t.document_id, d.title
from (
    select k.document_id, k.title_key
    from rag.document k
    where k.tenant_id = {tenant_id}
        and k.title_key >= left(lower({prefix}::text), 200)
        and k.title_key < left(lower({prefix}::text), 200) || chr(1114111)
    order by k.title_key, k.document_id
    limit {wanted}
) t
cross join lateral (
    select e.title
    from rag.document e
    where e.tenant_id = {tenant_id} and e.document_id = t.document_id
    offset 0
) d
where starts_with(lower(d.title), lower({prefix}::text))
order by t.title_key, t.document_id;

-- ids_between
-- Documents whose ids lie between two, both included, in their order.
select d.document_id, d.title
from rag.document d
where d.tenant_id = {tenant_id} and d.document_id between {first} and {last}
order by d.document_id
limit {wanted};

-- recent_tags
-- What stands under "tags" in the metadata of the documents written last, where it begins so, whatever the letter case.
select distinct t.tag, lower(t.tag) collate "C" as folded
from (
    select d.metadata -> 'tags' as tags
    from rag.document d
    where d.tenant_id = {tenant_id}
    order by d.ordinal desc
    limit {looked_at}
) r
cross join lateral (
    select e #>> '{}' as tag
    from jsonb_array_elements(case jsonb_typeof(r.tags) when 'array' then r.tags else jsonb_build_array(r.tags) end) e
    where jsonb_typeof(e) = 'string'
) t
where t.tag <> '' and starts_with(lower(t.tag), lower({prefix}::text))
order by folded, t.tag
limit {wanted};

-- passage_at
-- The number of the first chunk that reaches beyond a character of the document's text.
select c.number
from rag.chunk c
where c.tenant_id = {tenant_id} and c.document_id = {document_id} and c.end_char > {position}
order by c.number
limit 1;
