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

-- delete_document
-- Removes a document and returns the corpus version without it; null when there was none.
select rag.delete_document_v2({document_id});

-- pending_embeddings
-- How many of this tenant's documents still wait for vectors.
select queue.pending_embeddings_v1();

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
